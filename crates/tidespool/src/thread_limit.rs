//! The error for a thread that can't be started.

use std::io;

/// Adds the thread's name to `error`, and the limits that usually are the cause.
pub(crate) fn not_started(name: &str, error: &io::Error) -> io::Error {
    let what = format!(
        "the thread {name} can't be started: {error}; raise the limit on threads (RLIMIT_NPROC, which \
         `ulimit -u` shows; pids.max of the control group), or the limit on memory"
    );
    io::Error::new(error.kind(), what)
}
