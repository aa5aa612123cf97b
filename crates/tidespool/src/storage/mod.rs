//! Files and directories as traits: the seam under the journal, the manifest and the syncs of the
//! index's files.
//!
//! [`OsStorage`] is the operating system's file system. Tests use implementations that fail, delay
//! or lose data at a chosen call. The calls are raw: a write may be short, a sync may fail. The
//! callers handle that.
//!
//! # Layout
//!
//! * here – the traits. `os` – the operating system's files. `testing` – these files, whose calls
//!   unit tests observe and fail.
//! * `lock` – an exclusive lock on a file. `lost` – whether a file still has its name.
//! * `space` – the space that a file system has left. `room` – whether a spool's disk has room,
//!   under quotas, too. `limit` – the limit on the size of files. `no_room` – the errors that mean
//!   "no room". `named` – errors that name their file.
//! * `ignored_names` – files that an otherwise empty directory may contain.

mod ignored_names;
mod limit;
mod lock;
mod lost;
mod named;
mod no_room;
mod os;
mod room;
mod space;
#[cfg(test)]
mod testing;

use std::fmt::Debug;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

pub(crate) use ignored_names::is_ignored_name;
pub(crate) use limit::largest_file;
pub(crate) use lock::{FileLock, is_locked_here};
pub(crate) use lost::{KeptFile, Loss, loss_of, loss_of_state};
pub(crate) use named::{at, os_code};
pub(crate) use no_room::{is_no_room, is_no_room_kind};
pub use os::OsStorage;
pub(crate) use os::{
    create_private_dir, is_no_file, make_dir_private, make_file_private, open_private, open_regular, state,
    uninterrupted,
};
pub(crate) use room::{DiskRoom, TRIAL_FILE, reserve};
pub use space::Space;
#[cfg(test)]
pub(crate) use testing::{TestCall, TestStorage};

/// How [`Storage::open`] opens a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A new file of mode 0600 whatever the umask is, for reading and writing. An existing file of
    /// this name is truncated.
    Create,
}

/// Identity, mode and length of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    /// The device and the inode number. No two files share both.
    pub identity: (u64, u64),
    /// The permission bits.
    pub mode: u32,
    /// The length in bytes.
    pub len: u64,
    /// How many names it has. An open file without a name is deleted when it is closed.
    pub links: u64,
}

/// The calls to a file system that a spool needs.
///
/// # Errors
///
/// Every call returns the errors of the operating system.
#[expect(clippy::missing_errors_doc, reason = "the trait describes the errors of all calls")]
pub trait Storage: Debug + Send + Sync {
    /// Creates a directory of mode 0700 with its parents, whatever the umask is. `Ok` if it exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>>;

    /// The names in a directory, in no order. A name that is not UTF-8 is converted lossily.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Renames a file or directory. An existing file at `to` is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// The space that the file system of `path` has left. Every decision on free space asks this.
    ///
    /// # Errors
    ///
    /// The operating system's. The free space is then unknown: neither little nor plenty.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// The state of the file or directory at `path`. Default: from the operating system.
    fn state(&self, path: &Path) -> io::Result<FileState> {
        os::state_of(path)
    }

    /// Makes the names in a directory durable (`fsync` of the directory).
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The id of the machine's current boot. What a process wrote and did not sync stays readable
    /// within one boot. Default: the kernel's (`/proc/sys/kernel/random/boot_id`).
    ///
    /// # Errors
    ///
    /// The operating system's. Without a boot id there is no crash log.
    fn boot_id(&self) -> io::Result<[u8; 16]> {
        os::boot_id()
    }
}

/// An open file, used at given offsets only.
///
/// # Errors
///
/// Every call returns the errors of the operating system.
#[expect(clippy::missing_errors_doc, reason = "the trait describes the errors of all calls")]
pub trait StorageFile: Debug + Send + Sync {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// True if the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The state of the open file, even if its name was removed or reused.
    ///
    /// # Errors
    ///
    /// The operating system's; `Unsupported` by default. Then a deleted file is not detected.
    fn state(&self) -> io::Result<FileState> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The file's descriptor, for mapping the file. `None`, the default: the file can't be mapped,
    /// so it can't be a crash log.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Reads up to `buf.len()` bytes from `offset`; 0 is the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Reads into `bufs`, one after the other, from `offset`; 0 is the end of the file. Default:
    /// [`read_at`](Self::read_at) into the first buffer that is not empty.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        bufs.iter_mut().find(|buf| !buf.is_empty()).map_or(Ok(0), |buf| self.read_at(buf, offset))
    }

    /// Like [`read_vectored_at`](Self::read_vectored_at), but never blocks on a disk. Reads only
    /// what is in memory, so the read may end anywhere. Default:
    /// [`WouldBlock`](io::ErrorKind::WouldBlock).
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if nothing is in memory; the operating system's,
    /// `Unsupported` among them. An error does not mean that [`read_at`](Self::read_at) would fail.
    fn read_in_memory_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let _ = (bufs, offset);
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Writes some of the bytes of `bufs` at `offset`, and returns how many.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Reserves disk space for the first `len` bytes, and extends the file to this length.
    /// Unwritten bytes read as zeros. Writing them can't fail for lack of space. Durable with the
    /// next sync.
    ///
    /// # Errors
    ///
    /// The operating system's; `Unsupported` if the file system can't, and by default.
    fn allocate(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Drops the file's clean pages from the system's page cache. A hint. Default: does nothing.
    fn forget_cached(&self) {}

    /// Makes everything written to the file durable (`fdatasync`).
    ///
    /// # Errors
    ///
    /// The operating system's. After an error, everything written since the last successful sync
    /// may be lost, whatever a later sync returns.
    fn sync_data(&self) -> io::Result<()>;
}

/// True if the disk or its file system can't read what was written there: a retry is not likely to
/// succeed.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const ALL: [Errno; 6] =
        [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO];
    os_code(error).is_some_and(|code| ALL.iter().any(|errno| errno.raw_os_error() == code))
}

/// Reads exactly `buf.len()` bytes.
pub(crate) fn read_exact_at(file: &dyn StorageFile, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match uninterrupted(|| file.read_at(buf, offset))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// Reads into several buffers, as if they were one.
pub(crate) fn read_exact_vectored_at(
    file: &dyn StorageFile,
    mut bufs: &mut [IoSliceMut<'_>],
    mut offset: u64,
) -> io::Result<()> {
    IoSliceMut::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        match uninterrupted(|| file.read_vectored_at(bufs, offset))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                IoSliceMut::advance_slices(&mut bufs, n);
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// Writes all of `bufs`, in as few calls as the system allows.
pub(crate) fn write_all_at(
    file: &dyn StorageFile,
    mut bufs: &mut [IoSlice<'_>],
    mut offset: u64,
) -> io::Result<()> {
    // The most slices that Linux accepts in one call (IOV_MAX).
    const MAX_SLICES: usize = 1024;
    IoSlice::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        let some = &bufs[..bufs.len().min(MAX_SLICES)];
        match uninterrupted(|| file.write_vectored_at(some, offset))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => {
                IoSlice::advance_slices(&mut bufs, n);
                offset += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_slices_are_written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = OsStorage.open(&dir.path().join("f"), OpenMode::Create).unwrap();
        let parts: Vec<Vec<u8>> = (0..3000u32).map(|i| vec![i.to_le_bytes()[0]; (i % 7) as usize]).collect();
        let mut bufs: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        write_all_at(&*file, &mut bufs, 5).unwrap();
        let whole: Vec<u8> = parts.concat();
        let mut back = vec![0; whole.len()];
        read_exact_at(&*file, &mut back, 5).unwrap();
        assert_eq!(back, whole);
        assert_eq!(file.len().unwrap(), whole.len() as u64 + 5);
        let err = read_exact_at(&*file, &mut back, 6).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
        let (mut first, mut rest) = ([0; 7], vec![0; whole.len() - 7]);
        let mut bufs = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut []), IoSliceMut::new(&mut rest)];
        read_exact_vectored_at(&*file, &mut bufs, 5).unwrap();
        assert_eq!([&first[..], &rest].concat(), whole);
        let mut bufs = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut rest)];
        let err = read_exact_vectored_at(&*file, &mut bufs, 6).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
    }

    /// A file with only the required methods. A call moves at most three bytes. Every other call is
    /// interrupted by a signal.
    #[derive(Debug, Default)]
    struct Interrupted {
        calls: std::sync::atomic::AtomicU64,
        bytes: parking_lot::Mutex<Vec<u8>>,
    }

    impl Interrupted {
        fn call(&self) -> io::Result<()> {
            let calls = self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if calls.is_multiple_of(2) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        }
    }

    impl StorageFile for Interrupted {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes.lock().len() as u64)
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.call()?;
            let bytes = self.bytes.lock();
            let rest = &bytes[usize::try_from(offset).unwrap().min(bytes.len())..];
            let len = buf.len().min(rest.len()).min(3);
            buf[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        }

        fn write_vectored_at(&self, bufs: &[IoSlice<'_>], _offset: u64) -> io::Result<usize> {
            self.call()?;
            let some = &bufs[0][..bufs[0].len().min(3)];
            self.bytes.lock().extend_from_slice(some);
            Ok(some.len())
        }

        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// FUSE and NFS interrupt reads and writes when a signal arrives. That is not an error of the
    /// disk.
    #[test]
    fn an_interrupted_call_is_repeated() {
        let file = Interrupted::default();
        let whole: Vec<u8> = (0..100).collect();
        write_all_at(&file, &mut [IoSlice::new(&whole[..40]), IoSlice::new(&whole[40..])], 0).unwrap();
        let mut back = [0; 100];
        read_exact_at(&file, &mut back, 0).unwrap();
        assert_eq!(back[..], whole);
        let mut back = [0; 100];
        read_exact_vectored_at(&file, &mut [IoSliceMut::new(&mut back)], 0).unwrap();
        assert_eq!(back[..], whole);
        let mut tries = 0;
        let counted = || {
            tries += 1;
            if tries < 3 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(tries) }
        };
        assert_eq!(uninterrupted(counted).unwrap(), 3);
    }

    #[test]
    fn a_storage_without_vectored_reads_is_readable() {
        let file = Interrupted::default();
        file.bytes.lock().extend(0..100);
        let (mut first, mut rest) = ([0; 10], [0; 50]);
        read_exact_vectored_at(&file, &mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut rest)], 20)
            .unwrap();
        assert_eq!([&first[..], &rest].concat(), (20..80).collect::<Vec<u8>>());
        let err = file.read_in_memory_at(&mut [IoSliceMut::new(&mut first)], 0).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
    }
}
