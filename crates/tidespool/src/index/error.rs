//! Errors of the index engine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// An error of the index engine. It has no `source`: it is the root cause of the error that
/// contains it. It never means that a message is lost, because the index can be rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum IndexError {
    /// The engine failed: an I/O error, damaged files, a panic inside.
    #[error("{}: {doing} failed: {what}; the index is rebuilt from the segments", path.display())]
    Engine {
        /// Its directory.
        path: PathBuf,
        /// The call that failed.
        doing: &'static str,
        /// The text of the engine's error.
        what: String,
        /// The kind of the I/O error, if it is one.
        kind: Option<io::ErrorKind>,
    },
    /// The engine did not answer in time. Its thread may still be running.
    #[error("{}: {doing} did not end within {} ms; the index is rebuilt from the segments", path.display(), after.as_millis())]
    Timeout {
        /// Its directory.
        path: PathBuf,
        /// The call that timed out.
        doing: &'static str,
        /// The timeout.
        after: Duration,
    },
    /// Another process uses the files, or an earlier engine of this process has not closed them
    /// yet.
    #[error("{} is in use by another process, or not closed yet", path.display())]
    Locked {
        /// Its directory.
        path: PathBuf,
    },
    /// The index is being rebuilt, waits for a rebuild, or was closed. The message may exist; the
    /// call can be repeated.
    #[error("{}: {why}", path.display())]
    Unavailable {
        /// Its directory.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The engine cannot work on this file system.
    #[error("{}: {what}; a spool can't be kept on it", path.display())]
    Unsupported {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        what: String,
    },
}

impl IndexError {
    /// Returns true if the engine must be discarded.
    pub(crate) const fn poisons(&self) -> bool {
        matches!(self, Self::Engine { .. } | Self::Timeout { .. } | Self::Unsupported { .. })
    }
}
