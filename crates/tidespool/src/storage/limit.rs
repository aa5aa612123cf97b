//! `RLIMIT_FSIZE`, the limit on the size of files (`ulimit -f`, `LimitFSIZE=`).
//!
//! The kernel answers a write beyond it with `EFBIG`, and first sends the thread `SIGXFSZ`, which
//! ends a process that neither handles nor ignores it. A library must not change what a signal
//! does, so each write is compared with the limit before the kernel sees it. The limit may change
//! at any time.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// The largest size that a file of this process may have now. `None`: any.
pub(crate) fn largest_file() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

/// Refuses with `EFBIG` what would write beyond the limit.
pub(super) fn check_file_size(end: u64) -> io::Result<()> {
    match largest_file() {
        Some(limit) if end > limit => Err(Errno::FBIG.into()),
        _ => Ok(()),
    }
}
