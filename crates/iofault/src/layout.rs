//! The control file: what the preloaded library and the test exchange.
//!
//! The library maps the file into its process. The test writes the file. So the test can set a
//! fault while the process runs, and read the counts after the process has died. The library and
//! the test compile this same source file.
//!
//! Every field is one `u64` in native byte order, at 8 × its index.

/// The environment variable that names the control file.
pub(crate) const CONTROL: &str = "TIDESPOOL_IOFAULT_CONTROL";

/// The size of the control file in bytes: one page.
pub(crate) const BYTES: usize = 4096;

/// The value of `MAGIC` in a control file of this layout.
pub(crate) const THIS_LAYOUT: u64 = u64::from_ne_bytes(*b"IOFAULT1");

/// Field: [`THIS_LAYOUT`].
pub(crate) const MAGIC: usize = 0;
/// Field: 1 while a fault is set. Written after all other fields.
pub(crate) const ARMED: usize = 1;
/// Field: one bit per [`Call`] that may fail.
pub(crate) const CALLS: usize = 2;
/// Field: the number of matching calls that succeed before the first one fails.
pub(crate) const SKIP: usize = 3;
/// Field: the number of consecutive matching calls that fail.
pub(crate) const COUNT: usize = 4;
/// Field: the `errno` of a call that fails.
pub(crate) const ERRNO: usize = 5;
/// Field: the number of matching calls since the fault was set. The library counts them.
pub(crate) const MATCHED: usize = 6;
/// Field: the number of failed calls since the fault was set. The library counts them.
pub(crate) const FAILED: usize = 7;
/// Field: the length of the pattern in bytes.
pub(crate) const PATTERN_LEN: usize = 8;
/// The first of the fields that count, per [`Call`], calls on paths that contain the pattern. The
/// library counts them even if no fault is set.
pub(crate) const SEEN: usize = 16;

/// The offset of the pattern in bytes.
pub(crate) const PATTERN_AT: usize = 512;
/// The maximum length of the pattern in bytes.
pub(crate) const PATTERN_MAX: usize = 256;

/// A kind of system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    /// `open` and `openat`, of files and directories.
    Open,
    /// `read`.
    Read,
    /// `pread`.
    Pread,
    /// `write`.
    Write,
    /// `pwrite`.
    Pwrite,
    /// `fsync`.
    Fsync,
    /// `fdatasync`.
    Fdatasync,
    /// `ftruncate`.
    Ftruncate,
    /// `sync_file_range`.
    SyncFileRange,
    /// `rename`. Either path may match.
    Rename,
    /// `unlink`, `unlinkat` and `rmdir`.
    Unlink,
    /// `mkdir`.
    Mkdir,
}

impl Call {
    /// The bit in [`CALLS`].
    pub(crate) const fn bit(self) -> u64 {
        1 << (self as u64)
    }

    /// The index of the field that counts calls of this kind.
    pub(crate) const fn seen(self) -> usize {
        SEEN + self as usize
    }
}
