use std::fmt;

/// Why the gate is shut. For the log; callers get [`reason`](Self::reason).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cause {
    JournalWrite,
    Corruption,
    WorkerDead,
    SledErrors,
    ReadErrors,
    NoSpace,
    DirtyBytes,
    DirtyAge,
    NoFreeSegment,
}

impl Cause {
    /// In the order of their discriminants.
    pub(super) const ALL: [Self; 9] = [
        Self::JournalWrite,
        Self::Corruption,
        Self::WorkerDead,
        Self::SledErrors,
        Self::ReadErrors,
        Self::NoSpace,
        Self::DirtyBytes,
        Self::DirtyAge,
        Self::NoFreeSegment,
    ];

    /// What a caller may show to its clients: bland, and nothing of the inside.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::JournalWrite
            | Self::Corruption
            | Self::WorkerDead
            | Self::SledErrors
            | Self::ReadErrors => "the spool is not accepting writes",
            Self::NoSpace => "the spool is short of disk space",
            Self::DirtyBytes | Self::DirtyAge | Self::NoFreeSegment => "the spool is catching up",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JournalWrite => "a write or a sync of the journal failed",
            Self::Corruption => "damaged data was found",
            Self::WorkerDead => "a background thread has died",
            Self::SledErrors => "sled failed too often",
            Self::ReadErrors => "reading from disk failed too often",
            Self::NoSpace => "the file system is nearly full",
            Self::DirtyBytes => "too many bytes wait to be written",
            Self::DirtyAge => "the oldest bytes have been waiting too long to be written",
            Self::NoFreeSegment => "no segment of the journal is free",
        })
    }
}
