//! sled's files: who may read them, and when they are on stable storage.
//!
//! sled opens, reads and writes them itself. What it leaves to us goes through [`Storage`], as the journal's and the ledger's files do.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::storage::{OpenMode, Storage, StorageFile};

/// sled's data file, through a descriptor that is older than sled's own and is kept: the kernel tells each descriptor
/// about write-back errors that happen while it is open, and one opened afterwards may never hear of them.
#[derive(Debug)]
pub(super) struct DataFile(Arc<dyn StorageFile>);

impl DataFile {
    /// Makes the directory and its files, where there are none, so that nobody else can read them at any moment
    /// (sled would leave that to the umask), and opens the data file.
    pub(super) fn prepare(storage: &dyn Storage, dir: &Path) -> io::Result<Self> {
        for path in [dir, &dir.join("blobs")] {
            storage.create_dir(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
        }
        let path = dir.join("db");
        // Made only where there is none: what is there is sled's, and is not made empty.
        let file = match storage.open(&path, OpenMode::Write) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => storage.open(&path, OpenMode::Create),
            opened => opened,
        };
        Ok(Self(file?))
    }

    /// Makes what sled flushed durable: sled itself only starts the writing.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    /// Lets the kernel forget the clean pages of the file. After a failed write-back they are what should be on disk,
    /// not what is: reading them would show data as there which the next power cut takes away.
    pub(super) fn forget_cached_pages(&self) {
        self.0.forget_cached();
    }
}

/// Closes what sled made to others, and makes the files durable which it makes once and never syncs.
pub(super) fn settle(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::set_permissions(entry.path(), Permissions::from_mode(0o600))?;
        }
    }
    match storage.open(&dir.join("conf"), OpenMode::Read) {
        Ok(file) => file.sync_data()?,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(err),
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for path in [&dir.join("blobs"), dir, parent] {
        storage.sync_dir(path)?;
    }
    Ok(())
}

/// Bytes of all files in `dir` and in the folders in it.
pub(super) fn size_of(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += size_of(&entry.path())?,
            Ok(metadata) => bytes += metadata.len(),
            // sled removes snapshots and blobs beside us.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    Ok(bytes)
}

/// Removes the snapshots that a kill left half written. sled would take an empty one for the newest, and not open: everything in it was lost so once.
pub(super) fn remove_unfinished_snapshots(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
    let names = storage.list(dir)?;
    names
        .iter()
        .filter(|name| name.ends_with(".generating"))
        .try_for_each(|name| storage.remove_file(&dir.join(name)))
}
