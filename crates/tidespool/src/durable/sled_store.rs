//! sled 0.34.7 as the index engine.
//!
//! Its peculiarities, and what this module does about them:
//!
//! * `flush` writes, and makes nothing durable. That matters only at an orderly shutdown, which
//!   calls `fdatasync` on its data file, through a descriptor opened before sled's ([`DataFile`]).
//!   sled flushes when this module calls for it, not every 500 ms.
//! * `apply_batch` leaks memory for each key. So changes are single inserts and removes, in the
//!   given order.
//! * `open`, changes and `drop` can panic or hang. So they run on sled's own thread
//!   ([`worker`](super::worker)). Reads run on the caller's thread, with panics caught.
//! * It takes a read error for the end of its log, and clears the rest. So it is never opened again
//!   after an error or after an unclean shutdown.
//!
//! `Mode` keeps its default: 0.34.7 stores the setting and never reads it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io, thread};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::files::{self, DataFile};
use super::footprint::{CACHE_FACTOR, Footprint};
use super::packed::{Changed, PackedChanges, find, read_block};
use super::sled_lock::SledLock;
use super::support::refuses_sled;
use super::worker::{Engine, OpenOutcome, StuckThreads, Worker, WorkerFailure, WorkerParts, guarded};
use super::{DurableError, DurableStore, IndexOp, Key, KeyRange, Record, Tally};
use crate::storage::{OsStorage, Storage, StorageFile, largest_file};

/// Why sled panics in this case.
const CLOCK: &str = "the system clock is before 1970, which sled does not support: set the clock";
const TREE: &str = "places";
/// The longest wait of an open for sled's lock. After a close, sled's I/O threads hold the file for
/// a moment, longer on a busy machine.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// The bytes of changes after which sled must flush. It accepts changes faster than a disk does,
/// and would buffer hundreds of megabytes.
const BACKLOG_BYTES: usize = 8 << 20;

/// How sled is opened.
#[derive(Clone)]
pub(crate) struct SledOptions {
    /// Memory for the pages that sled caches, in bytes. sled gets a quarter of it, at least 1 MiB,
    /// because it uses about four times what it counts. Resident memory is more: see
    /// [`DurableStore::memory_bytes`].
    pub(crate) cache_capacity: u64,
    /// The longest wait for an open. Default = 60 s.
    pub(crate) open_timeout: Duration,
    /// The longest wait for a batch of changes, or for a flush and sync. Default = 60 s.
    pub(crate) change_timeout: Duration,
    /// The storage that makes its files durable. sled reads and writes them itself. Default =
    /// [`OsStorage`].
    pub(crate) storage: Arc<dyn Storage>,
    /// Keeps threads that do not end.
    pub(crate) strays: Arc<StuckThreads>,
}

impl SledOptions {
    /// Returns the defaults, with a cache of `cache_capacity` bytes.
    pub(crate) fn new(cache_capacity: u64) -> Self {
        Self {
            cache_capacity,
            open_timeout: Duration::from_secs(60),
            change_timeout: Duration::from_secs(60),
            storage: Arc::new(OsStorage),
            strays: Arc::default(),
        }
    }

    /// Returns the cache capacity that is passed to sled.
    fn sled_cache(&self) -> u64 {
        (self.cache_capacity / CACHE_FACTOR).max(1 << 20)
    }
}

/// An open sled.
pub(crate) struct SledStore {
    dir: PathBuf,
    options: SledOptions,
    /// `None` after it was released.
    engine: ArcSwapOption<Engine>,
    /// The first error. sled is not called after it.
    poison: OnceLock<String>,
    data_file: Arc<DataFile>,
    /// Bytes of its files, as of the last open or change. Cached, because a reader may not be
    /// allowed to wait for the disk.
    disk_bytes: AtomicU64,
    /// The number of block splits: see [`find`].
    splits: Arc<AtomicU64>,
    /// Serializes calls of `apply`.
    turn: Mutex<()>,
    worker: Mutex<Option<Worker>>,
    footprint: Footprint,
}

impl SledStore {
    /// Opens sled in `dir`, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// [`DurableError::Locked`] if the lock stays taken for 5 s; [`DurableError::Unsupported`] if
    /// the file system can't hold sled; [`DurableError::Engine`] and [`DurableError::Timeout`] for
    /// damaged files, I/O errors, and their consequences in sled.
    pub(crate) fn open(dir: &Path, options: SledOptions) -> Result<Self, DurableError> {
        let failed = |failure: WorkerFailure| engine_error(dir, "opening", failure);
        if options.strays.are_too_many() {
            let what = "earlier attempts to open it hang: the process must be restarted".to_owned();
            return Err(failed(WorkerFailure { what, kind: None }));
        }
        check_file_limit(dir).map_err(failed)?;
        let storage = Arc::clone(&options.storage);
        let data_file = DataFile::prepare(&*storage, dir).map_err(|err| failed(err.into()))?;
        // sled panics while the clock is before 1970, as after it was set back.
        let config = guarded(|| Ok(sled::Config::new())).map_err(|failure| {
            let is_clock = SystemTime::now() < UNIX_EPOCH;
            failed(if is_clock { WorkerFailure { what: CLOCK.to_owned(), kind: None } } else { failure })
        })?;
        let config =
            config.path(dir).cache_capacity(options.sled_cache()).use_compression(false).flush_every_ms(None);
        let path = dir.to_owned();
        let open = move || {
            let db = open_with_retry(&config)?;
            let tree = db.open_tree(TREE)?;
            // A file system that rejects one of sled's calls fails here.
            tree.flush()?;
            files::make_private(&path)?;
            Ok(WorkerParts { db, tree, lock: SledLock::of(&path) })
        };
        let (engine, worker) = match Worker::start(dir, options.open_timeout, &options.strays, open)
            .map_err(|err| failed(err.into()))?
        {
            OpenOutcome::Ready(engine, worker) => (engine, worker),
            OpenOutcome::Failed(failure, worker) => {
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
            OpenOutcome::Late(worker) => {
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
            splits: Arc::default(),
            turn: Mutex::new(()),
            worker: Mutex::new(Some(worker)),
            footprint: Footprint::default(),
        })
    }

    /// Returns the engine, if it may be used.
    pub(super) fn engine(&self, doing: &'static str) -> Result<Arc<Engine>, DurableError> {
        if let Some(first) = self.poison.get() {
            let what = format!("an earlier error poisoned it: {first}");
            return Err(engine_error(&self.dir, doing, WorkerFailure { what, kind: None }));
        }
        let closed = || DurableError::Unavailable { path: self.dir.clone(), why: "it was closed".to_owned() };
        self.engine.load_full().ok_or_else(closed)
    }

    fn poison(&self, error: DurableError) -> DurableError {
        // Keeps only the first error, because later errors are mostly its consequences.
        let _ = self.poison.set(error.to_string());
        error
    }

    fn failed(&self, doing: &'static str, failure: WorkerFailure) -> DurableError {
        self.poison(engine_error(&self.dir, doing, failure))
    }

    /// Runs `f` on sled's thread, with the timeout for a change.
    fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        f: impl FnOnce(&sled::Tree) -> Result<T, WorkerFailure> + Send + 'static,
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

    /// Visits the entries of a range, in order, until `visit` returns `false`. Then the result is
    /// `false`.
    fn walk(
        &self,
        range: &KeyRange,
        visit: &mut dyn FnMut(Key, Record) -> bool,
    ) -> Result<bool, DurableError> {
        let doing = "scanning";
        let engine = self.engine(doing)?;
        let failed = |failure| self.failed(doing, failure);
        let bounds = range.bounds();
        let is_before = |key: &Key| bounds.is_some_and(|range| *key.as_bytes() < range.start);
        let is_behind = |key: &Key| bounds.is_some_and(|range| *key.as_bytes() >= range.end);
        let mut iter = guarded(|| blocks_of(engine.tree()?, range)).map_err(failed)?;
        let mut last_block: Option<Key> = None;
        let mut last: Option<Key> = None;
        let mut seen = self.footprint.watch();
        loop {
            let next = guarded(|| Ok(iter.next().transpose()?)).map_err(failed)?;
            let Some((at, bytes)) = next else {
                if bounds.is_none() {
                    seen.saw_all();
                }
                return Ok(true);
            };
            let (at, entries) = read_block(&at, &bytes).map_err(failed)?;
            // Damaged trees can have cycles.
            if last_block.is_some_and(|last| last >= at) {
                return Err(failed(WorkerFailure { what: "keys out of order".to_owned(), kind: None }));
            }
            seen.saw(bytes.len());
            for (key, record) in entries {
                if is_behind(&key) {
                    return Ok(true);
                }
                // The key was visited before its block was split.
                if is_before(&key) || last.is_some_and(|last| last >= key) {
                    continue;
                }
                if !visit(key, record) {
                    return Ok(false);
                }
                last = Some(key);
                // Another thread may have poisoned or closed the engine during the visit.
                if self.poison.get().is_some() || self.engine.load().is_none() {
                    self.engine(doing)?;
                }
            }
            last_block = Some(at);
        }
    }
}

/// Returns the blocks that may hold messages of `range`.
fn blocks_of(tree: &sled::Tree, range: &KeyRange) -> Result<sled::Iter, WorkerFailure> {
    let Some(range) = range.bounds() else { return Ok(tree.range::<&[u8], _>(..)) };
    let first = tree.range::<&[u8], _>(..=&range.start[..]).next_back().transpose()?;
    let start = first.as_ref().map_or(&range.start[..], |(at, _)| &at[..]);
    Ok(tree.range::<&[u8], _>(start..&range.end[..]))
}

impl DurableStore for SledStore {
    fn data_file(&self) -> Option<(PathBuf, Arc<dyn StorageFile>)> {
        Some((self.dir.join("db"), self.data_file.descriptor()))
    }

    fn get(&self, key: &Key) -> Result<Option<Record>, DurableError> {
        let doing = "reading";
        let engine = self.engine(doing)?;
        let found = guarded(|| find(engine.tree()?, &self.splits, key));
        self.footprint.read();
        found.map_err(|failure| self.failed(doing, failure))
    }

    fn apply(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError> {
        let doing = "changing";
        let Some(_turn) = self.turn.try_lock_for(self.options.change_timeout) else {
            let (doing, after) = ("waiting for another change", self.options.change_timeout);
            return Err(DurableError::Timeout { path: self.dir.clone(), doing, after });
        };
        let mut delta = Tally::default();
        let mut backlog = 0;
        loop {
            let packed = PackedChanges::pack(ops);
            if packed.is_empty() {
                break;
            }
            let splits = Arc::clone(&self.splits);
            let is_much = backlog >= BACKLOG_BYTES;
            let made = self.run(doing, move |tree| {
                if is_much {
                    tree.flush()?;
                }
                packed.make(tree, &splits)
            })?;
            backlog = if is_much { made.bytes } else { backlog + made.bytes };
            self.footprint.made(&made);
            for Changed { key, new, old } in made.changes {
                new.inspect(|new| delta.add(&key, &new.to_bytes()));
                old.inspect(|old| delta.subtract(&key, &old.to_bytes()));
                replaced(&key, old);
            }
        }
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
        for range in ranges {
            if !self.walk(range, visit)? {
                break;
            }
        }
        Ok(())
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
        // Drop does not wait: the thread now closes sled, and `StuckThreads` joins it later.
        self.let_go();
        if let Some(worker) = self.worker.lock().take() {
            worker.join(Duration::ZERO, &self.options.strays);
        }
    }
}

/// Fails if sled could exceed `RLIMIT_FSIZE` while it opens. It appends to its data file itself,
/// and a write beyond the limit raises a signal that ends the process by default.
fn check_file_limit(dir: &Path) -> Result<(), WorkerFailure> {
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
    Err(WorkerFailure { what, kind: Some(io::ErrorKind::FileTooLarge) })
}

fn engine_error(dir: &Path, doing: &'static str, failure: WorkerFailure) -> DurableError {
    let WorkerFailure { what, kind } = failure;
    DurableError::Engine { path: dir.to_owned(), doing, what, kind }
}

pub(super) fn open_with_retry(config: &sled::Config) -> Result<sled::Db, WorkerFailure> {
    let started = Instant::now();
    loop {
        match config.open().map_err(WorkerFailure::from) {
            // The kernel does not notify when such a lock is released, so this polls.
            Err(failure) if is_lock(&failure) && started.elapsed() < LOCK_WAIT => {
                thread::sleep(LOCK_RETRY);
            }
            result => return result,
        }
    }
}

/// sled has no error type for this: it returns an I/O error of kind `Other`, with a text.
fn is_lock(failure: &WorkerFailure) -> bool {
    failure.kind == Some(io::ErrorKind::Other) && failure.what.contains("could not acquire lock")
}
