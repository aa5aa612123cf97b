//! What can go wrong with the filing engine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use tidespool_core::SpoolId;

/// An error of the filing engine. None has a `source`: each is the root cause of what carries it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum DurableError {
    /// The engine failed (an I/O error, damaged files, a panic inside), and is poisoned until it is opened again.
    #[error("{}: {doing} failed: {what}; it has to be opened again", path.display())]
    Engine {
        /// Its directory.
        path: PathBuf,
        /// What was asked of it.
        doing: &'static str,
        /// What it said.
        what: String,
        /// The kind of I/O error, where it is one: a full disk can be told.
        kind: Option<io::ErrorKind>,
    },
    /// The engine did not answer in time, and is poisoned until it is opened again. Its thread may still be at it.
    #[error("{}: {doing} did not end within {} ms; it has to be opened again", path.display(), after.as_millis())]
    Timeout {
        /// Its directory.
        path: PathBuf,
        /// What was asked of it.
        doing: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// Its files are in use: by another process, or by an earlier opening in this one that has not ended yet.
    #[error("{} is in use by another process, or not closed yet", path.display())]
    Locked {
        /// Its directory.
        path: PathBuf,
    },
    /// No engine is open: it broke and was not opened again yet, or it was closed. Says nothing about the message
    /// asked for. To be tried again.
    #[error("{} is not open: {why}", path.display())]
    Unavailable {
        /// Its directory.
        path: PathBuf,
        /// Why it is not.
        why: String,
    },
    /// The message's record is there and cannot be read. Not an error of the engine.
    #[error("the record of message {id} is damaged: {reason}")]
    Damaged {
        /// Which message.
        id: SpoolId,
        /// What is wrong with it.
        reason: String,
    },
    /// The record is larger than what may be filed.
    #[error("a message of {len} bytes cannot be filed whole ({id}): at most {limit}")]
    TooLarge {
        /// Which message.
        id: SpoolId,
        /// Its bytes.
        len: usize,
        /// The most there may be.
        limit: usize,
    },
    /// Something is filed under keys that no message has: damage, or files of somebody else.
    #[error("{}: {count} records without a message's key, the first: {first}", path.display())]
    ForeignKeys {
        /// Its directory.
        path: PathBuf,
        /// How many.
        count: u64,
        /// What the first of them is.
        first: String,
    },
}

impl DurableError {
    /// Its files are damaged, as far as the error tells: not an error of the disk, which may pass.
    pub(crate) const fn is_damage(&self) -> bool {
        use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
        match self {
            Self::Engine { kind, .. } => {
                matches!(kind, None | Some(InvalidData | InvalidInput | NotFound | UnexpectedEof))
            }
            Self::ForeignKeys { .. } => true,
            _ => false,
        }
    }

    /// The engine has to be opened again before anything can succeed.
    pub(crate) const fn poisons(&self) -> bool {
        matches!(self, Self::Engine { .. } | Self::Timeout { .. })
    }

    /// It may succeed when tried again, after the engine was opened again: the message itself is not at fault.
    #[cfg(test)]
    pub(crate) const fn is_retryable(&self) -> bool {
        self.poisons() || matches!(self, Self::Locked { .. } | Self::Unavailable { .. })
    }
}
