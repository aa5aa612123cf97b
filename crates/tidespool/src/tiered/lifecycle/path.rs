//! The path of a spool's directory: made whole, and what is wrong with it where it can't be used.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::storage::{create_private_dir, uninterrupted};

/// Bytes that the longest name in a spool's directory adds to its path, and some to spare.
const BELOW: usize = 64;

/// The longest path that Linux takes (`PATH_MAX`, without the byte at its end).
const LONGEST: usize = 4095;

/// The directory's path without symlinks, so that nothing that the process or the system changes
/// later (the working directory, a symlink on the way) leads to another directory.
///
/// # Errors
///
/// It is missing, or is no directory.
pub(crate) fn existing(path: &Path) -> Result<PathBuf> {
    whole(path).map_err(|error| explain("opening", path, error))
}

/// The same; the directory is created where it is missing. Its parent must be there: a spool on a
/// file system that is not mounted shall not begin anew below the mount point.
pub(crate) fn existing_or_new(path: &Path) -> Result<PathBuf> {
    match whole(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            // Without a `.` or a slash at the end, with which a directory can't be created.
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

/// Adds the path to the error, and what to do about it.
pub(in crate::tiered) fn explain(doing: &str, path: &Path, error: io::Error) -> anyhow::Error {
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

/// What is missing on the way to `path`.
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
