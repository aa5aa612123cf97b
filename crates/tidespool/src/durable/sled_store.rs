//! sled 0.34.7 as the filing engine.
//!
//! What it needs from us, and where it gets that:
//!
//! * `flush` writes, and does not make durable: `fdatasync` of its data file follows, through a descriptor opened
//!   before sled's ([`DataFile`]). It flushes when we say so, not every 500 ms.
//! * No `apply_batch`: it leaks memory for each key. Single inserts and removes, in the order given.
//! * No value above [`MAX_WHOLE`](super::MAX_WHOLE) and a header: leaves would become files under `blobs/` that are never synced.
//! * `open`, changes and `drop` can panic or hang: they run on sled's own thread ([`worker`](super::worker)). Reads
//!   run on the caller's, with panics caught.
//! * After any error it is not to be trusted: poisoned until it is opened again.
//!
//! `Mode` is left at its default: 0.34.7 stores the setting and never looks at it.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{io, thread};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::files::{self, DataFile};
use super::footprint::{CACHE_FACTOR, Footprint};
use super::handle::Opening;
use super::key::{self, KEY_LEN, NotAKey};
use super::trip::{Made, Trip};
use super::worker::{Engine, Failure, Opened, Strays, Worker, guarded};
use super::{Damaged, DurableError, DurableStore, Key, KeyRange, Op, Record, Tally, Visitor};
use crate::storage::{OsStorage, Storage};

const TREE: &str = "messages";
/// How long an open waits for the lock of an opening before: a killed process's, or one that was just dropped (sled's
/// I/O threads hold its file for a moment longer).
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// After so many bytes, sled is made to write what it buffers. It takes changes faster than a disk does, and would
/// let hundreds of megabytes wait in memory.
const BACKLOG_BYTES: usize = 8 << 20;
/// Each thread of a survey takes about so many parts: keys are not spread evenly over their range.
const PARTS_A_THREAD: usize = 16;

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
    /// The last run did not end well. What the system has of its files in memory may never have come to the disk. Default = false.
    pub(crate) unclean: bool,
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
            unclean: false,
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
    /// There may be something that was not synced: after opening always, as nobody knows.
    unsynced: AtomicBool,
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
    pub(crate) fn open(dir: &Path, options: SledOptions, opening: Opening) -> Result<Self, DurableError> {
        let failed = |failure: Failure| engine_error(dir, "opening", failure);
        if options.strays.are_too_many() {
            let what = "earlier openings hang: the process has to be started again".to_owned();
            return Err(failed(Failure { what, kind: None }));
        }
        let storage = Arc::clone(&options.storage);
        let data_file = DataFile::prepare(&*storage, dir).map_err(|err| failed(err.into()))?;
        files::remove_unfinished_snapshots(&*storage, dir).map_err(|err| failed(err.into()))?;
        let forget = || data_file.forget_cached_pages(&*storage, dir).map_err(|err| failed(err.into()));
        match opening {
            Opening::First if options.unclean => {
                // First what a failed sync left; what was only not synced yet is synced then.
                forget()?;
                data_file.sync().map_err(|err| failed(err.into()))?;
                forget()?;
            }
            Opening::First => {}
            Opening::AfterError => forget()?,
        }
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(options.sled_cache())
            .use_compression(false)
            .flush_every_ms(None);
        let path = dir.to_owned();
        let open = move || {
            let db = open_patiently(&config)?;
            let tree = db.open_tree(TREE)?;
            files::settle(&*storage, &path)?;
            Ok((db, tree))
        };
        let (engine, worker) = match Worker::start(options.open_timeout, &options.strays, open)
            .map_err(|err| failed(err.into()))?
        {
            Opened::Ready(engine, worker) => (engine, worker),
            Opened::Failed(failure, worker) => {
                worker.join(options.open_timeout, &options.strays);
                return Err(if is_lock(&failure) {
                    DurableError::Locked { path: dir.to_owned() }
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
            unsynced: AtomicBool::new(true),
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
            Some(Err(failure)) => Err(self.failed(doing, failure)),
            None => Err(self.poison(DurableError::Timeout { path: self.dir.clone(), doing, after })),
        }
    }

    /// Makes all that was changed durable.
    fn flush(&self) -> Result<(), DurableError> {
        if !self.unsynced.load(Ordering::Acquire) {
            return Ok(());
        }
        let data_file = Arc::clone(&self.data_file);
        self.run("flushing", move |tree| {
            tree.flush()?;
            Ok(data_file.sync()?)
        })?;
        self.unsynced.store(false, Ordering::Release);
        Ok(())
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

    /// Bounds between parts of the keys that hold about the same number, in order, for `threads` threads to share.
    fn cuts(&self, threads: usize) -> Result<Vec<[u8; KEY_LEN]>, DurableError> {
        if threads < 2 {
            return Ok(Vec::new());
        }
        let doing = "counting";
        let engine = self.engine(doing)?;
        let mut cuts = Vec::new();
        for class in KeyRange::classes() {
            let ends = guarded(|| {
                let range = || Ok::<_, Failure>(engine.tree()?.range(class.clone()));
                let (first, last) = (range()?.next().transpose()?, range()?.next_back().transpose()?);
                Ok(first.zip(last).map(|((first, _), (last, _))| (first, last)))
            });
            if let Some((first, last)) = ends.map_err(|failure| self.failed(doing, failure))? {
                cuts.extend(key::between(&first, &last, threads * PARTS_A_THREAD));
            }
        }
        cuts.sort_unstable();
        cuts.dedup();
        Ok(cuts)
    }
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

fn bounds(range: &KeyRange) -> Bounds<'_> {
    range.bounds().map_or((Bound::Unbounded, Bound::Unbounded), |range| {
        (Bound::Included(&range.start), Bound::Excluded(&range.end))
    })
}

/// What stands in the place of keys and is none.
#[derive(Default)]
struct Foreign {
    count: u64,
    first: Option<String>,
}

impl Foreign {
    fn note(&mut self, what: &NotAKey) {
        self.count += 1;
        self.first.get_or_insert_with(|| what.to_string());
    }

    fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, first: self.first.or(other.first) }
    }

    fn report(self, path: &Path) -> Result<(), DurableError> {
        let Self { count, first } = self;
        first.map_or(Ok(()), |first| Err(DurableError::ForeignKeys { path: path.to_owned(), count, first }))
    }
}

impl DurableStore for SledStore {
    fn get(&self, key: &Key) -> Result<Option<Record>, DurableError> {
        let doing = "reading";
        let engine = self.engine(doing)?;
        let value =
            guarded(|| Ok(engine.tree()?.get(key.as_bytes())?)).map_err(|err| self.failed(doing, err))?;
        let Some(value) = value else { return Ok(None) };
        self.footprint.read(value.len());
        match Record::decode(key, &value) {
            Ok(record) => Ok(Some(record)),
            Err(err) => Err(DurableError::Damaged { id: key.id(), reason: err.to_string() }),
        }
    }

    fn apply(
        &self,
        ops: &mut dyn Iterator<Item = Op>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError> {
        let Some(_turn) = self.turn.try_lock_for(self.options.change_timeout) else {
            let (doing, after) = ("waiting for another change", self.options.change_timeout);
            return Err(DurableError::Timeout { path: self.dir.clone(), doing, after });
        };
        let mut delta = Tally::default();
        let (mut backlog, mut changed) = (0, 0);
        loop {
            let trip = Trip::pack(ops)?;
            if trip.is_empty() {
                break;
            }
            backlog += trip.bytes();
            let write = backlog >= BACKLOG_BYTES;
            backlog = if write { 0 } else { backlog };
            self.unsynced.store(true, Ordering::Release);
            for made in self.run("changing", move |tree| trip.make(tree, write))? {
                let Made { key, value, old } = made;
                if let Some(value) = value {
                    self.footprint.wrote(value.len());
                    delta.add(&key, &value);
                }
                if let Some(old) = &old {
                    // The leaf that it was in is written again.
                    backlog += old.len();
                    changed += 1;
                    delta.subtract(&key, old);
                }
                replaced(&key, old.map(|old| decode_or_damaged(&key, &old)));
            }
        }
        self.footprint.changed(delta.records, changed);
        self.flush()?;
        // It was read a moment ago by sled itself; what it is exactly matters to nobody.
        if let Ok(bytes) = files::size_of(&self.dir) {
            self.disk_bytes.store(bytes, Ordering::Relaxed);
        }
        Ok(delta)
    }

    fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Result<Record, Damaged>) -> bool,
    ) -> Result<(), DurableError> {
        let mut foreign = Foreign::default();
        for range in ranges {
            let all = self.walk("scanning", bounds(range), &mut |key, value| match Key::from_slice(key) {
                Ok(key) => {
                    visit(key, Record::decode(&key, value).map_err(|err| Damaged { reason: err.to_string() }))
                }
                Err(err) => {
                    foreign.note(&err);
                    true
                }
            })?;
            if !all {
                return Ok(());
            }
        }
        foreign.report(&self.dir)
    }

    fn survey(&self, visitors: &mut [Visitor<'_>]) -> Result<(), DurableError> {
        let cuts = self.cuts(visitors.len())?;
        let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = |visit: &mut Visitor<'_>| {
            let mut foreign = Foreign::default();
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part > cuts.len() || stopped.load(Ordering::Relaxed) {
                    return Ok(foreign);
                }
                let from = part.checked_sub(1).map(|before| &cuts[before]);
                let range = (
                    from.map_or(Bound::Unbounded, |cut| Bound::Included(&cut[..])),
                    cuts.get(part).map_or(Bound::Unbounded, |cut| Bound::Excluded(&cut[..])),
                );
                let walked = self.walk("counting", range, &mut |key, value| {
                    let go_on = match Key::from_slice(key) {
                        Ok(key) => visit(key, value),
                        Err(err) => {
                            foreign.note(&err);
                            true
                        }
                    };
                    go_on && !stopped.load(Ordering::Relaxed)
                });
                if !matches!(walked, Ok(true)) {
                    stopped.store(true, Ordering::Relaxed);
                    walked?;
                }
            }
        };
        let Some((first, others)) = visitors.split_first_mut() else { return Ok(()) };
        let results = thread::scope(|scope| {
            // Where no thread can be had, the first does it all.
            let start = |visit| {
                thread::Builder::new()
                    .name("tidespool-open".to_owned())
                    .spawn_scoped(scope, move || work(visit))
                    .ok()
            };
            let helpers: Vec<_> = others.iter_mut().filter_map(start).collect();
            let mut results = vec![work(first)];
            results.extend(helpers.into_iter().map(|helper| {
                helper.join().unwrap_or_else(|_| {
                    let what = "a counting thread panicked".to_owned();
                    Err(engine_error(&self.dir, "counting", Failure { what, kind: None }))
                })
            }));
            results
        });
        let foreign = results.into_iter().try_fold(Foreign::default(), |sum, found| Ok(sum.plus(found?)))?;
        foreign.report(&self.dir)
    }

    #[cfg(test)]
    fn tally(&self) -> Result<Tally, DurableError> {
        let mut tally = Tally::default();
        self.walk("counting", bounds(&KeyRange::ALL), &mut |key, value| {
            tally.add_raw(key, value);
            true
        })?;
        Ok(tally)
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

fn decode_or_damaged(key: &Key, value: &[u8]) -> Record {
    Record::decode(key, value).unwrap_or_else(|err| Record::Damaged { seq: 0, reason: err.to_string() })
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
