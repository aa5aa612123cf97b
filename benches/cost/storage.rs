//! The real files, with counters. `fdatasync` is counted but not executed, so that no figure
//! depends on a disk. sled's files are not counted here; they have a figure of their own.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tidespool::storage::{FileState, OpenMode, OsStorage, Space, Storage, StorageFile};

/// The spool's thread that probes the disk every second. It is held, since the number of its runs
/// in a section depends on the speed of the machine.
const PROBE: &str = "tide-probe";

/// Limit of a wait. A longer one means a bug.
const PATIENCE: Duration = Duration::from_secs(120);

/// The traffic of the storage since its creation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    /// Syncs of files and of directories.
    pub(crate) syncs: u64,
    /// Bytes written.
    pub(crate) written: u64,
    /// Read calls.
    pub(crate) reads: u64,
    /// Bytes read.
    pub(crate) read: u64,
}

/// A counting storage. A clone shares the counters.
#[derive(Debug, Clone, Default)]
pub(crate) struct CountingStorage(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    syncs: AtomicU64,
    written: AtomicU64,
    reads: AtomicU64,
    read: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whether syncs of files wait.
    holding: bool,
    /// Number of syncs that wait.
    held: usize,
    dir_syncs: u64,
    /// The probe thread is released.
    probing: bool,
}

impl CountingStorage {
    /// The argument for [`tidespool::TieredSpool::open_on`].
    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            syncs: self.0.syncs.load(Ordering::SeqCst),
            written: self.0.written.load(Ordering::SeqCst),
            reads: self.0.reads.load(Ordering::SeqCst),
            read: self.0.read.load(Ordering::SeqCst),
        }
    }

    /// From now on, each sync of a file is counted and then waits for [`release`](Self::release).
    pub(crate) fn hold_syncs(&self) {
        self.0.state.lock().holding = true;
    }

    /// Blocks until a sync waits.
    pub(crate) fn wait_until_held(&self) -> Result<()> {
        self.wait_until("no sync came", |state| state.held > 0)
    }

    /// Lets the syncs continue.
    pub(crate) fn release(&self) {
        self.0.state.lock().holding = false;
        self.0.changed.notify_all();
    }

    /// Number of directory syncs so far.
    pub(crate) fn dir_syncs(&self) -> u64 {
        self.0.state.lock().dir_syncs
    }

    /// Blocks until there are more directory syncs than `before`: a new segment is then written and
    /// named.
    pub(crate) fn wait_for_dir_sync(&self, before: u64) -> Result<()> {
        self.wait_until("no segment was prepared", |state| state.dir_syncs > before)
    }

    /// Waits without polling: every poll would count as instructions.
    fn wait_until(&self, otherwise: &str, condition: impl Fn(&State) -> bool) -> Result<()> {
        let mut state: MutexGuard<'_, State> = self.0.state.lock();
        let waited = self.0.changed.wait_while_for(&mut state, |state| !condition(state), PATIENCE);
        ensure!(!waited.timed_out(), "{otherwise} within {PATIENCE:?}");
        Ok(())
    }

    fn count_sync(&self) {
        self.0.syncs.fetch_add(1, Ordering::SeqCst);
    }

    /// Blocks until [`release_probe`](Self::release_probe).
    fn hold_probe(&self) {
        let mut state = self.0.state.lock();
        self.0.changed.wait_while(&mut state, |state| !state.probing);
    }

    /// Lets the probe thread continue, so that the spool can be closed.
    pub(crate) fn release_probe(&self) {
        self.0.state.lock().probing = true;
        self.0.changed.notify_all();
    }

    fn wait_while_held(&self) {
        let mut state = self.0.state.lock();
        if state.holding {
            state.held += 1;
            self.0.changed.notify_all();
            self.0.changed.wait_while(&mut state, |state| state.holding);
            state.held -= 1;
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Storage for CountingStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsStorage.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        if path.parent().is_some_and(|dir| dir.ends_with("sled")) {
            return OsStorage.open(path, mode);
        }
        Ok(Arc::new(CountingFile { storage: self.clone(), file: OsStorage.open(path, mode)? }))
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
        if thread::current().name() == Some(PROBE) {
            self.hold_probe();
        }
        OsStorage.space(path)
    }

    fn state(&self, path: &Path) -> io::Result<FileState> {
        OsStorage.state(path)
    }

    fn boot_id(&self) -> io::Result<[u8; 16]> {
        OsStorage.boot_id()
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        self.count_sync();
        self.0.state.lock().dir_syncs += 1;
        self.0.changed.notify_all();
        Ok(())
    }
}

#[derive(Debug)]
struct CountingFile {
    storage: CountingStorage,
    file: Arc<dyn StorageFile>,
}

impl CountingFile {
    fn count_read(&self, bytes: usize) {
        self.storage.0.reads.fetch_add(1, Ordering::SeqCst);
        self.storage.0.read.fetch_add(bytes as u64, Ordering::SeqCst);
    }
}

#[deny(clippy::missing_trait_methods)]
impl StorageFile for CountingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn is_empty(&self) -> io::Result<bool> {
        self.file.is_empty()
    }

    fn state(&self) -> io::Result<FileState> {
        self.file.state()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.descriptor()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.file.read_at(buf, offset)?;
        self.count_read(count);
        Ok(count)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let count = self.file.write_vectored_at(bufs, offset)?;
        self.storage.0.written.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let count = self.file.read_vectored_at(bufs, offset)?;
        self.count_read(count);
        Ok(count)
    }

    fn read_in_memory_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let count = self.file.read_in_memory_at(bufs, offset)?;
        self.count_read(count);
        Ok(count)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn forget_cached(&self) {
        self.file.forget_cached();
    }

    fn sync_data(&self) -> io::Result<()> {
        self.storage.count_sync();
        self.storage.wait_while_held();
        Ok(())
    }
}
