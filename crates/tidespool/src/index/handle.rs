//! The index that the spool uses: complete, being rebuilt, or absent.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::directories::{last_number_in, remove_all_in, remove_non_directory};
use super::{Fingerprint, IndexEngine, IndexError, IndexOp, IndexStore, Key, KeyRange, Record, Tally};
use crate::storage::StorageFile;

type OpenDataFile = (PathBuf, Arc<dyn StorageFile>);

/// An index as an orderly shutdown left it. The manifest holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClosedIndex {
    /// The number of its directory.
    number: u64,
    files: Fingerprint,
}

/// The index in use, if there is one.
///
/// Each index has its own directory, with a number as its name. The first error that poisons the
/// engine takes it out of use. It closes on its own thread, in the background. Every call then
/// fails with [`IndexError::Unavailable`] until another index is [begun](Self::begin) and filled.
pub(crate) struct DiskIndex {
    /// The parent of the numbered directories.
    root: PathBuf,
    engine: Arc<dyn IndexEngine>,
    current: ArcSwapOption<OpenIndex>,
    /// The number of the last index.
    number: AtomicU64,
    /// The index was closed for good. If one is being opened meanwhile, it is released at once.
    given_up: AtomicBool,
    /// The data file of the last index.
    data_file: Mutex<Option<OpenDataFile>>,
    /// Why there is no complete index.
    why: Mutex<String>,
    /// Notified when the index becomes complete, and at the close.
    became_whole: Notify,
}

/// An index in use.
struct OpenIndex {
    /// The number of its directory.
    number: u64,
    store: Box<dyn IndexStore>,
    state: AtomicU8,
}

/// [`OpenIndex::state`]: its records are correct but not complete.
const FILLING: u8 = 0;
/// [`OpenIndex::state`]: its records were not compared with the manifest yet.
const UNCHECKED: u8 = 1;
/// [`OpenIndex::state`]: it holds all checkpointed messages.
const WHOLE: u8 = 2;

impl OpenIndex {
    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }
}

impl DiskIndex {
    /// Creates a handle without an index. The directories of its indexes will be in `root`.
    pub(crate) fn new(root: &Path, engine: Arc<dyn IndexEngine>) -> Self {
        Self {
            root: root.to_owned(),
            engine,
            current: ArcSwapOption::empty(),
            number: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
            data_file: Mutex::default(),
            why: Mutex::new("the index of the last run is being checked".to_owned()),
            became_whole: Notify::new(),
        }
    }

    /// Returns the parent directory of the indexes.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    fn dir_of(&self, number: u64) -> PathBuf {
        self.root.join(number.to_string())
    }

    /// Opens the index of an orderly shutdown, if its files are unchanged, byte for byte. It
    /// answers nothing until it is [finished](Self::finish). Returns `false` if the files differ,
    /// or can't be read or opened. Then an index must be built.
    pub(crate) fn open_closed(&self, closed: ClosedIndex) -> bool {
        match self.is_as_closed(closed) {
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

    /// Returns true if the index is unchanged since an orderly shutdown.
    ///
    /// # Errors
    ///
    /// Its files can't be read.
    pub(crate) fn is_as_closed(&self, closed: ClosedIndex) -> io::Result<bool> {
        Ok(self.engine.fingerprint(&self.dir_of(closed.number), None)? == Some(closed.files))
    }

    /// Begins a new, empty index for [`fill`](Self::fill). First removes the files of all other
    /// indexes.
    ///
    /// # Errors
    ///
    /// As [`IndexEngine::open`]; the directory can't be listed; the opened index is not empty,
    /// because other software put files there. After an error there is no index.
    pub(crate) fn begin(&self) -> Result<(), IndexError> {
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
            return Err(self.failed("creating a new index", &error));
        }
        index.state.store(FILLING, Ordering::Release);
        Ok(())
    }

    /// Releases the index, and removes the files of every index: on a full disk this frees space.
    ///
    /// # Errors
    ///
    /// The directory can't be listed.
    pub(crate) fn remove_all(&self) -> Result<(), IndexError> {
        self.let_go("it is being rebuilt");
        *self.data_file.lock() = None;
        let last = remove_non_directory(&self.root)
            .and_then(|()| last_number_in(&self.root))
            .map_err(|error| self.failed("listing its directories", &error))?;
        // No number is used again.
        self.number.fetch_max(last, Ordering::Relaxed);
        remove_all_in(&self.root);
        "the index is being rebuilt from the segments".clone_into(&mut self.why.lock());
        Ok(())
    }

    fn open(&self, number: u64, state: u8) -> Result<Arc<OpenIndex>, IndexError> {
        self.number.store(number, Ordering::Relaxed);
        let store = self.engine.open(&self.dir_of(number))?;
        *self.data_file.lock() = store.data_file();
        let index = Arc::new(OpenIndex { number, store, state: AtomicU8::new(state) });
        self.current.store(Some(index.clone()));
        if self.given_up.load(Ordering::SeqCst) {
            self.let_go("it was closed");
            return Err(self.unavailable());
        }
        Ok(index)
    }

    fn failed(&self, doing: &'static str, error: &io::Error) -> IndexError {
        let (path, what) = (self.root.clone(), error.to_string());
        IndexError::Engine { path, doing, what, kind: Some(error.kind()) }
    }

    /// Marks the index complete: all checkpointed messages are in it.
    pub(crate) fn finish(&self) {
        if let Some(index) = &*self.current.load() {
            index.state.store(WHOLE, Ordering::Release);
        }
        self.became_whole.notify_waiters();
    }

    /// Returns true if there is a complete index.
    pub(crate) fn is_whole(&self) -> bool {
        self.current.load().as_ref().is_some_and(|index| index.state() == WHOLE)
    }

    /// Returns true if there is an index of an earlier run that was not compared with the manifest
    /// yet.
    pub(crate) fn is_unchecked(&self) -> bool {
        self.current.load().as_ref().is_some_and(|index| index.state() == UNCHECKED)
    }

    /// Waits until the index is complete, or closed for good.
    pub(crate) async fn whole(&self) {
        let mut notified = std::pin::pin!(self.became_whole.notified());
        // From here on no notification is missed.
        notified.as_mut().enable();
        if !self.is_whole() && !self.given_up.load(Ordering::SeqCst) {
            notified.await;
        }
    }

    /// Returns the record under `key`.
    ///
    /// # Errors
    ///
    /// As [`IndexStore::get`]; [`IndexError::Unavailable`] if there is no record and the index
    /// is not complete.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Record>, IndexError> {
        self.find(key).map(|found| found.map(|(record, _)| record))
    }

    /// As [`get`](Self::get), but also returns the number of the index, for
    /// [`distrust`](Self::distrust).
    pub(crate) fn find(&self, key: &Key) -> Result<Option<(Record, u64)>, IndexError> {
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

    /// Changes a complete index, as [`IndexStore::apply`]. [`IndexError::Unavailable`] if it is not
    /// complete.
    pub(crate) fn apply(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, IndexError> {
        self.with_whole(|store| store.apply(ops, replaced))
    }

    /// Fills an index that was [begun](Self::begin), as [`IndexStore::apply`].
    pub(crate) fn fill(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, IndexError> {
        self.with(|index| index.store.apply(ops, replaced))
    }

    /// Returns the record that `fill` has put under `key` so far.
    pub(crate) fn get_filled(&self, key: &Key) -> Result<Option<Record>, IndexError> {
        self.with(|index| index.store.get(key))
    }

    /// Scans a complete index, as [`IndexStore::scan`]. [`IndexError::Unavailable`] if it is not
    /// complete.
    pub(crate) fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Record) -> bool,
    ) -> Result<(), IndexError> {
        self.with_whole(|store| store.scan(ranges, visit))
    }

    /// Scans all records of the index, complete or not.
    pub(crate) fn scan_all(&self, visit: &mut dyn FnMut(Key, Record) -> bool) -> Result<(), IndexError> {
        self.with(|index| index.store.scan(&[KeyRange::ALL], visit))
    }

    /// As [`IndexEngine::bytes_to_change`].
    pub(crate) fn bytes_to_change(&self, records: u64) -> u64 {
        self.engine.bytes_to_change(records)
    }

    /// As [`IndexStore::size_on_disk`]. 0 without an index.
    pub(crate) fn size_on_disk(&self) -> u64 {
        self.current.load_full().map_or(0, |index| index.store.size_on_disk())
    }

    /// As [`IndexStore::memory_bytes`]. 0 without an index.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.current.load_full().map_or(0, |index| index.store.memory_bytes())
    }

    /// Closes the index, and waits for that until `by`. Returns true if it was complete. Then call
    /// [`sum_up`](Self::sum_up) to make its files durable and describe them.
    ///
    /// # Errors
    ///
    /// [`IndexError::Timeout`] if this index, or an earlier one, did not close in time. It closes
    /// in the background.
    pub(crate) fn close(&self, by: Instant) -> Result<bool, IndexError> {
        let wait = by.saturating_duration_since(Instant::now());
        self.given_up.store(true, Ordering::SeqCst);
        let was_whole = self.is_whole();
        self.let_go("it was closed");
        self.became_whole.notify_waiters();
        if self.engine.join(wait) > 0 {
            return Err(IndexError::Timeout { path: self.root.clone(), doing: "closing", after: wait });
        }
        Ok(was_whole && !self.engine.closing_failed())
    }

    /// Makes the files of the closed index durable, and describes them. `None` if that would last
    /// beyond `by`.
    pub(crate) fn sum_up(&self, by: Instant) -> io::Result<Option<ClosedIndex>> {
        if let Some((_, file)) = self.data_file.lock().take() {
            file.sync_data()?;
        }
        let number = self.number.load(Ordering::Relaxed);
        let files = self.engine.fingerprint(&self.dir_of(number), Some(by))?;
        Ok(files.map(|files| ClosedIndex { number, files }))
    }

    /// Returns the file with all records, and an open descriptor of it.
    pub(crate) fn data_file(&self) -> Option<OpenDataFile> {
        self.data_file.lock().clone()
    }

    /// Takes the index out of use, so that another one must be built.
    pub(crate) fn let_go(&self, why: &str) {
        if let Some(index) = self.current.load_full() {
            self.retire(&index, why);
        }
    }

    /// Takes the index with this number out of use, because a record in it is wrong. Does nothing
    /// if another index is in use by now.
    pub(crate) fn distrust(&self, number: u64, why: &str) {
        if let Some(index) = self.current.load_full().filter(|index| index.number == number) {
            self.retire(&index, why);
        }
    }

    fn with<T>(&self, f: impl FnOnce(&OpenIndex) -> Result<T, IndexError>) -> Result<T, IndexError> {
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
        f: impl FnOnce(&dyn IndexStore) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        self.with(|index| match index.state() == WHOLE {
            true => f(&*index.store),
            false => Err(self.unavailable()),
        })
    }

    fn unavailable(&self) -> IndexError {
        IndexError::Unavailable { path: self.root.clone(), why: self.why.lock().clone() }
    }

    /// Takes `index` out of use, if it still is in use.
    fn retire(&self, index: &Arc<OpenIndex>, why: &str) {
        let found = self.current.compare_and_swap(index, None);
        if !found.as_ref().is_some_and(|found| Arc::ptr_eq(found, index)) {
            return;
        }
        why.clone_into(&mut self.why.lock());
        index.store.close();
    }
}
