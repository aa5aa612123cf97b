//! The built-in engines by name.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use tidespool::{Config, TieredSpool};

use crate::bare::Bare;
use crate::engine::{Engine, Needs};
use crate::local_disk::LocalDiskSpool;
use crate::raw_journal::RawJournal;

/// Above this size the limit of the spool on messages is raised to the size of the plan.
const RAISE_MAX_MESSAGE_SIZE_ABOVE: u64 = 32 << 20;

/// The smallest `memory_budget` that a spool accepts. Its clean cache then has a few MiB at most.
const SMALLEST_MEMORY_BUDGET: u64 = 8 << 20;

/// The longest `checkpoint_after` that a spool accepts.
const NO_CHECKPOINT: Duration = Duration::from_secs(7 * 24 * 3_600);

/// The built-in engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Builtin {
    /// The tiered spool with its default settings.
    Tidespool,
    /// One file for each message: written to a temporary file, synced with --force-sync, renamed
    /// into a directory.
    LocalDisk,
    /// The limit of the machine: the same batches, appended to preallocated files and synced with
    /// --force-sync. It can only store.
    RawJournal,
    /// The limit of the machine for one caller: it appends and syncs its messages itself, without
    /// another thread. It can only store.
    Bare,
}

impl Builtin {
    /// The name of the engine in the report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tidespool => "tidespool",
            Self::LocalDisk => "local-disk",
            Self::RawJournal => "raw-journal",
            Self::Bare => "bare",
        }
    }

    /// Returns whether the engine can do nothing but store.
    #[must_use]
    pub const fn only_stores(self) -> bool {
        matches!(self, Self::RawJournal | Self::Bare)
    }

    /// Opens the engine in `dir`: an empty directory, or one that the same engine has used before.
    ///
    /// # Errors
    ///
    /// Those of the engine.
    pub async fn open(self, dir: &Path, needs: &Needs) -> Result<Engine> {
        match self {
            Self::Tidespool => {
                let spool = TieredSpool::open(config(dir, needs)).await?;
                Ok(Engine::Tidespool(Arc::new(spool)))
            }
            Self::LocalDisk => Ok(Engine::Spool(Arc::new(LocalDiskSpool::open(dir).await?))),
            Self::RawJournal => {
                let dir = dir.to_owned();
                let Needs { concurrency, largest, force_sync, .. } = *needs;
                let create = move || RawJournal::create(&dir, concurrency, largest, force_sync);
                Ok(Engine::RawJournal(tokio::task::spawn_blocking(create).await??))
            }
            Self::Bare => {
                let dir = dir.to_owned();
                let Needs { largest, force_sync, .. } = *needs;
                let create = move || Bare::create(&dir, largest, force_sync);
                Ok(Engine::Bare(tokio::task::spawn_blocking(create).await??))
            }
        }
    }
}

/// Returns the default configuration with the settings of `needs`.
fn config(dir: &Path, needs: &Needs) -> Config {
    let mut config = Config::new(dir.join("spool")).journal_capacity(needs.journal_capacity);
    if let Some(budget) = needs.memory_budget {
        config = config.memory_budget(budget);
    }
    if needs.small_caches {
        config = config.memory_budget(SMALLEST_MEMORY_BUDGET);
    }
    if needs.stay_young {
        config = config.checkpoint_after(NO_CHECKPOINT);
    }
    if needs.largest as u64 > RAISE_MAX_MESSAGE_SIZE_ABOVE {
        config = config.max_message_size(needs.largest as u64);
    }
    config
}
