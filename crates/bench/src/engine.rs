//! The engine under measurement, a spool or a journal that only stores, and how it is opened.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_channel::Sender;
use async_trait::async_trait;
use chrono::Utc;
use tidespool::TieredSpool;
use tidespool_core::{Spool, SpoolEntry, SpoolId};

use crate::bare::Bare;
use crate::plan::{Plan, Size};
use crate::raw_journal::RawJournal;

/// Opens an engine, as often as a workload needs it.
#[async_trait]
pub trait Opener: Send + Sync {
    /// The name of the engine in the report.
    fn name(&self) -> &str;

    /// Opens the engine in `dir`: an empty directory, or one that the same opener has used before.
    ///
    /// # Errors
    ///
    /// Those of the engine.
    async fn open(&self, dir: &Path, needs: &Needs) -> Result<Engine>;

    /// Returns the command of a child process that calls [`fill`](crate::fill) with this engine.
    /// The caller appends two arguments: the directory, and the plan as JSON.
    ///
    /// # Errors
    ///
    /// If another process cannot fill the engine.
    fn filler(&self) -> Result<Command>;

    /// Returns the command of a child process that calls [`write_beside`](crate::write_beside). The
    /// caller appends one argument: the directory.
    ///
    /// # Errors
    ///
    /// If another process cannot be started.
    fn neighbour(&self) -> Result<Command>;
}

/// The settings of an engine that a workload needs. All others keep their defaults.
#[derive(Debug, Clone)]
pub struct Needs {
    /// Payload bytes of the largest message.
    pub largest: usize,
    /// Number of concurrent callers.
    pub concurrency: usize,
    /// Whether stores are synced. An engine that always syncs, or never, ignores it.
    pub force_sync: bool,
    /// The memory budget in bytes, for engines that have one; `None` is their default.
    pub memory_budget: Option<u64>,
    /// The capacity of the journal in bytes, for engines that have one.
    pub journal_capacity: u64,
    /// Make caches of messages as small as the engine allows, so that loads read the disk.
    pub small_caches: bool,
    /// Keep everything in the journal while the engine is open, for engines with slower tiers.
    pub stay_young: bool,
}

impl Needs {
    /// Returns the needs that `plan` describes.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self {
            // Some workloads save metadata too.
            largest: plan.size.largest().max(Size::Metadata.largest()),
            concurrency: plan.concurrency,
            force_sync: plan.force_sync,
            memory_budget: plan.memory_budget,
            journal_capacity: plan.journal_capacity,
            small_caches: false,
            stay_young: false,
        }
    }
}

/// An open engine.
pub enum Engine {
    /// Any spool.
    Spool(Arc<dyn Spool>),
    /// The tiered spool, which also loads without a copy and reports when everything is durable.
    Tidespool(Arc<TieredSpool>),
    /// The limit of the machine for stores. It supports nothing else.
    RawJournal(RawJournal),
    /// The limit of the machine for stores of one caller. It supports nothing else.
    Bare(Bare),
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Spool(_) => "Spool",
            Self::Tidespool(_) => "Tidespool",
            Self::RawJournal(_) => "RawJournal",
            Self::Bare(_) => "Bare",
        })
    }
}

impl Engine {
    pub(crate) async fn store(&self, id: SpoolId, data: Arc<Box<[u8]>>, force_sync: bool) -> Result<()> {
        match self {
            Self::Spool(spool) => spool.store(id, data, force_sync, None).await,
            Self::Tidespool(spool) => spool.store(id, data, force_sync, None).await,
            Self::RawJournal(journal) => journal.store(data).await,
            Self::Bare(journal) => journal.store(&data),
        }
    }

    pub(crate) async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        self.spool()?.load(id).await
    }

    pub(crate) async fn load_shared(&self, id: SpoolId) -> Result<Arc<Box<[u8]>>> {
        match self {
            Self::Tidespool(spool) => spool.load_shared(id).await,
            _ => bail!("only tidespool can load without a copy: give --workload load, or --engine tidespool"),
        }
    }

    /// Does nothing on a journal that only stores.
    pub(crate) async fn remove(&self, id: SpoolId) -> Result<()> {
        match self {
            Self::RawJournal(_) | Self::Bare(_) => Ok(()),
            _ => self.spool()?.remove(id).await,
        }
    }

    pub(crate) fn enumerate(&self, sender: Sender<SpoolEntry>) -> Result<()> {
        self.spool()?.enumerate(sender, Utc::now())
    }

    /// Asks the engine to free memory.
    pub(crate) async fn advise_low_memory(&self) -> Result<()> {
        self.spool()?.advise_low_memory().await.map(drop)
    }

    /// Asks the engine to free the disk space of removed messages.
    pub(crate) async fn cleanup(&self) -> Result<()> {
        self.spool()?.cleanup().await
    }

    /// Returns why the engine rejects messages, if it does.
    pub(crate) fn unhealthy_reason(&self) -> Option<&'static str> {
        self.spool().ok()?.unhealthy_reason()
    }

    /// Returns whether every accepted message is durable; `None` if the engine does not report it.
    pub(crate) fn is_durable(&self) -> Option<bool> {
        match self {
            Self::Tidespool(spool) => Some(spool.stats().gauges.dirty_bytes == 0),
            _ => None,
        }
    }

    /// Writes everything to disk and stops the engine.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        match self {
            Self::RawJournal(journal) => journal.shutdown().await,
            Self::Bare(journal) => journal.shutdown(),
            _ => self.spool()?.shutdown().await.context("shutting the spool down"),
        }
    }

    fn spool(&self) -> Result<&dyn Spool> {
        match self {
            Self::Spool(spool) => Ok(&**spool),
            Self::Tidespool(spool) => Ok(&**spool),
            Self::RawJournal(_) | Self::Bare(_) => {
                bail!("this engine can only store: give --workload store, or another engine")
            }
        }
    }
}
