//! Prevents a spool from writing into a directory that is not its own.
//!
//! The directory of a running spool can be moved, and another one created in its place, perhaps
//! another spool's. From then on, all paths of the spool lead there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::directory::Directory;
use crate::storage::{FileState, OpenMode, Space, Storage, StorageFile};

/// A storage wrapper. It creates, renames and removes files only while the spool's path leads to
/// the directory that was opened.
#[derive(Debug)]
pub(in crate::tiered) struct InPlace {
    below: Arc<dyn Storage>,
    dir: PathBuf,
    /// Device and inode of the directory. No other directory gets them while it is held open.
    identity: (u64, u64),
}

impl InPlace {
    /// # Errors
    ///
    /// The state of the open directory cannot be read.
    pub(in crate::tiered) fn new(below: Arc<dyn Storage>, directory: &Directory) -> io::Result<Self> {
        let identity = directory.held.state()?.identity;
        Ok(Self { below, dir: directory.path.clone(), identity })
    }

    fn check(&self) -> io::Result<()> {
        let is_same = match self.below.state(&self.dir) {
            Ok(named) => named.identity == self.identity,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let what = || format!("{} is not the directory that the spool opened", self.dir.display());
        if is_same { Ok(()) } else { Err(io::Error::new(io::ErrorKind::NotFound, what())) }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Storage for InPlace {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        self.below.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        if mode != OpenMode::Read {
            self.check()?;
        }
        self.below.open(path, mode)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.below.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        self.below.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        self.below.remove_file(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.below.space(path)
    }

    fn state(&self, path: &Path) -> io::Result<FileState> {
        self.below.state(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.below.sync_dir(path)
    }

    fn boot_id(&self) -> io::Result<[u8; 16]> {
        self.below.boot_id()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::OsStorage;

    /// A spool whose directory was moved wrote its next segments into a directory that was created
    /// in its place.
    #[test]
    fn nothing_is_written_into_a_directory_that_replaces_the_spools() {
        let root = tempfile::tempdir().unwrap();
        let (dir, aside) = (root.path().join("spool"), root.path().join("aside"));
        let directory = Directory::open_or_create(&dir).unwrap();
        let storage = InPlace::new(Arc::new(OsStorage), &directory).unwrap();
        let file = dir.join("file");
        let try_all = || {
            let calls = [
                storage.create_dir(&dir.join("journal")),
                storage.open(&file, OpenMode::Create).map(drop),
                storage.open(&file, OpenMode::Write).map(drop),
                storage.rename(&file, &dir.join("other")),
                storage.rename(&dir.join("other"), &file),
                storage.remove_file(&file),
            ];
            calls.map(|call| call.is_ok())
        };
        assert_eq!(try_all(), [true; 6]);
        fs::rename(&dir, &aside).unwrap();
        assert_eq!(try_all(), [false; 6], "it is gone");
        fs::create_dir(&dir).unwrap();
        fs::write(&file, "another program's").unwrap();
        assert_eq!(try_all(), [false; 6], "another one is there");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert_eq!(fs::read(&file).unwrap(), b"another program's");
        fs::remove_dir_all(&dir).unwrap();
        fs::rename(&aside, &dir).unwrap();
        assert_eq!(try_all(), [true; 6], "it is back");
    }
}
