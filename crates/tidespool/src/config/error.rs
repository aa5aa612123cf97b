use std::path::{Path, PathBuf};
use std::{fmt, io};

use thiserror::Error;

/// The settings cannot be used. The message names the setting, the value given and what is allowed.
///
/// None of the variants has a `source`, so that a `ConfigError` is always the root cause of the error that carries it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings from {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What kind of I/O error it was.
        kind: io::ErrorKind,
        /// The I/O error's own text.
        reason: String,
    },
    /// Not TOML.
    #[error("{at}cannot understand the settings: {reason}")]
    Syntax {
        /// Where.
        at: ConfigPlace,
        /// What is wrong. Shows the line.
        reason: String,
    },
    /// There is no such setting.
    #[error("{at}unknown setting {setting}; there are: {known}")]
    Unknown {
        /// Where.
        at: ConfigPlace,
        /// Its name, with its table.
        setting: String,
        /// The settings of that table.
        known: String,
    },
    /// A value of the wrong kind, outside of its bounds, or one that does not go together with
    /// another.
    #[error("{at}{setting} = {value} is not allowed: it must be {allowed}")]
    Invalid {
        /// Where, if it was read from TOML and stands there.
        at: ConfigPlace,
        /// The setting; one in a nested table with its table, as in
        /// `health.signals.low_space.latch_after`.
        setting: String,
        /// The value as it was given; one that was set from code in the form in which it would
        /// stand in a file.
        value: String,
        /// What is allowed, with the settings on which the bounds depend.
        allowed: String,
    },
    /// A setting that a running spool can't change.
    #[error(
        "{setting} cannot be changed from {now} to {value} on a running spool: shut it down and open it again"
    )]
    Fixed {
        /// The setting.
        setting: &'static str,
        /// What it is.
        now: String,
        /// What it was to be.
        value: String,
    },
    /// The spool was shut down: nothing was changed.
    #[error(
        "the spool is shut down: settings are changed on a running one, or given when it is opened again"
    )]
    Closed,
}

impl ConfigError {
    /// The same of settings that were read from `file`.
    pub(super) fn in_file(mut self, file: &Path) -> Self {
        if let Self::Syntax { at, .. } | Self::Unknown { at, .. } | Self::Invalid { at, .. } = &mut self {
            at.file = Some(file.into());
        }
        self
    }
}

/// Where in the settings an error is. All is `None` for settings that were made in code.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigPlace {
    /// The file.
    pub file: Option<Box<Path>>,
    /// The line in it, from 1.
    pub line: Option<u32>,
    /// The character in the line, from 1.
    pub column: Option<u32>,
}

impl ConfigPlace {
    /// The place of the byte `offset` of `text`.
    pub(super) fn in_text(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { file: None, line: u32::try_from(line).ok(), column: u32::try_from(column).ok() }
    }
}

/// As it stands before the text of an error: nothing, or with a colon at its end.
impl fmt::Display for ConfigPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line, self.column) {
            (Some(file), Some(line), Some(column)) => write!(f, "{}:{line}:{column}: ", file.display()),
            (Some(file), ..) => write!(f, "{}: ", file.display()),
            (None, Some(line), Some(column)) => write!(f, "line {line}, column {column}: "),
            (None, ..) => Ok(()),
        }
    }
}
