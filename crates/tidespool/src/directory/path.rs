//! Canonicalizes the path of a spool's directory, and explains why a path can't be used.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::storage::{create_private_dir, uninterrupted};

/// Bytes that the longest name in a spool's directory adds to its path, with a margin.
const BELOW: usize = 64;

/// The longest path that Linux accepts (`PATH_MAX` without the final zero byte).
const LONGEST: usize = 4095;

/// Returns the canonical path of an existing directory. Later changes of the working directory or
/// of a symlink do not make it lead to another directory.
///
/// # Errors
///
/// The directory is missing, or the path is not a directory.
pub(crate) fn existing(path: &Path) -> Result<PathBuf> {
    whole(path).map_err(|error| explain("opening", path, error))
}

/// Returns the canonical path of a directory as [`existing`] does, and creates the directory if it
/// is missing. Its parent must exist: if a file system is not mounted, no new spool must be created
/// below its mount point.
pub(crate) fn existing_or_new(path: &Path) -> Result<PathBuf> {
    match whole(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            // Without a final `.` or slash, with which a directory can't be created.
            let plain: PathBuf = path.components().collect();
            create_private_dir(&plain)
                .and_then(|()| whole(path))
                .map_err(|error| explain("creating", path, error))
        }
        found => found.map_err(|error| explain("opening", path, error)),
    }
}

fn whole(path: &Path) -> io::Result<PathBuf> {
    let whole = uninterrupted(|| fs::canonicalize(path))?;
    if !uninterrupted(|| fs::metadata(&whole))?.is_dir() {
        return Err(ErrorKind::NotADirectory.into());
    }
    if whole.as_os_str().len() + BELOW > LONGEST {
        return Err(ErrorKind::InvalidFilename.into());
    }
    Ok(whole)
}

/// Adds the path and an advice to the error.
pub(crate) fn explain(doing: &str, path: &Path, error: io::Error) -> anyhow::Error {
    let what = format!("{doing} the spool directory {}", path.display());
    let what = match advice(path, &error) {
        Some(advice) => format!("{what} ({advice})"),
        None => what,
    };
    anyhow::Error::new(error).context(what)
}

fn advice(path: &Path, error: &io::Error) -> Option<String> {
    Some(match error.kind() {
        ErrorKind::NotFound => return missing(path),
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            let file = path.ancestors().find(|part| fs::metadata(part).is_ok_and(|found| !found.is_dir()));
            let file = file.unwrap_or(path).display();
            format!("{file} is no directory: move it away, or give another path")
        }
        ErrorKind::PermissionDenied => {
            let user = rustix::process::geteuid().as_raw();
            format!(
                "user {user} needs search permission on the way to it, and read and write permission in it"
            )
        }
        ErrorKind::ReadOnlyFilesystem => {
            "its file system is mounted read-only: mount it for writing, or give another path".to_owned()
        }
        ErrorKind::InvalidFilename => format!(
            "it has {} bytes: a name may have 255, and the whole path without symlinks {}",
            path.as_os_str().len(),
            LONGEST - BELOW
        ),
        ErrorKind::InvalidInput => {
            "the path holds a byte that no path may hold: give another path".to_owned()
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            "symlinks on the way to it form a circle: remove one of them".to_owned()
        }
        _ => return None,
    })
}

/// Describes which part of `path` is missing.
fn missing(path: &Path) -> Option<String> {
    let link = path.ancestors().find_map(|part| Some((part, fs::read_link(part).ok()?)));
    if let Some((link, target)) = link
        && fs::metadata(link).is_err()
    {
        let (link, target) = (link.display(), target.display());
        return Some(format!(
            "{link} is a symlink to {target}, which does not exist: create that directory, or remove the symlink"
        ));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::metadata(parent).is_err().then(|| {
        format!("its parent {} does not exist: create it, or mount its file system", parent.display())
    })
}
