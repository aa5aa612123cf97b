//! The spool's directory: its format file and its lock.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use tidespool_core::Locked;
use uuid::Uuid;

use super::format::{self, FORMAT_FILE, Format, UNFINISHED_FORMAT, not_a_spool};
use super::names::SpoolNames;
use super::path::{existing, existing_or_new, explain};
use crate::crash_log::{CRASH_LOG, NEW_CRASH_LOG};
use crate::index::{INDEX_DIR, TRIAL_DIR};
use crate::storage::{
    FileLock, FileState, TRIAL_FILE, is_ignored_name, is_locked_here, make_file_private, open_private, state,
    uninterrupted,
};

pub(crate) const LOCK_FILE: &str = "LOCK";

/// How long to wait for a lock: a killed process may hold its lock for a moment longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// The names that may be in a directory in which the creation of a spool was interrupted.
const UNFINISHED: [&str; 13] = [
    LOCK_FILE,
    UNFINISHED_FORMAT,
    "journal",
    INDEX_DIR,
    "manifest",
    "manifest.new",
    "liveness.1",
    CRASH_LOG,
    NEW_CRASH_LOG,
    "ballast",
    "ballast.open",
    TRIAL_FILE,
    TRIAL_DIR,
];

/// The spool's directory, locked by this process.
#[derive(Debug)]
pub(crate) struct Directory {
    /// The canonical path.
    pub(crate) path: PathBuf,
    /// The store's own random id.
    pub(crate) spool: [u8; 16],
    /// The spools of the store, as the format file has them.
    pub(crate) names: Mutex<SpoolNames>,
    /// The spool is being created by this opening.
    pub(crate) fresh: bool,
    pub(crate) held: HeldDir,
    pub(crate) lock: Mutex<FileLock>,
}

/// The directory itself, open and locked. The lock file alone is not enough: it can be deleted
/// while it is locked, and another process can lock a new one.
#[derive(Debug)]
pub(crate) struct HeldDir {
    dir: File,
    /// `None` if the file system can't lock a directory (NFS). Then only the lock file is locked.
    _lock: Option<FileLock>,
}

impl HeldDir {
    /// Returns the state of the open directory, whatever its path leads to now.
    pub(crate) fn state(&self) -> io::Result<FileState> {
        self.dir.metadata().map(|metadata| state(&metadata))
    }
}

impl Directory {
    /// Opens the directory, and begins to create a spool in it if it is new or empty.
    pub(crate) fn open_or_create(path: &Path) -> Result<Self> {
        let path = &*existing_or_new(path)?;
        // Before anything is written, even the lock file: a directory that is not a spool's stays
        // untouched.
        let known = format::read(path)?;
        if known.is_none() {
            refuse_foreign(path)?;
        }
        let (held, lock) = lock(path)?;
        // The process that held the lock may have created the spool meanwhile.
        let known = format::read(path)?;
        let (path, lock, fresh) = (path.to_owned(), Mutex::new(lock), known.is_none());
        let Format { id, names } = known.map_or_else(|| begin_creation(&path), Ok)?;
        Ok(Self { path, spool: id, names: Mutex::new(names), fresh, held, lock })
    }

    /// Opens the directory of an existing spool, without opening the spool.
    pub(crate) fn open_existing(path: &Path) -> Result<Self> {
        let path = &*existing(path)?;
        match format::read(path)? {
            Some(Format { id, names }) => {
                let (held, lock) = lock(path)?;
                let (path, lock, names) = (path.to_owned(), Mutex::new(lock), Mutex::new(names));
                Ok(Self { path, spool: id, names, fresh: false, held, lock })
            }
            None => Err(not_a_spool(path, "there is no FORMAT file")),
        }
    }

    /// Sets the spools of a store that is being created.
    pub(crate) fn set_new_names(&self, names: SpoolNames) -> Result<()> {
        *self.names.lock() = names.clone();
        write_new_format(&self.path, &Format { id: self.spool, names })
    }

    /// Completes the creation of a spool: renames the format file to its final name.
    pub(crate) fn finish_creation(&self) -> Result<()> {
        if !self.fresh {
            return Ok(());
        }
        let target = self.path.join(FORMAT_FILE);
        let write = || -> io::Result<()> {
            uninterrupted(|| fs::rename(self.path.join(UNFINISHED_FORMAT), &target))?;
            File::open(&self.path)?.sync_all()?;
            match self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        write().with_context(|| format!("writing {}", target.display()))
    }
}

/// Chooses the spool's id, and writes it before any other file is created. An interrupted creation
/// continues with the same id. With a new id, its files would belong to another spool.
fn begin_creation(dir: &Path) -> Result<Format> {
    if let Some(format) = format::unfinished(dir)? {
        return Ok(format);
    }
    let format = Format::new(*Uuid::new_v4().as_bytes());
    write_new_format(dir, &format)?;
    Ok(format)
}

/// Writes the format file of a store that is being created.
fn write_new_format(dir: &Path, format: &Format) -> Result<()> {
    let path = dir.join(UNFINISHED_FORMAT);
    let text = format::render(format);
    let write = || -> io::Result<()> {
        let mut file = open_private(OpenOptions::new().write(true).truncate(true), &path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Locks a spool's directory without changing anything in it.
pub(crate) fn lock_untouched(dir: &Path) -> Result<(HeldDir, Option<FileLock>)> {
    let held = hold(dir)?;
    let path = dir.join(LOCK_FILE);
    match File::open(&path) {
        Ok(file) => Ok((held, Some(wait_for_lock(dir, &path, file)?))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((held, None)),
        Err(error) => Err(error).with_context(|| format!("opening {}", path.display())),
    }
}

/// Fails if the directory holds anything that belongs neither to a spool nor to file systems and
/// tools.
fn refuse_foreign(path: &Path) -> Result<()> {
    let entries = fs::read_dir(path).with_context(|| format!("listing {}", path.display()))?;
    for entry in entries {
        let name = entry.with_context(|| format!("listing {}", path.display()))?.file_name();
        let name = name.to_string_lossy();
        if !UNFINISHED.contains(&&*name) && !is_ignored_name(&name) {
            return Err(not_a_spool(path, &format!("it holds {name:?} and no FORMAT file")));
        }
    }
    Ok(())
}

/// Locks the directory itself: deleting the lock file does not unlock it.
fn hold(dir: &Path) -> Result<HeldDir> {
    let opening = || format!("opening {}", dir.display());
    let held = File::open(dir).with_context(opening)?;
    let copy = held.try_clone().with_context(opening)?;
    let lock = match FileLock::try_lock(copy) {
        Ok(Ok(lock)) => Some(lock),
        Ok(Err(locked)) => Some(wait_for_lock(dir, dir, locked)?),
        Err(_) => None,
    };
    Ok(HeldDir { dir: held, _lock: lock })
}

fn lock(dir: &Path) -> Result<(HeldDir, FileLock)> {
    let held = hold(dir)?;
    let path = dir.join(LOCK_FILE);
    let file = open_private(OpenOptions::new().read(true).write(true), &path).map_err(|error| {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match error.kind() {
            PermissionDenied | ReadOnlyFilesystem => explain("writing in", dir, error),
            _ => anyhow::Error::new(error).context(format!("opening {}", path.display())),
        }
    })?;
    let mut lock = wait_for_lock(dir, &path, file)?;
    write_pid(lock.file());
    Ok((held, lock))
}

/// Locks the lock file again after it was deleted or replaced.
pub(crate) fn lock_again(dir: &Path) -> io::Result<FileLock> {
    let path = dir.join(LOCK_FILE);
    let file = open_private(OpenOptions::new().read(true).write(true), &path)?;
    let mut lock = FileLock::try_lock(file)?.map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
    make_file_private(&path)?;
    write_pid(lock.file());
    Ok(lock)
}

/// Writes the process id into the lock file. Ignores errors: a spool on a full disk must open, and
/// the lock works without the process id.
fn write_pid(file: &mut File) {
    let mut write = || -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    let _ = write();
}

/// Locks `file`, which is at `path` and belongs to the spool in `dir`.
fn wait_for_lock(dir: &Path, path: &Path, mut file: File) -> Result<FileLock> {
    let began = Instant::now();
    loop {
        let tried = FileLock::try_lock(file).with_context(|| format!("locking {}", path.display()));
        match tried? {
            Ok(lock) => return Ok(lock),
            Err(locked) => file = locked,
        }
        if began.elapsed() >= LOCK_PATIENCE {
            return Err(Locked { path: dir.to_owned(), pid: owner(dir, &file) }.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the id of the process that has locked `locked` (the directory or its lock file), if it
/// can be determined.
fn owner(dir: &Path, locked: &File) -> Option<u32> {
    let own = std::process::id();
    if is_locked_here(locked) {
        return Some(own);
    }
    // The owner writes its pid right after locking. If there is none, it has only just locked.
    let pid = fs::read_to_string(dir.join(LOCK_FILE)).ok()?;
    // Our own pid belongs to a process in another container: returning it would mislead.
    pid.trim().parse().ok().filter(|pid| *pid != own)
}

#[cfg(test)]
mod tests {
    use tidespool_core::UnsupportedFormat;

    use super::*;

    #[test]
    fn a_directory_with_other_files_is_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        let error = Directory::open_or_create(dir.path()).unwrap_err();
        assert!(error.root_cause().is::<UnsupportedFormat>(), "{error:#}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_error_of_a_second_opening_names_the_first_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = Directory::open_or_create(dir.path()).unwrap();
        first.finish_creation().unwrap();
        let error = Directory::open_existing(dir.path()).unwrap_err();
        let locked = error.root_cause().downcast_ref::<Locked>().expect("the right type");
        assert_eq!(locked.pid, Some(std::process::id()));
        drop(first);
        assert!(!Directory::open_or_create(dir.path()).unwrap().fresh);
    }
}
