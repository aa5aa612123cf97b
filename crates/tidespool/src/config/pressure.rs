use serde::{Deserialize, Serialize};

use super::setters::setters;
use super::size;

/// How far, as a fraction of the limit, use has to fall below the threshold of a level before that
/// level ends. Without it, use near a threshold would change the level again and again.
pub(crate) const HYSTERESIS: f64 = 0.05;

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
///
/// Memory is checked every 500 ms. While use rises so fast that it would soon reach the limit, it
/// is checked up to 32 times as often. If some task waited for memory during 10 % of the last 10 s
/// (PSI, `some avg10`), the level is at least low, whatever is in use, until the share is below
/// 5 %. This early sign is that of the control group under version 2, else that of the machine if
/// no group's limit is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PressureConfig {
    /// Whether the monitor checks memory. If not, its thread sleeps and the level is normal.
    /// `advise_low_memory` works either way.
    ///
    /// Default = true.
    pub enabled: bool,

    /// The limit of this process's resident memory, in bytes. [`low`](Self::low) and
    /// [`critical`](Self::critical) are fractions of it. A control group's limit applies as well,
    /// because the kernel kills a process that exceeds it.
    ///
    /// Default = none if a control group's limit is in force, else 75 % of the physical memory.
    /// Bounds: 8 MiB to 1 PiB.
    #[serde(with = "size::option", skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,

    /// From this fraction of the limit on, the spool uses less: it frees the excess again and
    /// again, down to 8 MiB. Its clean cache shrinks (the newest copies stay), its dirty limit is
    /// lowered in proportion, dirty data is written, and free memory is returned to the system.
    ///
    /// A level ends when use is below its threshold by 0.05 of the limit: without this hysteresis,
    /// use near a threshold would change the level again and again.
    ///
    /// Default = 0.80. Bounds: above 0.05, below [`critical`](Self::critical).
    pub low: f64,

    /// From this fraction of the limit on, all memory that can be freed is freed at once: all clean
    /// copies are dropped as well.
    ///
    /// Default = 0.92. Bounds: above [`low`](Self::low), at most 1.
    pub critical: f64,
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self { enabled: true, memory_limit: None, low: 0.80, critical: 0.92 }
    }
}

setters! { PressureConfig {
    enabled: bool,
    memory_limit: some u64,
    low: f64,
    critical: f64,
}}
