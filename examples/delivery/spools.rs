//! The two spools of a mail server. The only module that uses Tidespool beyond the `Spool` trait.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tidespool::{Config, Tidespool, TieredSpool};
use tidespool_core::{Spool, SpoolEntry, SpoolId};

use crate::input::MAX_MESSAGE_BYTES;

/// Longest time from an acknowledgement to stable storage, also without `--sync`.
pub(crate) const DIRTY_EXPIRE: Duration = Duration::from_millis(500);

const MIB: u64 = 1 << 20;

/// The bytes of a message.
type Payload = Arc<Box<[u8]>>;

/// The store with the spool of the messages and the spool of their metadata.
#[derive(Debug)]
pub(crate) struct Spools {
    store: Tidespool,
    data: TieredSpool,
    meta: TieredSpool,
}

/// Figures from the statistics of the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// Share of loads of data that were served from memory. `None` before the first load.
    pub(crate) data_hit_ratio: Option<f64>,
    /// The same for metadata.
    pub(crate) meta_hit_ratio: Option<f64>,
    /// Bytes accepted and not yet on stable storage.
    pub(crate) dirty_bytes: u64,
    /// Stores that were never written because the message was removed or replaced first.
    pub(crate) elided_writes: u64,
}

impl Spools {
    /// Opens the store in `dir`. A mail server does this once, at its start.
    pub(crate) async fn open(dir: PathBuf) -> Result<Self> {
        let config = Config::new(dir)
            .memory_budget(80 * MIB)
            .segment_size(16 * MIB)
            .journal_capacity(160 * MIB)
            .max_message_size(MAX_MESSAGE_BYTES)
            .dirty_expire(DIRTY_EXPIRE);
        let path = config.path.clone();
        let store = Tidespool::open(config);
        let store = store.await.with_context(|| format!("cannot open the spool {}", path.display()))?;
        let (data, meta) = (store.spool("data")?, store.spool("meta")?);
        Ok(Self { store, data, meta })
    }

    pub(crate) fn data(&self) -> &dyn Spool {
        &self.data
    }

    pub(crate) fn meta(&self) -> &dyn Spool {
        &self.meta
    }

    /// Stores a message and its metadata. With `sync` both are on stable storage when it returns
    /// `Ok`, and after a crash both are there or none.
    pub(crate) async fn accept(
        &self,
        id: SpoolId,
        data: Payload,
        meta: Payload,
        sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if sync {
            return self.store.accept([(&self.data, id, data), (&self.meta, id, meta)], deadline).await;
        }
        // Data first: metadata without data would be a message that cannot be delivered.
        self.data.store(id, data, false, deadline).await?;
        if let Err(err) = self.meta.store(id, meta, false, deadline).await {
            self.data.remove(id).await.context("removing the data of a rejected message")?;
            return Err(err);
        }
        Ok(())
    }

    pub(crate) fn figures(&self) -> Figures {
        let store = self.store.stats();
        Figures {
            data_hit_ratio: self.data.stats().hit_ratio(),
            meta_hit_ratio: self.meta.stats().hit_ratio(),
            dirty_bytes: store.gauges.dirty_bytes,
            elided_writes: store.elided_writes,
        }
    }

    /// Makes everything durable and closes both spools.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        self.store.shutdown().await.context("closing the spools")
    }
}

/// Calls `visit` for each message in the spool.
pub(crate) async fn each(spool: &dyn Spool, mut visit: impl FnMut(SpoolEntry) -> Result<()>) -> Result<()> {
    // The channel is small because an entry carries the whole message.
    let (sender, receiver) = async_channel::bounded(16);
    // Ids of a burst may be a little ahead of the clock, and all of them are wanted.
    spool.enumerate(sender, chrono::Utc::now() + chrono::TimeDelta::hours(1))?;
    while let Ok(entry) = receiver.recv().await {
        // An early end means that entries are missing from the list, not that they are lost.
        ensure!(!entry.is_early_end(), "the disk can't be read now: {entry:?}");
        visit(entry)?;
    }
    Ok(())
}
