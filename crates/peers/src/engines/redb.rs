//! redb 4. It allows one writer at a time, so one thread puts all waiting changes into one
//! transaction.
//!
//! A transaction is durable (`Durability::Immediate`) if one of its callers requires it, otherwise
//! not (`None`). redb frees pages for reuse only after the next durable transaction, so at least
//! every [`DURABLE_EVERY_BYTES`] one is durable.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ::redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition,
};
use anyhow::Result;
use tidespool_core::{Locked, SpoolId};

use super::committer::{Committer, Sink};
use super::error::EngineError;
use super::spool::{Backend, Held, Payload, Setup};
use super::write::Write;

const NAME: &str = "redb";
const MESSAGES: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("messages");
const CACHE_BYTES: u64 = 256 << 20;
/// After this many bytes a transaction is durable even if no caller requires it.
const DURABLE_EVERY_BYTES: usize = 64 << 20;

/// The settings that matter, for reports.
pub(super) const SETTINGS: &str = "redb 4.6: cache 256 MiB; one transaction for all waiting callers, Durability::Immediate where one of \
     them asked for it, else None, and Immediate every 64 MiB";

/// An open database. The committer is dropped first.
pub(crate) struct Redb {
    committer: Committer<Write>,
    db: Arc<Database>,
}

impl Redb {
    /// Opens the database in `dir`. Blocks.
    pub(crate) fn open(dir: &Path, setup: Setup) -> Result<Self> {
        let failed = |err| match err {
            DatabaseError::DatabaseAlreadyOpen => Locked { path: dir.to_owned(), pid: None }.into(),
            err => anyhow::Error::new(EngineError::at(NAME, "opening")(err)),
        };
        let db = Builder::new()
            .set_cache_size(setup.cache_usize(CACHE_BYTES))
            .create(dir.join("redb"))
            .map_err(failed)?;
        let db = Arc::new(db);
        let mut transactions = Transactions { db: Arc::clone(&db), not_durable: 0 };
        // Creates the table, so that readers find it.
        transactions.apply(&[], true)?;
        Ok(Self { committer: Committer::start(NAME, transactions)?, db })
    }
}

/// The state of the committer thread.
struct Transactions {
    db: Arc<Database>,
    /// Bytes since the last durable transaction.
    not_durable: usize,
}

impl Transactions {
    fn transact(&mut self, batch: &[Write], durability: Durability) -> Result<(), ::redb::Error> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(durability)?;
        {
            let mut messages = transaction.open_table(MESSAGES)?;
            for write in batch {
                match write.value() {
                    Some(data) => drop(messages.insert(write.key(), data)?),
                    None => drop(messages.remove(write.key())?),
                }
            }
        }
        Ok(transaction.commit()?)
    }
}

impl Sink for Transactions {
    type Job = Write;

    fn apply(&mut self, batch: &[Write], sync: bool) -> Result<(), EngineError> {
        self.not_durable += batch.iter().map(super::committer::Job::bytes).sum::<usize>();
        let durable = sync || self.not_durable >= DURABLE_EVERY_BYTES;
        let durability = if durable { Durability::Immediate } else { Durability::None };
        self.transact(batch, durability).map_err(EngineError::at(NAME, "writing"))?;
        if durable {
            self.not_durable = 0;
        }
        Ok(())
    }

    /// The transaction has synced already.
    fn sync(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

impl Backend for Redb {
    const NAME: &'static str = NAME;

    /// Loads on the thread of the caller: most messages are in the cache, and redb has no call to
    /// check it.
    async fn load(this: &Held<Self>, id: SpoolId) -> Result<Option<Vec<u8>>> {
        let read = || -> Result<_, ::redb::Error> {
            let messages = this.db.begin_read()?.open_table(MESSAGES)?;
            Ok(messages.get(id.as_bytes())?.map(|data| data.value().to_vec()))
        };
        Ok(read().map_err(EngineError::at(NAME, "reading"))?)
    }

    async fn store(
        this: &Held<Self>,
        id: SpoolId,
        data: Payload,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        this.committer.commit(Write::put(id, data), force_sync, deadline).await
    }

    async fn remove(this: &Held<Self>, id: SpoolId) -> Result<()> {
        this.committer.commit(Write::remove(id), false, None).await
    }

    fn walk(&self, visit: &mut dyn FnMut(SpoolId, Vec<u8>) -> bool) -> Result<()> {
        let mut walk = || -> Result<(), ::redb::Error> {
            let messages = self.db.begin_read()?.open_table(MESSAGES)?;
            for entry in messages.iter()? {
                let (key, data) = entry?;
                if !visit(SpoolId::from_bytes(*key.value()), data.value().to_vec()) {
                    break;
                }
            }
            Ok(())
        };
        Ok(walk().map_err(EngineError::at(NAME, "reading"))?)
    }

    /// A durable transaction makes all earlier ones durable.
    fn flush(&self) -> Result<()> {
        let mut transactions = Transactions { db: Arc::clone(&self.db), not_durable: 0 };
        Ok(transactions.apply(&[], true)?)
    }

    fn close(mut self) -> Result<()> {
        self.committer.stop()?;
        self.flush()
    }
}
