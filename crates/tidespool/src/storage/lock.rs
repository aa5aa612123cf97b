//! An exclusive lock on a file. It ends with its owner, even if a forked child lives on.
//!
//! On Linux the lock of the standard library is `flock`, like the lock of sled.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use parking_lot::Mutex;

use super::uninterrupted;

/// Device and inode of each file that this process has locked.
static HELD: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

/// A locked file.
///
/// A child that was forked without `exec` holds a copy of the descriptor. Closing the original
/// leaves the lock with the copy. So `drop` unlocks explicitly, which releases the lock for all
/// copies. It does so only in the process that took the lock: otherwise the child's exit would
/// unlock the parent's spool.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: File,
    key: (u64, u64),
    process: u32,
}

impl FileLock {
    /// Locks `file`, without waiting. `Ok(Err(file))`: another owner has it locked.
    pub(crate) fn try_lock(file: File) -> io::Result<Result<Self, File>> {
        let key = key_of(&file)?;
        let is_locked = uninterrupted(|| match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        })?;
        if !is_locked {
            return Ok(Err(file));
        }
        HELD.lock().insert(key);
        Ok(Ok(Self { file, key, process: std::process::id() }))
    }

    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        HELD.lock().remove(&self.key);
        // If this fails, closing the file unlocks it, unless a child has a copy of the descriptor.
        let _ = self.file.unlock();
    }
}

/// Whether this process has the file locked. A process id in the file does not prove it: in
/// containers that share a volume, two processes may have the same id.
pub(crate) fn is_locked_here(file: &File) -> bool {
    key_of(file).is_ok_and(|key| HELD.lock().contains(&key))
}

fn key_of(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// The standard library may change the kind of its lock. Another kind would end when any
    /// descriptor of the file is closed, and would not exclude an older process.
    #[test]
    fn the_kind_of_the_lock_is_flock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lock = FileLock::try_lock(file.reopen().unwrap()).unwrap().unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", lock.file.as_raw_fd())).unwrap();
        assert!(info.contains("FLOCK  ADVISORY  WRITE"), "{info}");
    }

    /// A fork copies the descriptor of a lock. Closing the original left the copy locked.
    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let lock = FileLock::try_lock(open()).unwrap().unwrap();
        let copy = lock.file.try_clone().unwrap();
        assert!(is_locked_here(&copy));
        assert!(FileLock::try_lock(open()).unwrap().is_err());
        drop(lock);
        assert!(!is_locked_here(&copy));
        let mut next = FileLock::try_lock(open()).unwrap().unwrap();
        drop(copy);
        assert!(FileLock::try_lock(open()).unwrap().is_err());
        // As in a forked child that drops its copy of the `FileLock`.
        next.process = 0;
        let parents = next.file.try_clone().unwrap();
        drop(next);
        assert!(FileLock::try_lock(open()).unwrap().is_err());
        drop(parents);
    }
}
