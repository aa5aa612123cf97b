//! The system's files, whose calls a test observes and fails. Syncs do nothing else: no test that
//! uses them cuts the power.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{FileState, OpenMode, OsStorage, Space, Storage, StorageFile};

/// A call that a test can observe or fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestCall {
    Open,
    /// A read of the bytes up to `end`.
    Read {
        offset: u64,
        end: u64,
    },
    /// A write of the bytes up to `end`.
    Write {
        offset: u64,
        end: u64,
    },
    Allocate(u64),
    Sync,
    Space,
}

type Hook = Arc<dyn Fn(&Path, TestCall) -> io::Result<()> + Send + Sync>;
type Wrap = Arc<dyn Fn(&Path, Arc<dyn StorageFile>) -> Arc<dyn StorageFile> + Send + Sync>;

/// The storage. A clone shares the hook.
#[derive(Clone)]
pub(crate) struct TestStorage(Arc<Mutex<TestState>>);

struct TestState {
    hook: Hook,
    space: Option<Space>,
    /// Replaces each opened file.
    wrap: Option<Wrap>,
}

impl Default for TestStorage {
    fn default() -> Self {
        Self::with(|_, _| Ok(()))
    }
}

impl fmt::Debug for TestStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStorage")
    }
}

impl TestStorage {
    /// Runs `hook` before each call on a path. If it fails, the call fails without an effect.
    pub(crate) fn with(hook: impl Fn(&Path, TestCall) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Mutex::new(TestState { hook: Arc::new(hook), space: None, wrap: None })))
    }

    /// Runs no hook on files: replaces each opened file by what `wrap` returns.
    pub(crate) fn wrapping<F: StorageFile + 'static>(
        wrap: impl Fn(&Path, Arc<dyn StorageFile>) -> F + Send + Sync + 'static,
    ) -> Self {
        let storage = Self::default();
        storage.0.lock().wrap = Some(Arc::new(move |path, file| Arc::new(wrap(path, file))));
        storage
    }

    /// Shows this free space.
    pub(crate) fn show(self, space: Space) -> Self {
        self.set_space(Some(space));
        self
    }

    /// Shows this free space. `None`: the system's.
    pub(crate) fn set_space(&self, space: Option<Space>) {
        self.0.lock().space = space;
    }

    /// Replaces the hook. From now on, calls for which `fails` returns true fail on files whose
    /// name begins with `prefix`.
    pub(crate) fn fail(&self, prefix: &'static str, fails: fn(TestCall) -> bool) {
        self.0.lock().hook = Arc::new(move |path, call| {
            let is_meant = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
            if is_meant && fails(call) { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
        });
    }

    /// Removes the hook.
    pub(crate) fn heal(&self) {
        self.0.lock().hook = Arc::new(|_, _| Ok(()));
    }

    fn enter(&self, path: &Path, call: TestCall) -> io::Result<()> {
        let hook = self.0.lock().hook.clone();
        hook(path, call)
    }
}

impl Storage for TestStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsStorage.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        self.enter(path, TestCall::Open)?;
        let file = OsStorage.open(path, mode)?;
        let wrap = self.0.lock().wrap.clone();
        Ok(match wrap {
            Some(wrap) => wrap(path, file),
            None => Arc::new(TestFile { file, path: path.to_owned(), storage: self.clone() }),
        })
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
        self.enter(path, TestCall::Space)?;
        let shown = self.0.lock().space;
        shown.map_or_else(|| OsStorage.space(path), Ok)
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct TestFile {
    file: Arc<dyn StorageFile>,
    path: PathBuf,
    storage: TestStorage,
}

#[deny(clippy::missing_trait_methods)]
impl StorageFile for TestFile {
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
        self.storage.enter(&self.path, TestCall::Read { offset, end: offset + buf.len() as u64 })?;
        self.file.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let end = offset + bufs.iter().map(|buf| buf.len() as u64).sum::<u64>();
        self.storage.enter(&self.path, TestCall::Read { offset, end })?;
        self.file.read_vectored_at(bufs, offset)
    }

    fn read_in_memory_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        self.file.read_in_memory_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let end = offset + bufs.iter().map(|buf| buf.len() as u64).sum::<u64>();
        self.storage.enter(&self.path, TestCall::Write { offset, end })?;
        self.file.write_vectored_at(bufs, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.storage.enter(&self.path, TestCall::Allocate(len))?;
        self.file.allocate(len)
    }

    fn forget_cached(&self) {
        self.file.forget_cached();
    }

    fn sync_data(&self) -> io::Result<()> {
        self.storage.enter(&self.path, TestCall::Sync)
    }
}
