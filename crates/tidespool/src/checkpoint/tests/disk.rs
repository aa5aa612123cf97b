use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::storage::{FileState, OpenMode, OsStorage, Storage, StorageFile};

/// Which calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Writes fail. No byte gets to the file.
    Write,
    /// Syncs fail. The written bytes are in the file.
    Sync,
}

/// The system's files. While a test demands it, files whose name begins with a text fail.
#[derive(Debug, Clone, Default)]
pub(super) struct FailingDisk(Arc<Mutex<Option<(&'static str, Fault)>>>);

impl FailingDisk {
    pub(super) fn fail(&self, prefix: &'static str, fault: Fault) {
        *self.0.lock() = Some((prefix, fault));
    }

    pub(super) fn heal(&self) {
        *self.0.lock() = None;
    }
}

impl Storage for FailingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsStorage.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (file, disk) = (OsStorage.open(path, mode)?, self.clone());
        Ok(Arc::new(DiskFileInTest { file, name, disk }))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        OsStorage.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsStorage.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        OsStorage.remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OsStorage.sync_dir(path)
    }
}

#[derive(Debug)]
struct DiskFileInTest {
    file: Arc<dyn StorageFile>,
    name: String,
    disk: FailingDisk,
}

impl DiskFileInTest {
    fn check(&self, fault: Fault) -> io::Result<()> {
        match *self.disk.0.lock() {
            Some((prefix, failing)) if failing == fault && self.name.starts_with(prefix) => {
                Err(io::Error::from_raw_os_error(5))
            }
            _ => Ok(()),
        }
    }
}

impl StorageFile for DiskFileInTest {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn state(&self) -> io::Result<FileState> {
        self.file.state()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.check(Fault::Write)?;
        self.file.write_vectored_at(bufs, offset)
    }

    fn forget_cached(&self) {
        self.file.forget_cached();
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check(Fault::Sync)?;
        self.file.sync_data()
    }
}
