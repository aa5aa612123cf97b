use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use tidespool::{AcceptError, Config, Tidespool, TieredSpool};
use tidespool_core::{InDoubt, NotFound, Spool, SpoolCallerDeadlineExceeded, SpoolId, TooLarge};
use tidespool_testkit::env::seed_from_env;
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::{payload, wait};

use crate::setup::{KIB, MIB, Tiered, assert_absent, copy_dir, put, small, when_free};

const HOUR: Duration = Duration::from_secs(3600);

/// A store with the spools `meta` and `data`.
struct Pair {
    store: Tidespool,
    meta: TieredSpool,
    data: TieredSpool,
}

impl Pair {
    async fn open(config: &Config) -> Self {
        Self::of(when_free(|| Tidespool::open(config.clone())).await.expect("open"))
    }

    async fn open_on(config: &Config, disk: &FaultyStorage) -> Self {
        Self::of(Tidespool::open_on(config.clone(), disk.storage()).await.expect("open"))
    }

    fn of(store: Tidespool) -> Self {
        let (meta, data) = (store.spool("meta").unwrap(), store.spool("data").unwrap());
        Self { store, meta, data }
    }

    /// The body first, as an SMTP server has it first.
    async fn accept(&self, id: SpoolId, version: u64, len: usize, by: Option<Instant>) -> anyhow::Result<()> {
        let (body, envelope) = (payload::shared(id, version, len), payload::shared(id, version, 200));
        self.store.accept([(&self.data, id, body), (&self.meta, id, envelope)], by).await
    }

    /// The versions of envelope and body.
    async fn versions(&self, id: SpoolId) -> [Option<u64>; 2] {
        [version(&self.meta, id).await, version(&self.data, id).await]
    }
}

async fn version(spool: &TieredSpool, id: SpoolId) -> Option<u64> {
    match spool.load(id).await {
        Ok(data) => Some(payload::read(id, &data).expect("a payload").version.unwrap_or(0)),
        Err(error) if error.root_cause().is::<NotFound>() => None,
        Err(error) => panic!("{error:#}"),
    }
}

/// A store in which a few messages fill a segment.
fn config(path: &Path) -> Config {
    small(path).segment_size(64 * KIB).journal_capacity(MIB).dirty_expire(HOUR).checkpoint_after(HOUR)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_messages_are_on_stable_storage() {
    let tiered = Tiered::new(|config| config.dirty_expire(HOUR));
    let disk = FaultyStorage::new();
    disk.remember_unsynced();
    let pair = Pair::open_on(&tiered.config, &disk).await;
    let [small, large] = [SpoolId::new(), SpoolId::new()];
    pair.accept(small, 1, 3000, None).await.unwrap();
    // Larger than a segment.
    pair.accept(large, 1, 300_000, None).await.unwrap();
    pair.accept(small, 2, 3000, None).await.unwrap();
    pair.store.accept([], None).await.unwrap();
    let stats = pair.store.stats();
    assert_eq!((stats.stores, stats.stores_synced), (6, 6));
    // The committer gives the room back just after it has answered.
    wait::until("all room is given back", || pair.store.stats().gauges.dirty_bytes == 0).await;
    assert_eq!(pair.meta.stats().stores, 3);
    let after = TempDir::new().unwrap();
    let path = after.path().join("spool");
    copy_dir(&tiered.path(), &path);
    disk.unsynced().cut(&tiered.path(), &path, || false).unwrap();
    let cut = Pair::open(&tiered.config.clone().path(path)).await;
    for pair in [&pair, &cut] {
        assert_eq!(pair.versions(small).await, [Some(2); 2]);
        assert_eq!(pair.versions(large).await, [Some(1); 2]);
    }
    cut.store.shutdown().await.unwrap();
    pair.store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_not_allowed_stores_nothing() {
    let (tiered, other) = (Tiered::new(|config| config), Tiered::new(|config| config));
    let (pair, other) = (Pair::open(&tiered.config).await, Pair::open(&other.config).await);
    let id = SpoolId::new();
    let message = |spool, id| (spool, id, payload::shared(id, 1, 100));
    let twice =
        pair.store.accept([message(&pair.meta, id), message(&pair.meta, id)], None).await.unwrap_err();
    let expected = AcceptError::Twice { name: "meta".to_owned(), id };
    assert_eq!(twice.root_cause().downcast_ref(), Some(&expected), "{twice:#}");
    let foreign =
        pair.store.accept([message(&pair.meta, id), message(&other.data, id)], None).await.unwrap_err();
    let expected = AcceptError::OtherStore { name: "data".to_owned() };
    assert_eq!(foreign.root_cause().downcast_ref(), Some(&expected), "{foreign:#}");
    let many = (0..257).map(|_| message(&pair.meta, SpoolId::new()));
    let many = pair.store.accept(many, None).await.unwrap_err();
    let expected = AcceptError::TooMany { count: 257, limit: 256 };
    assert_eq!(many.root_cause().downcast_ref(), Some(&expected), "{many:#}");
    let limit = usize::try_from(tiered.config.max_message_size).unwrap();
    let large = pair.accept(id, 1, limit + 1, None).await.unwrap_err();
    assert!(large.root_cause().is::<TooLarge>(), "{large:#}");
    let late = pair.accept(id, 1, 10, Some(Instant::now())).await.unwrap_err();
    assert!(late.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{late:#}");
    assert_eq!(pair.versions(id).await, [None; 2]);
    assert_eq!(pair.store.stats().gauges.dirty_bytes, 0);
    let most = (0..256).map(|_| message(&pair.meta, SpoolId::new()));
    pair.store.accept(most, None).await.unwrap();
    other.store.shutdown().await.unwrap();
    pair.store.shutdown().await.unwrap();
}

/// The disk does not answer before the deadline: the transaction is aborted as a whole, and the
/// earlier versions stand again.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_accept_leaves_the_earlier_versions() {
    let tiered = Tiered::new(|config| config.dirty_expire(HOUR));
    let disk = FaultyStorage::new();
    let pair = Pair::open_on(&tiered.config, &disk).await;
    let [known, new] = [SpoolId::new(), SpoolId::new()];
    pair.accept(known, 1, 3000, None).await.unwrap();
    disk.inject(Fault::on(Call::Sync).file(".seg").always().block());
    let mut appended = 0;
    for id in [known, new] {
        let by = Some(Instant::now() + Duration::from_millis(100));
        let error = pair.accept(id, 2, 3000, by).await.unwrap_err();
        assert!(error.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{error:#}");
        if let Some(doubt) = error.downcast_ref::<InDoubt>() {
            assert_eq!(doubt.id, id);
            appended += 1;
        }
    }
    disk.heal();
    disk.release();
    put(&pair.meta, 10, true).await;
    for _ in 0..2 {
        assert_eq!((pair.versions(known).await, pair.versions(new).await), ([Some(1); 2], [None; 2]));
    }
    assert!(pair.store.stats().aborts >= 2 * appended, "each message is aborted");
    pair.store.shutdown().await.unwrap();
    let pair = Pair::open(&tiered.config).await;
    assert_eq!((pair.versions(known).await, pair.versions(new).await), ([Some(1); 2], [None; 2]));
    pair.store.shutdown().await.unwrap();
}

/// Dropping the future of an accept at any moment leaves all messages or none.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_accept_leaves_all_or_none() {
    let tiered = Tiered::new(|config| config);
    let disk = FaultyStorage::new();
    let pair = Pair::open_on(&tiered.config, &disk).await;
    let mut ids = Vec::new();
    for round in 0..20 {
        disk.inject(Fault::on(Call::Sync).file(".seg").always().block());
        let id = SpoolId::new();
        let mut accept = Box::pin(pair.accept(id, 1, 1000, None));
        assert!(future::poll_once(&mut accept).await.is_none());
        if round % 2 == 0 {
            wait::until("the sync hangs", || disk.blocked() > 0).await;
        }
        drop(accept);
        disk.heal();
        disk.release();
        put(&pair.meta, 10, true).await;
        ids.push(id);
    }
    for id in &ids {
        let [meta, data] = pair.versions(*id).await;
        assert_eq!(meta, data);
    }
    pair.store.shutdown().await.unwrap();
    assert_eq!(pair.store.stats().gauges.dirty_bytes, 0);
    let again = Pair::open(&tiered.config).await;
    for id in ids {
        let [meta, data] = again.versions(id).await;
        assert_eq!(meta, data);
    }
    again.store.shutdown().await.unwrap();
}

/// No room for a message that is larger than a segment: nothing of its list is stored, and no file
/// is left.
#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_a_large_message_nothing_is_stored() {
    let tiered = Tiered::new(|config| config);
    let disk = FaultyStorage::new();
    let pair = Pair::open_on(&tiered.config, &disk).await;
    let ids = [SpoolId::new(), SpoolId::new(), SpoolId::new()];
    let lens = [400_000, 100, 500_000];
    let messages = || {
        let all = ids.into_iter().zip(lens).zip([&pair.data, &pair.meta, &pair.data]);
        all.map(|((id, len), spool)| (spool, id, payload::shared(id, 1, len)))
    };
    let files = || std::fs::read_dir(tiered.path().join("journal")).unwrap().count();
    let before = files();
    // The file of the second large message.
    disk.inject(Fault::on(Call::Create).nth(2).full_disk());
    pair.store.accept(messages(), None).await.unwrap_err();
    disk.heal();
    assert_eq!(files(), before);
    for (id, spool) in ids.into_iter().zip([&pair.data, &pair.meta, &pair.data]) {
        assert_absent(spool, id).await;
    }
    pair.store.accept(messages(), None).await.unwrap();
    for (id, spool) in ids.into_iter().zip([&pair.data, &pair.meta, &pair.data]) {
        assert_eq!(version(spool, id).await, Some(1));
    }
    pair.store.shutdown().await.unwrap();
}

/// What the crashes of a run must explain: by message, the versions that it may have in both
/// spools. `None`: absent.
type Possible = BTreeMap<SpoolId, Vec<Option<u64>>>;

/// Copies of the directory at each call to the disk, opened and compared.
struct Images {
    dir: TempDir,
    disk: FaultyStorage,
    possible: Mutex<Possible>,
    rng: Mutex<SmallRng>,
    failures: Mutex<Vec<String>>,
    /// Images of a kill, and of a power cut.
    counts: Mutex<[u64; 2]>,
}

impl Images {
    fn take(&self, number: u64, what: &str) {
        let possible = self.possible.lock().clone();
        let unsynced = self.disk.unsynced();
        for percent in [None, Some(0), Some(50)] {
            let mut rng = self.rng.lock().fork();
            let copy = TempDir::new().unwrap();
            copy_dir(self.dir.path(), copy.path());
            if let Some(percent) = percent {
                unsynced.cut(self.dir.path(), copy.path(), || rng.random_ratio(percent, 100)).unwrap();
            }
            if self.disk.total() != number {
                return;
            }
            // A panic must not kill this thread, which belongs to the watched store.
            let judged = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(judge(&copy.path().join("spool"), &possible))
            }));
            let failure = match judged {
                Ok(Ok(())) => None,
                Ok(Err(why)) => Some(why),
                Err(panic) => Some(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
            };
            self.counts.lock()[usize::from(percent.is_some())] += 1;
            self.failures.lock().extend(failure.map(|why| format!("{percent:?} before {what}: {why}")));
        }
    }
}

async fn judge(path: &Path, possible: &Possible) -> Result<(), String> {
    let pair = Pair::open(&config(path)).await;
    let report = pair.store.recovery().clone();
    if !report.damage.is_empty() || report.lost > 0 {
        return Err(format!("not a crash but damage: {report:?}"));
    }
    for (id, possible) in possible {
        let [meta, data] = pair.versions(*id).await;
        if meta != data {
            return Err(format!("{id} is seen in half: {meta:?} and {data:?}"));
        }
        if !possible.contains(&meta) {
            return Err(format!("{id} is {meta:?}, possible are {possible:?}"));
        }
    }
    pair.store.shutdown().await.map_err(|error| format!("{error:#}"))
}

/// A kill or a power cut before any call to the disk: new messages, messages that replace others
/// (also some that only the crash log has), large ones, and lists that fill the last segment.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_call_leaves_all_or_none() {
    let seed = seed_from_env("TIDESPOOL_IMAGES_SEED");
    println!("TIDESPOOL_IMAGES_SEED={seed}");
    let images = Arc::new(Images {
        dir: TempDir::new().unwrap(),
        disk: FaultyStorage::new(),
        possible: Mutex::default(),
        rng: Mutex::new(SmallRng::seed_from_u64(seed)),
        failures: Mutex::default(),
        counts: Mutex::default(),
    });
    images.disk.remember_unsynced();
    let config = config(&images.dir.path().join("spool"));
    let pair = Pair::open_on(&config, &images.disk).await;
    let watching = images.clone();
    images.disk.watch(move |moment| {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let is_wanted = ["tide-commit", "tide-sync"].contains(&&*thread)
            && matches!(moment.call, Call::Write | Call::Sync | Call::Create);
        if is_wanted && watching.failures.lock().is_empty() {
            watching.take(moment.number, &format!("{:?} of {} by {thread}", moment.call, moment.name));
        }
    });
    let ids: Vec<SpoolId> = (0..6).map(|_| SpoolId::new()).collect();
    let mut version = 0;
    for round in 0..18 {
        version += 1;
        let id = ids[round % ids.len()];
        let len = [500, 9_000, 30_000, 200, 90_000][round % 5];
        images.possible.lock().entry(id).or_insert_with(|| vec![None]).push(Some(version));
        pair.accept(id, version, len, None).await.unwrap();
        images.possible.lock().insert(id, vec![Some(version)]);
        if round % 3 == 0 {
            // The next accept of this id finds a copy of one of the two in the crash log.
            pair.meta.store(id, payload::shared(id, version, 100), false, None).await.unwrap();
        }
    }
    images.disk.unwatch();
    pair.store.shutdown().await.unwrap();
    assert_eq!(*images.failures.lock(), [""; 0]);
    let counts = *images.counts.lock();
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
}
