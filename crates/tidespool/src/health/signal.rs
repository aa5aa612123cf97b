use std::fmt;

use crate::{HealthCause, HealthSignal};

impl HealthSignal {
    /// All signals, in the order of their discriminants: the worst is first.
    pub const ALL: [Self; 11] = [
        Self::DeadWorker,
        Self::Damage,
        Self::LostFiles,
        Self::LowSpace,
        Self::JournalErrors,
        Self::SledErrors,
        Self::ReadErrors,
        Self::StalledCheckpoint,
        Self::NoFreeSegment,
        Self::DirtyBytes,
        Self::DirtyAge,
    ];

    /// What is wrong while this signal is active.
    #[must_use]
    pub fn cause(self) -> HealthCause {
        match self {
            Self::DeadWorker
            | Self::Damage
            | Self::LostFiles
            | Self::JournalErrors
            | Self::SledErrors
            | Self::ReadErrors
            | Self::StalledCheckpoint => HealthCause::Broken,
            Self::LowSpace => HealthCause::Space,
            Self::NoFreeSegment | Self::DirtyBytes | Self::DirtyAge => HealthCause::Backlog,
        }
    }

    /// The text that a caller may show to its clients. It names no internals.
    pub(crate) fn reason(self) -> &'static str {
        match self.cause() {
            HealthCause::Space => "the spool is short of disk space",
            HealthCause::Backlog => "the spool is catching up",
            _ => "the spool is not accepting writes",
        }
    }

    /// True for a backlog: data arrives faster than the disk accepts it, and nothing is broken.
    pub(crate) fn is_backlog(self) -> bool {
        self.cause() == HealthCause::Backlog
    }

    /// The name in the metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::JournalErrors => "journal_errors",
            Self::DeadWorker => "dead_worker",
            Self::Damage => "damage",
            Self::LostFiles => "lost_files",
            Self::SledErrors => "sled_errors",
            Self::ReadErrors => "read_errors",
            Self::LowSpace => "low_space",
            Self::StalledCheckpoint => "stalled_checkpoint",
            Self::NoFreeSegment => "no_free_segment",
            Self::DirtyBytes => "dirty_bytes",
            Self::DirtyAge => "dirty_age",
        }
    }
}

/// The text for the log.
impl fmt::Display for HealthSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JournalErrors => "a write or a sync of the journal failed",
            Self::DeadWorker => "a background thread has died",
            Self::Damage => "too many messages were found damaged or lost",
            Self::LostFiles => "files of the spool were deleted, moved or changed by something else",
            Self::SledErrors => "sled failed too often",
            Self::ReadErrors => "reading from disk failed too often",
            Self::LowSpace => "the file system is nearly full",
            Self::StalledCheckpoint => "a checkpoint makes no progress",
            Self::NoFreeSegment => "no segment of the journal is free",
            Self::DirtyBytes => "too many bytes wait to be written",
            Self::DirtyAge => "the oldest bytes have been waiting too long to be written",
        })
    }
}
