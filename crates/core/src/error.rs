//! The errors that a caller may need to distinguish.
//!
//! None of them has a `source`, so each is the root cause of the `anyhow::Error` that carries it:
//! `err.root_cause().is::<NotFound>()` works under any context.

use std::path::PathBuf;

use thiserror::Error;

use crate::SpoolId;

/// The spool rejects new messages until it is healthy again. Loads and removes still work.
///
/// What to do: answer with a temporary failure (SMTP 4xx, HTTP 503) and look at the spool's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the spool is not accepting writes")]
pub struct SpoolUnhealthyError;

/// The deadline that the caller gave to `store` passed, or cannot be met. Nothing was stored,
/// unless the error has the context [`InDoubt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the caller's deadline passed before the message was stored")]
pub struct SpoolCallerDeadlineExceeded;

/// The spool's own time limit for a store passed during the wait for space or for the disk, or
/// cannot be met. Nothing was stored, unless the error has the context [`InDoubt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the spool had no room for the message within its store deadline")]
pub struct SpoolBackpressureTimeout;

/// The context of a `store` error after which a reopened spool may have the message.
///
/// A `store` error without this context promises that nothing is left behind. With this context,
/// the message was handed to the disk and the disk did not answer in time. The message is not
/// visible while the spool is open, and the spool durably reverts the store as soon as the disk
/// answers. The message can reappear only after a crash or an incomplete shutdown before that. The
/// store is certainly reverted once a later store with `force_sync`, begun after the error, returns
/// `Ok`.
///
/// The root cause of the error says why the store failed. `err.is::<InDoubt>()` and
/// `err.downcast_ref::<InDoubt>()` find this context under any other context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "message {id} may be found after a crash: the disk did not answer in time, and the store is not yet reverted"
)]
pub struct InDoubt {
    /// The message that may reappear.
    pub id: SpoolId,
}

/// There is no message with this id: it was never stored, or it was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no such key {id}")]
pub struct NotFound {
    /// The requested id.
    pub id: SpoolId,
}

/// The message exists, but its bytes on disk do not match their checksum.
///
/// What to do: remove the message, or restore it from another copy. A spool never returns wrong
/// bytes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("message {id} is damaged: {reason}")]
pub struct Corrupt {
    /// The damaged message.
    pub id: SpoolId,
    /// The file and the place of the damage, and what is wrong there.
    pub reason: String,
}

/// The message is larger than `max_message_size`. Nothing was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("message {id} has {size} bytes, more than max_message_size ({limit} bytes)")]
pub struct TooLarge {
    /// The rejected message.
    pub id: SpoolId,
    /// The size of the message in bytes.
    pub size: u64,
    /// The limit in bytes.
    pub limit: u64,
}

/// The spool was shut down, or is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the spool is shut down")]
pub struct Closed;

/// The spool's directory is in use by a process, possibly this one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{} is in use by {}; a spool has one owner at a time", path.display(), owner(*pid))]
pub struct Locked {
    /// The spool's directory.
    pub path: PathBuf,
    /// The process that holds the directory, if known. If it is the id of this process, the spool
    /// is already open in this process.
    pub pid: Option<u32>,
}

fn owner(pid: Option<u32>) -> String {
    match pid {
        Some(pid) if pid == std::process::id() => {
            format!(
                "this process itself ({pid}), where the spool is already open: use the open spool or shut it down first"
            )
        }
        Some(pid) => format!("process {pid}: stop that process first"),
        None => "another process: stop that process first".to_owned(),
    }
}

/// The directory has a format that this version cannot read. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {found}; this version reads {supported}; nothing was changed", path.display())]
pub struct UnsupportedFormat {
    /// The file that has the unsupported format.
    pub path: PathBuf,
    /// The format that was found.
    pub found: String,
    /// The formats that this version reads.
    pub supported: String,
}

/// Part of the spool's directory is so damaged that the spool cannot be opened. Nothing was
/// discarded.
///
/// What to do: `tidespool repair DIR NEW_DIR` copies the intact messages into a new directory, and
/// lists what cannot be copied.
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
    /// What is wrong with this file or folder.
    pub what: String,
}

/// The system clock is before 1970, as on a machine without a battery for its clock. sled does not
/// work with such a clock. Nothing was changed.
///
/// What to do: set the clock, or start the server after the clock was set from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the system's clock is before 1970: set it, and open the spool again; nothing was changed")]
pub struct ClockNotSet;

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

    /// `InDoubt` is a context: other contexts do not hide it, and it does not hide the root cause.
    #[test]
    fn in_doubt_is_found_under_any_context_and_is_not_the_root_cause() {
        let doubt = InDoubt { id: SpoolId::new() };
        let err = anyhow::Error::from(SpoolCallerDeadlineExceeded).context(doubt).context("accepting");
        assert_eq!(err.downcast_ref::<InDoubt>(), Some(&doubt));
        assert!(err.is::<InDoubt>() && err.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{err:#}");
        assert!(format!("{err:#}").contains(&doubt.id.to_string()), "{err:#}");
        let clean = anyhow::Error::from(SpoolCallerDeadlineExceeded).context("accepting");
        assert!(!clean.is::<InDoubt>());
    }

    #[test]
    fn unhealthy_error_has_the_text_that_callers_expect() {
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
        assert!(err.to_string().contains("another process: stop that process first"), "{err}");
        // Regression: a process that opened its spool twice was asked to stop itself.
        let err = Locked { path: "/var/spool/x".into(), pid: Some(std::process::id()) };
        assert!(err.to_string().contains("this process itself"), "{err}");
        assert!(!err.to_string().contains("stop that process"), "{err}");
    }
}
