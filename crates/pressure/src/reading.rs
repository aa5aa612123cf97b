//! What a monitor of memory pressure reports. Without a monitor the level is always normal.

use serde::Serialize;

/// The level of memory pressure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Enough memory is available.
    #[default]
    Normal,
    /// The clients free the excess.
    Low,
    /// The clients free everything that they can at once.
    Critical,
}

/// The source of usage and limit in a [`Reading`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Source {
    /// The working set of the control group (version 2), and the group's limit.
    CgroupV2,
    /// The working set of the control group (version 1), and the group's limit.
    CgroupV1,
    /// The machine's memory minus the available memory, and the machine's memory.
    System,
    /// The resident memory of this process, and the configured limit or 75 % of the machine's
    /// memory.
    Process,
}

impl Source {
    /// The name in JSON and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CgroupV2 => "cgroup_v2",
            Self::CgroupV1 => "cgroup_v1",
            Self::System => "system",
            Self::Process => "process",
        }
    }
}

/// The last sample of the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Reading {
    /// The usage that is compared with `limit`, in bytes.
    pub used: u64,
    /// The limit that is nearest to being reached, in bytes. Never 0.
    pub limit: u64,
    /// The source of `used` and `limit`.
    pub source: Source,
    /// Resident memory of this process in bytes. `None` if it cannot be read.
    pub resident: Option<u64>,
    /// Share of the last 10 s in which some task waited for memory, 0 to 1. `None` if the kernel
    /// does not report it, or if it does not count (see
    /// [`PressureConfig`](crate::PressureConfig)).
    pub stall_ratio: Option<f64>,
    /// The level that follows from this sample and the previous level.
    pub level: Level,
}
