//! Releases sled's lock when sled is closed.
//!
//! sled locks its data file with `flock`, and relies on closing the descriptor to unlock it. A
//! child that was forked without `exec` holds a copy of the descriptor, and so the lock. sled's API
//! does not expose the descriptor, so this module duplicates it with `pidfd_getfd` on its own
//! process (Linux 5.6). If that is not permitted, the lock lasts until the child ends.

use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

const DESCRIPTORS: &str = "/proc/self/fd";

/// The longest wait: sled's I/O threads may hold the file for a moment after sled was dropped.
const MAX_WAIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(1);

/// A second descriptor of the file that sled has locked.
#[derive(Debug)]
pub(super) struct SledLock {
    path: PathBuf,
    /// The number of sled's own descriptor.
    number: RawFd,
    copy: OwnedFd,
}

impl SledLock {
    /// Duplicates the descriptor of the sled that was just opened in `dir`. `None` if that is not
    /// possible.
    pub(super) fn of(dir: &Path) -> Option<Self> {
        Self::find(&dir.join("db"))
            .inspect_err(|error| tracing::debug!(%error, "sled's lock was not found"))
            .ok()
    }

    fn find(data_file: &Path) -> io::Result<Self> {
        let path = data_file.canonicalize()?;
        for entry in fs::read_dir(DESCRIPTORS)? {
            let name = entry?.file_name();
            let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            if refers_to(number, &path) && is_locked(number) {
                let process = pidfd_open(getpid(), PidfdFlags::empty())?;
                let copy = pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
                return Ok(Self { path, number, copy });
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Unlocks the file once sled has closed it. If sled does not close it, the lock stays.
    pub(super) fn unlock(self) {
        let until = Instant::now() + MAX_WAIT;
        while refers_to(self.number, &self.path) {
            if Instant::now() >= until {
                return;
            }
            // The kernel does not notify of a closed descriptor, so this polls.
            thread::sleep(PAUSE);
        }
        let _ = flock(&self.copy, FlockOperation::Unlock);
    }
}

fn refers_to(number: RawFd, path: &Path) -> bool {
    fs::read_link(format!("{DESCRIPTORS}/{number}")).is_ok_and(|target| target == path)
}

/// Returns true if a lock was taken through this descriptor.
fn is_locked(number: RawFd) -> bool {
    fs::read_to_string(format!("/proc/self/fdinfo/{number}")).is_ok_and(|info| info.contains("FLOCK"))
}
