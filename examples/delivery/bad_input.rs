//! What the user gave cannot be worked with.

use std::fmt;
use std::io;
use std::path::Path;

/// One line that names what is wrong and what to do about it. Ends the run with exit code 2 before anything is
/// accepted.
#[derive(Debug)]
pub(crate) struct BadInput(String);

impl BadInput {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// `path` could not be used: what was tried, what the system said, what to do.
    pub(crate) fn io(tried: &str, path: &Path, err: &io::Error, remedy: &str) -> Self {
        Self(format!("cannot {tried} {}: {err}; {remedy}", path.display()))
    }
}

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}
