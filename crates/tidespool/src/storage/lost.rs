//! Checks whether the name of an open file still leads to it.
//!
//! A process can still read and write an open file that was deleted. At the next start the file is
//! missing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::{FileState, Storage, StorageFile};

/// What happened to a file, judged by its name and its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Loss {
    #[error("it was deleted or moved")]
    Gone,
    #[error("another file has its name")]
    Replaced,
    #[error("it was cut short: {len} of {of} bytes are left")]
    CutShort { len: u64, of: u64 },
    #[error("its mode does not let its owner read and write it")]
    Unreadable,
    #[error("a page of it could not be read or written")]
    Broken,
}

/// An open file that should keep its name and its bytes.
#[derive(Debug, Clone)]
pub(crate) struct KeptFile {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn StorageFile>,
    /// The least length that the file may have, in bytes.
    pub(crate) least: u64,
}

impl KeptFile {
    /// What happened to the file. `None`: nothing, or the file system does not answer.
    pub(crate) fn loss(&self, storage: &dyn Storage) -> Option<Loss> {
        loss_of(storage, &self.path, &*self.file, self.least)
    }
}

/// What happened to the open `file`, which should be at `path` and have at least `least` bytes.
/// `None`: nothing, or the file system does not answer.
pub(crate) fn loss_of(
    storage: &dyn Storage,
    path: &Path,
    file: &dyn StorageFile,
    least: u64,
) -> Option<Loss> {
    loss_of_state(storage, path, file.state().ok()?, least)
}

/// Like [`loss_of`], for an open file or directory with the state `held`.
pub(crate) fn loss_of_state(storage: &dyn Storage, path: &Path, held: FileState, least: u64) -> Option<Loss> {
    let named = match storage.state(path) {
        Ok(named) => named,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Some(Loss::Gone),
                io::ErrorKind::PermissionDenied => Some(Loss::Unreadable),
                _ => None,
            };
        }
    };
    if named.identity != held.identity {
        return Some(Loss::Replaced);
    }
    // `held` was read first, so the file may have grown since.
    let len = held.len.max(named.len);
    if len < least {
        return Some(Loss::CutShort { len, of: least });
    }
    (named.mode & 0o600 != 0o600).then_some(Loss::Unreadable)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::storage::{OpenMode, OsStorage};

    #[test]
    fn each_kind_of_loss_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        let whole = || {
            let _ = fs::remove_file(&path);
            fs::write(&path, "0123456789").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            OsStorage.open(&path, OpenMode::Write).unwrap()
        };
        let look = |file: &dyn StorageFile| loss_of(&OsStorage, &path, file, 10);
        let file = whole();
        assert_eq!(look(&*file), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(look(&*file), Some(Loss::Unreadable));
        let file = whole();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(9).unwrap();
        assert_eq!(look(&*file), Some(Loss::CutShort { len: 9, of: 10 }));
        let file = whole();
        fs::copy(&path, &other).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(look(&*file), Some(Loss::Replaced));
        let file = whole();
        fs::rename(&path, &other).unwrap();
        assert_eq!(look(&*file), Some(Loss::Gone));
        fs::rename(&other, &path).unwrap();
        assert_eq!(look(&*file), None, "it is back");
        let file = whole();
        fs::remove_file(&path).unwrap();
        assert_eq!(look(&*file), Some(Loss::Gone));
    }
}
