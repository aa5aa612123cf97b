use std::path::{Path, PathBuf};
use std::{fmt, io};

use thiserror::Error;
use tidespool_pressure::InvalidSetting;

/// The settings cannot be used. The message names the setting, the given value and the allowed
/// values.
///
/// No variant has a `source`, so that a `ConfigError` is always the root cause of an error that
/// contains it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings from {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kind of the I/O error.
        kind: io::ErrorKind,
        /// The text of the I/O error.
        reason: String,
    },
    /// The settings are not TOML.
    #[error("{at}the settings are not valid TOML: {reason}")]
    Syntax {
        /// Where.
        at: ConfigPlace,
        /// What is wrong, with the line.
        reason: String,
    },
    /// There is no such setting.
    #[error("{at}unknown setting {setting}; there are: {known}")]
    Unknown {
        /// Where.
        at: ConfigPlace,
        /// The name of the setting, with its table.
        setting: String,
        /// The settings of that table.
        known: String,
    },
    /// A value is of the wrong kind, out of bounds, or inconsistent with another setting.
    #[error("{at}{setting} = {value} is not allowed: it must be {allowed}")]
    Invalid {
        /// Where, if the setting was read from TOML.
        at: ConfigPlace,
        /// The setting, with its table if it is in one, as in `health.dirty_age`.
        setting: String,
        /// The value as it was given. A value set from code is shown as a file would write it.
        value: String,
        /// The allowed values, with the settings on which the bounds depend.
        allowed: String,
    },
    /// A setting cannot change while the spool runs.
    #[error(
        "{setting} cannot be changed from {now} to {value} on a running spool: shut it down and open it again"
    )]
    Fixed {
        /// The setting.
        setting: &'static str,
        /// The current value.
        now: String,
        /// The rejected value.
        value: String,
    },
    /// The spool was shut down, and nothing was changed.
    #[error("the spool is shut down: change settings while it runs, or give them when it is opened again")]
    Closed,
}

impl From<InvalidSetting> for ConfigError {
    fn from(error: InvalidSetting) -> Self {
        let InvalidSetting { setting, value, allowed, .. } = error;
        Self::Invalid { at: ConfigPlace::default(), setting: setting.to_owned(), value, allowed }
    }
}

/// Where in the settings an error is. Every field is `None` for settings made in code.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigPlace {
    /// The file.
    pub file: Option<Box<Path>>,
    /// The line in the file, from 1.
    pub line: Option<u32>,
    /// The character in the line, from 1.
    pub column: Option<u32>,
}

/// The prefix of an error text: empty, or the place and a colon.
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
