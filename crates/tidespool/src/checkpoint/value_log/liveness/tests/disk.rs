//! A disk in memory that fails and loses unsynced data.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::storage::{FileState, OpenMode, Space, Storage, StorageFile};

/// A directory of files.
#[derive(Debug, Clone, Default)]
pub(super) struct LogDisk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    files: BTreeMap<u64, FileContent>,
    /// Successful calls left before one fails, and its error.
    fault: Option<(u64, Errno)>,
    /// The index of a byte that reads return flipped until the cache is dropped.
    misread: Option<usize>,
    writes: u64,
    syncs: u64,
}

#[derive(Debug, Default)]
struct FileContent {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// The writes that are not synced yet.
    writes: Vec<(usize, Vec<u8>)>,
}

impl DiskState {
    fn call(&mut self) -> io::Result<()> {
        match &mut self.fault {
            Some((0, errno)) => {
                let errno = *errno;
                self.fault = None;
                Err(errno.into())
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn inode(&self, path: &Path) -> io::Result<u64> {
        self.names.get(&name(path)).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn state(&self, inode: u64) -> FileState {
        FileState { identity: (1, inode), mode: 0o600, len: self.files[&inode].now.len() as u64, links: 1 }
    }
}

impl LogDisk {
    /// Lets one call fail, after `after` successful calls.
    pub(super) fn fail(&self, after: u64, errno: Errno) {
        self.0.lock().fault = Some((after, errno));
    }

    /// Cancels the fault. Returns true if no call failed.
    pub(super) fn heal(&self) -> bool {
        self.0.lock().fault.take().is_some()
    }

    /// Changes the bytes of a file, durably.
    pub(super) fn edit(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let inode = state.inode(path).unwrap();
        let content = state.files.get_mut(&inode).unwrap();
        edit(&mut content.now);
        content.durable = content.now.clone();
    }

    /// Reads return this byte of each file with a flipped bit, until the cache is dropped.
    pub(super) fn misread(&self, at: usize) {
        self.0.lock().misread = Some(at);
    }

    pub(super) fn writes_and_syncs(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.writes, state.syncs)
    }

    /// Simulates a power cut. A part of the unsynced bytes survives, in the order of writing.
    pub(super) fn crash(&self, mut random: u64) {
        let mut draw = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 33).unwrap() % below
        };
        let mut state = self.0.lock();
        state.fault = None;
        let mut names = state.durable_names.clone();
        for (name, inode) in &state.names {
            if draw(2) == 0 {
                names.insert(name.clone(), *inode);
            }
        }
        for content in state.files.values_mut() {
            let mut left: usize = content.writes.iter().map(|(_, bytes)| bytes.len()).sum();
            left = draw(left + 1);
            let mut bytes = content.durable.clone();
            for (at, write) in std::mem::take(&mut content.writes) {
                let some = left.min(write.len());
                left -= some;
                put(&mut bytes, at, &write[..some]);
            }
            (content.now, content.durable) = (bytes.clone(), bytes);
        }
        (state.names, state.durable_names) = (names.clone(), names);
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn put(bytes: &mut Vec<u8>, at: usize, write: &[u8]) {
    let end = at + write.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[at..end].copy_from_slice(write);
}

impl Storage for LogDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let mut state = self.0.lock();
        state.call()?;
        if mode == OpenMode::Create {
            let inode = state.files.len() as u64;
            state.files.insert(inode, FileContent::default());
            state.names.insert(name(path), inode);
        }
        let inode = state.inode(path)?;
        Ok(Arc::new(DiskFile { disk: self.clone(), inode }))
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        let mut state = self.0.lock();
        state.call()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.call()?;
        state.names.remove(&name(path)).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn state(&self, path: &Path) -> io::Result<FileState> {
        let state = self.0.lock();
        Ok(state.state(state.inode(path)?))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.call()?;
        state.durable_names = state.names.clone();
        Ok(())
    }
}

#[derive(Debug)]
struct DiskFile {
    disk: LogDisk,
    inode: u64,
}

impl StorageFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.len)
    }

    fn state(&self) -> io::Result<FileState> {
        Ok(self.disk.0.lock().state(self.inode))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.0.lock();
        state.call()?;
        let offset = usize::try_from(offset).unwrap();
        let now = &state.files[&self.inode].now;
        let rest = &now[offset.min(now.len())..];
        let len = buf.len().min(rest.len());
        buf[..len].copy_from_slice(&rest[..len]);
        if let Some(byte) = state.misread.and_then(|at| buf[..len].get_mut(at.checked_sub(offset)?)) {
            *byte ^= 0x10;
        }
        Ok(len)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.0.lock();
        state.writes += 1;
        let mut bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let called = state.call();
        if called.is_err() {
            bytes.truncate(bytes.len() / 2);
        }
        let content = state.files.get_mut(&self.inode).unwrap();
        let at = usize::try_from(offset).unwrap();
        put(&mut content.now, at, &bytes);
        let len = bytes.len();
        content.writes.push((at, bytes));
        called.map(|()| len)
    }

    fn forget_cached(&self) {
        self.disk.0.lock().misread = None;
    }

    /// After a failed sync the unsynced bytes are lost for good, and the next sync succeeds.
    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.syncs += 1;
        let called = state.call();
        let content = state.files.get_mut(&self.inode).unwrap();
        let writes = std::mem::take(&mut content.writes);
        if called.is_ok() {
            writes.iter().for_each(|(at, bytes)| put(&mut content.durable, *at, bytes));
        }
        called
    }
}
