//! Errors that say everything with their first text.
//!
//! `println!("{error}")` prints only the outermost text of an `anyhow::Error`. So each error that
//! leaves the crate has its causes in that text; below it comes the root cause, for
//! `root_cause().is::<T>()` and for `downcast_ref`.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use tidespool_core::{
    ClockNotSet, Closed, Corrupt, DamagedSpool, InDoubt, Locked, NotFound, SpoolBackpressureTimeout,
    SpoolCallerDeadlineExceeded, SpoolUnhealthyError, TooLarge, UnsupportedFormat,
};

use crate::ConfigError;

/// `error`, with all its causes in the first text.
pub(crate) fn whole(error: anyhow::Error) -> anyhow::Error {
    // Most have one text, and nothing below it.
    if error.chain().nth(1).is_none() { error } else { with_text(text_of(&error), error) }
}

/// The same, after what was being done.
pub(crate) fn whole_of(doing: impl fmt::Display, error: anyhow::Error) -> anyhow::Error {
    with_text(format!("{doing}: {}", text_of(&error)), error)
}

/// All texts of the chain, each once: some errors have the text of their source in their own.
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
    // The one context that a caller may look for.
    let doubt = error.downcast_ref::<InDoubt>().copied();
    // What a caller may look for, without the contexts around it: their texts are in `text`.
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

/// An error of a type of our own, with its root cause as its source.
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

    /// "opening the spool X" was all that `{error}` printed.
    #[test]
    fn the_cause_is_in_the_first_text_and_still_the_root() {
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
        // A store that fails in doubt says so under the whole text, too.
        let doubt = InDoubt { id: tidespool_core::SpoolId::new() };
        let error = whole(anyhow::Error::from(SpoolCallerDeadlineExceeded).context(doubt));
        assert_eq!(error.downcast_ref(), Some(&doubt));
        assert!(error.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{error:#}");
        assert!(error.to_string().contains(&SpoolCallerDeadlineExceeded.to_string()), "{error}");
        // Nothing is added to an error that has one text.
        assert_eq!(whole(Closed.into()).chain().count(), 1);
    }
}
