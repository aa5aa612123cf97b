//! The engines, each as the same [`Spool`].
//!
//! # Layout
//!
//! * one file for each engine: `rocksdb/` (as KumoMTA sets it up, and tuned), `fjall`, `sled`,
//!   `redb`, `foyer`, `local_disk`;
//! * `spool` – a key-value store as a spool;
//! * `committer` – group commit for engines without one;
//! * `write`, `error` – the types that they share.

mod committer;
mod error;
mod fjall;
mod foyer;
mod local_disk;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod sled;
mod spool;
mod write;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tidespool::{Config, Durability, TieredSpool};
use tidespool_core::Spool;

pub use error::{EngineError, NotOffered};
pub use spool::Setup;

use spool::{Backend, EngineSpool};

/// The smallest `memory_budget` that the tiered spool accepts. Its clean cache then has a few MiB
/// at most.
const TIDESPOOL_SMALLEST_MEMORY_BUDGET: u64 = 8 << 20;

/// What an engine claims to do beyond storing, loading and removing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// A store with `force_sync` returns when the message is on stable storage.
    pub syncs: bool,
    /// `enumerate` finds every message.
    pub enumerates: bool,
    /// Messages persist: they are there when the spool is opened again.
    pub persists: bool,
    /// A dropped store completes before any later call of its caller, or not at all.
    pub orders_dropped: bool,
}

impl Claims {
    /// Everything that a spool promises.
    pub const EVERYTHING: Self = Self { syncs: true, enumerates: true, persists: true, orders_dropped: true };
    /// None of it.
    pub const NOTHING: Self =
        Self { syncs: false, enumerates: false, persists: false, orders_dropped: false };
}

/// The engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// The tiered spool with its default settings: acknowledged messages survive the death of the
    /// process.
    Tidespool,
    /// The same with the durability `memory`: a weaker promise than that of every other engine here
    /// except foyer.
    TidespoolMemory,
    /// RocksDB as KumoMTA sets it up and calls it.
    #[value(name = "rocksdb")]
    #[serde(rename = "rocksdb")]
    RocksDb,
    /// RocksDB tuned: BlobDB, recycled log, large buffers, batched writes.
    #[value(name = "rocksdb-tuned")]
    #[serde(rename = "rocksdb-tuned")]
    RocksDbTuned,
    /// fjall 3 with key-value separation.
    Fjall,
    /// sled 0.34 alone, made durable.
    Sled,
    /// redb 4.
    Redb,
    /// One file for each message, like the local disk spool of KumoMTA.
    LocalDisk,
    /// foyer's hybrid cache: only unsynced stores and loads.
    Foyer,
    /// The limit of the machine: only appends and syncs. Only durable stores.
    RawJournal,
    /// The limit of the machine for one caller: it appends and syncs by itself. Only durable
    /// stores.
    Bare,
}

impl Peer {
    /// Returns all engines, in the order of tables; without RocksDB if it was not compiled in.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|peer| peer.is_compiled_in()).collect()
    }

    /// Returns whether this program can open the engine.
    #[must_use]
    pub fn is_compiled_in(self) -> bool {
        cfg!(feature = "rocksdb") || !matches!(self, Self::RocksDb | Self::RocksDbTuned)
    }

    /// Returns the name of the engine on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tidespool => "tidespool",
            Self::TidespoolMemory => "tidespool-memory",
            Self::RocksDb => "rocksdb",
            Self::RocksDbTuned => "rocksdb-tuned",
            Self::Fjall => "fjall",
            Self::Sled => "sled",
            Self::Redb => "redb",
            Self::LocalDisk => "local-disk",
            Self::Foyer => "foyer",
            Self::RawJournal => "raw-journal",
            Self::Bare => "bare",
        }
    }

    /// Returns one line for reports: the version and the settings that matter.
    #[must_use]
    pub fn settings(self) -> String {
        match self {
            Self::Tidespool => {
                let version = env!("CARGO_PKG_VERSION");
                let budget = ByteSize(Config::new("").memory_budget);
                format!("Tidespool {version}: default settings, memory budget {budget}")
            }
            Self::TidespoolMemory => {
                "as tidespool, durability memory: what is not synced is gone with the process".to_owned()
            }
            #[cfg(feature = "rocksdb")]
            Self::RocksDb => rocksdb::KUMO_SETTINGS.to_owned(),
            #[cfg(feature = "rocksdb")]
            Self::RocksDbTuned => rocksdb::TUNED_SETTINGS.to_owned(),
            #[cfg(not(feature = "rocksdb"))]
            Self::RocksDb | Self::RocksDbTuned => "not compiled in".to_owned(),
            Self::Fjall => fjall::SETTINGS.to_owned(),
            Self::Sled => sled::SETTINGS.to_owned(),
            Self::Redb => redb::SETTINGS.to_owned(),
            Self::LocalDisk => local_disk::SETTINGS.to_owned(),
            Self::Foyer => foyer::SETTINGS.to_owned(),
            Self::RawJournal => "the same batches appended to 4 prewritten files of 32 MiB, one fdatasync a batch; no checksum, no index, \
                 no recovery"
                .to_owned(),
            Self::Bare => "as raw-journal, but the caller writes and syncs its messages itself".to_owned(),
        }
    }

    /// Returns what the engine claims.
    #[must_use]
    pub fn claims(self) -> Claims {
        match self {
            Self::Foyer => <foyer::Foyer as Backend>::CLAIMS,
            // A blocking thread continues a store after its caller was dropped.
            Self::LocalDisk => Claims { orders_dropped: false, ..Claims::EVERYTHING },
            Self::RawJournal | Self::Bare => Claims { syncs: true, ..Claims::NOTHING },
            _ => Claims::EVERYTHING,
        }
    }

    /// Opens the engine in `dir` and creates it if it is missing. Requires a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Locked`](tidespool_core::Locked) if it is open already, [`NotOffered`] for an engine that
    /// is not a spool or was not compiled in, otherwise the error of the engine.
    pub async fn open(self, dir: &Path, setup: Setup) -> Result<Arc<dyn Spool>> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let limit = setup.max_message_size;
        match self {
            Self::Tidespool | Self::TidespoolMemory => {
                let mut config = Config::new(dir.join("spool")).max_message_size(limit);
                if self == Self::TidespoolMemory {
                    config = config.durability(Durability::Memory);
                }
                if setup.small_caches {
                    config = config.memory_budget(TIDESPOOL_SMALLEST_MEMORY_BUDGET);
                }
                Ok(Arc::new(TieredSpool::open(config).await?))
            }
            #[cfg(feature = "rocksdb")]
            Self::RocksDb => blocking(dir, setup, rocksdb::Kumo::open).await,
            #[cfg(feature = "rocksdb")]
            Self::RocksDbTuned => blocking(dir, setup, rocksdb::Tuned::open).await,
            #[cfg(not(feature = "rocksdb"))]
            Self::RocksDb | Self::RocksDbTuned => {
                let what = "code in this program (build with --features rocksdb)";
                Err(NotOffered { engine: self.name(), what }.into())
            }
            Self::Fjall => blocking(dir, setup, fjall::Fjall::open).await,
            Self::Sled => blocking(dir, setup, sled::Sled::open).await,
            Self::Redb => blocking(dir, setup, redb::Redb::open).await,
            Self::LocalDisk => Ok(Arc::new(local_disk::LocalDisk::open(dir, limit).await?)),
            Self::Foyer => Ok(Arc::new(EngineSpool::new(foyer::Foyer::open(dir, setup).await?, limit))),
            Self::RawJournal | Self::Bare => {
                Err(NotOffered { engine: self.name(), what: "spool (it only appends)" }.into())
            }
        }
    }
}

/// Opens an engine on a thread that may block.
async fn blocking<B: Backend>(
    dir: &Path,
    setup: Setup,
    open: fn(&Path, Setup) -> Result<B>,
) -> Result<Arc<dyn Spool>> {
    let dir = dir.to_owned();
    let backend = tokio::task::spawn_blocking(move || open(&dir, setup)).await??;
    Ok(Arc::new(EngineSpool::new(backend, setup.max_message_size)))
}
