//! Selects the calls that fail, and counts calls.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::layout::{ARMED, BYTES, CALLS, Call, FAILED, MAGIC, PATTERN_AT, PATTERN_LEN, SKIP, THIS_LAYOUT};

/// Calls may fail on paths that contain this.
const PATTERN: &str = "/sled/";

/// Every kind of call that the library replaces, with its name.
pub(crate) const KINDS: [(Call, &str); 12] = [
    (Call::Open, "open"),
    (Call::Read, "read"),
    (Call::Pread, "pread"),
    (Call::Write, "write"),
    (Call::Pwrite, "pwrite"),
    (Call::Fsync, "fsync"),
    (Call::Fdatasync, "fdatasync"),
    (Call::Ftruncate, "ftruncate"),
    (Call::SyncFileRange, "sync_file_range"),
    (Call::Rename, "rename"),
    (Call::Unlink, "unlink"),
    (Call::Mkdir, "mkdir"),
];

/// Consecutive calls that fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The bits of the kinds of calls.
    pub(crate) calls: u64,
    /// Number of calls that succeed first.
    pub(crate) skip: u64,
    /// Number of consecutive calls that fail.
    pub(crate) count: u64,
    pub(crate) errno: i32,
}

/// The control file of one child.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    file: File,
}

impl Control {
    /// Creates a control file without a fault.
    pub(crate) fn create(path: PathBuf) -> Self {
        let mut bytes = [0; BYTES];
        bytes[8 * MAGIC..][..8].copy_from_slice(&THIS_LAYOUT.to_ne_bytes());
        bytes[8 * PATTERN_LEN..][..8].copy_from_slice(&(PATTERN.len() as u64).to_ne_bytes());
        bytes[PATTERN_AT..][..PATTERN.len()].copy_from_slice(PATTERN.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        Self::open(path)
    }

    /// Opens the control file that another process has created.
    pub(crate) fn open(path: PathBuf) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Self { path, file }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Sets a fault, which replaces the previous one.
    pub(crate) fn arm(&self, fault: Fault) {
        self.disarm();
        let errno = u64::try_from(fault.errno).unwrap();
        let fields = [fault.calls, fault.skip, fault.count, errno, 0, 0];
        for (field, value) in (CALLS..).zip(fields) {
            self.write(field, value);
        }
        assert_eq!(self.read(SKIP), fault.skip);
        self.write(ARMED, 1);
    }

    /// Removes the fault: the disk works again.
    pub(crate) fn disarm(&self) {
        self.write(ARMED, 0);
    }

    /// The number of calls that failed since the fault was set.
    pub(crate) fn failed(&self) -> u64 {
        self.read(FAILED)
    }

    /// The number of calls of this kind on matching paths.
    pub(crate) fn seen(&self, call: Call) -> u64 {
        self.read(call.seen())
    }

    fn read(&self, field: usize) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, 8 * field as u64).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn write(&self, field: usize, value: u64) {
        self.file.write_all_at(&value.to_ne_bytes(), 8 * field as u64).unwrap();
    }
}
