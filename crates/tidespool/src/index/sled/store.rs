//! One open sled.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io, thread};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::files;
use super::footprint::Footprint;
use super::lock::SledLock;
use super::packed::{Changed, PackedChanges, find, read_block};
use super::trial::refuses_sled;
use super::worker::{OpenSled, SledThreads, Worker, WorkerFailure, WorkerParts, guarded};
use crate::index::{IndexError, IndexOp, IndexStore, Key, KeyRange, Record, Tally, size_of_dir};
use crate::storage::{Storage, StorageFile, largest_file};

/// Why sled panics in this case.
const CLOCK: &str = "the system clock is before 1970, which sled does not support: set the clock";
const TREE: &str = "places";
/// The longest wait of an open for sled's lock. After a close, sled's I/O threads hold the file for
/// a moment, longer on a busy machine.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// Disk space that sled needs to open, and to change anything: its snapshot, and the segments of
/// 512 KiB that it begins in its file.
pub(super) const TO_OPEN: u64 = 1 << 20;
/// The bytes of changes after which sled must flush. It accepts changes faster than a disk does,
/// and would buffer hundreds of megabytes.
const BACKLOG_BYTES: usize = 8 << 20;

/// An open sled.
pub(super) struct SledStore {
    dir: PathBuf,
    pub(super) threads: Arc<SledThreads>,
    /// The capacity of sled's cache, in bytes.
    cache: u64,
    /// `None` after it was released.
    sled: ArcSwapOption<OpenSled>,
    /// The first error. sled is not called after it.
    poison: OnceLock<String>,
    data_file: Arc<dyn StorageFile>,
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
    /// Opens sled in `dir`, as [`IndexEngine::open`](crate::index::IndexEngine::open). Waits 5 s
    /// for sled's lock.
    pub(super) fn open(
        dir: &Path,
        cache: u64,
        storage: &dyn Storage,
        threads: &Arc<SledThreads>,
    ) -> Result<Self, IndexError> {
        let failed = |failure: WorkerFailure| engine_error(dir, "opening", failure);
        if threads.are_stuck() {
            let what = "earlier indexes hang: the process must be restarted".to_owned();
            return Err(failed(WorkerFailure { what, kind: None }));
        }
        check_file_limit(dir).map_err(failed)?;
        let data_file = files::prepare(storage, dir).map_err(|err| failed(err.into()))?;
        // sled panics while the clock is before 1970, as after it was set back.
        let config = guarded(|| Ok(sled::Config::new())).map_err(|failure| {
            let is_clock = SystemTime::now() < UNIX_EPOCH;
            failed(if is_clock { WorkerFailure { what: CLOCK.to_owned(), kind: None } } else { failure })
        })?;
        let config = config.path(dir).cache_capacity(cache).use_compression(false).flush_every_ms(None);
        let path = dir.to_owned();
        let open = move || {
            let db = open_with_retry(&config)?;
            let tree = db.open_tree(TREE)?;
            // A file system that rejects one of sled's calls fails here.
            tree.flush()?;
            files::make_private(&path)?;
            Ok(WorkerParts { db, tree, lock: SledLock::of(&path) })
        };
        let (sled, worker) = match threads.start(dir, open) {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                let after = threads.open_timeout;
                return Err(IndexError::Timeout { path: dir.to_owned(), doing: "opening", after });
            }
            Err(failure) if is_lock(&failure) => return Err(IndexError::Locked { path: dir.to_owned() }),
            Err(failure) if refuses_sled(dir, &failure, threads) => {
                return Err(unsupported(dir.to_owned(), &failure));
            }
            Err(failure) => return Err(failed(failure)),
        };
        let store = Self {
            dir: dir.to_owned(),
            threads: threads.clone(),
            cache,
            sled: ArcSwapOption::from_pointee(sled),
            poison: OnceLock::new(),
            data_file,
            disk_bytes: AtomicU64::new(0),
            splits: Arc::default(),
            turn: Mutex::new(()),
            worker: Mutex::new(Some(worker)),
            footprint: Footprint::default(),
        };
        // Last: dropping the store hands its thread over to those that are closing.
        store.disk_bytes.store(size_of_dir(dir).map_err(|err| failed(err.into()))?, Ordering::Relaxed);
        Ok(store)
    }

    /// Returns sled, if it may be used.
    pub(super) fn sled(&self, doing: &'static str) -> Result<Arc<OpenSled>, IndexError> {
        if let Some(first) = self.poison.get() {
            let what = format!("an earlier error poisoned it: {first}");
            return Err(engine_error(&self.dir, doing, WorkerFailure { what, kind: None }));
        }
        let closed = || IndexError::Unavailable { path: self.dir.clone(), why: "it was closed".to_owned() };
        self.sled.load_full().ok_or_else(closed)
    }

    fn poison(&self, error: IndexError) -> IndexError {
        // Keeps only the first error, because later errors are mostly its consequences.
        let _ = self.poison.set(error.to_string());
        error
    }

    fn failed(&self, doing: &'static str, failure: WorkerFailure) -> IndexError {
        self.poison(engine_error(&self.dir, doing, failure))
    }

    /// Runs `f` on sled's thread, with the timeout for a change.
    fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        f: impl FnOnce(&sled::Tree) -> Result<T, WorkerFailure> + Send + 'static,
    ) -> Result<T, IndexError> {
        let after = self.threads.change_timeout;
        match self.sled(doing)?.run(after, |sled| f(sled.tree()?)) {
            Some(Ok(value)) => Ok(value),
            Some(Err(failure)) => {
                if refuses_sled(&self.dir, &failure, &self.threads) {
                    return Err(self.poison(unsupported(self.dir.clone(), &failure)));
                }
                Err(self.failed(doing, failure))
            }
            None => Err(self.poison(IndexError::Timeout { path: self.dir.clone(), doing, after })),
        }
    }

    /// Visits the entries of a range, in order, until `visit` returns `false`. Then the result is
    /// `false`.
    fn walk(&self, range: &KeyRange, visit: &mut dyn FnMut(Key, Record) -> bool) -> Result<bool, IndexError> {
        let doing = "scanning";
        let sled = self.sled(doing)?;
        let failed = |failure| self.failed(doing, failure);
        let bounds = range.bounds();
        let is_before = |key: &Key| bounds.is_some_and(|range| *key.as_bytes() < range.start);
        let is_behind = |key: &Key| bounds.is_some_and(|range| *key.as_bytes() >= range.end);
        let mut iter = guarded(|| blocks_of(sled.tree()?, range)).map_err(failed)?;
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
                if self.poison.get().is_some() || self.sled.load().is_none() {
                    self.sled(doing)?;
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

impl IndexStore for SledStore {
    fn data_file(&self) -> Option<(PathBuf, Arc<dyn StorageFile>)> {
        Some((self.dir.join("db"), self.data_file.clone()))
    }

    fn get(&self, key: &Key) -> Result<Option<Record>, IndexError> {
        let doing = "reading";
        let sled = self.sled(doing)?;
        let found = guarded(|| find(sled.tree()?, &self.splits, key));
        self.footprint.read();
        found.map_err(|failure| self.failed(doing, failure))
    }

    fn apply(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, IndexError> {
        let doing = "changing";
        let Some(_turn) = self.turn.try_lock_for(self.threads.change_timeout) else {
            let (doing, after) = ("waiting for another change", self.threads.change_timeout);
            return Err(IndexError::Timeout { path: self.dir.clone(), doing, after });
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
        if let Ok(bytes) = size_of_dir(&self.dir) {
            self.disk_bytes.store(bytes, Ordering::Relaxed);
        }
        Ok(delta)
    }

    fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Record) -> bool,
    ) -> Result<(), IndexError> {
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
        self.footprint.resident_bytes(self.cache, self.size_on_disk())
    }

    fn close(&self) {
        self.sled.store(None);
        if let Some(worker) = self.worker.lock().take() {
            self.threads.release(worker, self.threads.change_timeout);
        }
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.close();
    }
}

fn unsupported(path: PathBuf, failure: &WorkerFailure) -> IndexError {
    let what =
        format!("the file system refuses a call that sled needs (`sync_file_range`): {}", failure.what);
    IndexError::Unsupported { path, what }
}

/// Fails if sled could exceed `RLIMIT_FSIZE` while it opens. It appends to its data file itself,
/// and a write beyond the limit raises a signal that ends the process by default.
fn check_file_limit(dir: &Path) -> Result<(), WorkerFailure> {
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

fn engine_error(dir: &Path, doing: &'static str, failure: WorkerFailure) -> IndexError {
    let WorkerFailure { what, kind } = failure;
    IndexError::Engine { path: dir.to_owned(), doing, what, kind }
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
