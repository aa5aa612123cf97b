//! The settings of a spool, from TOML or from code, and their bounds.
//!
//! # Layout
//!
//! * here – the settings of a store. `health` – those of the table; the table `pressure` is
//!   [`PressureConfig`]. `spool` – those that each spool can have for itself. `min_free` – free
//!   space, as the setting of that name has it.
//! * `setters` – one setter for each setting.
//! * `validate` – the bounds of all settings. `error` – a setting that is not allowed.
//! * `read` – parses TOML, and finds the setting that an error is about.
//! * `size`, `duration` – how a file writes sizes and times.

mod duration;
mod error;
mod health;
mod min_free;
#[cfg(feature = "toml")]
mod read;
mod setters;
mod size;
mod spool;
#[cfg(feature = "toml")]
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use error::{ConfigError, ConfigPlace};
pub use health::{BacklogRefusal, HealthCause, HealthConfig, HealthSignal};
pub use min_free::MinFree;
use setters::setters;
pub use spool::SpoolConfig;
use tidespool_pressure::PressureConfig;

/// How safe a message is when `store` returns `Ok`: the minimum for every store. `force_sync`
/// raises a single store to [`Synced`](Self::Synced).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// In memory. Lost if the process ends. On stable storage within `dirty_expire`.
    Memory,
    /// In memory and in the crash log. Survives the death of the process (panic, abort, `kill -9`,
    /// the OOM killer), but not a power cut. On stable storage within `dirty_expire`.
    #[default]
    Process,
    /// On stable storage.
    Synced,
}

/// The settings of a store and of its spools.
///
/// Sizes are bytes. A file writes a size as `"256MiB"` or as an integer, and a time as `"500ms"`. A
/// setting that is left out has its default. An unknown setting is rejected.
///
/// ```
/// use tidespool::{Config, Durability};
///
/// let from_code =
///     Config::new("/var/spool/example").memory_budget(512 << 20).durability(Durability::Synced);
/// let from_file = Config::from_toml(
///     r#"
///     path = "/var/spool/example"
///     memory_budget = "512MiB"
///     durability = "synced"
///     "#,
/// )?;
/// assert_eq!(from_code, from_file);
/// # Ok::<(), tidespool::ConfigError>(())
/// ```
///
/// All settings. The values are the defaults, unless a comment gives the default:
///
/// ```
/// # let config = tidespool::Config::from_toml(r#"
/// path = "/var/spool/example"
/// memory_budget = "256MiB"
/// dirty_limit = "32MiB"             # default: an eighth of memory_budget
/// dirty_expire = "500ms"
/// durability = "process"            # memory, process, synced
/// store_deadline = "30s"
/// max_message_size = "128MiB"
/// journal_capacity = "1GiB"
/// segment_size = "32MiB"
/// checkpoint_after = "60s"
/// read_wait = "30s"
/// read_threads = 2
/// shutdown_timeout = "60s"
/// ballast = "8MiB"
///
/// [pressure]
/// enabled = true
/// memory_limit = "4GiB"             # default: none with a control group limit, else 75 % of RAM
/// low = 0.80
/// critical = 0.92
///
/// [health]
/// dirty_age = "5s"                  # default: 10 times dirty_expire
/// backlog_refusal = "all"           # all, synced
/// reported_causes = ["broken", "space", "backlog"]    # broken, space, backlog, pressure
/// backlog_latch_after = "2s"
/// backlog_unlatch_after = "5s"
/// hard_latch_after = "0s"
/// hard_unlatch_after = "5s"
/// checkpoint_stall = "60s"
/// disk_errors = 3
/// damage = 10
/// min_free = "256MiB"               # or "5%"; default: the smaller of these two
/// sample_interval = "100ms"
///
/// [spools.meta]                     # for each spool that needs settings of its own; default: none
/// durability = "synced"             # default: the durability of the store
/// max_message_size = "1MiB"         # default: the max_message_size of the store
/// cache_weight = 4                  # default: 1
/// # "#)?;
/// # use tidespool::{Config, Durability, HealthConfig, MinFree, PressureConfig, SpoolConfig};
/// # let defaults = Config::new("/var/spool/example");
/// # let (limit, age) = (defaults.effective_dirty_limit(), defaults.effective_dirty_age());
/// # let defaults = defaults
/// #     .dirty_limit(limit)
/// #     .pressure(PressureConfig::default().memory_limit(4 << 30))
/// #     .health(HealthConfig::default().dirty_age(age).min_free(MinFree::Bytes(256 << 20)));
/// # let meta = SpoolConfig::default().durability(Durability::Synced);
/// # let defaults = defaults.spool("meta", meta.max_message_size(1 << 20).cache_weight(4));
/// # assert_eq!(config, defaults);
/// # Ok::<(), tidespool::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default = "Config::without_path", deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// The directory of the spool. Created with mode 0700 if it does not exist. Its parent must
    /// exist.
    ///
    /// [`TieredSpool::open`](crate::TieredSpool::open) resolves a relative path and symlinks once,
    /// so that a later `chdir` changes nothing. [`TieredSpool::config`](crate::TieredSpool::config)
    /// returns the result. Entries that file systems and tools leave in an empty directory
    /// (`lost+found`, `.gitkeep`, `.snapshot`, `.nfs…`) are accepted and never touched.
    ///
    /// Required.
    pub path: PathBuf,

    /// Memory, in bytes, for dirty messages, clean copies, the index, the journal's writer and sled
    /// together.
    ///
    /// While the pressure monitor runs, a lower limit of the control group, or a lower
    /// [`memory_limit`](PressureConfig::memory_limit), bounds the budget. The bound applies to all
    /// spools of a monitor together.
    ///
    /// Measured with 256 MiB, resident memory stays within 1.15 × the budget above the process's
    /// own memory, if glibc's allocator is kept small:
    /// [`keep_the_heap_small`](crate::keep_the_heap_small) at the start of `main`, or
    /// `MALLOC_ARENA_MAX=2`.
    ///
    /// Default = 256 MiB. Bounds: 8 MiB to 1 TiB.
    #[serde(with = "size")]
    pub memory_budget: u64,

    /// Dirty bytes (accepted, not yet on stable storage) at which stores begin to wait. A crash can
    /// lose at most this many bytes, or one larger message, which is accepted when nothing else is
    /// dirty. Each message counts its own bytes and 256 more.
    ///
    /// Above the durability `memory` these bytes are in memory twice: a second copy is in the crash
    /// log.
    ///
    /// Default = an eighth of `memory_budget`, see
    /// [`effective_dirty_limit`](Self::effective_dirty_limit). Bounds: 1 MiB to half of
    /// `memory_budget`.
    #[serde(with = "size::option", skip_serializing_if = "Option::is_none")]
    pub dirty_limit: Option<u64>,

    /// The age by which a dirty message is on stable storage, on a disk that works and as long as
    /// the journal has a free segment. If it has none, the message waits for a checkpoint.
    ///
    /// Default = 500 ms. Bounds: 10 ms to 1 hour.
    #[serde(with = "duration")]
    pub dirty_expire: Duration,

    /// How safe a message is when `store` returns: the minimum for every store.
    ///
    /// Default = `process`. Bounds: `memory`, `process` or `synced`.
    pub durability: Durability,

    /// The longest time that a store waits for room or for the disk. The caller's deadline may be
    /// earlier. If the record is appended by then, the store waits up to one second longer for the
    /// result.
    ///
    /// Default = 30 s. Bounds: 1 ms to 1 hour.
    #[serde(with = "duration")]
    pub store_deadline: Duration,

    /// A message of more bytes is rejected.
    ///
    /// Default = 128 MiB. Bounds: 1 KiB to 1 GiB.
    #[serde(with = "size")]
    pub max_message_size: u64,

    /// Bytes of the journal's segments on disk. Retained segments, and segments of single messages
    /// larger than a segment, are not counted. When all segments are in use, stores wait for a
    /// checkpoint. On a disk with less room the capacity is what fits: the metric
    /// `tidespool_journal_capacity_bytes`.
    ///
    /// Default = 1 GiB. Bounds: 4 × `segment_size` to 1 TiB.
    #[serde(with = "size")]
    pub journal_capacity: u64,

    /// Bytes of one segment. Applies to segments made from now on. A larger message gets a segment
    /// of its own: its store returns when it is on stable storage there, whatever `durability` is,
    /// and fails at once with `SpoolBackpressureTimeout` if the disk has no room for it.
    ///
    /// Default = 32 MiB. Bounds: 64 KiB to 1 GiB, at most a quarter of `journal_capacity`; a
    /// multiple of 4 KiB.
    #[serde(with = "size")]
    pub segment_size: u64,

    /// How long a sealed segment waits before a checkpoint writes the places of its live messages
    /// to sled. A message that is removed before that is never written to sled. `cleanup` seals a
    /// segment that was begun longer ago than this.
    ///
    /// Default = 60 s. Bounds: 0 to 7 days; 0 checkpoints a segment as soon as it is sealed.
    #[serde(with = "duration")]
    pub checkpoint_after: Duration,

    /// The longest time that a load waits while the index is rebuilt from the segments. A load of a
    /// message that is in memory, or younger than the last checkpoint, never waits for the index.
    /// After this time the load fails with an I/O error, which does not mean that the message is
    /// missing or damaged.
    ///
    /// An enumeration retries for twice this time while the disk fails, or while a rebuild of the
    /// index makes no progress. Then it ends with an [early
    /// end](tidespool_core::SpoolEntry::EARLY_END).
    ///
    /// Default = 30 s. Bounds: 0 to 1 hour.
    #[serde(with = "duration")]
    pub read_wait: Duration,

    /// Threads that read messages from disk.
    ///
    /// Default = 2. Bounds: 1 to 64.
    pub read_threads: u32,

    /// The longest time that a shutdown takes: three quarters of it to make dirty data durable, the
    /// rest to end the threads and to close sled. If it is less than 16 s, a shutdown takes up to
    /// two seconds longer, so that threads that do not hang have time to end.
    ///
    /// Default = 60 s. Bounds: 100 ms to 1 hour.
    #[serde(with = "duration")]
    pub shutdown_timeout: Duration,

    /// Bytes of two files that exist only to be deleted, half in each. Deleting the first lets
    /// checkpoints continue when the disk is full. Deleting the second lets sled open on a full
    /// disk.
    ///
    /// Default = 8 MiB. Bounds: 0 to 1 GiB; 0 makes no file.
    #[serde(with = "size")]
    pub ballast: u64,

    /// The memory-pressure monitor.
    pub pressure: PressureConfig,

    /// When the spool is unhealthy and refuses new messages.
    pub health: HealthConfig,

    /// The settings of single spools, by the spool's name: 1 to 32 characters from `a-z`, `0-9`,
    /// `_` and `-`. [`Tidespool::open`](crate::Tidespool::open) makes the spools that are named
    /// here. Settings of a spool that does not exist take effect when it is made.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub spools: BTreeMap<String, SpoolConfig>,
}

setters! { Config {
    path: PathBuf,
    memory_budget: u64,
    dirty_limit: some u64,
    dirty_expire: Duration,
    durability: Durability,
    store_deadline: Duration,
    max_message_size: u64,
    journal_capacity: u64,
    segment_size: u64,
    checkpoint_after: Duration,
    read_wait: Duration,
    read_threads: u32,
    shutdown_timeout: Duration,
    ballast: u64,
    pressure: PressureConfig,
    health: HealthConfig,
}}

impl Config {
    /// Returns the default settings for a spool in the directory `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            memory_budget: 256 * size::MIB,
            dirty_limit: None,
            dirty_expire: Duration::from_millis(500),
            durability: Durability::default(),
            store_deadline: Duration::from_secs(30),
            max_message_size: 128 * size::MIB,
            journal_capacity: size::GIB,
            segment_size: 32 * size::MIB,
            checkpoint_after: Duration::from_secs(60),
            read_wait: Duration::from_secs(30),
            read_threads: 2,
            shutdown_timeout: Duration::from_secs(60),
            ballast: 8 * size::MIB,
            pressure: PressureConfig::default(),
            health: HealthConfig::default(),
            spools: BTreeMap::new(),
        }
    }

    /// The defaults from which serde takes missing settings. A missing `path` stays empty, and
    /// `validate` rejects it with a clear text.
    fn without_path() -> Self {
        Self::new(PathBuf::new())
    }

    /// Returns `dirty_limit`, or its default: an eighth of `memory_budget`.
    #[must_use]
    pub fn effective_dirty_limit(&self) -> u64 {
        self.dirty_limit.unwrap_or(self.memory_budget / 8)
    }

    /// Memory for the pages that sled caches, in bytes: a sixteenth of `memory_budget`, at least
    /// 1 MiB.
    ///
    /// sled holds places of messages, 14 bytes each, and no message. A larger share would take room
    /// from the clean copies.
    pub(crate) fn sled_cache(&self) -> u64 {
        (self.memory_budget / 16).max(size::MIB)
    }

    /// The longest time that an enumeration retries without progress. It is longer than that of a
    /// load: an enumeration that ends early has to begin again.
    pub(crate) fn enumerate_wait(&self) -> Duration {
        self.read_wait.saturating_mul(2)
    }

    /// Returns `health.dirty_age`, or its default: 10 × `dirty_expire`.
    #[must_use]
    pub fn effective_dirty_age(&self) -> Duration {
        self.health.dirty_age.unwrap_or_else(|| self.dirty_expire.saturating_mul(10))
    }
}
