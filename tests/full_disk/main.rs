//! A neighbour fills a small file system while the spool runs. The gate shuts before anything
//! fails, removals and loads continue, and the gate opens by itself when space is free again. Each
//! test runs on tmpfs, and on ext4 in a file.
//!
//! If nothing can be mounted (not root, no loop devices), a test prints a line that begins with
//! `skipped` to standard error, and passes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod mount; // temporary file systems, and the neighbour that fills them
mod setup; // a spool on such a file system, and its acknowledged messages

mod flipped; // blocks of sled's files that the kernel cannot read
mod inodes; // no inodes, although bytes are free
mod making; // incomplete files do not prevent an opening
mod quota; // a quota that `statvfs` does not show
mod restart; // crashes on a full disk, and openings of what they leave
mod running; // a disk that fills under a running spool, and has space again
mod small; // a disk smaller than the journal's limit
mod strange; // no size, a limit on file sizes, a rejected system call
mod write_back; // a disk that accepts writes and loses them
