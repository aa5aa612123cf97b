use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::ReadWriteFlags;

use super::limit::check_file_size;
use super::{FileState, OpenMode, Space, Storage, StorageFile};

/// The mode of every directory and file that a spool creates.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Bytes that one `fallocate` call reserves. tmpfs of older kernels undoes a whole call at any
/// signal: a process with a profiling timer would retry a call for 64 MiB for ever.
const ALLOCATED_AT_ONCE: u64 = 1 << 20;

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsStorage;

impl Storage for OsStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match create_private_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => {
                    self.create_dir(parent)?;
                    self.create_dir(path)
                }
                _ => Err(error),
            },
            Err(_) if path.is_dir() => Ok(()),
            created => created,
        }
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        let file = match mode {
            OpenMode::Read => open_regular(&mut options, path),
            OpenMode::Write => open_regular(options.write(true), path),
            OpenMode::Create => open_private(options.write(true).truncate(true), path),
        };
        Ok(Arc::new(OsFile(file?)))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        uninterrupted(|| std::fs::rename(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        uninterrupted(|| std::fs::remove_file(path))
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        Space::of(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// Repeats `call` while a signal interrupts it. The standard library does so for `open` and `fsync`
/// only.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Creates a directory of mode 0700 whatever the umask is. It is an error if it exists.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    uninterrupted(|| DirBuilder::new().mode(DIR_MODE).create(path))?;
    make_dir_private(path)
}

/// Gives a directory mode 0700.
pub(crate) fn make_dir_private(path: &Path) -> io::Result<()> {
    uninterrupted(|| std::fs::set_permissions(path, Permissions::from_mode(DIR_MODE)))
}

/// Gives a file mode 0600.
pub(crate) fn make_file_private(path: &Path) -> io::Result<()> {
    uninterrupted(|| std::fs::set_permissions(path, Permissions::from_mode(FILE_MODE)))
}

/// Opens a regular file for writing with `options`, and creates it if it does not exist. Its mode
/// is 0600 afterwards, whatever the umask is.
pub(crate) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = open_regular(options.create(true).mode(FILE_MODE), path)?;
    // A umask of 0777 clears every bit of the mode passed to `open`.
    if file.metadata()?.permissions().mode() & 0o7777 != FILE_MODE {
        uninterrupted(|| file.set_permissions(Permissions::from_mode(FILE_MODE)))?;
    }
    Ok(file)
}

/// Opens a regular file. Fails for anything else, and does not block: opening a pipe would wait for
/// its other end.
pub(crate) fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // It has no effect on a regular file.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = options.custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// True if the error means that the name exists and is not a regular file.
pub(crate) fn is_no_file(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory)
}

/// The kernel's boot id.
pub(super) fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = uuid::Uuid::try_parse(text.trim()).map_err(io::Error::other)?;
    Ok(id.into_bytes())
}

/// The state of the file or directory at `path`.
pub(super) fn state_of(path: &Path) -> io::Result<FileState> {
    std::fs::metadata(path).map(|metadata| state(&metadata))
}

pub(crate) fn state(metadata: &Metadata) -> FileState {
    FileState {
        identity: (metadata.dev(), metadata.ino()),
        mode: metadata.mode() & 0o7777,
        len: metadata.len(),
        links: metadata.nlink(),
    }
}

#[derive(Debug)]
struct OsFile(File);

impl StorageFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn state(&self) -> io::Result<FileState> {
        self.0.metadata().map(|metadata| state(&metadata))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::preadv(&self.0, bufs, offset)?)
    }

    fn read_in_memory_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::preadv2(&self.0, bufs, offset, ReadWriteFlags::NOWAIT)?)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let len: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        check_file_size(offset.saturating_add(len))?;
        Ok(rustix::io::pwritev(&self.0, bufs, offset)?)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        check_file_size(len)?;
        let mut offset = 0;
        while offset < len {
            let step = ALLOCATED_AT_ONCE.min(len - offset);
            let allocate = || rustix::fs::fallocate(&self.0, FallocateFlags::empty(), offset, step);
            rustix::io::retry_on_intr(allocate)?;
            offset += step;
        }
        Ok(())
    }

    fn forget_cached(&self) {
        // Only a hint: nothing depends on its success.
        let _ = rustix::fs::fadvise(&self.0, 0, None, rustix::fs::Advice::DontNeed);
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
