//! fjall 3 with key-value separation.
//!
//! fjall syncs its journal while it holds the lock that every write needs. Therefore one thread
//! gathers the callers that need durability: one batch, one `persist(SyncData)` for all of them. A
//! write without a sync goes straight to fjall on the thread of the caller, unless it must follow a
//! waiting write.

use std::path::Path;
use std::time::Instant;

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use anyhow::Result;
use tidespool_core::{Locked, SpoolId};

use super::committer::{Committer, Sink};
use super::error::EngineError;
use super::spool::{Backend, Held, Payload, Setup};
use super::write::{Write, id_of};

const NAME: &str = "fjall";
/// The block and blob cache of fjall, in bytes.
const CACHE_BYTES: u64 = 128 << 20;

/// The settings that matter, for reports.
pub(super) const SETTINGS: &str = "fjall 3.1: KV separation from 1 KiB (its default), blobs not compressed, cache 128 MiB, \
     memtables 64 MiB; journal persisted by SyncData once for all waiting callers, unsynced writes stay in its buffer";

/// An open database. Fields are dropped in this order: the committer uses the others.
pub(crate) struct Fjall {
    committer: Committer<Write>,
    messages: Keyspace,
    db: Database,
}

impl Fjall {
    /// Opens the database in `dir`. Blocks.
    pub(crate) fn open(dir: &Path, setup: Setup) -> Result<Self> {
        let locked = |err| match err {
            ::fjall::Error::Locked => Locked { path: dir.to_owned(), pid: None }.into(),
            err => anyhow::Error::new(EngineError::at(NAME, "opening")(err)),
        };
        let db = Database::builder(dir)
            .cache_size(setup.cache_bytes(CACHE_BYTES))
            .manual_journal_persist(true)
            .open()
            .map_err(locked)?;
        let options = || {
            let separation = KvSeparationOptions::default().compression(::fjall::CompressionType::None);
            KeyspaceCreateOptions::default().manual_journal_persist(true).with_kv_separation(Some(separation))
        };
        let messages = db.keyspace("messages", options).map_err(EngineError::at(NAME, "opening"))?;
        let committer = Committer::start(NAME, Batches { db: db.clone(), messages: messages.clone() })?;
        Ok(Self { committer, messages, db })
    }
}

/// The state of the committer thread.
struct Batches {
    db: Database,
    messages: Keyspace,
}

impl Sink for Batches {
    type Job = Write;

    fn apply(&mut self, batch: &[Write], _sync: bool) -> Result<(), EngineError> {
        let mut changes = self.db.batch();
        for write in batch {
            match write.value() {
                Some(data) => changes.insert(&self.messages, *write.key(), data),
                None => changes.remove(&self.messages, *write.key()),
            }
        }
        changes.commit().map_err(EngineError::at(NAME, "writing"))
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.db.persist(PersistMode::SyncData).map_err(EngineError::at(NAME, "syncing"))
    }
}

impl Backend for Fjall {
    const NAME: &'static str = NAME;

    /// Loads on the thread of the caller: most messages are in a cache, and fjall has no call to
    /// check it.
    async fn load(this: &Held<Self>, id: SpoolId) -> Result<Option<Vec<u8>>> {
        let data = this.messages.get(id.as_bytes()).map_err(EngineError::at(NAME, "reading"))?;
        Ok(data.map(|data| data.to_vec()))
    }

    async fn store(
        this: &Held<Self>,
        id: SpoolId,
        data: Payload,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if !force_sync && this.committer.is_idle() {
            let inserted = this.messages.insert(*id.as_bytes(), &**data);
            return Ok(inserted.map_err(EngineError::at(NAME, "writing"))?);
        }
        this.committer.commit(Write::put(id, data), force_sync, deadline).await
    }

    async fn remove(this: &Held<Self>, id: SpoolId) -> Result<()> {
        if this.committer.is_idle() {
            let removed = this.messages.remove(*id.as_bytes());
            return Ok(removed.map_err(EngineError::at(NAME, "removing"))?);
        }
        this.committer.commit(Write::remove(id), false, None).await
    }

    fn walk(&self, visit: &mut dyn FnMut(SpoolId, Vec<u8>) -> bool) -> Result<()> {
        for entry in self.messages.iter() {
            let (key, data) = entry.into_inner().map_err(EngineError::at(NAME, "reading"))?;
            if let Some(id) = id_of(&key)
                && !visit(id, data.to_vec())
            {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll).map_err(EngineError::at(NAME, "syncing"))?)
    }

    fn compact(&self) -> Result<()> {
        self.flush()?;
        self.messages.rotate_memtable_and_wait().map_err(EngineError::at(NAME, "flushing memtables"))?;
        Ok(self.messages.major_compact().map_err(EngineError::at(NAME, "compacting"))?)
    }

    fn close(mut self) -> Result<()> {
        self.committer.stop()?;
        self.flush()
    }
}
