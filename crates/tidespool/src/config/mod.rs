//! The settings of a spool: from TOML or from code, with their bounds.
//!
//! `mod.rs` documents each setting; `validate.rs` has the bounds; `read.rs` finds the setting that
//! an error is about; `size.rs` and `duration.rs` are how sizes and times are written in a file.

mod builder;
mod duration;
mod error;
mod health;
mod pressure;
mod read;
mod size;
#[cfg(test)]
mod tests;
mod validate;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use error::{ConfigError, ConfigPlace};
pub use health::{BacklogRefusal, HealthConfig, HealthSignal, SignalTimes};
pub use pressure::PressureConfig;

/// How safe a message is when `store` returns `Ok`: the floor for every store. `force_sync` raises one store to
/// [`Synced`](Self::Synced).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// In memory. Gone with the process; on stable storage within `dirty_expire`.
    Memory,
    /// In memory and in the crash log: survives the death of the process (panic, abort, `kill -9`,
    /// the OOM killer), not a power cut. On stable storage within `dirty_expire`.
    #[default]
    Process,
    /// On stable storage.
    Synced,
}

/// Which clean copies leave the cache when it is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CachePolicy {
    /// The least recently used. A spool's newest messages are its next loads, and this policy always takes them in.
    #[default]
    Lru,
    /// The least often used. Better where a few messages are read over and over; a full cache refuses most new ones.
    TinyLfu,
}

/// The settings of a spool.
///
/// Sizes are bytes; in a file they are written `"256MiB"`, or as an integer. Times are written `"500ms"`. A setting
/// left out has its default; an unknown one is refused.
///
/// ```
/// use tidespool::{Config, Durability};
///
/// let from_code = Config::new("/var/spool/example").memory_budget(512 << 20).durability(Durability::Synced);
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
/// Every setting, with its default where it has one:
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
/// index_wait = "30s"
/// enumerate_wait = "60s"
/// cache_policy = "lru"              # lru, tiny_lfu
/// sled_cache = "16MiB"              # default: a sixteenth of memory_budget
/// read_threads = 2
/// shutdown_timeout = "60s"
/// ballast = "8MiB"
///
/// [pressure]
/// enabled = true
/// interval = "500ms"
/// memory_limit = "4GiB"             # default: none in a control group with a limit, else 75 % of the physical memory
/// low = 0.80
/// critical = 0.92
/// hysteresis = 0.05
/// stall_ratio = 0.10
///
/// [health]
/// dirty_fraction = 0.98
/// dirty_age = "5s"                  # default: 10 times dirty_expire
/// backlog_refusal = "all"           # all, synced
/// backlog_latch_after = "2s"
/// checkpoint_stall = "60s"
/// journal_errors = 1
/// sled_errors = 3
/// read_errors = 3
/// damage = 10
/// error_window = "60s"
/// min_free_bytes = "256MiB"
/// min_free_fraction = 0.05
/// min_free_inodes = 1000
/// unlatch_after = "5s"
/// allow_unlatch = true
/// sample_interval = "100ms"
///
/// [health.signals.low_space]        # the times of one signal; none is needed
/// latch_after = "500ms"             # default: 0; backlog_latch_after for a backlog; 500 ms for low_space
/// unlatch_after = "5s"              # default: health.unlatch_after
/// # "#)?;
/// # assert_eq!(config.effective_dirty_limit(), tidespool::Config::new("/x").effective_dirty_limit());
/// # Ok::<(), tidespool::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default = "Config::without_path", deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// The directory of the spool. Created, with mode 0700, where there is none; its parent must exist.
    ///
    /// [`TieredSpool::open`](crate::TieredSpool::open) resolves a relative path and symlinks once, and
    /// [`TieredSpool::config`](crate::TieredSpool::config) returns the result: a later `chdir` changes
    /// nothing.
    ///
    /// Required.
    pub path: PathBuf,

    /// Memory, in bytes, for dirty messages, clean copies, the index, the journal's writer and sled together. A limit of the control group, or
    /// [`memory_limit`](PressureConfig::memory_limit), that is lower bounds it while the pressure monitor runs, for all spools of a monitor together.
    ///
    /// Default = 256 MiB. Bounds: 8 MiB to 1 TiB.
    #[serde(with = "size")]
    pub memory_budget: u64,

    /// Dirty bytes (accepted, not yet on stable storage) at which stores begin to wait; the most that a crash can
    /// lose. A message larger than this is taken when nothing else is dirty.
    ///
    /// Above the durability `memory` these bytes are in memory twice: the crash log has them, too.
    ///
    /// Default = an eighth of `memory_budget`, see
    /// [`effective_dirty_limit`](Self::effective_dirty_limit). Bounds: 1 MiB to half of
    /// `memory_budget`.
    #[serde(with = "size::option", skip_serializing_if = "Option::is_none")]
    pub dirty_limit: Option<u64>,

    /// The age by which a dirty message is on stable storage, as long as the journal has a free
    /// segment. Without one it waits for a checkpoint.
    ///
    /// Default = 500 ms. Bounds: 10 ms to 1 hour.
    #[serde(with = "duration")]
    pub dirty_expire: Duration,

    /// How safe a message is when `store` returns.
    ///
    /// Default = `process`.
    pub durability: Durability,

    /// The longest that a store waits for room or for the disk. The caller's own deadline may end
    /// it earlier. If the disk has the record by then, the store waits one second longer for its
    /// answer.
    ///
    /// Default = 30 s. Bounds: 1 ms to 1 hour.
    #[serde(with = "duration")]
    pub store_deadline: Duration,

    /// A message of more bytes is refused.
    ///
    /// Default = 128 MiB. Bounds: 1 KiB to 1 GiB.
    #[serde(with = "size")]
    pub max_message_size: u64,

    /// Bytes of the journal's segments on disk, those retained for their large messages not counted. When they are
    /// all in use, stores wait for a checkpoint.
    ///
    /// Default = 1 GiB. Bounds: 4 × `segment_size` to 1 TiB.
    #[serde(with = "size")]
    pub journal_capacity: u64,

    /// Bytes of one segment. A larger message gets a segment of its own. Used for segments made from now on.
    ///
    /// Default = 32 MiB. Bounds: 64 KiB to 1 GiB, at most a quarter of `journal_capacity`; a multiple of 4 KiB.
    #[serde(with = "size")]
    pub segment_size: u64,

    /// The age at which a message that is still there is filed: its place goes into sled. Those
    /// removed before never touch sled.
    ///
    /// Default = 60 s. Bounds: 0 to 7 days; 0 files a segment as soon as it is sealed.
    #[serde(with = "duration")]
    pub checkpoint_after: Duration,

    /// The longest time that a load waits for the index while it is rebuilt from the segments.
    /// Loads of messages that are in memory, or younger than the last checkpoint, never wait for
    /// it.
    ///
    /// After this time the load fails with an I/O error, which says nothing about the message.
    ///
    /// Default = 30 s. Bounds: 0 to 1 h.
    #[serde(with = "duration")]
    pub index_wait: Duration,

    /// The longest time that an enumeration goes on trying where the disk fails, or waits for an
    /// index whose rebuild does not get on. After it, the enumeration ends with an [early
    /// end](tidespool_core::SpoolEntry::EARLY_END).
    ///
    /// Default = 60 s. Bounds: 1 ms to 1 h.
    #[serde(with = "duration")]
    pub enumerate_wait: Duration,

    /// Which clean copies leave the cache when it is full.
    ///
    /// Default = `lru`.
    pub cache_policy: CachePolicy,

    /// Memory for the pages that sled caches, in bytes. sled itself is told a quarter of it, for it counts what they take on disk. What
    /// it is estimated to use is what counts against `memory_budget`. Changed on a running spool, it holds from the next opening on.
    ///
    /// Default = a sixteenth of `memory_budget`, at least 1 MiB, see [`effective_sled_cache`](Self::effective_sled_cache).
    /// Bounds: 1 MiB to a quarter of `memory_budget`.
    #[serde(with = "size::option", skip_serializing_if = "Option::is_none")]
    pub sled_cache: Option<u64>,

    /// Threads that read messages from disk.
    ///
    /// Default = 2. Bounds: 1 to 64.
    pub read_threads: u32,

    /// The longest that a shutdown takes: three quarters of it to make durable what is dirty, the rest to end the threads and to close sled. Where it is
    /// less than 16 s, up to two seconds more: what does not hang has time to end.
    ///
    /// Default = 60 s. Bounds: 100 ms to 1 hour.
    #[serde(with = "duration")]
    pub shutdown_timeout: Duration,

    /// Bytes of two files that are only there to be deleted: one lets filing go on when the disk runs full, the other is for opening sled on a full
    /// disk.
    ///
    /// Default = 8 MiB. Bounds: 0 to 1 GiB; 0 makes no file.
    #[serde(with = "size")]
    pub ballast: u64,

    /// The memory-pressure monitor.
    pub pressure: PressureConfig,

    /// When the spool declares itself unhealthy.
    pub health: HealthConfig,
}

impl Config {
    /// The defaults, for a spool in the directory `path`.
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
            index_wait: Duration::from_secs(30),
            enumerate_wait: Duration::from_secs(60),
            cache_policy: CachePolicy::default(),
            sled_cache: None,
            read_threads: 2,
            shutdown_timeout: Duration::from_secs(60),
            ballast: 8 * size::MIB,
            pressure: PressureConfig::default(),
            health: HealthConfig::default(),
        }
    }

    /// What serde fills the gaps from. A `path` left out stays empty, and is refused by `validate` with a clear text.
    fn without_path() -> Self {
        Self::new(PathBuf::new())
    }

    /// Reads and validates settings in TOML.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Syntax`] where it is no TOML, [`ConfigError::Unknown`] for a setting that
    /// there is not, [`ConfigError::Invalid`] for a value that is not allowed. Each names the
    /// place.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        read::read(text)
    }

    /// Reads and validates the settings in a TOML file.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Read`] where it can't be read; the others are those of
    /// [`from_toml`](Self::from_toml). Each names the file.
    pub fn from_toml_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|err| ConfigError::Read {
            path: path.to_owned(),
            kind: err.kind(),
            reason: err.to_string(),
        })?;
        Self::from_toml(&text).map_err(|error| error.in_file(path))
    }

    /// The settings as TOML: reading it back gives the same settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Syntax`] where `path` is not UTF-8, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self)
            .map_err(|err| ConfigError::Syntax { at: ConfigPlace::default(), reason: err.to_string() })
    }

    /// `dirty_limit`, or its default: an eighth of `memory_budget`.
    #[must_use]
    pub fn effective_dirty_limit(&self) -> u64 {
        self.dirty_limit.unwrap_or(self.memory_budget / 8)
    }

    /// `sled_cache`, or its default: a sixteenth of `memory_budget`, at least 1 MiB.
    #[must_use]
    pub fn effective_sled_cache(&self) -> u64 {
        self.sled_cache.unwrap_or_else(|| (self.memory_budget / 16).max(size::MIB))
    }

    /// `health.dirty_age`, or its default: 10 × `dirty_expire`.
    #[must_use]
    pub fn effective_dirty_age(&self) -> Duration {
        self.health.dirty_age.unwrap_or_else(|| self.dirty_expire.saturating_mul(10))
    }
}
