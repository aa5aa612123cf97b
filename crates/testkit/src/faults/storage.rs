use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tidespool::storage::{FileState, OpenMode, OsStorage, Space, Storage, StorageFile};

use super::fault::{Effect, system_error};
use super::unsynced::{Undo, Unsynced};
use super::{Call, Fault, Moment, Strike};

type Watcher = Arc<dyn Fn(&Moment<'_>) + Send + Sync>;

/// The operating system's files, with injected faults. A clone is another handle to the same
/// storage.
#[derive(Clone, Default)]
pub struct FaultyStorage(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    healed: Condvar,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    calls: BTreeMap<(Call, String), u64>,
    total: u64,
    blocked: usize,
    /// Incremented to wake blocked calls: each one waits for the next increment.
    healings: u64,
    /// Files of which a sync failed, each with the number of the last descriptor opened before.
    distrusted: BTreeMap<PathBuf, u64>,
    /// The distrusted files that were synced again.
    trusted_again: Vec<String>,
    /// The first [`MAX_STRIKES`] calls that faults affected.
    strikes: Vec<Strike>,
    watcher: Option<Watcher>,
    unsynced: Option<Unsynced>,
    /// The current path of each open file, by descriptor number.
    open: BTreeMap<u64, PathBuf>,
    next_file: u64,
}

/// Bounds the memory: callers retry a broken disk, and later strikes repeat earlier ones.
const MAX_STRIKES: usize = 10_000;

impl FaultyStorage {
    /// Creates a storage without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the storage for [`tidespool::TieredSpool::open_on`].
    #[must_use]
    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }

    /// Adds a fault to the script. Each fault counts its own calls. If several faults match, the
    /// first applies.
    pub fn inject(&self, fault: Fault) {
        self.0.state.lock().faults.push(fault);
    }

    /// Removes all faults and wakes blocked calls.
    pub fn heal(&self) {
        let mut state = self.0.state.lock();
        state.faults.clear();
        state.healings += 1;
        self.0.healed.notify_all();
    }

    /// Wakes the calls that are blocked now. The faults stay.
    pub fn release(&self) {
        self.0.state.lock().healings += 1;
        self.0.healed.notify_all();
    }

    /// The number of calls that are blocked now.
    #[must_use]
    pub fn blocked(&self) -> usize {
        self.0.state.lock().blocked
    }

    /// The number of calls of a kind so far, including failed ones.
    #[must_use]
    pub fn count(&self, call: Call) -> u64 {
        self.count_where(call, |_| true)
    }

    /// The number of calls of a kind on files for whose name `name` returns true.
    #[must_use]
    pub fn count_where(&self, call: Call, name: impl Fn(&str) -> bool) -> u64 {
        let state = self.0.state.lock();
        state
            .calls
            .iter()
            .filter(|((kind, file), _)| *kind == call && name(file))
            .map(|(_, count)| count)
            .sum()
    }

    /// The number of all calls so far: the last [`Moment::number`].
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.state.lock().total
    }

    /// The files that were synced after a sync of them had failed. The result of such a sync proves
    /// nothing, unless the file was reopened and [removed from the page
    /// cache](StorageFile::forget_cached) since: then it shows what the disk has.
    #[must_use]
    pub fn trusted_again(&self) -> Vec<String> {
        self.0.state.lock().trusted_again.clone()
    }

    /// Trusts all files again: after this call, files are opened by a new process, as far as the
    /// storage can see.
    pub fn restarted(&self) {
        self.0.state.lock().distrusted.clear();
    }

    /// The calls that faults affected, in order.
    #[must_use]
    pub fn strikes(&self) -> Vec<Strike> {
        self.0.state.lock().strikes.clone()
    }

    /// The number of open files.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.0.state.lock().open.len()
    }

    /// Calls `watcher` before each call, on the caller's thread.
    pub fn watch(&self, watcher: impl Fn(&Moment<'_>) + Send + Sync + 'static) {
        self.0.state.lock().watcher = Some(Arc::new(watcher));
    }

    /// Removes the watcher.
    pub fn unwatch(&self) {
        self.0.state.lock().watcher = None;
    }

    /// Starts to record unsynced writes.
    pub fn remember_unsynced(&self) {
        self.0.state.lock().unsynced = Some(Unsynced::default());
    }

    /// The unsynced writes since [`remember_unsynced`](Self::remember_unsynced).
    #[must_use]
    pub fn unsynced(&self) -> Unsynced {
        self.0.state.lock().unsynced.clone().unwrap_or_default()
    }

    /// Counts the call, runs the watcher, and applies the fault, if any. Returns the effects that
    /// the caller must apply.
    fn enter(&self, call: Call, path: &Path) -> io::Result<Option<Effect>> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut state = self.0.state.lock();
        state.total += 1;
        *state.calls.entry((call, name.clone())).or_insert(0) += 1;
        let moment = Moment { call, name: &name, number: state.total };
        if let Some(watcher) = state.watcher.clone() {
            drop(state);
            watcher(&moment);
            state = self.0.state.lock();
        }
        if call == Call::Sync && state.distrusted.contains_key(path) {
            state.trusted_again.push(name.clone());
        }
        let mut effect = None;
        for fault in &mut state.faults {
            if fault.strikes(&moment) && fault.effect.fits(call) {
                effect = effect.or(Some(fault.effect));
            }
        }
        if effect.is_some() && state.strikes.len() < MAX_STRIKES {
            state.strikes.push(Strike::of(&moment));
        }
        match effect {
            Some(Effect::Fail(code)) => {
                if call == Call::Sync {
                    let last = state.next_file;
                    state.distrusted.insert(path.to_owned(), last);
                }
                Err(system_error(code))
            }
            Some(Effect::Wait(time)) => {
                let healings = state.healings;
                let waits = |state: &mut State| state.healings == healings;
                state.blocked += 1;
                match time {
                    None => self.0.healed.wait_while(&mut state, waits),
                    Some(time) => drop(self.0.healed.wait_while_for(&mut state, waits, time)),
                }
                state.blocked -= 1;
                Ok(None)
            }
            effect => Ok(effect),
        }
    }

    /// Returns whether a fault matches such a call, now or later. Does not count the call.
    fn breaks(&self, call: Call, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let state = self.0.state.lock();
        let moment = Moment { call, name: &name, number: state.total + 1 };
        state.faults.iter().any(|fault| fault.is_for(&moment))
    }

    fn note(&self, note: impl FnOnce(&mut Unsynced)) {
        if let Some(unsynced) = &mut self.0.state.lock().unsynced {
            note(unsynced);
        }
    }

    fn remembers(&self) -> bool {
        self.0.state.lock().unsynced.is_some()
    }
}

impl fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        f.debug_struct("FaultyStorage")
            .field("faults", &state.faults)
            .field("total", &state.total)
            .finish_non_exhaustive()
    }
}

impl Storage for FaultyStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.enter(Call::Dir, path)?;
        OsStorage.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let is_new = mode == OpenMode::Create;
        self.enter(if is_new { Call::Create } else { Call::Open }, path)?;
        let file = OsStorage.open(path, mode)?;
        if is_new {
            self.0.state.lock().distrusted.remove(path);
            self.note(|unsynced| unsynced.forget(path));
        }
        let mut state = self.0.state.lock();
        state.next_file += 1;
        let number = state.next_file;
        state.open.insert(number, path.to_owned());
        drop(state);
        Ok(Arc::new(FaultyFile { storage: self.clone(), number, file }))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.enter(Call::Dir, path)?;
        OsStorage.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.enter(Call::Rename, to)?;
        OsStorage.rename(from, to)?;
        self.note(|unsynced| unsynced.rename(from, to));
        let mut state = self.0.state.lock();
        state.open.values_mut().filter(|path| *path == from).for_each(|path| *path = to.to_owned());
        // The file at `to` was replaced, and `from` keeps its state under the new name.
        state.distrusted.remove(to);
        if let Some(last) = state.distrusted.remove(from) {
            state.distrusted.insert(to.to_owned(), last);
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.enter(Call::Remove, path)?;
        OsStorage.remove_file(path)?;
        self.note(|unsynced| unsynced.forget(path));
        Ok(())
    }

    fn state(&self, path: &Path) -> io::Result<FileState> {
        if self.breaks(Call::State, path) {
            self.enter(Call::State, path)?;
        }
        OsStorage.state(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let effect = if self.breaks(Call::Space, path) { self.enter(Call::Space, path)? } else { None };
        let space = OsStorage.space(path)?;
        Ok(match effect {
            Some(Effect::Short(bytes)) => Space { free_bytes: bytes as u64, ..space },
            _ => space,
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.enter(Call::SyncDir, path)?;
        OsStorage.sync_dir(path)
    }
}

#[derive(Debug)]
struct FaultyFile {
    storage: FaultyStorage,
    number: u64,
    file: Arc<dyn StorageFile>,
}

impl Drop for FaultyFile {
    fn drop(&mut self) {
        self.storage.0.state.lock().open.remove(&self.number);
    }
}

impl FaultyFile {
    fn path(&self) -> PathBuf {
        self.storage.0.state.lock().open.get(&self.number).cloned().unwrap_or_default()
    }

    fn write(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        if self.storage.remembers() {
            let len: usize = bufs.iter().map(|buf| buf.len()).sum();
            let before = Undo::of(&*self.file, offset, len)?;
            let path = self.path();
            self.storage.note(|unsynced| unsynced.add(&path, before));
        }
        self.file.write_vectored_at(bufs, offset)
    }
}

impl StorageFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn state(&self) -> io::Result<FileState> {
        self.file.state()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.descriptor()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.storage.enter(Call::Read, &self.path())? {
            Some(Effect::Short(bytes)) => {
                let len = buf.len().min(bytes.max(1));
                self.file.read_at(&mut buf[..len], offset)
            }
            Some(Effect::Corrupt(part)) => {
                let read = self.file.read_at(buf, offset)?;
                spoil(buf[..read].iter_mut(), read, part);
                Ok(read)
            }
            _ => self.file.read_at(buf, offset),
        }
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        match self.storage.enter(Call::Read, &self.path())? {
            Some(Effect::Short(bytes)) => {
                let Some(buf) = bufs.iter_mut().find(|buf| !buf.is_empty()) else { return Ok(0) };
                let len = buf.len().min(bytes.max(1));
                self.file.read_at(&mut buf[..len], offset)
            }
            Some(Effect::Corrupt(part)) => {
                let read = self.file.read_vectored_at(bufs, offset)?;
                spoil(bufs.iter_mut().flat_map(|buf| buf.iter_mut()), read, part);
                Ok(read)
            }
            _ => self.file.read_vectored_at(bufs, offset),
        }
    }

    fn read_in_memory_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        if self.storage.breaks(Call::Read, &self.path()) {
            // The disk is broken for this file. Report a page cache miss, so that the caller reads
            // from the disk.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.storage.enter(Call::ReadInMemory, &self.path())? {
            Some(Effect::Corrupt(part)) => {
                let read = self.file.read_in_memory_at(bufs, offset)?;
                spoil(bufs.iter_mut().flat_map(|buf| buf.iter_mut()), read, part);
                Ok(read)
            }
            _ => self.file.read_in_memory_at(bufs, offset),
        }
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        match self.storage.enter(Call::Write, &self.path())? {
            Some(Effect::Short(bytes)) => self.write(&[IoSlice::new(&first(bufs, bytes.max(1)))], offset),
            Some(Effect::Torn(bytes, code)) => {
                self.write(&[IoSlice::new(&first(bufs, bytes))], offset)?;
                Err(system_error(code))
            }
            Some(Effect::Corrupt(part)) => {
                let mut changed = first(bufs, usize::MAX);
                let len = changed.len();
                spoil(changed.iter_mut(), len, part);
                self.write(&[IoSlice::new(&changed)], offset)
            }
            _ => self.write(bufs, offset),
        }
    }

    /// Fails like a write: a full disk cannot allocate either.
    fn allocate(&self, len: u64) -> io::Result<()> {
        if let Some(Effect::Torn(_, code)) = self.storage.enter(Call::Write, &self.path())? {
            return Err(system_error(code));
        }
        if self.storage.remembers() {
            let before = Undo::of(&*self.file, 0, 0)?;
            let path = self.path();
            self.storage.note(|unsynced| unsynced.add(&path, before));
        }
        self.file.allocate(len)
    }

    fn forget_cached(&self) {
        self.file.forget_cached();
        // The file was opened after the failed sync and is no longer cached, so it shows what the
        // disk has.
        let path = self.path();
        let mut state = self.storage.0.state.lock();
        if state.distrusted.get(&path).is_some_and(|last| self.number > *last) {
            state.distrusted.remove(&path);
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.storage.enter(Call::Sync, &self.path())?;
        // This sync does not cover writes that are made while it runs.
        let (path, mut covered) = (self.path(), 0);
        self.storage.note(|unsynced| covered = unsynced.count(&path));
        self.file.sync_data()?;
        self.storage.note(|unsynced| unsynced.forget_first(&path, covered));
        Ok(())
    }
}

/// Flips a bit, as a bad cable would, in the byte after `part` 256ths of the first `len` bytes.
fn spoil<'a>(mut bytes: impl Iterator<Item = &'a mut u8>, len: usize, part: u8) {
    if let Some(byte) = bytes.nth(len * usize::from(part) / 256).filter(|_| len > 0) {
        *byte ^= 0x10;
    }
}

fn first(bufs: &[IoSlice<'_>], bytes: usize) -> Vec<u8> {
    bufs.iter().flat_map(|buf| buf.iter().copied()).take(bytes).collect()
}
