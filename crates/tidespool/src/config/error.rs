use std::io;
use std::path::PathBuf;

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
    /// Not TOML, an unknown setting, or a value of the wrong kind. The reason shows the line.
    #[error("cannot understand the settings: {reason}")]
    Syntax {
        /// What is wrong, with the line and the setting.
        reason: String,
    },
    /// A value outside of its bounds, or one that does not go together with another.
    #[error("{setting} = {value} is not allowed: it must be {allowed}")]
    Invalid {
        /// The setting; one in a nested table with its table, as in `pressure.interval`.
        setting: &'static str,
        /// The value given, in the form in which it would stand in a file.
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
