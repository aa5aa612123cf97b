//! An index engine in memory, for tests: what runs on it and on sled depends on neither.
//!
//! It keeps the records of each closed index by directory, so that the next open finds them. An
//! index that is dropped and not closed is lost, as after a crash.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{
    Fingerprint, IndexChange, IndexEngine, IndexError, IndexOp, IndexStore, Key, KeyRange, Record, Tally,
    engine,
};
use crate::storage::{OpenMode, OsStorage, Storage, StorageFile, TestStorage};

/// Returns each engine on which a test runs. Prints its name, which a failed test then shows.
pub(crate) fn engines() -> impl Iterator<Item = Arc<dyn IndexEngine>> {
    engines_on(Arc::new(TestStorage::default()))
}

/// Returns each engine with this storage.
pub(super) fn engines_on(storage: Arc<dyn Storage>) -> impl Iterator<Item = Arc<dyn IndexEngine>> {
    let memory = MemoryEngine::new(storage.clone()).shared();
    let all = [("sled", engine(8 << 20, storage, Weak::<()>::new())), ("memory", memory)];
    all.into_iter().map(|(name, engine)| {
        eprintln!("index engine: {name}");
        engine
    })
}

/// Returns an engine in memory.
pub(crate) fn in_memory() -> Arc<dyn IndexEngine> {
    MemoryEngine::default().shared()
}

type Records = BTreeMap<Key, Record>;

/// The engine. A clone shares its records and its faults.
#[derive(Clone)]
pub(super) struct MemoryEngine(Arc<MemoryState>, Arc<dyn Storage>);

#[derive(Default)]
struct MemoryState {
    /// The records of each closed index.
    closed: Mutex<BTreeMap<PathBuf, Records>>,
    /// The directories that were opened.
    opened: Mutex<Vec<PathBuf>>,
    /// Each new index holds these records.
    left: Mutex<Records>,
    /// Every call fails with this error.
    error: Mutex<Option<IndexError>>,
    /// No index closes.
    hangs: AtomicBool,
    /// A close could not write the last data.
    closing_failed: AtomicBool,
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self::new(Arc::new(OsStorage))
    }
}

impl MemoryEngine {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self(Arc::default(), storage)
    }

    pub(super) fn shared(&self) -> Arc<dyn IndexEngine> {
        Arc::new(self.clone())
    }

    pub(super) fn fail_with(&self, error: IndexError) {
        *self.0.error.lock() = Some(error);
    }

    pub(super) fn fail(&self) -> IndexError {
        let (path, what) = ("index".into(), "the disk failed".to_owned());
        let error = IndexError::Engine { path, doing: "reading", what, kind: None };
        self.fail_with(error.clone());
        error
    }

    pub(super) fn heal(&self) {
        *self.0.error.lock() = None;
    }

    /// Indexes that are created from now on hold this record.
    pub(super) fn leave(&self, key: Key, record: Record) {
        self.0.left.lock().insert(key, record);
    }

    /// From now on no index closes.
    pub(super) fn hang(&self) {
        self.0.hangs.store(true, Ordering::SeqCst);
    }

    pub(super) fn fail_closing(&self) {
        self.0.closing_failed.store(true, Ordering::SeqCst);
    }

    /// Returns the names of the directories that were opened, in order.
    pub(super) fn opened(&self) -> Vec<String> {
        let name = |dir: &PathBuf| dir.file_name().unwrap().to_string_lossy().into_owned();
        self.0.opened.lock().iter().map(name).collect()
    }

    fn check(&self) -> Result<(), IndexError> {
        self.0.error.lock().clone().map_or(Ok(()), Err)
    }
}

impl IndexEngine for MemoryEngine {
    fn open(&self, dir: &Path) -> Result<Box<dyn IndexStore>, IndexError> {
        self.0.opened.lock().push(dir.to_owned());
        self.check()?;
        fs::create_dir_all(dir).unwrap();
        let file = self.1.open(&dir.join("data"), OpenMode::Create).unwrap();
        let records = self.0.closed.lock().remove(dir).unwrap_or_else(|| self.0.left.lock().clone());
        let records = Mutex::new(Some(records));
        Ok(Box::new(MemoryStore { dir: dir.to_owned(), engine: self.clone(), file, records }))
    }

    fn fingerprint(&self, dir: &Path, _: Option<Instant>) -> io::Result<Option<Fingerprint>> {
        let tally_of = |records: &Records| {
            let mut tally = Tally::default();
            records.iter().for_each(|(key, record)| tally.add(key, &record.to_bytes()));
            Fingerprint { bytes: tally.records, digest: tally.digest }
        };
        Ok(self.0.closed.lock().get(dir).map(tally_of))
    }

    fn join(&self, _: Duration) -> usize {
        usize::from(self.0.hangs.load(Ordering::SeqCst))
    }

    fn closing_failed(&self) -> bool {
        self.0.closing_failed.load(Ordering::SeqCst)
    }

    fn bytes_to_open(&self) -> u64 {
        0
    }

    fn bytes_to_change(&self, records: u64) -> u64 {
        1 + records
    }
}

/// An open index.
struct MemoryStore {
    dir: PathBuf,
    engine: MemoryEngine,
    /// Holds nothing. It can be lost and synced, as that of another engine.
    file: Arc<dyn StorageFile>,
    /// `None` after it was released.
    records: Mutex<Option<Records>>,
}

impl MemoryStore {
    fn with<T>(&self, f: impl FnOnce(&mut Records) -> T) -> Result<T, IndexError> {
        self.engine.check()?;
        let closed = || IndexError::Unavailable { path: self.dir.clone(), why: "it was closed".to_owned() };
        self.records.lock().as_mut().map(f).ok_or_else(closed)
    }
}

impl IndexStore for MemoryStore {
    fn get(&self, key: &Key) -> Result<Option<Record>, IndexError> {
        self.with(|records| records.get(key).copied())
    }

    fn apply(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, IndexError> {
        let mut delta = Tally::default();
        for IndexOp { key, change } in ops {
            let old = match change {
                IndexChange::Put(record) => {
                    delta.add(&key, &record.to_bytes());
                    self.with(|records| records.insert(key, record))?
                }
                IndexChange::Remove => self.with(|records| records.remove(&key))?,
            };
            old.inspect(|old| delta.subtract(&key, &old.to_bytes()));
            replaced(&key, old);
        }
        Ok(delta)
    }

    fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Record) -> bool,
    ) -> Result<(), IndexError> {
        let records = self.with(|records| records.clone())?;
        let in_range = |range: &KeyRange| {
            let range = range.clone();
            records.iter().filter(move |(key, _)| range.contains(key))
        };
        let _ = ranges.iter().flat_map(in_range).all(|(key, record)| visit(*key, *record));
        Ok(())
    }

    fn data_file(&self) -> Option<(PathBuf, Arc<dyn StorageFile>)> {
        Some((self.dir.join("data"), self.file.clone()))
    }

    fn size_on_disk(&self) -> u64 {
        1
    }

    fn memory_bytes(&self) -> u64 {
        2
    }

    fn close(&self) {
        // A failed index is not closed in order.
        let records = self.records.lock().take().filter(|_| self.engine.check().is_ok());
        if let Some(records) = records {
            self.engine.0.closed.lock().insert(self.dir.clone(), records);
        }
    }
}
