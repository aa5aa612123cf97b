//! Errors in the options and paths that the user gave.

use std::fmt;
use std::io;
use std::path::Path;

/// One line that names the problem and the remedy. The run ends with exit code 2 before it accepts
/// anything.
#[derive(Debug)]
pub(crate) struct BadInput(String);

impl BadInput {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// `path` could not be used: names the attempted action, the error of the system, and the
    /// remedy.
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
