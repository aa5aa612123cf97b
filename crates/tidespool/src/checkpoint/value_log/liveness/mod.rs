//! The liveness log: which records of the filed segments live.
//!
//! An append-only file beside the manifest. For each filed segment it lists the records that live,
//! and later those that died. The manifest names the number and the length of the log, so a batch
//! counts when the manifest that names its end is durable.
//!
//! **No byte that a manifest may name is ever overwritten.** A manifest whose write failed may be
//! on disk all the same. So a batch that was not committed stays in the file, the next one is
//! written behind it and states that the former does not count; and a file of another number stays
//! until a later position is committed.
//!
//! # Layout
//!
//! * `offsets` – a sorted set of record offsets, encoded.
//! * `record` – the format of the file.
//! * `changes` – what one checkpoint changed.
//! * `state` – what lives, as the log says.
//! * `read` – from the file to the state.
//! * `weight` – how much of the log is of use.
//! * `file` – one file: made, appended to, found by its name.
//! * `log` – the log: appends, commits, compaction.

mod changes;
mod file;
mod log;
mod offsets;
mod read;
mod record;
mod state;
#[cfg(test)]
mod tests;
mod weight;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use changes::LivenessChanges;
pub(crate) use log::LivenessLog;
pub(crate) use state::Liveness;

/// Where the committed log ends. Stands in the manifest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogPosition {
    /// The number of the file. 0: there is no log yet.
    pub(crate) number: u64,
    /// Bytes of the file that count.
    pub(crate) len: u64,
}

/// Why the log could not be read or written.
#[derive(Debug, Error)]
pub(crate) enum LivenessError {
    /// Reading or writing failed.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// A later version of the program wrote the file.
    #[error("{path} has the unknown version {version}", path = path.display())]
    Version { path: PathBuf, version: u32 },
    /// A part of the file was lost while the log was open. The log must be renewed.
    #[error("the liveness log is damaged: {what}")]
    Damaged { what: String },
}
