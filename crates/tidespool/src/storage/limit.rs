//! `RLIMIT_FSIZE`, the limit on the size of files (`ulimit -f`, `LimitFSIZE=`).
//!
//! The kernel rejects a write beyond it with `EFBIG`, and first sends the thread `SIGXFSZ`. That
//! signal ends a process that neither handles nor ignores it. A library must not change signal
//! handlers, so each write is compared with the limit before the system call. The limit may change
//! at any time.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// The largest size that this process may give a file now, in bytes. `None`: no limit.
pub(crate) fn largest_file() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

/// Returns `EFBIG` if a write that ends at `end` would exceed the limit.
pub(super) fn check_file_size(end: u64) -> io::Result<()> {
    match largest_file() {
        Some(limit) if end > limit => Err(Errno::FBIG.into()),
        _ => Ok(()),
    }
}
