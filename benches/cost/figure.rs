//! What is measured of an operation.

use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::operations::Kind;

/// One figure, for one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    /// Instructions of all threads, as valgrind counts them.
    Instructions,
    /// Allocations and reallocations.
    Allocations,
    /// Bytes of them.
    #[serde(rename = "allocated_bytes")]
    Allocated,
    /// Syncs of journal and ledger.
    Syncs,
    /// Bytes written into journal and ledger.
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
    /// As it stands in the file of limits.
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

    /// Its value for one operation. `None` for what is not counted from within the program.
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

    /// A difference as small as this is none: where so many operations share a table that grows or
    /// a line in the ledger, runs differ by that much. On a busy machine the thread that keeps the
    /// memory budget has a turn in a section: 62 allocations were seen.
    pub(crate) fn grain(self) -> f64 {
        match self {
            Self::Instructions => 10.0,
            Self::Allocations => 0.1,
            Self::Allocated => 64.0,
            Self::Written => 0.05,
            Self::Syncs | Self::Reads | Self::Read | Self::Sled => 0.000_05,
        }
    }

    /// What a new limit may be exceeded by, in per cent: more than what was seen between eight runs on a busy machine (instructions 1.5, with
    /// threads that wait for each other 6.5; allocations 0.5). How often a thread really falls asleep differs from run to run, and so does when the
    /// checkpoint thread looks: cold loads of what is filed once took a third fewer allocations than the time before, and a checkpoint read 0.04 bytes more.
    pub(crate) fn usual_tolerance(self, kind: Kind) -> f64 {
        let is_cold = matches!(kind, Kind::ColdJournal | Kind::ColdFiled);
        let is_filing = matches!(kind, Kind::Checkpoint);
        let has_threads = is_cold || matches!(kind, Kind::Synced | Kind::SyncedTogether);
        match self {
            Self::Instructions | Self::Allocations | Self::Allocated if is_cold => 25.0,
            Self::Instructions if is_filing => 10.0,
            _ if is_filing => 5.0,
            Self::Instructions if has_threads => 8.0,
            Self::Instructions => 4.0,
            Self::Allocations | Self::Allocated | Self::Sled => 2.0,
            Self::Syncs | Self::Written | Self::Reads | Self::Read => 0.0,
        }
    }
}

/// `count` for each of `operations`, to four decimals.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub(crate) fn per_operation(count: u64, operations: u64) -> f64 {
    (count as f64 / operations as f64 * 10_000.0).round() / 10_000.0
}
