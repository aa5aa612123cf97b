use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::durable::SledOptions;
use crate::storage::{OpenMode, OsStorage, Storage, StorageFile};

/// What a test does before a file or a directory is synced.
pub(super) trait BeforeSync: Send + Sync + 'static {
    fn before_sync(&self, path: &Path) -> io::Result<()>;
}

/// sled with this before each of its syncs.
pub(super) fn options_with(before: &Arc<impl BeforeSync>) -> SledOptions {
    let storage = Arc::new(Syncing(Arc::clone(before) as _));
    SledOptions { storage, ..SledOptions::new(super::CACHE) }
}

/// The system's files.
struct Syncing(Arc<dyn BeforeSync>);

impl std::fmt::Debug for Syncing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Syncing")
    }
}

impl Storage for Syncing {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsStorage.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let (file, path) = (OsStorage.open(path, mode)?, path.to_owned());
        Ok(Arc::new(SyncingFile { before: Arc::clone(&self.0), path, file }))
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
        self.0.before_sync(path)?;
        OsStorage.sync_dir(path)
    }
}

struct SyncingFile {
    before: Arc<dyn BeforeSync>,
    path: PathBuf,
    file: Arc<dyn StorageFile>,
}

impl std::fmt::Debug for SyncingFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl StorageFile for SyncingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.file.write_vectored_at(bufs, offset)
    }

    fn forget_cached(&self) {
        self.file.forget_cached();
    }

    fn sync_data(&self) -> io::Result<()> {
        self.before.before_sync(&self.path)?;
        self.file.sync_data()
    }
}
