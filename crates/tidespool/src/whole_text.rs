//! Errors whose outermost text contains all causes.
//!
//! `println!("{error}")` prints only the outermost text of an `anyhow::Error`. So each error that
//! leaves the crate has the texts of all its causes in the outermost one. Below it is the root
//! cause, for `root_cause().is::<T>()` and for `downcast_ref`.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use tidespool_core::{
    ClockNotSet, Closed, Corrupt, DamagedSpool, InDoubt, Locked, NotFound, SpoolBackpressureTimeout,
    SpoolCallerDeadlineExceeded, SpoolUnhealthyError, TooLarge, UnsupportedFormat,
};

use crate::ConfigError;
use crate::store_error::{AcceptError, SpoolNameError};

/// Returns `error` with the texts of all its causes in the outermost text.
pub(crate) fn whole(error: anyhow::Error) -> anyhow::Error {
    // Most errors have one text and no cause.
    if error.chain().nth(1).is_none() { error } else { with_text(text_of(&error), error) }
}

/// Like [`whole`], with `doing` in front of the text.
pub(crate) fn whole_of(doing: impl fmt::Display, error: anyhow::Error) -> anyhow::Error {
    with_text(format!("{doing}: {}", text_of(&error)), error)
}

/// The texts of the chain, joined. Some errors contain the text of their source: it is not
/// repeated.
fn text_of(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        match (text.is_empty(), text.ends_with(&cause)) {
            (true, _) => cause,
            (false, true) => text,
            (false, false) => format!("{text}: {cause}"),
        }
    })
}

fn with_text(text: String, error: anyhow::Error) -> anyhow::Error {
    // The only context that callers downcast to.
    let doubt = error.downcast_ref::<InDoubt>().copied();
    // The error that callers downcast to, without its contexts: `text` has theirs.
    let bare = bare::<Locked>(error)
        .or_else(bare::<UnsupportedFormat>)
        .or_else(bare::<DamagedSpool>)
        .or_else(bare::<ClockNotSet>)
        .or_else(bare::<Closed>)
        .or_else(bare::<Corrupt>)
        .or_else(bare::<NotFound>)
        .or_else(bare::<TooLarge>)
        .or_else(bare::<SpoolUnhealthyError>)
        .or_else(bare::<SpoolBackpressureTimeout>)
        .or_else(bare::<SpoolCallerDeadlineExceeded>)
        .or_else(bare::<ConfigError>)
        .or_else(bare::<SpoolNameError>)
        .or_else(bare::<AcceptError>)
        .or_else(bare::<io::Error>);
    match bare {
        Ok(bare) => match doubt {
            Some(doubt) => bare.context(doubt).context(text),
            None => bare.context(text),
        },
        Err(error) => Whole { text, error }.into(),
    }
}

fn bare<T: StdError + Send + Sync + 'static>(error: anyhow::Error) -> Result<anyhow::Error, anyhow::Error> {
    error.downcast::<T>().map(anyhow::Error::from)
}

/// An error of a type that callers do not downcast to. Its source is its root cause.
#[derive(Debug)]
struct Whole {
    text: String,
    error: anyhow::Error,
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Whole {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.error.root_cause())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    /// `{error}` printed only "opening the spool X".
    #[test]
    fn the_outermost_text_has_the_cause_and_the_root_stays() {
        let locked = Locked { path: "/x".into(), pid: None };
        let error = Err::<(), _>(locked.clone()).context("locking").unwrap_err();
        let error = whole_of("opening the spool /x", error);
        assert_eq!(error.to_string(), format!("opening the spool /x: locking: {locked}"));
        assert!(error.root_cause().is::<Locked>() && error.is::<Locked>());
        assert_eq!(error.chain().count(), 2);

        #[derive(Debug, thiserror::Error)]
        #[error("reading /x/manifest: {source}")]
        struct Own {
            source: io::Error,
        }
        let error = anyhow::Error::new(Own { source: io::ErrorKind::PermissionDenied.into() });
        let error = whole_of("opening the spool /x", error.context("looking"));
        assert_eq!(
            error.to_string(),
            "opening the spool /x: looking: reading /x/manifest: permission denied"
        );
        assert!(error.root_cause().is::<io::Error>());
        assert_eq!(error.chain().count(), 2);
        // `InDoubt` stays below the outermost text.
        let doubt = InDoubt { id: tidespool_core::SpoolId::new() };
        let error = whole(anyhow::Error::from(SpoolCallerDeadlineExceeded).context(doubt));
        assert_eq!(error.downcast_ref(), Some(&doubt));
        assert!(error.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{error:#}");
        assert!(error.to_string().contains(&SpoolCallerDeadlineExceeded.to_string()), "{error}");
        // An error with one text is returned unchanged.
        assert_eq!(whole(Closed.into()).chain().count(), 1);
    }
}
