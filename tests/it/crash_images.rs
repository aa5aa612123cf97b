//! Crash tests on images of the directory, taken before each call to the disk: as a kill leaves it,
//! as a power cut leaves it (unsynced data is gone), and torn (any part of the unsynced data is
//! gone). Each image is opened and compared with the results that callers had by then. Some images
//! are modified, crashed and opened again.
//!
//! Only the syncs of sled's files go through the watched storage. These files are copied while the
//! checkpoint thread does not change them, and are not cut.
//!
//! `TIDESPOOL_IMAGES_SEED` chooses sizes, torn parts, and the images that are modified. It is
//! printed.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use tidespool::{Config, TieredSpool};
use tidespool_core::{NotFound, Spool, SpoolEntry, SpoolId};
use tidespool_testkit::env::seed_from_env;
use tidespool_testkit::faults::{Call, FaultyStorage, Moment, Unsynced};
use tidespool_testkit::payload;

use crate::setup::{KIB, MIB, copy_dir, enumerate, small, stop, when_free};

const HOUR: Duration = Duration::from_secs(3600);

/// A spool in which a few messages fill a segment. Only the test starts checkpoints, which change
/// sled.
fn config(path: &Path, dirty_expire: Duration) -> Config {
    small(path).segment_size(64 * KIB).journal_capacity(MIB).dirty_expire(dirty_expire).checkpoint_after(HOUR)
}

/// The possible states of a message after a crash: a version, or `None` for absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fate {
    durable: Option<u64>,
    /// Requested since, and possibly not durable.
    maybe: Vec<Option<u64>>,
}

/// The expected states of all messages. There is one caller, so its requests are ordered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Expected(BTreeMap<SpoolId, Fate>);

impl Expected {
    fn intend(&mut self, id: SpoolId, version: Option<u64>) {
        self.0.entry(id).or_default().maybe.push(version);
    }

    /// Records that the last request for this message is durable.
    fn settle(&mut self, id: SpoolId) {
        let fate = self.0.entry(id).or_default();
        fate.durable = fate.maybe.last().copied().unwrap_or(fate.durable);
        fate.maybe.clear();
    }

    fn settle_all(&mut self) {
        let ids: Vec<SpoolId> = self.0.keys().copied().collect();
        ids.into_iter().for_each(|id| self.settle(id));
    }

    /// Returns an error if `found` has an impossible state.
    fn judge(&self, found: &BTreeMap<SpoolId, u64>) -> Result<(), String> {
        for (id, fate) in &self.0 {
            let is = found.get(id).copied();
            if is != fate.durable && !fate.maybe.contains(&is) {
                return Err(format!(
                    "{id} is {is:?}; durable is {:?}, possible are {:?}",
                    fate.durable, fate.maybe
                ));
            }
        }
        match found.keys().find(|id| !self.0.contains_key(id)) {
            Some(id) => Err(format!("{id} was never stored")),
            None => Ok(()),
        }
    }
}

/// A watched spool, the images of it, and their failures.
struct Recorder {
    dir: TempDir,
    dirty_expire: Duration,
    disk: FaultyStorage,
    expected: Mutex<Expected>,
    rng: Mutex<SmallRng>,
    failures: Mutex<Vec<String>>,
    images: Mutex<u64>,
    /// Manifests synced by the checkpoint thread. The number is even while it does not change sled.
    manifests: AtomicU64,
}

impl Recorder {
    fn new(seed: u64, dirty_expire: Duration) -> Arc<Self> {
        let recorder = Self {
            dir: TempDir::new().unwrap(),
            dirty_expire,
            disk: FaultyStorage::new(),
            expected: Mutex::default(),
            rng: Mutex::new(SmallRng::seed_from_u64(seed)),
            failures: Mutex::default(),
            images: Mutex::default(),
            manifests: AtomicU64::new(0),
        };
        recorder.disk.remember_unsynced();
        Arc::new(recorder)
    }

    async fn open(&self) -> TieredSpool {
        let config = config(&self.dir.path().join("spool"), self.dirty_expire);
        TieredSpool::open_on(config, self.disk.storage()).await.expect("open")
    }

    /// Takes images from now on, before each call that changes something.
    fn watch(self: &Arc<Self>) {
        let recorder = self.clone();
        self.disk.watch(move |moment| recorder.take(moment));
    }

    fn take(&self, moment: &Moment<'_>) {
        let changes = !matches!(moment.call, Call::Open | Call::Read | Call::ReadInMemory | Call::Dir);
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let is_checkpointer = thread == "tide-checkpoint";
        if is_checkpointer && moment.call == Call::Sync && moment.name.starts_with("manifest") {
            self.manifests.fetch_add(1, Ordering::SeqCst);
        }
        let is_still = is_checkpointer || self.manifests.load(Ordering::SeqCst).is_multiple_of(2);
        let is_wanted =
            changes && thread != "tide-prewrite" && (is_checkpointer <= (self.dirty_expire == HOUR));
        if !is_still || !is_wanted || !self.failures.lock().is_empty() {
            return;
        }
        let expected = self.expected.lock().clone();
        let what = format!("{:?} of {} as call {} of {thread}", moment.call, moment.name, moment.number);
        let unsynced = self.disk.unsynced();
        self.image(moment.number, &format!("killed before {what}"), &expected, None);
        if !unsynced.is_empty() {
            self.image(moment.number, &format!("power cut before {what}"), &expected, Some((&unsynced, 0)));
            self.image(moment.number, &format!("torn before {what}"), &expected, Some((&unsynced, 50)));
        }
    }

    /// Takes one image and checks it. Of the unsynced pages, `percent` are kept. The image is
    /// dropped if another thread continued meanwhile, beyond call `number` or in the crash log.
    fn image(&self, number: u64, what: &str, expected: &Expected, cut: Option<(&Unsynced, u32)>) {
        let mut rng = self.rng.lock().fork();
        let copy = TempDir::new().unwrap();
        copy_dir(self.dir.path(), copy.path());
        let log = |dir: &Path| std::fs::read(dir.join("spool/crash-log")).ok();
        let is_still = log(self.dir.path()) == log(copy.path());
        if let Some((unsynced, percent)) = cut {
            unsynced.cut(self.dir.path(), copy.path(), || rng.random_ratio(percent, 100)).unwrap();
        }
        if self.disk.total() != number || !is_still || *self.expected.lock() != *expected {
            return;
        }
        *self.images.lock() += 1;
        // A panic must not kill this thread, which belongs to the watched spool.
        let judged = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(judge(&copy.path().join("spool"), expected.clone(), rng.random_range(0..4)))
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

/// Opens an image and compares it. With `modify` above 0 it modifies the spool, above 1 it also
/// makes a checkpoint; then it crashes and compares again.
async fn judge(path: &Path, mut expected: Expected, modify: u64) -> Result<(), String> {
    let spool = open_clean(path).await?;
    let found = look(&spool).await?;
    expected.judge(&found)?;
    if modify == 0 {
        return Ok(());
    }
    // From here on the exact state is known.
    let ids: BTreeSet<SpoolId> = expected.0.keys().copied().chain(found.keys().copied()).collect();
    expected.0 = ids
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
        done.map_err(|err| format!("modifying: {err:#}"))?;
        expected.intend(id, version);
    }
    spool.advise_low_memory().await.map_err(|err| format!("flushing: {err:#}"))?;
    if modify > 1 {
        spool.compact().await.map_err(|err| format!("checkpointing: {err:#}"))?;
    }
    expected.settle_all();
    drop(spool);
    let spool = open_clean(path).await.map_err(|why| format!("the second time: {why}"))?;
    expected.judge(&look(&spool).await?).map_err(|why| format!("the second time: {why}"))?;
    spool.shutdown().await.map_err(|err| format!("shutdown: {err:#}"))?;
    drop(spool);
    let spool = open_clean(path).await.map_err(|why| format!("the third time: {why}"))?;
    expected.judge(&look(&spool).await?).map_err(|why| format!("the third time: {why}"))
}

async fn open_clean(path: &Path) -> Result<TieredSpool, String> {
    let spool = when_free(|| TieredSpool::open(config(path, Duration::from_millis(20))))
        .await
        .map_err(|err| format!("open: {err:#}"))?;
    let report = spool.recovery();
    let is_clean = report.damage.is_empty() && report.lost == 0;
    if is_clean { Ok(spool) } else { Err(format!("not a crash but damage: {report:?}")) }
}

/// The version of each message. Loads and enumerates each.
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

/// The caller of a watched spool. It records its requests and their results.
struct Caller {
    recorder: Arc<Recorder>,
    spool: Arc<TieredSpool>,
    rng: SmallRng,
    version: u64,
    live: Vec<SpoolId>,
}

impl Caller {
    async fn store(&mut self, id: SpoolId, force_sync: bool) {
        self.version += 1;
        let len = [60, 900, 5000, 20_000][self.rng.random_range(0..4)];
        self.store_len(id, force_sync, len).await;
    }

    async fn store_len(&mut self, id: SpoolId, force_sync: bool, len: usize) {
        self.recorder.expected.lock().intend(id, Some(self.version));
        let data = payload::shared(id, self.version, len);
        self.spool.store(id, data, force_sync, None).await.expect("store");
        if force_sync {
            self.recorder.expected.lock().settle(id);
        }
        if !self.live.contains(&id) {
            self.live.push(id);
        }
    }

    fn some(&mut self) -> SpoolId {
        self.live[self.rng.random_range(0..self.live.len())]
    }

    async fn remove(&mut self) {
        let id = self.some();
        self.live.retain(|other| *other != id);
        self.recorder.expected.lock().intend(id, None);
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
        self.recorder.expected.lock().settle_all();
    }

    /// Checkpoints, verifies and rewrites everything.
    async fn compact(&self) {
        self.spool.compact().await.expect("compact");
        self.recorder.expected.lock().settle_all();
    }
}

/// Stores, replaces, removes, compacts and shuts down. For images of checkpoints, `dirty_expire` is
/// an hour.
async fn run(seed: u64, dirty_expire: Duration, rounds: u64) -> u64 {
    println!("TIDESPOOL_IMAGES_SEED={seed}");
    let recorder = Recorder::new(seed, dirty_expire);
    let spool = Arc::new(recorder.open().await);
    recorder.watch();
    let rng = SmallRng::seed_from_u64(seed.wrapping_add(1));
    let mut caller = Caller { recorder: recorder.clone(), spool, rng, version: 0, live: Vec::new() };
    for round in 0..rounds {
        caller.round().await;
        if round == 1 {
            // Length larger than a segment.
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
    recorder.disk.unwatch();
    let expected = recorder.expected.lock().clone();
    let last = recorder.clone();
    tokio::task::spawn_blocking(move || last.image(last.disk.total(), "after the shutdown", &expected, None))
        .await
        .unwrap();
    recorder.assert_all_well()
}

/// A crash before any call of a commit loses no acknowledged change.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_call_of_committing() {
    let images = run(seed_from_env("TIDESPOOL_IMAGES_SEED"), Duration::from_millis(20), 3).await;
    assert!(images > 40, "{images} images");
}

/// The same for all calls of a checkpoint and of rewriting segments.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_call_of_a_checkpoint() {
    let images = run(seed_from_env("TIDESPOOL_IMAGES_SEED"), HOUR, 4).await;
    assert!(images > 40, "{images} images");
}

/// If a crash interrupts the creation of a spool, the next opening creates it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_during_the_creation_of_the_spool_loses_nothing() {
    let recorder = Recorder::new(7, HOUR);
    recorder.watch();
    let spool = recorder.open().await;
    recorder.disk.unwatch();
    spool.shutdown().await.expect("shutdown");
    let images = recorder.assert_all_well();
    assert!(images > 10, "{images} images");
}
