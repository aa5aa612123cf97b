//! What is measured: a spool, or the raw journal.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use tidespool::{Config, TieredSpool};
use tidespool_core::{Spool, SpoolId};

use super::local_disk::LocalDiskSpool;
use super::raw_journal::RawJournal;

/// Above this the spool's own limit on messages is raised to the size asked for.
const RAISE_MAX_MESSAGE_SIZE_ABOVE: u64 = 32 << 20;

/// The engines by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The tiered spool, with its default settings.
    Tidespool,
    /// A file for each message: written to a temporary file, synced with --force-sync, renamed into a directory.
    LocalDisk,
    /// The machine's limit: the same batches appended to prewritten files, synced with --force-sync; only stores.
    RawJournal,
}

/// What an engine has to know before it is opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) kind: Kind,
    pub(super) size: usize,
    pub(super) concurrency: usize,
    pub(super) force_sync: bool,
    pub(super) memory_budget: Option<u64>,
}

/// An open engine.
pub(super) enum Engine {
    Spool(Arc<dyn Spool>),
    RawJournal(RawJournal),
}

impl Engine {
    /// Opens an engine in `dir`, which is empty.
    pub(super) async fn open(settings: Settings, dir: &Path) -> Result<Self> {
        match settings.kind {
            Kind::Tidespool => {
                let mut config = Config::new(dir.join("spool"));
                if let Some(budget) = settings.memory_budget {
                    config = config.memory_budget(budget);
                }
                if settings.size as u64 > RAISE_MAX_MESSAGE_SIZE_ABOVE {
                    config = config.max_message_size(settings.size as u64);
                }
                let spool = TieredSpool::open(config).await.context("opening the spool")?;
                Ok(Self::Spool(Arc::new(spool)))
            }
            Kind::LocalDisk => Ok(Self::Spool(Arc::new(LocalDiskSpool::open(dir).await?))),
            Kind::RawJournal => {
                let dir = dir.to_owned();
                let Settings { concurrency, size, force_sync, .. } = settings;
                let create = move || RawJournal::create(&dir, concurrency, size, force_sync);
                Ok(Self::RawJournal(tokio::task::spawn_blocking(create).await??))
            }
        }
    }

    pub(super) async fn store(&self, id: SpoolId, data: Arc<Box<[u8]>>, force_sync: bool) -> Result<()> {
        match self {
            Self::Spool(spool) => spool.store(id, data, force_sync, None).await,
            Self::RawJournal(journal) => journal.store(data).await,
        }
    }

    pub(super) async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        match self {
            Self::Spool(spool) => spool.load(id).await,
            Self::RawJournal(_) => bail!("the raw journal can only store"),
        }
    }

    /// The raw journal keeps nothing, so there is nothing to remove from it.
    pub(super) async fn remove(&self, id: SpoolId) -> Result<()> {
        match self {
            Self::Spool(spool) => spool.remove(id).await,
            Self::RawJournal(_) => Ok(()),
        }
    }

    /// Drains everything to disk and stops.
    pub(super) async fn shutdown(&self) -> Result<()> {
        match self {
            Self::Spool(spool) => spool.shutdown().await.context("shutting the spool down"),
            Self::RawJournal(journal) => journal.shutdown().await,
        }
    }
}
