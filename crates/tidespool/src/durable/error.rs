//! What can go wrong with the index engine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// An error of the index engine. None has a `source`: each is the root cause of what carries it.
/// None says anything about a message: the index can be rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum DurableError {
    /// The engine failed: an I/O error, damaged files, a panic inside.
    #[error("{}: {doing} failed: {what}; it is rebuilt from the segments", path.display())]
    Engine {
        /// Its directory.
        path: PathBuf,
        /// The call that failed.
        doing: &'static str,
        /// Its own error.
        what: String,
        /// The kind of I/O error, where it is one.
        kind: Option<io::ErrorKind>,
    },
    /// The engine did not answer in time. Its thread may still be at it.
    #[error("{}: {doing} did not end within {} ms; it is rebuilt from the segments", path.display(), after.as_millis())]
    Timeout {
        /// Its directory.
        path: PathBuf,
        /// The call that did not end.
        doing: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// Its files are in use: by another process, or by an earlier opening in this one that has not
    /// ended yet.
    #[error("{} is in use by another process, or not closed yet", path.display())]
    Locked {
        /// Its directory.
        path: PathBuf,
    },
    /// The index is being rebuilt, waits for that, or was closed. Says nothing about the message
    /// asked for. To be tried again.
    #[error("{}: {why}", path.display())]
    Unavailable {
        /// Its directory.
        path: PathBuf,
        /// Why it is not.
        why: String,
    },
    /// sled cannot work on this file system.
    #[error(
        "{}: the file system refuses a call that sled needs (`sync_file_range`): {what}; a spool can't be kept on it",
        path.display()
    )]
    Unsupported {
        /// Its directory.
        path: PathBuf,
        /// sled's own error.
        what: String,
    },
}

impl DurableError {
    /// The engine has to be thrown away.
    pub(crate) const fn poisons(&self) -> bool {
        matches!(self, Self::Engine { .. } | Self::Timeout { .. } | Self::Unsupported { .. })
    }
}
