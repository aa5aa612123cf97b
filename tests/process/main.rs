//! Actions of a process around an open spool: changing its working directory, its umask or its
//! limits, forking, handling signals.
//!
//! These affect the whole process, so each test runs its body in a child process: this binary,
//! started with the name of that test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod child; // runs the body of a test in a child process
mod setup; // small spools, and helpers for most tests
mod unsafe_calls; // fork and signal handlers

mod cwd; // a relative path, a re-pointed symlink
mod deaths; // after any death of the process, acknowledged changes are present
mod descriptors; // the limit on open files
mod fork; // a child that inherits the lock
mod signals; // calls that a signal interrupts
mod threads; // the limit on threads
mod umask; // files stay private, and usable
