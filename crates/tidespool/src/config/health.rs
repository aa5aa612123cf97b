use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::builder::setters;
use super::{duration, size};

/// When the spool declares itself unhealthy and refuses new messages: the `[health]` table.
///
/// Loads and removes go on while it does. Failed writes of the journal, corruption and a dead worker shut the gate
/// at once and have no threshold here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthConfig {
    /// Backlog: the dirty bytes, as a fraction of `dirty_limit`, from which on the spool has fallen behind.
    ///
    /// Default = 0.98. Bounds: above 0, at most 1.
    pub dirty_fraction: f64,

    /// Backlog: the age of the oldest dirty message from which on the spool has fallen behind.
    ///
    /// Default = 10 × `dirty_expire`. Bounds: `dirty_expire` to 1 day.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub dirty_age: Option<Duration>,

    /// How long a backlog (dirty bytes, dirty age, no free segment) has to last before the gate shuts. Short bursts
    /// are met by making stores wait instead.
    ///
    /// Default = 2 s. Bounds: 0 to 1 hour; 0 shuts at once.
    #[serde(with = "duration")]
    pub backlog_latch_after: Duration,

    /// This many failed reads, or this many errors of sled, within [`disk_error_window`](Self::disk_error_window)
    /// shut the gate. The two kinds are counted apart.
    ///
    /// Default = 3. Bounds: 1 to 1 000.
    pub disk_errors: u32,

    /// See [`disk_errors`](Self::disk_errors).
    ///
    /// Default = 60 s. Bounds: 1 s to 1 day.
    #[serde(with = "duration")]
    pub disk_error_window: Duration,

    /// Free space, in bytes, under which the gate shuts; on a small file system
    /// [`min_free_fraction`](Self::min_free_fraction) says it earlier.
    ///
    /// The gate is shut while the free space is under the **smaller** of the two: under 256 MiB on a large disk,
    /// under 5 % on a small one. Setting either to 0 switches the check of free space off. Inodes are watched
    /// as well.
    ///
    /// Default = 256 MiB. Bounds: 0 to 1 TiB.
    #[serde(with = "size")]
    pub min_free_bytes: u64,

    /// Free space, as a fraction of the file system, under which the gate shuts: see
    /// [`min_free_bytes`](Self::min_free_bytes).
    ///
    /// Default = 0.05. Bounds: 0 to 0.5.
    pub min_free_fraction: f64,

    /// How long everything has to be quiet before the gate opens again; the probe write has to succeed as well.
    ///
    /// Default = 5 s. Bounds: 0 to 1 hour.
    #[serde(with = "duration")]
    pub unlatch_after: Duration,

    /// Whether the gate may open again by itself. If not, it stays shut until the spool is opened anew.
    ///
    /// Default = true.
    pub allow_unlatch: bool,

    /// How often the signals are looked at.
    ///
    /// Default = 100 ms. Bounds: 10 ms to 10 s.
    #[serde(with = "duration")]
    pub sample_interval: Duration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            dirty_fraction: 0.98,
            dirty_age: None,
            backlog_latch_after: Duration::from_secs(2),
            disk_errors: 3,
            disk_error_window: Duration::from_secs(60),
            min_free_bytes: 256 * size::MIB,
            min_free_fraction: 0.05,
            unlatch_after: Duration::from_secs(5),
            allow_unlatch: true,
            sample_interval: Duration::from_millis(100),
        }
    }
}

setters! { HealthConfig {
    dirty_fraction: f64,
    dirty_age: some Duration,
    backlog_latch_after: Duration,
    disk_errors: u32,
    disk_error_window: Duration,
    min_free_bytes: u64,
    min_free_fraction: f64,
    unlatch_after: Duration,
    allow_unlatch: bool,
    sample_interval: Duration,
}}
