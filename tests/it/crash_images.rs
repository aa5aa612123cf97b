//! At each call to the disk the directory is copied as it stands: as a kill at that moment would leave it, as a power cut would (what is
//! not synced is gone), and torn (any part of that is gone). Each copy is opened and compared with what callers had been told by then;
//! some are worked on, crash again, and are opened once more.
//!
//! Of sled's files only the syncs go through the storage that is watched here. They are copied while the checkpoint thread does not change them, and are
//! taken as they are.
//!
//! `TIDESPOOL_IMAGES_SEED` chooses sizes, what is torn, and which copies are worked on. It is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use tidespool::{Config, TieredSpool};
use tidespool_core::{NotFound, Spool, SpoolEntry, SpoolId};
use tidespool_testkit::faults::{Call, FaultyStorage, Moment, Unsynced};
use tidespool_testkit::payload;
use tidespool_testkit::rng::{Rng, seed_from_env};

use crate::setup::{KIB, MIB, copy_dir, enumerate, small, stop, when_free};

const HOUR: Duration = Duration::from_secs(3600);

/// So small that a few messages fill a segment. What is filed is only what the test asks for: nobody else changes sled.
fn config(path: &Path, dirty_expire: Duration) -> Config {
    small(path).segment_size(64 * KIB).journal_capacity(MIB).dirty_expire(dirty_expire).checkpoint_after(HOUR)
}

/// What a message may be after a crash: a version, or `None` for not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fate {
    durable: Option<u64>,
    /// Asked for since, and not known to be durable.
    maybe: Vec<Option<u64>>,
}

/// What callers were told. One caller, so that what is asked for is in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Book(BTreeMap<SpoolId, Fate>);

impl Book {
    fn intend(&mut self, id: SpoolId, version: Option<u64>) {
        self.0.entry(id).or_default().maybe.push(version);
    }

    /// What was asked for last of this message is durable.
    fn settle(&mut self, id: SpoolId) {
        let fate = self.0.entry(id).or_default();
        fate.durable = fate.maybe.last().copied().unwrap_or(fate.durable);
        fate.maybe.clear();
    }

    fn settle_all(&mut self) {
        let ids: Vec<SpoolId> = self.0.keys().copied().collect();
        ids.into_iter().for_each(|id| self.settle(id));
    }

    /// Says what of `found` was not to be.
    fn judge(&self, found: &BTreeMap<SpoolId, u64>) -> Result<(), String> {
        for (id, fate) in &self.0 {
            let is = found.get(id).copied();
            if is != fate.durable && !fate.maybe.contains(&is) {
                return Err(format!(
                    "{id} is {is:?}: it was {:?}, and may be {:?}",
                    fate.durable, fate.maybe
                ));
            }
        }
        match found.keys().find(|id| !self.0.contains_key(id)) {
            Some(id) => Err(format!("{id} from nowhere")),
            None => Ok(()),
        }
    }
}

/// A spool that is being watched, and those who judge its images.
struct Studio {
    dir: TempDir,
    dirty_expire: Duration,
    disk: FaultyStorage,
    book: Mutex<Book>,
    rng: Mutex<Rng>,
    failures: Mutex<Vec<String>>,
    images: Mutex<u64>,
    /// The checkpoint thread synced a ledger: an even number in all, while it changes nothing in sled.
    ledgers: AtomicU64,
}

impl Studio {
    fn new(seed: u64, dirty_expire: Duration) -> Arc<Self> {
        let studio = Self {
            dir: TempDir::new().unwrap(),
            dirty_expire,
            disk: FaultyStorage::new(),
            book: Mutex::default(),
            rng: Mutex::new(Rng::new(seed)),
            failures: Mutex::default(),
            images: Mutex::default(),
            ledgers: AtomicU64::new(0),
        };
        studio.disk.remember_unsynced();
        Arc::new(studio)
    }

    async fn open(&self) -> TieredSpool {
        let config = config(&self.dir.path().join("spool"), self.dirty_expire);
        TieredSpool::open_on(config, self.disk.storage()).await.expect("open")
    }

    /// From now on an image is taken before each call that changes something.
    fn watch(self: &Arc<Self>) {
        let studio = self.clone();
        self.disk.watch(move |moment| studio.take(moment));
    }

    fn take(&self, moment: &Moment<'_>) {
        let changes = !matches!(moment.call, Call::Open | Call::Read | Call::ReadInMemory | Call::Dir);
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let is_filer = thread == "tidespool-filer";
        if is_filer && moment.call == Call::Sync && moment.name.starts_with("ledger") {
            self.ledgers.fetch_add(1, Ordering::SeqCst);
        }
        let is_still = is_filer || self.ledgers.load(Ordering::SeqCst).is_multiple_of(2);
        let is_wanted =
            changes && thread != "tidespool-prewrite" && (is_filer <= (self.dirty_expire == HOUR));
        if !is_still || !is_wanted || !self.failures.lock().is_empty() {
            return;
        }
        let book = self.book.lock().clone();
        let what = format!("{:?} of {} as call {} of {thread}", moment.call, moment.name, moment.number);
        let unsynced = self.disk.unsynced();
        self.image(moment.number, &format!("killed before {what}"), &book, None);
        if !unsynced.is_empty() {
            self.image(moment.number, &format!("power cut before {what}"), &book, Some((&unsynced, 0)));
            self.image(moment.number, &format!("torn before {what}"), &book, Some((&unsynced, 50)));
        }
    }

    /// Makes one image and judges it. Of what is not synced, `percent` of the pages are kept. Where
    /// another thread went on meanwhile, beyond call `number` or in the crash log, the image is of
    /// no moment, and is dropped.
    fn image(&self, number: u64, what: &str, book: &Book, cut: Option<(&Unsynced, u64)>) {
        let mut rng = Rng::new(self.rng.lock().number());
        let copy = TempDir::new().unwrap();
        copy_dir(self.dir.path(), copy.path());
        let log = |dir: &Path| std::fs::read(dir.join("spool/crash-log")).ok();
        let is_still = log(self.dir.path()) == log(copy.path());
        if let Some((unsynced, percent)) = cut {
            unsynced.cut(self.dir.path(), copy.path(), || rng.chance(percent)).unwrap();
        }
        if self.disk.total() != number || !is_still || *self.book.lock() != *book {
            return;
        }
        *self.images.lock() += 1;
        // This is a thread of the spool that is watched: it must not die of what is found.
        let judged = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(judge(&copy.path().join("spool"), book.clone(), rng.below(4)))
        }));
        let failure = match judged {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned()),
        };
        self.failures.lock().push(format!("{what}: {failure}"));
    }

    fn assert_all_well(&self) -> u64 {
        assert_eq!(*self.failures.lock(), [""; 0]);
        *self.images.lock()
    }
}

/// Opens an image and compares it. `go_on` above 0: works on it, above 1 files that too; crashes, and does so again.
async fn judge(path: &Path, mut book: Book, go_on: u64) -> Result<(), String> {
    let spool = open_clean(path).await?;
    let found = look(&spool).await?;
    book.judge(&found)?;
    if go_on == 0 {
        return Ok(());
    }
    // From here on it is known what there is.
    let ids: BTreeSet<SpoolId> = book.0.keys().copied().chain(found.keys().copied()).collect();
    book.0 = ids
        .into_iter()
        .map(|id| (id, Fate { durable: found.get(&id).copied(), maybe: Vec::new() }))
        .collect();
    let some: Vec<SpoolId> = found.keys().copied().step_by(3).take(3).collect();
    for (n, id) in some.into_iter().chain([SpoolId::new(), SpoolId::new()]).enumerate() {
        let version = (n > 0).then_some(1000 + n as u64);
        let done = match version {
            None => spool.remove(id).await,
            Some(version) => spool.store(id, payload::shared(id, version, 3000 + n), n % 2 == 0, None).await,
        };
        done.map_err(|err| format!("working on: {err:#}"))?;
        book.intend(id, version);
    }
    spool.advise_low_memory().await.map_err(|err| format!("flushing: {err:#}"))?;
    if go_on > 1 {
        spool.compact().await.map_err(|err| format!("filing: {err:#}"))?;
    }
    book.settle_all();
    drop(spool);
    let spool = open_clean(path).await.map_err(|why| format!("the second time: {why}"))?;
    book.judge(&look(&spool).await?).map_err(|why| format!("the second time: {why}"))?;
    spool.shutdown().await.map_err(|err| format!("shutdown: {err:#}"))?;
    drop(spool);
    let spool = open_clean(path).await.map_err(|why| format!("the third time: {why}"))?;
    book.judge(&look(&spool).await?).map_err(|why| format!("the third time: {why}"))
}

async fn open_clean(path: &Path) -> Result<TieredSpool, String> {
    let spool = when_free(|| TieredSpool::open(config(path, Duration::from_millis(20))))
        .await
        .map_err(|err| format!("open: {err:#}"))?;
    let report = spool.recovery();
    let is_clean = report.damage.is_empty() && report.lost == 0;
    if is_clean { Ok(spool) } else { Err(format!("not a crash but damage: {report:?}")) }
}

/// The version of each message, each loaded and enumerated.
async fn look(spool: &TieredSpool) -> Result<BTreeMap<SpoolId, u64>, String> {
    let mut found = BTreeMap::new();
    for entry in enumerate(spool).await {
        let SpoolEntry::Item { id, data } = entry else { return Err(format!("{entry:?}")) };
        let version = payload::read(id, &data).map_err(|wrong| wrong.to_string())?.version.unwrap_or(0);
        if found.insert(id, version).is_some() {
            return Err(format!("{id} is enumerated twice"));
        }
        let loaded = spool.load(id).await.map_err(|err| format!("{id}: {err:#}"))?;
        if loaded != data {
            return Err(format!("{id} is loaded and enumerated as different bytes"));
        }
    }
    Ok(found)
}

/// The caller of a watched spool, who writes down what it asks for and is told.
struct Caller {
    studio: Arc<Studio>,
    spool: Arc<TieredSpool>,
    rng: Rng,
    version: u64,
    live: Vec<SpoolId>,
}

impl Caller {
    async fn store(&mut self, id: SpoolId, force_sync: bool) {
        self.version += 1;
        let len = [60, 900, 5000, 20_000][usize::try_from(self.rng.below(4)).unwrap()];
        self.store_len(id, force_sync, len).await;
    }

    async fn store_len(&mut self, id: SpoolId, force_sync: bool, len: usize) {
        self.studio.book.lock().intend(id, Some(self.version));
        let data = payload::shared(id, self.version, len);
        self.spool.store(id, data, force_sync, None).await.expect("store");
        if force_sync {
            self.studio.book.lock().settle(id);
        }
        if !self.live.contains(&id) {
            self.live.push(id);
        }
    }

    fn some(&mut self) -> SpoolId {
        let place = self.rng.below(self.live.len() as u64);
        self.live[usize::try_from(place).unwrap()]
    }

    async fn remove(&mut self) {
        let id = self.some();
        self.live.retain(|other| *other != id);
        self.studio.book.lock().intend(id, None);
        self.spool.remove(id).await.expect("remove");
        let err = self.spool.load(id).await.expect_err("it is removed");
        assert!(err.root_cause().is::<NotFound>());
    }

    async fn round(&mut self) {
        for n in 0..5 {
            self.store(SpoolId::new(), n % 3 == 0).await;
        }
        for force_sync in [true, false] {
            let id = self.some();
            self.store(id, force_sync).await;
        }
        for _ in 0..3 {
            self.remove().await;
        }
        self.spool.advise_low_memory().await.expect("flush");
        self.studio.book.lock().settle_all();
    }

    /// Files, verifies and rewrites everything.
    async fn compact(&self) {
        self.spool.compact().await.expect("compact");
        self.studio.book.lock().settle_all();
    }
}

/// Stores, replaces and removes; files and rewrites; ends. `dirty_expire`: an hour where images of filing are wanted.
async fn run(seed: u64, dirty_expire: Duration, rounds: u64) -> u64 {
    println!("TIDESPOOL_IMAGES_SEED={seed}");
    let studio = Studio::new(seed, dirty_expire);
    let spool = Arc::new(studio.open().await);
    studio.watch();
    let rng = Rng::new(seed).fork(1);
    let mut caller = Caller { studio: studio.clone(), spool, rng, version: 0, live: Vec::new() };
    for round in 0..rounds {
        caller.round().await;
        if round == 1 {
            // Larger than a segment.
            caller.version += 1;
            caller.store_len(SpoolId::new(), true, 70_000).await;
        }
        if round % 2 == 1 {
            caller.compact().await;
        }
    }
    caller.compact().await;
    let Caller { spool, .. } = caller;
    stop(spool).await;
    studio.disk.unwatch();
    let book = studio.book.lock().clone();
    let last = studio.clone();
    tokio::task::spawn_blocking(move || last.image(last.disk.total(), "after the shutdown", &book, None))
        .await
        .unwrap();
    studio.assert_all_well()
}

/// Whatever call of committing the crash comes before, what was told stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_call_of_committing() {
    let images = run(seed_from_env("TIDESPOOL_IMAGES_SEED"), Duration::from_millis(20), 3).await;
    assert!(images > 40, "{images} images");
}

/// The same with all calls of a checkpoint and of rewriting segments.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_call_of_filing() {
    let images = run(seed_from_env("TIDESPOOL_IMAGES_SEED"), HOUR, 4).await;
    assert!(images > 40, "{images} images");
}

/// A spool whose making was cut off is made anew, as if nothing had been there.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_the_spool_is_made_is_no_matter() {
    let studio = Studio::new(7, HOUR);
    studio.watch();
    let spool = studio.open().await;
    studio.disk.unwatch();
    spool.shutdown().await.expect("shutdown");
    let images = studio.assert_all_well();
    assert!(images > 10, "{images} images");
}
