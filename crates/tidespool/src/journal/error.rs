//! Why a recovery failed.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Reading or repairing a file failed. Nothing is lost: the spool can be opened again after the
/// cause is removed.
#[derive(Debug, Error)]
#[error("{doing} {path}: {source}", path = path.display())]
pub(crate) struct RecoveryError {
    pub(crate) doing: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}
