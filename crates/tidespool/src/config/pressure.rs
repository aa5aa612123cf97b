use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::builder::setters;
use super::{duration, size};

/// The memory-pressure monitor: the `[pressure]` table, or a separate
/// [`PressureMonitor`](crate::PressureMonitor).
///
/// The monitor compares the memory in use with a limit. While too much is in use, it makes the
/// spool free memory, again and again. Of the comparisons that apply, the one nearest to its limit
/// counts:
///
/// | used | limit | applies if |
/// |---|---|---|
/// | the control group's working set | the group's limit | a control group with a limit is in force |
/// | the machine's memory, less the available memory | the machine's memory | no such limit is in force |
/// | the resident memory of this process | [`memory_limit`](Self::memory_limit); 75 % of the machine's memory | it is set; it is not set, and no group's limit is in force |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PressureConfig {
    /// Whether the monitor checks memory. If not, its thread sleeps and the level is normal.
    /// `advise_low_memory` works either way.
    ///
    /// Default = true.
    pub enabled: bool,

    /// How often memory is checked. While use rises so fast that it would soon reach the limit, it
    /// is checked up to 32 times as often, but at most every 5 ms.
    ///
    /// Default = 500 ms. Bounds: 10 ms to 1 min.
    #[serde(with = "duration")]
    pub interval: Duration,

    /// The limit of this process's resident memory, in bytes. [`low`](Self::low) and
    /// [`critical`](Self::critical) are fractions of it. A control group's limit applies as well,
    /// because the kernel kills a process that exceeds it.
    ///
    /// Default = none if a control group's limit is in force, else 75 % of the physical memory.
    /// Bounds: 8 MiB to 1 PiB.
    #[serde(with = "size::option", skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,

    /// From this fraction of the limit on, the clean cache shrinks and memory is returned to the
    /// system.
    ///
    /// Default = 0.80. Bounds: above 0, below [`critical`](Self::critical).
    pub low: f64,

    /// From this fraction of the limit on, all memory that can be freed is freed at once.
    ///
    /// Default = 0.92. Bounds: above [`low`](Self::low), at most 1.
    pub critical: f64,

    /// How far, as a fraction of the limit, use has to fall below the threshold of a level before
    /// that level ends. Without it, use near a threshold would change the level again and again.
    ///
    /// Default = 0.05. Bounds: at least 0, below [`low`](Self::low).
    pub hysteresis: f64,

    /// If some task waited for memory during this share of the last 10 s, the level is at least
    /// low, whatever is in use. This ends when the share is below half of this setting.
    ///
    /// An early sign, if the kernel reports it (PSI, `some avg10`): for the control group under
    /// version 2, else for the machine if no group's limit is in force.
    ///
    /// Default = 0.10. Bounds: 0 to 1; 0 turns it off.
    pub stall_ratio: f64,
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Duration::from_millis(500),
            memory_limit: None,
            low: 0.80,
            critical: 0.92,
            hysteresis: 0.05,
            stall_ratio: 0.10,
        }
    }
}

setters! { PressureConfig {
    enabled: bool,
    interval: Duration,
    memory_limit: some u64,
    low: f64,
    critical: f64,
    hysteresis: f64,
    stall_ratio: f64,
}}
