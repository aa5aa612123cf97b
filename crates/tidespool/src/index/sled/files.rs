//! sled's files: their permissions, and a descriptor of the data file.
//!
//! sled opens, reads and writes them itself. All other calls go through [`Storage`], as for the
//! files of the journal and the manifest.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::storage::{OpenMode, Storage, StorageFile, at, make_dir_private, make_file_private};

/// Creates the directory and its files if they are missing, and opens sled's data file. No other
/// user can ever read the files (sled would leave that to the umask).
///
/// The descriptor is opened before sled's own and kept. The kernel reports write-back errors to
/// each descriptor that is open when they happen.
pub(super) fn prepare(storage: &dyn Storage, dir: &Path) -> io::Result<Arc<dyn StorageFile>> {
    let root = dir.parent().unwrap_or(dir);
    for path in [root, dir, &dir.join("blobs")] {
        let made = storage.create_dir(path).and_then(|()| make_dir_private(path));
        made.map_err(|error| at(path, error))?;
    }
    // A process may have been killed before it called `make_private`: an umask of 0777 left files
    // of mode 0000.
    make_private(dir)?;
    let path = dir.join("db");
    // Creates the file only if it is missing, because `Create` would empty sled's file.
    let file = match storage.open(&path, OpenMode::Write) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => storage.open(&path, OpenMode::Create),
        opened => opened,
    };
    file.map_err(|error| at(&path, error))
}

/// Restricts the files that sled has created to the owner, whatever the umask.
pub(super) fn make_private(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_sleds = ["db", "conf"].map(OsStr::new).contains(&&*entry.file_name())
            || entry.file_name().to_string_lossy().starts_with("snap.");
        if is_sleds && entry.file_type()?.is_file() {
            let path = entry.path();
            make_file_private(&path).map_err(|error| at(&path, error))?;
        }
    }
    Ok(())
}
