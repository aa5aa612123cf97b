//! The liveness log: which records of the checkpointed segments live.
//!
//! An append-only file beside the manifest. For each checkpointed segment it lists the live
//! records, and later those that died. The manifest names the number and the length of the log. A
//! batch counts once the manifest that names its end is durable.
//!
//! **No byte that a manifest may name is ever overwritten.** A manifest whose write failed may be
//! on disk anyway. So an uncommitted batch stays in the file. The next batch is written behind it
//! and states that the uncommitted one does not count. A file of another number stays until a later
//! position is committed.
//!
//! # Layout
//!
//! * `offsets` – a sorted, encoded set of record offsets.
//! * `record` – the format of the file.
//! * `changes` – the changes of one checkpoint.
//! * `state` – the live records, according to the log.
//! * `read` – reads the file into the state.
//! * `weight` – estimates the useful part of the log.
//! * `file` – one file: creates, appends to and finds it.
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

/// The end of the committed log. The manifest holds it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogPosition {
    /// The number of the file. 0 if there is no log yet.
    pub(crate) number: u64,
    /// Committed bytes of the file.
    pub(crate) len: u64,
}

/// Why the log could not be read or written.
#[derive(Debug, Error)]
pub(crate) enum LivenessError {
    /// Reading or writing failed.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// A later version of Tidespool wrote the file.
    #[error("{path} has the unknown version {version}", path = path.display())]
    Version { path: PathBuf, version: u32 },
    /// A part of the file was lost while the log was open. The log must be renewed.
    #[error("the liveness log is damaged: {what}")]
    Damaged { what: String },
}
