//! What a process may do around an open spool: change its working directory, its umask or its
//! limits, fork, handle signals.
//!
//! All of this belongs to the whole process. So each test runs its body in a child process: this
//! binary, started again with the name of that one test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod child; // one test's body in a process of its own
mod setup; // small spools, and the calls that most tests consist of
mod unsafe_calls; // fork and signal handlers

mod cwd; // a relative path, a re-pointed symlink
mod deaths; // however it dies, what it acknowledged is there, and what it removed is not
mod descriptors; // the limit on open files
mod fork; // a child that inherits the lock
mod signals; // calls that a signal interrupts
mod threads; // the limit on threads
mod umask; // files stay private, and usable
