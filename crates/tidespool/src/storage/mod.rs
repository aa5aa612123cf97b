//! The seam under the journal, the manifest and the syncs of sled's files: files and directories, as traits.
//!
//! [`OsStorage`] is the real one. Tests put others in its place that fail, delay or forget at a chosen call. The calls are raw: a
//! write may be short, a sync may fail. What that means is decided above.

mod bystanders;
mod limit;
mod lock;
mod lost;
mod named;
mod no_room;
mod os;
mod room;
mod space;

use std::fmt::Debug;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

pub(crate) use bystanders::is_bystander;
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

/// How [`Storage::open`] opens a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A new file of mode 0600 whatever the umask is, for reading and writing; an existing one of
    /// this name is emptied.
    Create,
}

/// Which file it is, and the state it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    /// The device and the inode number: no two files have both in common.
    pub identity: (u64, u64),
    /// The permission bits.
    pub mode: u32,
    /// The length in bytes.
    pub len: u64,
}

/// A file system, as far as a spool needs one.
pub trait Storage: Debug + Send + Sync {
    /// Creates a directory of mode 0700 with its parents, whatever the umask is. One that exists is
    /// `Ok`.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>>;

    /// The names in a directory, in no order. Names that are not UTF-8 are given lossily.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Renames a file or directory, over an existing file.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// What the file system of `path` has left. Default: [`Space::of`].
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn space(&self, path: &Path) -> io::Result<Space> {
        Space::of(path)
    }

    /// The state of the file or directory that has this name. Default: the operating system's
    /// answer.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn state(&self, path: &Path) -> io::Result<FileState> {
        os::state_of(path)
    }

    /// Makes the names in a directory durable (`fsync` of the directory).
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// A number that the machine has until it is started again: what a process wrote before, and
    /// did not sync, can be read as long as it is the same. Default: the kernel's
    /// (`/proc/sys/kernel/random/boot_id`).
    ///
    /// # Errors
    ///
    /// The operating system's. Without one there is no crash log.
    fn boot_id(&self) -> io::Result<[u8; 16]> {
        os::boot_id()
    }
}

/// An open file, used at given offsets only.
pub trait StorageFile: Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// True for a file without a byte.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The state of the open file, whatever became of its name.
    ///
    /// # Errors
    ///
    /// The operating system's; `Unsupported` by default. Then a deleted file goes unnoticed.
    fn state(&self) -> io::Result<FileState> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The file's descriptor, for a mapping of it. `None`, the default: it can't be mapped, and is
    /// of no use as a crash log.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Reads up to `buf.len()` bytes from `offset`; 0 is the end of the file.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Reads into `bufs`, one after the other, from `offset`; 0 is the end of the file. Default: [`read_at`](Self::read_at) into the first of them
    /// that has room.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        bufs.iter_mut().find(|buf| !buf.is_empty()).map_or(Ok(0), |buf| self.read_at(buf, offset))
    }

    /// The same without ever waiting for a disk: what is read is what is in memory already, and may end anywhere. Default: never anything.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) where that is nothing; the operating system's, `Unsupported` among them. None says anything about
    /// what [`read_at`](Self::read_at) would do.
    fn read_in_memory_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let _ = (bufs, offset);
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Writes some of the bytes of `bufs` at `offset`, and says how many.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Reserves room for the first `len` bytes, and makes the file that long: what is not written reads as zeros, and writing it can't fail for
    /// want of room. Durable with the next sync.
    ///
    /// # Errors
    ///
    /// The operating system's; `Unsupported` where the file system can't, and by default.
    fn allocate(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Lets the system forget what it keeps of the file in memory, as far as it is on disk. A hint. Default: does nothing.
    fn forget_cached(&self) {}

    /// Puts what was written onto stable storage (`fdatasync`).
    ///
    /// # Errors
    ///
    /// The operating system's. After one, what was written since the last success is in doubt for good.
    fn sync_data(&self) -> io::Result<()>;
}

/// The disk, or the file system on it, can't read what was written there: trying again is not likely to help.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const ALL: [Errno; 6] =
        [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO];
    os_code(error).is_some_and(|code| ALL.iter().any(|errno| errno.raw_os_error() == code))
}

/// Reads exactly `buf.len()` bytes.
pub(crate) fn read_exact_at(file: &dyn StorageFile, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// The same into several buffers, as if they were one.
pub(crate) fn read_exact_vectored_at(
    file: &dyn StorageFile,
    mut bufs: &mut [IoSliceMut<'_>],
    mut offset: u64,
) -> io::Result<()> {
    IoSliceMut::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        match file.read_vectored_at(bufs, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                IoSliceMut::advance_slices(&mut bufs, n);
                offset += n as u64;
            }
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
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
    // Linux takes at most this many slices in one call (IOV_MAX).
    const MAX_SLICES: usize = 1024;
    IoSlice::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        let some = &bufs[..bufs.len().min(MAX_SLICES)];
        match file.write_vectored_at(some, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                IoSlice::advance_slices(&mut bufs, n);
                offset += n as u64;
            }
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_slices_are_written_whole_and_read_back() {
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

    /// A storage that only has what it must have.
    #[derive(Debug)]
    struct Plain(Vec<u8>);

    impl StorageFile for Plain {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = &self.0[usize::try_from(offset).unwrap().min(self.0.len())..];
            let len = buf.len().min(rest.len()).min(3);
            buf[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        }

        fn write_vectored_at(&self, _bufs: &[IoSlice<'_>], _offset: u64) -> io::Result<usize> {
            Ok(0)
        }

        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Each other call is interrupted by a signal, and those between move three bytes.
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
            Plain(self.bytes.lock().clone()).read_at(buf, offset)
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

    /// FUSE and NFS interrupt reads and writes when a signal arrives: no error of the disk.
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
    fn a_storage_without_vectored_reads_is_read_all_the_same() {
        let file = Plain((0..100).collect());
        let (mut first, mut rest) = ([0; 10], [0; 50]);
        read_exact_vectored_at(&file, &mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut rest)], 20)
            .unwrap();
        assert_eq!([&first[..], &rest].concat(), (20..80).collect::<Vec<u8>>());
        let err = file.read_in_memory_at(&mut [IoSliceMut::new(&mut first)], 0).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
    }
}
