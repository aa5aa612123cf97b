//! The errors that a caller may have to tell apart.
//!
//! None of them has a `source`, so that each is the root cause of the `anyhow::Error` which carries it:
//! `err.root_cause().is::<NotFound>()` works whatever context was added around it.

use std::path::PathBuf;

use thiserror::Error;

use crate::SpoolId;

/// The spool refuses new messages until it is healthy again. Loads and removes go on.
///
/// What to do: answer with a temporary failure (SMTP 4xx, HTTP 503) and look at the spool's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the spool is not accepting writes")]
pub struct SpoolUnhealthyError;

/// The deadline that the caller gave to `store` passed, or cannot be met. Nothing was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the caller's deadline passed before the message was stored")]
pub struct SpoolCallerDeadlineExceeded;

/// The spool's own bound on a store passed while it waited for room, or cannot be met. Nothing was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the spool had no room for the message within its store deadline")]
pub struct SpoolBackpressureTimeout;

/// There is no message with this id: it was never stored, or it was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no such key {id}")]
pub struct NotFound {
    /// The id asked for.
    pub id: SpoolId,
}

/// The message exists, and its bytes on disk are damaged: they do not match their checksum.
///
/// What to do: remove the message, or restore it from elsewhere. It is never returned with wrong bytes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("message {id} is damaged: {reason}")]
pub struct Corrupt {
    /// The damaged message.
    pub id: SpoolId,
    /// Which file and place, and what is wrong there.
    pub reason: String,
}

/// The message is larger than `max_message_size`. Nothing was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("message {id} has {size} bytes, more than max_message_size ({limit} bytes)")]
pub struct TooLarge {
    /// The refused message.
    pub id: SpoolId,
    /// Its size in bytes.
    pub size: u64,
    /// The limit in bytes.
    pub limit: u64,
}

/// The spool was shut down, or is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the spool is shut down")]
pub struct Closed;

/// The spool's directory is in use by a process (maybe this one).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{} is in use by {}: stop that process first, a spool has one owner at a time", path.display(), owner(*pid))]
pub struct Locked {
    /// The spool's directory.
    pub path: PathBuf,
    /// The process that holds it, where it left its id.
    pub pid: Option<u32>,
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// The directory holds something that this version cannot read. It was left untouched.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {found}; this version reads {supported}; nothing was changed", path.display())]
pub struct UnsupportedFormat {
    /// The file that says so.
    pub path: PathBuf,
    /// What it says.
    pub found: String,
    /// What this version reads.
    pub supported: String,
}

/// Something in the spool's directory is so damaged that the spool cannot be opened. Nothing was given up.
///
/// What to do: `tidespool repair DIR NEW_DIR` copies what can be saved into a new directory, and lists what cannot.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{} is damaged: {what}; run `tidespool repair {} NEW_DIR` to copy what can be saved into a new directory",
    path.display(),
    dir.display()
)]
pub struct DamagedSpool {
    /// The spool's directory.
    pub dir: PathBuf,
    /// The damaged file or folder in it.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_error_is_found_by_its_type_under_any_context() {
        let id = SpoolId::new();
        let result: anyhow::Result<()> = Err(NotFound { id }.into());
        let err = result.context("loading").context("delivering").unwrap_err();
        assert!(err.root_cause().is::<NotFound>());
        assert!(!err.root_cause().is::<Corrupt>());
        assert_eq!(err.root_cause().to_string(), format!("no such key {id}"));
    }

    #[test]
    fn unhealthy_is_worded_as_callers_expect_it() {
        assert_eq!(SpoolUnhealthyError.to_string(), "the spool is not accepting writes");
    }

    #[test]
    fn a_damaged_spool_names_the_file_and_the_command() {
        let (dir, path) = ("/var/spool/x".into(), "/var/spool/x/FORMAT".into());
        let text = DamagedSpool { dir, path, what: "it is missing".to_owned() }.to_string();
        assert!(text.starts_with("/var/spool/x/FORMAT is damaged: it is missing; "), "{text}");
        assert!(text.contains("`tidespool repair /var/spool/x NEW_DIR`"), "{text}");
    }

    #[test]
    fn locked_names_the_owner() {
        let err = Locked { path: "/var/spool/x".into(), pid: Some(42) };
        assert!(err.to_string().contains("/var/spool/x is in use by process 42"), "{err}");
        let err = Locked { path: "/var/spool/x".into(), pid: None };
        assert!(err.to_string().contains("another process"), "{err}");
    }
}
