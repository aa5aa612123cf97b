//! The index that the spool uses: whole, being rebuilt, or none.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::files::{make_way, numbers_in, remove_others};
use super::fingerprint::Fingerprint;
use super::{DurableError, DurableStore, IndexOp, Key, KeyRange, Record, SledOptions, SledStore, Tally};
use crate::storage::StorageFile;

type OpenDataFile = (PathBuf, Arc<dyn StorageFile>);
pub(super) type Opener = Box<dyn Fn(&Path) -> Result<Box<dyn DurableStore>, DurableError> + Send + Sync>;

/// An index as an orderly shutdown left it. Stands in the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClosedIndex {
    /// Of its directory.
    number: u64,
    files: Fingerprint,
}

/// The index that the spool uses now, if there is one.
///
/// Each index has a directory of its own, with a number for a name. The first error that poisons
/// the engine takes it out of use: it is closed on its own thread, without a wait, and every call
/// fails with [`DurableError::Unavailable`] until another index is [begun](Self::begin) and filled.
pub(crate) struct DiskIndex {
    /// The directory of the numbered directories.
    root: PathBuf,
    opener: Opener,
    options: SledOptions,
    current: ArcSwapOption<OpenIndex>,
    /// Of the last index.
    number: AtomicU64,
    /// The end came while an index was being opened: it is let go at once.
    given_up: AtomicBool,
    /// Out of use, not yet seen closed.
    retired: Mutex<Vec<Arc<OpenIndex>>>,
    /// The data file of the last index.
    data_file: Mutex<Option<OpenDataFile>>,
    /// Why there is no whole index.
    why: Mutex<String>,
    /// Notified when the index becomes whole, and at the end.
    became_whole: Notify,
}

/// An index in use.
struct OpenIndex {
    /// Of its directory.
    number: u64,
    store: Box<dyn DurableStore>,
    state: AtomicU8,
}

/// [`OpenIndex::state`]: what it holds is right, and not everything.
const FILLING: u8 = 0;
/// [`OpenIndex::state`]: what it holds was not compared with the manifest yet.
const UNCHECKED: u8 = 1;
/// [`OpenIndex::state`]: it holds everything that is filed.
const WHOLE: u8 = 2;

impl OpenIndex {
    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }
}

impl DiskIndex {
    /// No index yet. Its directories will be in `root`.
    pub(crate) fn new(root: &Path, options: SledOptions) -> Self {
        let of_sled = options.clone();
        let opener: Opener = Box::new(move |dir| Ok(Box::new(SledStore::open(dir, of_sled.clone())?)));
        Self::with_opener(root, options, opener)
    }

    /// The same for another engine.
    pub(super) fn with_opener(root: &Path, options: SledOptions, opener: Opener) -> Self {
        Self {
            root: root.to_owned(),
            opener,
            options,
            current: ArcSwapOption::empty(),
            number: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
            retired: Mutex::default(),
            data_file: Mutex::default(),
            why: Mutex::new("the index of the last run is being checked".to_owned()),
            became_whole: Notify::new(),
        }
    }

    /// The directory of the indexes.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    fn dir_of(&self, number: u64) -> PathBuf {
        self.root.join(number.to_string())
    }

    /// Opens the index that an orderly shutdown left, if its files are, byte for byte, what they
    /// were then. It answers nothing until it is [finished](Self::finish). `false`: they are not,
    /// or they can't be read or opened, and an index has to be built.
    pub(crate) fn open_closed(&self, closed: ClosedIndex) -> bool {
        match Self::is_as_closed(&self.root, closed) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                tracing::warn!(%error, "the index could not be read: it is rebuilt");
                return false;
            }
        }
        match self.open(closed.number, UNCHECKED) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "the index could not be opened: it is rebuilt");
                false
            }
        }
    }

    /// Whether the files of an index below `root` are, byte for byte, what an orderly shutdown
    /// left.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub(crate) fn is_as_closed(root: &Path, closed: ClosedIndex) -> io::Result<bool> {
        Ok(Fingerprint::of(&root.join(closed.number.to_string()), None)? == Some(closed.files))
    }

    /// Begins a new, empty index, which [`fill`](Self::fill) fills. The files of all others are
    /// removed first.
    ///
    /// # Errors
    ///
    /// As [`SledStore::open`]; the directory can't be listed; what was opened is not empty, because
    /// something else put files there. There is no index then.
    pub(crate) fn begin(&self) -> Result<(), DurableError> {
        self.remove_all()?;
        let last = self.number.load(Ordering::Relaxed);
        let index = self.open(last.wrapping_add(1), UNCHECKED)?;
        let mut is_empty = true;
        self.scan_all(&mut |_, _| {
            is_empty = false;
            false
        })?;
        if !is_empty {
            let error = io::Error::other("it holds records of an earlier index");
            self.retire(&index, &error.to_string());
            return Err(self.failed("making a new one", &error));
        }
        index.state.store(FILLING, Ordering::Release);
        Ok(())
    }

    /// Lets go of the index, and removes the files of every index: on a full disk theirs is the
    /// room that there is.
    ///
    /// # Errors
    ///
    /// The directory can't be listed.
    pub(crate) fn remove_all(&self) -> Result<(), DurableError> {
        self.let_go("it is being rebuilt");
        *self.data_file.lock() = None;
        let listed = make_way(&self.root)
            .and_then(|()| numbers_in(&self.root))
            .map_err(|error| self.failed("looking at its directories", &error))?;
        // No number is used again.
        self.number.fetch_max(listed.last().copied().unwrap_or(0), Ordering::Relaxed);
        remove_others(&self.root, None);
        "the index is being rebuilt from the segments".clone_into(&mut self.why.lock());
        Ok(())
    }

    fn open(&self, number: u64, state: u8) -> Result<Arc<OpenIndex>, DurableError> {
        self.number.store(number, Ordering::Relaxed);
        let store = (self.opener)(&self.dir_of(number))?;
        *self.data_file.lock() = store.data_file();
        let index = Arc::new(OpenIndex { number, store, state: AtomicU8::new(state) });
        self.current.store(Some(index.clone()));
        if self.given_up.load(Ordering::SeqCst) {
            self.let_go("it was closed");
            return Err(self.unavailable());
        }
        Ok(index)
    }

    fn failed(&self, doing: &'static str, error: &io::Error) -> DurableError {
        let (path, what) = (self.root.clone(), error.to_string());
        DurableError::Engine { path, doing, what, kind: Some(error.kind()) }
    }

    /// Everything that is filed is in the index now.
    pub(crate) fn finish(&self) {
        if let Some(index) = &*self.current.load() {
            index.state.store(WHOLE, Ordering::Release);
        }
        self.became_whole.notify_waiters();
    }

    /// There is an index, and everything that is filed is in it.
    pub(crate) fn is_whole(&self) -> bool {
        self.current.load().as_ref().is_some_and(|index| index.state() == WHOLE)
    }

    /// There is an index of an earlier run, and it was not compared with the manifest yet.
    pub(crate) fn is_unchecked(&self) -> bool {
        self.current.load().as_ref().is_some_and(|index| index.state() == UNCHECKED)
    }

    /// Waits until the index is whole, or closed for good.
    pub(crate) async fn whole(&self) {
        let mut notified = std::pin::pin!(self.became_whole.notified());
        // From here on no notification is missed.
        notified.as_mut().enable();
        if !self.is_whole() && !self.given_up.load(Ordering::SeqCst) {
            notified.await;
        }
    }

    /// The record under `key`.
    ///
    /// # Errors
    ///
    /// As [`DurableStore::get`]; [`DurableError::Unavailable`] where there is none under `key` and
    /// the index is not whole.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Record>, DurableError> {
        self.find(key).map(|found| found.map(|(record, _)| record))
    }

    /// The same, with the number of the index that holds it: [`distrust`](Self::distrust) takes it.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub(crate) fn find(&self, key: &Key) -> Result<Option<(Record, u64)>, DurableError> {
        self.with(|index| {
            let state = index.state();
            if state == UNCHECKED {
                return Err(self.unavailable());
            }
            match index.store.get(key)? {
                None if state == FILLING => Err(self.unavailable()),
                found => Ok(found.map(|record| (record, index.number))),
            }
        })
    }

    /// Changes a whole index: as [`DurableStore::apply`].
    ///
    /// # Errors
    ///
    /// As [`DurableStore::apply`]; [`DurableError::Unavailable`] where it is not whole.
    pub(crate) fn apply(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError> {
        self.with_whole(|store| store.apply(ops, replaced))
    }

    /// Fills an index that was [begun](Self::begin): as [`DurableStore::apply`].
    ///
    /// # Errors
    ///
    /// As [`DurableStore::apply`].
    pub(crate) fn fill(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError> {
        self.with(|index| index.store.apply(ops, replaced))
    }

    /// The record that a fill has put under `key` so far.
    ///
    /// # Errors
    ///
    /// As [`DurableStore::get`].
    pub(crate) fn get_filled(&self, key: &Key) -> Result<Option<Record>, DurableError> {
        self.with(|index| index.store.get(key))
    }

    /// Scans a whole index: as [`DurableStore::scan`].
    ///
    /// # Errors
    ///
    /// As [`DurableStore::scan`]; [`DurableError::Unavailable`] where it is not whole.
    pub(crate) fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Record) -> bool,
    ) -> Result<(), DurableError> {
        self.with_whole(|store| store.scan(ranges, visit))
    }

    /// Scans all that the index holds, whole or not.
    ///
    /// # Errors
    ///
    /// As [`DurableStore::scan`].
    pub(crate) fn scan_all(&self, visit: &mut dyn FnMut(Key, Record) -> bool) -> Result<(), DurableError> {
        self.with(|index| index.store.scan(&[KeyRange::ALL], visit))
    }

    /// As [`DurableStore::size_on_disk`]; 0 while there is none.
    pub(crate) fn size_on_disk(&self) -> u64 {
        self.current.load_full().map_or(0, |index| index.store.size_on_disk())
    }

    /// As [`DurableStore::memory_bytes`]; 0 while there is none.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.current.load_full().map_or(0, |index| index.store.memory_bytes())
    }

    /// Closes the index, and waits for that until `by`. If it was whole, the result describes what
    /// an orderly shutdown leaves: sync and sum it up with [`sum_up`](Self::sum_up).
    ///
    /// # Errors
    ///
    /// [`DurableError::Timeout`] where it, or one before it, did not close in time. It closes when it
    /// can.
    pub(crate) fn close(&self, by: Instant) -> Result<bool, DurableError> {
        let started = Instant::now();
        self.given_up.store(true, Ordering::SeqCst);
        let was_whole = self.is_whole();
        self.let_go("it was closed");
        self.became_whole.notify_waiters();
        let left = || by.saturating_duration_since(Instant::now());
        let mut all_closed = true;
        for index in self.retired.lock().drain(..) {
            all_closed &= index.store.close(left()).is_ok();
        }
        if !all_closed || self.options.strays.join_all(left()) > 0 {
            let after = by.saturating_duration_since(started);
            return Err(DurableError::Timeout { path: self.root.clone(), doing: "closing", after });
        }
        Ok(was_whole && !self.options.strays.closing_failed())
    }

    /// Makes the files of the closed index durable, and describes them. `None`: that would take
    /// longer than until `by`.
    pub(crate) fn sum_up(&self, by: Instant) -> io::Result<Option<ClosedIndex>> {
        if let Some((_, file)) = self.data_file.lock().take() {
            file.sync_data()?;
        }
        let number = self.number.load(Ordering::Relaxed);
        let files = Fingerprint::of(&self.dir_of(number), Some(by))?;
        Ok(files.map(|files| ClosedIndex { number, files }))
    }

    /// The file with everything that is indexed, and an open descriptor of it.
    pub(crate) fn data_file(&self) -> Option<OpenDataFile> {
        self.data_file.lock().clone()
    }

    /// Takes the index out of use: another one has to be built.
    pub(crate) fn let_go(&self, why: &str) {
        if let Some(index) = self.current.load_full() {
            self.retire(&index, why);
        }
    }

    /// Takes the index with this number out of use: it holds what is not true. Nothing happens if
    /// another one is in use by now.
    pub(crate) fn distrust(&self, number: u64, why: &str) {
        if let Some(index) = self.current.load_full().filter(|index| index.number == number) {
            self.retire(&index, why);
        }
    }

    fn with<T>(&self, f: impl FnOnce(&OpenIndex) -> Result<T, DurableError>) -> Result<T, DurableError> {
        let index = self.current.load_full().ok_or_else(|| self.unavailable())?;
        let result = f(&index);
        if let Err(err) = &result
            && err.poisons()
        {
            self.retire(&index, &err.to_string());
        }
        result
    }

    fn with_whole<T>(
        &self,
        f: impl FnOnce(&dyn DurableStore) -> Result<T, DurableError>,
    ) -> Result<T, DurableError> {
        self.with(|index| match index.state() == WHOLE {
            true => f(&*index.store),
            false => Err(self.unavailable()),
        })
    }

    fn unavailable(&self) -> DurableError {
        DurableError::Unavailable { path: self.root.clone(), why: self.why.lock().clone() }
    }

    /// Takes `index` out of use, if it still is in use.
    fn retire(&self, index: &Arc<OpenIndex>, why: &str) {
        let found = self.current.compare_and_swap(index, None);
        if !found.as_ref().is_some_and(|found| Arc::ptr_eq(found, index)) {
            return;
        }
        why.clone_into(&mut self.why.lock());
        index.store.let_go();
        let mut retired = self.retired.lock();
        // Those that have closed by now are forgotten.
        retired.retain(|index| index.store.close(Duration::ZERO).is_err());
        retired.push(Arc::clone(index));
    }
}
