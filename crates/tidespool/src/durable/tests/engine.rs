use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::durable::DiskIndex;
use crate::durable::handle::Opener;
use crate::storage::StorageFile;

/// The faults of all engines of a handle.
#[derive(Default)]
pub(super) struct Faults {
    /// Every call fails with this error.
    error: Mutex<Option<DurableError>>,
    /// A close times out.
    hangs: AtomicBool,
    sync_fails: AtomicBool,
    /// The records in each engine when it is opened.
    found: Mutex<BTreeMap<Key, Record>>,
    /// The directories that were opened.
    opened: Mutex<Vec<PathBuf>>,
}

impl Faults {
    /// Returns a handle whose engines are in memory and have these faults.
    pub(super) fn handle(self: &Arc<Self>, root: &Path) -> DiskIndex {
        let faults = Arc::clone(self);
        let opener: Opener = Box::new(move |dir: &Path| {
            faults.opened.lock().push(dir.to_owned());
            faults.check()?;
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("db"), "records").unwrap();
            let (dir, faults) = (dir.to_owned(), Arc::clone(&faults));
            let records = Mutex::new(faults.found.lock().clone());
            Ok(Box::new(TestEngine { dir, faults, records }))
        });
        DiskIndex::with_opener(root, SledOptions::new(CACHE), opener)
    }

    pub(super) fn fail_with(&self, error: DurableError) {
        *self.error.lock() = Some(error);
    }

    pub(super) fn fail(&self) -> DurableError {
        let (path, what) = ("sled".into(), "the disk failed".to_owned());
        let error = DurableError::Engine { path, doing: "reading", what, kind: None };
        self.fail_with(error.clone());
        error
    }

    pub(super) fn heal(&self) {
        *self.error.lock() = None;
    }

    /// Engines that are opened from now on hold this record.
    pub(super) fn leave(&self, key: Key, record: Record) {
        self.found.lock().insert(key, record);
    }

    pub(super) fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::SeqCst);
    }

    pub(super) fn fail_syncs(&self) {
        self.sync_fails.store(true, Ordering::SeqCst);
    }

    /// Returns the names of the directories that were opened, in order.
    pub(super) fn opened(&self) -> Vec<String> {
        let name = |dir: &PathBuf| dir.file_name().unwrap().to_string_lossy().into_owned();
        self.opened.lock().iter().map(name).collect()
    }

    fn check(&self) -> Result<(), DurableError> {
        self.error.lock().clone().map_or(Ok(()), Err)
    }
}

/// An engine in memory.
struct TestEngine {
    dir: PathBuf,
    faults: Arc<Faults>,
    records: Mutex<BTreeMap<Key, Record>>,
}

impl DurableStore for TestEngine {
    fn get(&self, key: &Key) -> Result<Option<Record>, DurableError> {
        self.faults.check()?;
        Ok(self.records.lock().get(key).copied())
    }

    fn apply(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError> {
        for IndexOp { key, change } in ops {
            self.faults.check()?;
            let old = match change {
                IndexChange::Put(record) => self.records.lock().insert(key, record),
                IndexChange::Remove => self.records.lock().remove(&key),
            };
            replaced(&key, old);
        }
        Ok(Tally::default())
    }

    fn scan(&self, _: &[KeyRange], visit: &mut dyn FnMut(Key, Record) -> bool) -> Result<(), DurableError> {
        self.faults.check()?;
        let records = self.records.lock().clone();
        let _ = records.into_iter().all(|(key, record)| visit(key, record));
        Ok(())
    }

    fn data_file(&self) -> Option<(PathBuf, Arc<dyn StorageFile>)> {
        Some((self.dir.join("db"), Arc::new(FaultyDataFile(Arc::clone(&self.faults)))))
    }

    fn size_on_disk(&self) -> u64 {
        1
    }

    fn memory_bytes(&self) -> u64 {
        2
    }

    fn let_go(&self) {}

    fn close(&self, wait: Duration) -> Result<(), DurableError> {
        match self.faults.hangs.load(Ordering::SeqCst) {
            true => Err(DurableError::Timeout { path: self.dir.clone(), doing: "closing", after: wait }),
            false => Ok(()),
        }
    }
}

/// The engine's data file, as far as a handle syncs it.
struct FaultyDataFile(Arc<Faults>);

impl std::fmt::Debug for FaultyDataFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataFile")
    }
}

impl StorageFile for FaultyDataFile {
    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Ok(0)
    }

    fn write_vectored_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn forget_cached(&self) {}

    fn sync_data(&self) -> io::Result<()> {
        match self.0.sync_fails.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }
}
