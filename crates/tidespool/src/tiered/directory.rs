//! The spool's directory: its format file and its lock.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use tidespool_core::{Locked, UnsupportedFormat};
use uuid::Uuid;

use super::format::{self, FORMAT_FILE, UNFINISHED_FORMAT};

const LOCK_FILE: &str = "LOCK";

/// A process that was killed may hold its lock for a moment longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// What may be in a directory in which a spool was never completely made.
const UNFINISHED: [&str; 8] =
    [LOCK_FILE, UNFINISHED_FORMAT, "journal", "sled", "ledger", "ledger.new", "ballast", "ballast.open"];

/// The directory, held by this process.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    /// The spool's own random id.
    pub(crate) spool: [u8; 16],
    /// It was made just now.
    pub(crate) fresh: bool,
    _lock: File,
}

impl Directory {
    /// Opens the directory, and makes the spool in it if it is new or empty.
    pub(crate) fn open_or_create(path: &Path) -> Result<Self> {
        let doing = || format!("opening the spool directory {}", path.display());
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(io::Error::from(io::ErrorKind::NotADirectory)).with_context(doing);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_dir(path)?,
            Err(error) => return Err(error).with_context(doing),
        }
        // Before anything is written: what is not ours stays untouched, lock file included.
        let known = format::read(path)?;
        if known.is_none() {
            refuse_foreign(path)?;
        }
        let lock = lock(path)?;
        // Whoever held the lock may have made it meanwhile.
        if let Some(spool) = format::read(path)? {
            return Ok(Self { path: path.to_owned(), spool, fresh: false, _lock: lock });
        }
        let spool = begin_creation(path)?;
        Ok(Self { path: path.to_owned(), spool, fresh: true, _lock: lock })
    }

    /// Opens the directory of a spool that exists, for looking.
    pub(crate) fn open_existing(path: &Path) -> Result<Self> {
        match format::read(path)? {
            Some(spool) => Ok(Self { path: path.to_owned(), spool, fresh: false, _lock: lock(path)? }),
            None => Err(not_a_spool(path, "there is no FORMAT file")),
        }
    }

    /// Says that everything of a fresh spool is there: from now on it is one.
    pub(crate) fn finish_creation(&self) -> Result<()> {
        if !self.fresh {
            return Ok(());
        }
        let target = self.path.join(FORMAT_FILE);
        let write = || -> io::Result<()> {
            fs::rename(self.path.join(UNFINISHED_FORMAT), &target)?;
            File::open(&self.path)?.sync_all()?;
            match self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        write().with_context(|| format!("writing {}", target.display()))
    }
}

/// Chooses the spool's id and writes it down before anything else is made. A making that was cut off is taken up again under the same id: what it
/// left would else be somebody else's for good.
fn begin_creation(dir: &Path) -> Result<[u8; 16]> {
    let path = dir.join(UNFINISHED_FORMAT);
    if let Some(spool) = format::unfinished(dir)? {
        return Ok(spool);
    }
    let spool = *Uuid::new_v4().as_bytes();
    let text = format::render(spool);
    let write = || -> io::Result<()> {
        let mut file = file_options().truncate(true).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))?;
    Ok(spool)
}

/// Holds the lock of a spool's directory without changing anything in it. Where there is no lock file nobody can hold it.
pub(crate) fn lock_untouched(dir: &Path) -> Result<Option<File>> {
    let path = dir.join(LOCK_FILE);
    match File::open(&path) {
        Ok(mut file) => {
            wait_for_lock(dir, &mut file)?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("opening {}", path.display())),
    }
}

/// Its parent must be there: a spool on a file system that is not mounted shall not begin anew below the mount point.
fn create_dir(path: &Path) -> Result<()> {
    // Without a `.` at the end, which is fine for a directory that is there and not for one to be made.
    let plain: PathBuf = path.components().collect();
    DirBuilder::new()
        .mode(0o700)
        .create(plain)
        .with_context(|| format!("creating the spool directory {}: its parent must exist", path.display()))
}

fn file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    options
}

/// A directory with other things in it is somebody else's.
fn refuse_foreign(path: &Path) -> Result<()> {
    let entries = fs::read_dir(path).with_context(|| format!("listing {}", path.display()))?;
    for entry in entries {
        let name = entry.with_context(|| format!("listing {}", path.display()))?.file_name();
        let name = name.to_string_lossy();
        if !UNFINISHED.contains(&&*name) {
            return Err(not_a_spool(path, &format!("it holds {name:?} and no FORMAT file")));
        }
    }
    Ok(())
}

pub(super) fn not_a_spool(path: &Path, found: &str) -> anyhow::Error {
    let supported = "spool directories, and makes new ones in empty directories".to_owned();
    UnsupportedFormat { path: path.to_owned(), found: format!("not a spool: {found}"), supported }.into()
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK_FILE);
    let mut file = file_options()
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}: is the directory writable?", path.display()))?;
    wait_for_lock(dir, &mut file)?;
    let write_pid = |file: &mut File| -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    // A full disk must not keep a spool from being emptied: the lock holds without the pid.
    let _ = write_pid(&mut file);
    Ok(file)
}

fn wait_for_lock(dir: &Path, file: &mut File) -> Result<()> {
    let began = Instant::now();
    while let Err(error) = flock(&*file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(io::Error::from(error))
                .with_context(|| format!("locking {}", dir.join(LOCK_FILE).display()));
        }
        if began.elapsed() >= LOCK_PATIENCE {
            let mut pid = String::new();
            // The owner writes its pid right after locking: without one it is just about to.
            let _ = file.read_to_string(&mut pid);
            return Err(Locked { path: dir.to_owned(), pid: pid.trim().parse().ok() }.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_other_things_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        let error = Directory::open_or_create(dir.path()).unwrap_err();
        assert!(error.root_cause().is::<UnsupportedFormat>(), "{error:#}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_opener_is_told_who_the_first_one_is() {
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
