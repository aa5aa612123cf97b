//! sled's files: their permissions, their sizes, and their directories.
//!
//! sled opens, reads and writes them itself. All other calls go through [`Storage`], as for the
//! files of the journal and the manifest.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::storage::{OpenMode, Storage, StorageFile, at, is_bystander, make_dir_private, make_file_private};

/// sled's data file, through a descriptor that was opened before sled's own and is kept. The kernel
/// reports write-back errors to each descriptor that is open when they happen.
#[derive(Debug)]
pub(super) struct DataFile {
    file: Arc<dyn StorageFile>,
}

impl DataFile {
    /// Creates the directory and its files if they are missing, and opens the data file. No other
    /// user can ever read the files (sled would leave that to the umask).
    pub(super) fn prepare(storage: &dyn Storage, dir: &Path) -> io::Result<Self> {
        let root = dir.parent().unwrap_or(dir);
        for path in [root, dir, &dir.join("blobs")] {
            let made = storage.create_dir(path).and_then(|()| make_dir_private(path));
            made.map_err(|error| at(path, error))?;
        }
        // A process may have been killed before it called `make_private`: an umask of 0777 left
        // files of mode 0000.
        make_private(dir)?;
        let path = dir.join("db");
        // Creates the file only if it is missing, because `Create` would empty sled's file.
        let file = match storage.open(&path, OpenMode::Write) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => storage.open(&path, OpenMode::Create),
            opened => opened,
        };
        let file = file.map_err(|error| at(&path, error))?;
        Ok(Self { file })
    }

    /// Returns the descriptor.
    pub(super) fn descriptor(&self) -> Arc<dyn StorageFile> {
        self.file.clone()
    }
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

/// Returns the bytes of all files in `dir`.
pub(crate) fn size_of(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            // A file that only root may read, for example.
            Ok(_) if is_bystander(&entry.file_name().to_string_lossy()) => {}
            Ok(metadata) if metadata.is_dir() => bytes += size_of(&entry.path())?,
            Ok(metadata) => bytes += metadata.len(),
            // sled removes snapshots and blobs at the same time.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    Ok(bytes)
}

/// Removes a file or a link that has the name of the directory of indexes.
pub(super) fn remove_non_directory(root: &Path) -> io::Result<()> {
    match fs::symlink_metadata(root) {
        Ok(found) if !found.is_dir() => fs::remove_file(root).map_err(|error| at(root, error)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(root, error)),
        _ => Ok(()),
    }
}

/// Returns the numbers of the directories below `root`, one for each index that was created and not
/// removed.
pub(super) fn numbers_in(root: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(root) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| at(root, error))?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| at(root, error))?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes everything in `root` except the index `kept`. Entries that can't be removed stay until
/// the next try.
pub(super) fn remove_others(root: &Path, kept: Option<u64>) {
    let kept = kept.map(|number| number.to_string());
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if kept.as_ref() == Some(&name) || is_bystander(&name) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "an index that is no longer used could not be removed");
        }
    }
}
