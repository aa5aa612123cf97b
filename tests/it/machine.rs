use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use tidespool::TieredSpool;
use tidespool::storage::{FileState, OpenMode, OsStorage, Space, Storage, StorageFile};

use crate::setup::{Tiered, when_free};

/// A storage with its own boot id, as after a restart of the machine. Mapping of files can be
/// disabled.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The value of each byte of the boot id.
    pub(crate) boot: u8,
    pub(crate) maps: bool,
}

#[derive(Debug)]
struct MachineFile(Arc<dyn StorageFile>, bool);

impl Storage for Machine {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsStorage.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(MachineFile(OsStorage.open(path, mode)?, self.maps)))
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

    fn space(&self, path: &Path) -> io::Result<Space> {
        OsStorage.space(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OsStorage.sync_dir(path)
    }

    fn boot_id(&self) -> io::Result<[u8; 16]> {
        Ok([self.boot; 16])
    }
}

impl StorageFile for MachineFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn state(&self) -> io::Result<FileState> {
        self.0.state()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.descriptor().filter(|_| self.1)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.0.write_vectored_at(bufs, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Machine {
    pub(crate) async fn open(self, tiered: &Tiered) -> TieredSpool {
        let storage: Arc<dyn Storage> = Arc::new(self);
        when_free(|| TieredSpool::open_on(tiered.config.clone(), storage.clone())).await.expect("open")
    }
}
