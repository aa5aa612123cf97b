//! The directories of the indexes: each index has its own, with a number as its name.

use std::path::Path;
use std::{fs, io};

use crate::storage::{at, is_ignored_name};

/// Returns the bytes of all files in `dir`.
pub(crate) fn size_of_dir(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            // A file that only root may read, for example.
            Ok(_) if is_ignored_name(&entry.file_name().to_string_lossy()) => {}
            Ok(metadata) if metadata.is_dir() => bytes += size_of_dir(&entry.path())?,
            Ok(metadata) => bytes += metadata.len(),
            // The engine removes files at the same time.
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

/// Returns the highest number of a directory below `root`. 0 if there is none.
pub(super) fn last_number_in(root: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(root) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(|error| at(root, error))?,
    };
    let mut last = 0;
    for entry in entries {
        let name = entry.map_err(|error| at(root, error))?.file_name();
        last = last.max(name.to_str().and_then(|name| name.parse().ok()).unwrap_or(0));
    }
    Ok(last)
}

/// Removes everything in `root`. Entries that can't be removed stay until the next try.
pub(super) fn remove_all_in(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.filter_map(Result::ok) {
        if is_ignored_name(&entry.file_name().to_string_lossy()) {
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
