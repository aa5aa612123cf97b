//! What is measured: a spool, or the raw journal; and how it is opened.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_channel::Sender;
use async_trait::async_trait;
use chrono::Utc;
use tidespool::TieredSpool;
use tidespool_core::{Spool, SpoolEntry, SpoolId};

use crate::plan::{Plan, Size};
use crate::raw_journal::RawJournal;

/// Opens an engine, as often as a workload asks for it.
#[async_trait]
pub trait Opener: Send + Sync {
    /// The engine's name in the report.
    fn name(&self) -> &str;

    /// Opens the engine in `dir`: an empty directory, or one that the same opener has used before.
    ///
    /// # Errors
    ///
    /// The engine's own.
    async fn open(&self, dir: &Path, needs: &Needs) -> Result<Engine>;

    /// The command of a child process that calls [`fill`](crate::fill) with this engine. Two arguments are appended:
    /// the directory, and the plan as JSON.
    ///
    /// # Errors
    ///
    /// Where the engine cannot be filled by another process.
    fn filler(&self) -> Result<Command>;
}

/// What a workload needs of an engine; everything else is as the engine has it by default.
#[derive(Debug, Clone)]
pub struct Needs {
    /// Payload bytes of the largest message.
    pub largest: usize,
    /// Callers at a time.
    pub concurrency: usize,
    /// Whether stores are synced. An engine that always syncs, or never, need not look.
    pub force_sync: bool,
    /// The memory budget, in bytes, where the engine has such a setting; `None` is its default.
    pub memory_budget: Option<u64>,
    /// The journal's capacity, in bytes, where the engine has such a setting.
    pub journal_capacity: u64,
    /// Caches of messages as small as the engine allows: loads shall come from disk.
    pub small_caches: bool,
    /// Nothing leaves the journal for a slower tier while the engine is open, where it has such tiers.
    pub stay_young: bool,
}

impl Needs {
    /// What `plan` says, and nothing else.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self {
            // Some workloads save metadata as well.
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
    /// The tiered spool: it can also load without a copy, and tell when everything is durable.
    Tidespool(Arc<TieredSpool>),
    /// The machine's limit for stores. It can do nothing else.
    RawJournal(RawJournal),
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Spool(_) => "Spool",
            Self::Tidespool(_) => "Tidespool",
            Self::RawJournal(_) => "RawJournal",
        })
    }
}

impl Engine {
    pub(crate) async fn store(&self, id: SpoolId, data: Arc<Box<[u8]>>, force_sync: bool) -> Result<()> {
        match self {
            Self::Spool(spool) => spool.store(id, data, force_sync, None).await,
            Self::Tidespool(spool) => spool.store(id, data, force_sync, None).await,
            Self::RawJournal(journal) => journal.store(data).await,
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

    /// The raw journal keeps nothing, so there is nothing to remove from it.
    pub(crate) async fn remove(&self, id: SpoolId) -> Result<()> {
        match self {
            Self::RawJournal(_) => Ok(()),
            _ => self.spool()?.remove(id).await,
        }
    }

    pub(crate) fn enumerate(&self, sender: Sender<SpoolEntry>) -> Result<()> {
        self.spool()?.enumerate(sender, Utc::now())
    }

    /// Gives back what memory the engine can.
    pub(crate) async fn advise_low_memory(&self) -> Result<()> {
        self.spool()?.advise_low_memory().await.map(drop)
    }

    /// Gives back what removed messages left on disk.
    pub(crate) async fn cleanup(&self) -> Result<()> {
        self.spool()?.cleanup().await
    }

    /// Why the engine refuses messages, where it does.
    pub(crate) fn unhealthy_reason(&self) -> Option<&'static str> {
        self.spool().ok()?.unhealthy_reason()
    }

    /// Whether nothing waits for its way to stable storage; `None` where the engine cannot tell.
    pub(crate) fn is_durable(&self) -> Option<bool> {
        match self {
            Self::Tidespool(spool) => Some(spool.stats().gauges.dirty_bytes == 0),
            _ => None,
        }
    }

    /// Drains everything to disk and stops.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        match self {
            Self::RawJournal(journal) => journal.shutdown().await,
            _ => self.spool()?.shutdown().await.context("shutting the spool down"),
        }
    }

    fn spool(&self) -> Result<&dyn Spool> {
        match self {
            Self::Spool(spool) => Ok(&**spool),
            Self::Tidespool(spool) => Ok(&**spool),
            Self::RawJournal(_) => {
                bail!("the raw journal can only store: give --workload store, or another engine")
            }
        }
    }
}
