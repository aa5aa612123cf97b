use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::builder::setters;
use super::{duration, size};

/// The memory-pressure monitor: the `[pressure]` table.
///
/// It compares the memory in use with a limit, and while it is too much asks the spool, again and again, to give
/// some back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PressureConfig {
    /// Whether the monitor runs. `advise_low_memory` works either way.
    ///
    /// Default = true.
    pub enabled: bool,

    /// How often memory is looked at.
    ///
    /// Default = 500 ms. Bounds: 10 ms to 1 min.
    #[serde(with = "duration")]
    pub interval: Duration,

    /// The memory, in bytes, of which [`low`](Self::low) and [`critical`](Self::critical) are fractions.
    ///
    /// What is compared with it is the working set of the control group where one with a limit is in force, else the
    /// resident memory of this process. A control group's limit that is lower than this one is used instead: it is
    /// the one that kills.
    ///
    /// Default = the control group's limit; 75 % of the physical memory where there is none. Bounds: 8 MiB to 1 PiB.
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
}}
