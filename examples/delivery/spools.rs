//! The two spools of a mail server. The only module that uses Tidespool beyond the `Spool` trait.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tidespool::{Config, TieredSpool};
use tidespool_core::{Spool, SpoolEntry};

use crate::input::MAX_MESSAGE_BYTES;

/// Longest time from an acknowledgement to stable storage, also without `--sync`.
pub(crate) const DIRTY_EXPIRE: Duration = Duration::from_millis(500);

const MIB: u64 = 1 << 20;

/// The spool of the messages, and the spool of their metadata.
#[derive(Debug)]
pub(crate) struct Spools {
    data: Arc<TieredSpool>,
    meta: Arc<TieredSpool>,
}

/// Figures from the statistics of a spool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpoolFigures {
    /// Share of loads that were served from memory. `None` before the first load.
    pub(crate) hit_ratio: Option<f64>,
    /// Bytes accepted and not yet on stable storage.
    pub(crate) dirty_bytes: u64,
    /// Stores that were never written because the message was removed or replaced first.
    pub(crate) elided_writes: u64,
}

impl Spools {
    /// Opens both spools. A mail server does this once, at its start.
    pub(crate) async fn open(data: PathBuf, meta: PathBuf) -> Result<Self> {
        // Messages are large and never change. Metadata is small and is saved again on each retry.
        let data = Config::new(data)
            .memory_budget(64 * MIB)
            .segment_size(16 * MIB)
            .journal_capacity(128 * MIB)
            .max_message_size(MAX_MESSAGE_BYTES)
            .dirty_expire(DIRTY_EXPIRE);
        let meta = Config::new(meta)
            .memory_budget(16 * MIB)
            .segment_size(4 * MIB)
            .journal_capacity(32 * MIB)
            .max_message_size(MIB)
            .dirty_expire(DIRTY_EXPIRE);
        let data = open_one(data).await?;
        let meta = match open_one(meta).await {
            Ok(meta) => meta,
            Err(err) => {
                data.shutdown().await.context("closing the data spool")?;
                return Err(err);
            }
        };
        Ok(Self { data: Arc::new(data), meta: Arc::new(meta) })
    }

    pub(crate) fn data(&self) -> &dyn Spool {
        self.data.as_ref()
    }

    pub(crate) fn meta(&self) -> &dyn Spool {
        self.meta.as_ref()
    }

    pub(crate) fn data_figures(&self) -> SpoolFigures {
        figures(&self.data)
    }

    pub(crate) fn meta_figures(&self) -> SpoolFigures {
        figures(&self.meta)
    }

    /// Makes everything durable and closes both spools. An error of one does not keep the other
    /// open.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        let (data, meta) = tokio::join!(self.data.shutdown(), self.meta.shutdown());
        data.context("closing the data spool")?;
        meta.context("closing the meta spool")
    }
}

async fn open_one(config: Config) -> Result<TieredSpool> {
    let path = config.path.clone();
    TieredSpool::open(config).await.with_context(|| format!("cannot open the spool {}", shown(&path)))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn figures(spool: &TieredSpool) -> SpoolFigures {
    let stats = spool.stats();
    SpoolFigures {
        hit_ratio: stats.hit_ratio(),
        dirty_bytes: stats.gauges.dirty_bytes,
        elided_writes: stats.elided_writes,
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
