//! The figures that are measured for an operation.

use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::operations::Kind;

/// One figure of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    /// Instructions of all threads, counted by valgrind.
    Instructions,
    /// Allocations and reallocations.
    Allocations,
    /// Allocated bytes.
    #[serde(rename = "allocated_bytes")]
    Allocated,
    /// Syncs of journal and manifest.
    Syncs,
    /// Bytes written into journal and manifest.
    #[serde(rename = "written_bytes")]
    Written,
    /// Reads of the journal.
    Reads,
    /// Bytes read from the journal.
    #[serde(rename = "read_bytes")]
    Read,
    /// Bytes that sled wrote.
    #[serde(rename = "sled_bytes")]
    Sled,
}

impl Figure {
    /// The name in the file of limits.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::Allocations => "allocations",
            Self::Allocated => "allocated_bytes",
            Self::Syncs => "syncs",
            Self::Written => "written_bytes",
            Self::Reads => "reads",
            Self::Read => "read_bytes",
            Self::Sled => "sled_bytes",
        }
    }

    /// The value for one operation. `None` if the program itself cannot count it.
    pub(crate) fn of(self, counts: &Counts, operations: u64) -> Option<f64> {
        let count = match self {
            Self::Instructions => return None,
            Self::Allocations => counts.allocations,
            Self::Allocated => counts.allocated_bytes,
            Self::Syncs => counts.syncs,
            Self::Written => counts.written_bytes,
            Self::Reads => counts.reads,
            Self::Read => counts.read_bytes,
            Self::Sled => counts.other_written_bytes,
        };
        Some(per_operation(count, operations))
    }

    /// Differences up to this value are ignored. If many operations share a growing table or a line
    /// in the manifest, runs differ by as much. On a busy machine the memory balancer may run in a
    /// section: 62 allocations were seen.
    pub(crate) fn grain(self) -> f64 {
        match self {
            Self::Instructions => 10.0,
            Self::Allocations => 0.1,
            Self::Allocated => 64.0,
            Self::Written => 0.05,
            Self::Syncs | Self::Reads | Self::Read | Self::Sled => 0.000_05,
        }
    }

    /// Initial tolerance of a limit in percent. It exceeds the differences between eight runs on a
    /// busy machine (instructions 1.5, with threads that wait for each other 6.5; allocations 0.5).
    /// How often a thread really sleeps, and when the checkpoint thread runs, differs between runs:
    /// in one run, cold loads of checkpointed messages made a third fewer allocations than in the
    /// previous one, and a checkpoint read 0.04 bytes more.
    pub(crate) fn usual_tolerance(self, kind: Kind) -> f64 {
        let is_cold = matches!(kind, Kind::ColdJournal | Kind::ColdCheckpointed);
        let is_checkpointing = matches!(kind, Kind::Checkpoint);
        let has_threads = is_cold || matches!(kind, Kind::Synced | Kind::SyncedTogether);
        match self {
            Self::Instructions | Self::Allocations | Self::Allocated if is_cold => 25.0,
            Self::Instructions if is_checkpointing => 10.0,
            _ if is_checkpointing => 5.0,
            Self::Instructions if has_threads => 8.0,
            Self::Instructions => 4.0,
            Self::Allocations | Self::Allocated | Self::Sled => 2.0,
            Self::Syncs | Self::Written | Self::Reads | Self::Read => 0.0,
        }
    }
}

/// `count` divided by `operations`, to four decimals.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub(crate) fn per_operation(count: u64, operations: u64) -> f64 {
    (count as f64 / operations as f64 * 10_000.0).round() / 10_000.0
}
