//! A small file system of its own, filled by a neighbour while the spool runs: the gate shuts before anything fails, removals and deliveries go on,
//! and when there is room again the spool heals by itself. Each test is made on a tmpfs, and on ext4 in a file.
//!
//! Where nothing can be mounted (not root, no loop devices) a test prints a line that begins with
//! `skipped` on standard error, and passes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod mount; // file systems that end with the test, and the neighbour that fills them
mod setup; // a spool on such a file system, and what was acknowledged

mod flipped; // bytes of sled's files that change on the disk: the kernel refuses to read them
mod inodes; // no file can be made any more, though there are bytes
mod making; // nothing half-made keeps a spool from being opened
mod quota; // a quota that `statvfs` does not show
mod restart; // crashes on a full disk, and openings of what they leave
mod running; // a disk that runs full under a spool, and has room again
mod small; // a disk that is smaller than the journal may become
mod strange; // no size, a limit on the size of files, a refused system call
mod write_back; // a disk that takes writes and cannot keep them
