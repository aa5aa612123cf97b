use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::builder::setters;
use super::{duration, size};

/// The memory-pressure monitor: the `[pressure]` table, or a [`PressureMonitor`](crate::PressureMonitor) of its own.
///
/// It compares the memory in use with a limit, and while it is too much asks the spool, again and again, to give
/// some back. Of the comparisons that apply the one counts that is nearest to its limit:
///
/// | used | limit | where |
/// |---|---|---|
/// | the control group's working set | the group's limit | a control group with a limit is in force |
/// | the machine's memory, less what is available | the machine's memory | none is |
/// | the resident memory of this process | [`memory_limit`](Self::memory_limit); 75 % of the machine's memory | it is set; it is not, and no group's limit is in force |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PressureConfig {
    /// Whether the monitor looks. If not, its thread sleeps and the level is normal; `advise_low_memory` works either
    /// way.
    ///
    /// Default = true.
    pub enabled: bool,

    /// How often memory is looked at; up to 32 times as often, but not more than each 5 ms, while its use rises so fast
    /// that it would soon be at the limit.
    ///
    /// Default = 500 ms. Bounds: 10 ms to 1 min.
    #[serde(with = "duration")]
    pub interval: Duration,

    /// The resident memory of this process, in bytes, of which [`low`](Self::low) and [`critical`](Self::critical) are
    /// fractions. A control group's limit holds beside it: it is the one that kills.
    ///
    /// Default = none where a control group's limit is in force; elsewhere 75 % of the physical memory. Bounds: 8 MiB
    /// to 1 PiB.
    #[serde(with = "size::option", skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,

    /// From this fraction of the limit on, the clean cache is shrunk and memory given back.
    ///
    /// Default = 0.80. Bounds: above 0, below [`critical`](Self::critical).
    pub low: f64,

    /// From this fraction of the limit on, everything that can go goes at once.
    ///
    /// Default = 0.92. Bounds: above [`low`](Self::low), at most 1.
    pub critical: f64,

    /// How far, as a fraction of the limit, use has to fall below the threshold of a level before that level ends.
    /// It keeps a use that hovers about a threshold from switching to and fro.
    ///
    /// Default = 0.05. Bounds: at least 0, below [`low`](Self::low).
    pub hysteresis: f64,

    /// From this share of time on in which some task waited for memory, in the last 10 s, the level is at least low,
    /// whatever is in use; until it has fallen below half of this. An early sign, where the kernel tells it (PSI,
    /// `some avg10`): of the control group under version 2, else of the machine if no group's limit is in force.
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
