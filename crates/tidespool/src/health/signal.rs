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
        self.texts().0
    }

    /// The name, and the text for the log.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::DeadWorker => ("dead_worker", "a background thread has died"),
            Self::Damage => ("damage", "too many messages were found damaged or lost"),
            Self::LostFiles => {
                ("lost_files", "files of the spool were deleted, moved or changed by something else")
            }
            Self::LowSpace => ("low_space", "the file system is nearly full"),
            Self::JournalErrors => ("journal_errors", "a write or a sync of the journal failed"),
            Self::SledErrors => ("sled_errors", "sled failed too often"),
            Self::ReadErrors => ("read_errors", "reading from disk failed too often"),
            Self::StalledCheckpoint => ("stalled_checkpoint", "a checkpoint makes no progress"),
            Self::NoFreeSegment => ("no_free_segment", "no segment of the journal is free"),
            Self::DirtyBytes => ("dirty_bytes", "too many bytes wait to be written"),
            Self::DirtyAge => ("dirty_age", "the oldest bytes have been waiting too long to be written"),
        }
    }
}

/// The text for the log.
impl fmt::Display for HealthSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.texts().1)
    }
}
