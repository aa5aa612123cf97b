//! Why a recovery failed.

use std::io;
use std::path::{Path, PathBuf};

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

/// For `map_err`: the error of `doing` something with the file at `path`.
pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecoveryError {
    move |source| RecoveryError { doing, path: path.to_owned(), source }
}
