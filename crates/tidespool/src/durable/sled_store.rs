//! sled 0.34.7 as the index engine.
//!
//! What it needs from us, and where it gets that:
//!
//! * `flush` writes, and does not make durable. That matters at an orderly end only: then
//!   `fdatasync` of its data file follows, through a descriptor opened before sled's
//!   ([`DataFile`]). It flushes when we call for it, not every 500 ms.
//! * No `apply_batch`: it leaks memory for each key. Single inserts and removes, in the order given.
//! * `open`, changes and `drop` can panic or hang: they run on sled's own thread
//!   ([`worker`](super::worker)). Reads run on the caller's, with panics caught.
//! * It takes a read error for the end of its log, and clears the rest. So it is never opened again
//!   after an error, and after an end that was not orderly.
//!
//! `Mode` is left at its default: 0.34.7 stores the setting and never looks at it.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io, thread};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::files::{self, DataFile};
use super::footprint::{CACHE_FACTOR, Footprint};
use super::sled_lock::SledLock;
use super::support::refuses_sled;
use super::trip::{Made, Trip};
use super::worker::{Engine, Failure, Opened, Parts, Strays, Worker, guarded};
use super::{DurableError, DurableStore, Key, KeyRange, Op, Record, Tally};
use crate::storage::{OsStorage, Storage, StorageFile, largest_file};

/// Why sled panics then.
const CLOCK: &str = "the system's clock is before 1970, and sled does not work then: set it";
const TREE: &str = "places";
/// The longest wait of an opening for sled's lock: its I/O threads hold the file for a moment after
/// a close. On a busy machine these threads get their turn late.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// After so many bytes, sled is made to write what it buffers. It takes changes faster than a disk
/// does, and would let hundreds of megabytes wait in memory.
const BACKLOG_BYTES: usize = 8 << 20;

/// How sled is opened.
#[derive(Clone)]
pub(crate) struct SledOptions {
    /// Memory for the pages that sled caches, in bytes. sled is given a quarter of it, at least 1 MiB: it takes about four
    /// times what it counts. Resident memory is more: see [`DurableStore::memory_bytes`].
    pub(crate) cache_capacity: u64,
    /// The longest wait for opening. Default = 60 s.
    pub(crate) open_timeout: Duration,
    /// The longest wait for one trip of changes, or for one flush and sync. Default = 60 s.
    pub(crate) change_timeout: Duration,
    /// Through which its files are made durable; sled reads and writes them itself. Default = [`OsStorage`].
    pub(crate) storage: Arc<dyn Storage>,
    /// Who keeps threads that do not end.
    pub(crate) strays: Arc<Strays>,
}

impl SledOptions {
    /// The defaults, with a cache of `cache_capacity` bytes.
    pub(crate) fn new(cache_capacity: u64) -> Self {
        Self {
            cache_capacity,
            open_timeout: Duration::from_secs(60),
            change_timeout: Duration::from_secs(60),
            storage: Arc::new(OsStorage),
            strays: Arc::default(),
        }
    }

    /// What sled is told.
    fn sled_cache(&self) -> u64 {
        (self.cache_capacity / CACHE_FACTOR).max(1 << 20)
    }
}

/// sled, open.
pub(crate) struct SledStore {
    dir: PathBuf,
    options: SledOptions,
    /// `None` once it was let go.
    engine: ArcSwapOption<Engine>,
    /// The first error: nothing is asked of sled after it.
    poison: OnceLock<String>,
    data_file: Arc<DataFile>,
    /// Bytes of its files, as of the last opening or change: whoever asks may be somebody who must not wait for the disk.
    disk_bytes: AtomicU64,
    /// One `apply` at a time.
    turn: Mutex<()>,
    worker: Mutex<Option<Worker>>,
    footprint: Footprint,
}

impl SledStore {
    /// Opens sled in `dir`, and makes it where there is none.
    ///
    /// # Errors
    ///
    /// [`DurableError::Locked`] after a second of trying; [`DurableError::Engine`] and [`DurableError::Timeout`] for
    /// damaged files, I/O errors, and whatever else sled makes of them.
    pub(crate) fn open(dir: &Path, options: SledOptions) -> Result<Self, DurableError> {
        let failed = |failure: Failure| engine_error(dir, "opening", failure);
        if options.strays.are_too_many() {
            let what = "earlier openings hang: the process has to be started again".to_owned();
            return Err(failed(Failure { what, kind: None }));
        }
        check_file_limit(dir).map_err(failed)?;
        let storage = Arc::clone(&options.storage);
        let data_file = DataFile::prepare(&*storage, dir).map_err(|err| failed(err.into()))?;
        // It panics while the clock is before 1970: the clock may have been set back.
        let config = guarded(|| Ok(sled::Config::new())).map_err(|failure| {
            let is_clock = SystemTime::now() < UNIX_EPOCH;
            failed(if is_clock { Failure { what: CLOCK.to_owned(), kind: None } } else { failure })
        })?;
        let config =
            config.path(dir).cache_capacity(options.sled_cache()).use_compression(false).flush_every_ms(None);
        let path = dir.to_owned();
        let open = move || {
            let db = open_patiently(&config)?;
            let tree = db.open_tree(TREE)?;
            // A file system that refuses a call of sled's does so now.
            tree.flush()?;
            files::make_private(&path)?;
            Ok(Parts { db, tree, lock: SledLock::of(&path) })
        };
        let (engine, worker) = match Worker::start(dir, options.open_timeout, &options.strays, open)
            .map_err(|err| failed(err.into()))?
        {
            Opened::Ready(engine, worker) => (engine, worker),
            Opened::Failed(failure, worker) => {
                worker.join(options.open_timeout, &options.strays);
                let path = dir.to_owned();
                return Err(if is_lock(&failure) {
                    DurableError::Locked { path }
                } else if refuses_sled(dir, &failure, options.open_timeout, &options.strays) {
                    DurableError::Unsupported { path, what: failure.what }
                } else {
                    failed(failure)
                });
            }
            Opened::Late(worker) => {
                worker.join(Duration::ZERO, &options.strays);
                return Err(DurableError::Timeout {
                    path: dir.to_owned(),
                    doing: "opening",
                    after: options.open_timeout,
                });
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            options,
            engine: ArcSwapOption::from_pointee(engine),
            poison: OnceLock::new(),
            data_file: Arc::new(data_file),
            disk_bytes: AtomicU64::new(files::size_of(dir).map_err(|err| failed(err.into()))?),
            turn: Mutex::new(()),
            worker: Mutex::new(Some(worker)),
            footprint: Footprint::default(),
        })
    }

    /// The engine, if it may be used.
    pub(super) fn engine(&self, doing: &'static str) -> Result<Arc<Engine>, DurableError> {
        if let Some(first) = self.poison.get() {
            let what = format!("an earlier error poisoned it: {first}");
            return Err(engine_error(&self.dir, doing, Failure { what, kind: None }));
        }
        let closed = || DurableError::Unavailable { path: self.dir.clone(), why: "it was closed".to_owned() };
        self.engine.load_full().ok_or_else(closed)
    }

    fn poison(&self, error: DurableError) -> DurableError {
        // Only the first one: the others are mostly its consequences.
        let _ = self.poison.set(error.to_string());
        error
    }

    fn failed(&self, doing: &'static str, failure: Failure) -> DurableError {
        self.poison(engine_error(&self.dir, doing, failure))
    }

    /// Runs `f` on sled's thread, within the time for a change.
    fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        f: impl FnOnce(&sled::Tree) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, DurableError> {
        let after = self.options.change_timeout;
        match self.engine(doing)?.run(after, |engine| f(engine.tree()?)) {
            Some(Ok(value)) => Ok(value),
            Some(Err(failure)) => {
                let (wait, strays) = (self.options.open_timeout, &self.options.strays);
                if refuses_sled(&self.dir, &failure, wait, strays) {
                    let (path, what) = (self.dir.clone(), failure.what);
                    return Err(self.poison(DurableError::Unsupported { path, what }));
                }
                Err(self.failed(doing, failure))
            }
            None => Err(self.poison(DurableError::Timeout { path: self.dir.clone(), doing, after })),
        }
    }

    /// Visits raw keys and values in `range`, in order, until `visit` says `false`: then the result is `false`.
    fn walk(
        &self,
        doing: &'static str,
        range: Bounds<'_>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<bool, DurableError> {
        let engine = self.engine(doing)?;
        let failed = |failure| self.failed(doing, failure);
        let mut iter = guarded(|| Ok(engine.tree()?.range::<&[u8], _>(range))).map_err(failed)?;
        let mut last: Option<sled::IVec> = None;
        let mut seen = self.footprint.watch();
        loop {
            let Some((key, value)) = guarded(|| Ok(iter.next().transpose()?)).map_err(failed)? else {
                return Ok(true);
            };
            // In damaged trees, going in circles is possible.
            if last.is_some_and(|last| last >= key) {
                return Err(failed(Failure { what: "keys out of order".to_owned(), kind: None }));
            }
            seen.saw(value.len());
            if !visit(&key, &value) {
                return Ok(false);
            }
            // Poisoned, or closed, by somebody else: a visit can have taken long.
            if self.poison.get().is_some() || self.engine.load().is_none() {
                self.engine(doing)?;
            }
            last = Some(key);
        }
    }
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

fn bounds(range: &KeyRange) -> Bounds<'_> {
    range.bounds().map_or((Bound::Unbounded, Bound::Unbounded), |range| {
        (Bound::Included(&range.start), Bound::Excluded(&range.end))
    })
}

impl DurableStore for SledStore {
    fn data_file(&self) -> Option<(PathBuf, Arc<dyn StorageFile>)> {
        Some((self.dir.join("db"), self.data_file.descriptor()))
    }

    fn get(&self, key: &Key) -> Result<Option<Record>, DurableError> {
        let doing = "reading";
        let engine = self.engine(doing)?;
        let value =
            guarded(|| Ok(engine.tree()?.get(key.as_bytes())?)).map_err(|err| self.failed(doing, err))?;
        let Some(value) = value else { return Ok(None) };
        self.footprint.read(value.len());
        match Record::decode(key, &value) {
            Some(record) => Ok(Some(record)),
            None => Err(self.failed(doing, not_ours(key.as_bytes()))),
        }
    }

    fn apply(
        &self,
        ops: &mut dyn Iterator<Item = Op>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError> {
        let doing = "changing";
        let Some(_turn) = self.turn.try_lock_for(self.options.change_timeout) else {
            let (doing, after) = ("waiting for another change", self.options.change_timeout);
            return Err(DurableError::Timeout { path: self.dir.clone(), doing, after });
        };
        let mut delta = Tally::default();
        let (mut backlog, mut changed) = (0, 0);
        loop {
            let trip = Trip::pack(ops);
            if trip.is_empty() {
                break;
            }
            backlog += trip.bytes();
            let write = backlog >= BACKLOG_BYTES;
            backlog = if write { 0 } else { backlog };
            for made in self.run(doing, move |tree| trip.make(tree, write))? {
                let Made { key, value, old } = made;
                if let Some(value) = value {
                    self.footprint.wrote(value.len());
                    delta.add(&key, &value);
                }
                let old = match &old {
                    Some(old) => {
                        // The leaf that it was in is written again.
                        backlog += old.len();
                        changed += 1;
                        delta.subtract(&key, old);
                        let record = Record::decode(&key, old);
                        Some(record.ok_or_else(|| self.failed(doing, not_ours(key.as_bytes())))?)
                    }
                    None => None,
                };
                replaced(&key, old);
            }
        }
        self.footprint.changed(delta.records, changed);
        if let Ok(bytes) = files::size_of(&self.dir) {
            self.disk_bytes.store(bytes, Ordering::Relaxed);
        }
        Ok(delta)
    }

    fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Record) -> bool,
    ) -> Result<(), DurableError> {
        let doing = "scanning";
        for range in ranges {
            let mut foreign = None;
            let all = self.walk(doing, bounds(range), &mut |bytes, value| {
                let key = Key::from_slice(bytes).ok();
                match key.and_then(|key| Some((key, Record::decode(&key, value)?))) {
                    Some((key, record)) => visit(key, record),
                    None => {
                        foreign = Some(not_ours(bytes));
                        false
                    }
                }
            })?;
            if let Some(failure) = foreign {
                return Err(self.failed(doing, failure));
            }
            if !all {
                break;
            }
        }
        Ok(())
    }

    fn note_records(&self, records: u64) {
        self.footprint.counted(records);
    }

    fn size_on_disk(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    fn memory_bytes(&self) -> u64 {
        self.footprint.resident_bytes(self.options.sled_cache(), self.size_on_disk())
    }

    fn let_go(&self) {
        self.engine.store(None);
    }

    fn close(&self, wait: Duration) -> Result<(), DurableError> {
        self.let_go();
        let worker = self.worker.lock().take();
        let strays = &self.options.strays;
        if worker.is_none_or(|worker| worker.join(wait, strays)) {
            return Ok(());
        }
        Err(DurableError::Timeout { path: self.dir.clone(), doing: "closing", after: wait })
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        // Drop does not wait: the thread closes sled now, and somebody else joins it.
        self.let_go();
        if let Some(worker) = self.worker.lock().take() {
            worker.join(Duration::ZERO, &self.options.strays);
        }
    }
}

/// Something in sled that this spool did not write there.
fn not_ours(key: &[u8]) -> Failure {
    let key: String = key.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
    Failure { what: format!("the bytes under the key {key} are not a record of it"), kind: None }
}

/// sled appends to its data file itself while it is opened, and the signal that comes with a write
/// beyond `RLIMIT_FSIZE` ends the process by default.
fn check_file_limit(dir: &Path) -> Result<(), Failure> {
    /// sled begins segments of 512 KiB.
    const TO_OPEN: u64 = 1 << 20;
    let Some(limit) = largest_file() else { return Ok(()) };
    let len = fs::metadata(dir.join("db")).map_or(0, |metadata| metadata.len());
    if len.saturating_add(TO_OPEN) <= limit {
        return Ok(());
    }
    let what = format!(
        "this process may not write files larger than {limit} bytes, and sled's has {len} and needs {TO_OPEN} more: raise the limit (RLIMIT_FSIZE, `ulimit -f`)"
    );
    Err(Failure { what, kind: Some(io::ErrorKind::FileTooLarge) })
}

fn engine_error(dir: &Path, doing: &'static str, failure: Failure) -> DurableError {
    let Failure { what, kind } = failure;
    DurableError::Engine { path: dir.to_owned(), doing, what, kind }
}

pub(super) fn open_patiently(config: &sled::Config) -> Result<sled::Db, Failure> {
    let started = Instant::now();
    loop {
        match config.open().map_err(Failure::from) {
            // There is nothing to wait on: the kernel tells nobody when such a lock is free.
            Err(failure) if is_lock(&failure) && started.elapsed() < LOCK_PATIENCE => {
                thread::sleep(LOCK_RETRY);
            }
            result => return result,
        }
    }
}

/// sled has no error of its own for this: an I/O error of kind `Other`, with a text.
fn is_lock(failure: &Failure) -> bool {
    failure.kind == Some(io::ErrorKind::Other) && failure.what.contains("could not acquire lock")
}
