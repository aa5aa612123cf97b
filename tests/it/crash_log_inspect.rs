//! `inspect` and `salvage` treat a crash log as an opening does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tidespool::inspect::{CrashLogSummary, Damage, Entry, Home, Inspector, Salvage, Summary, salvage_on};
use tidespool::storage::{OsStorage, Storage};
use tidespool::{Config, Durability, TieredSpool};
use tidespool_core::{Locked, NotFound, Spool, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::payload;

use crate::broken::HOUR;
use crate::machine::Machine;
use crate::repair::whole_in;
use crate::setup::{Tiered, assert_absent, copy_dir, enumerate, put, stop, walk};

const SMALL: usize = 700;
/// Length in bytes of a message larger than a chunk of the log.
const LARGE: usize = 200_000;

/// Messages by id: version and length.
type Messages = BTreeMap<SpoolId, (u64, usize)>;

/// The directory of a spool whose process died, with a crash log.
struct Died {
    dir: TempDir,
    config: Config,
    /// The acknowledged messages.
    acknowledged: Messages,
    /// The messages on stable storage.
    on_disk: Messages,
    /// The message of [`LARGE`] bytes, which is in the log only.
    large: SpoolId,
}

/// The number of messages and of removals in the log of [`Died::new`].
const CHANGES: (u64, u64) = (4, 2);

impl Died {
    /// Half of the messages on disk are checkpointed, the others are in the journal. For each half,
    /// the log has a newer version of one message and the removal of another.
    async fn new() -> Self {
        let tiered = Tiered::new(|config| {
            config.durability(Durability::Process).dirty_expire(HOUR).checkpoint_after(HOUR)
        });
        let spool = tiered.start().await;
        let mut on_disk = Messages::new();
        let mut halves = Vec::new();
        for half in 0..2 {
            let mut ids = Vec::new();
            for n in 0..4 {
                ids.push(put(spool.as_ref(), SMALL + n, true).await);
                on_disk.insert(ids[n], (1, SMALL + n));
            }
            halves.push(ids);
            if half == 0 {
                spool.compact().await.expect("compact");
            }
        }
        let mut acknowledged = on_disk.clone();
        for half in &halves {
            store(&spool, half[0], 2, 2 * SMALL).await;
            acknowledged.insert(half[0], (2, 2 * SMALL));
            spool.remove(half[1]).await.expect("remove");
            acknowledged.remove(&half[1]);
        }
        let small = put(spool.as_ref(), SMALL, false).await;
        let large = put(spool.as_ref(), LARGE, false).await;
        acknowledged.extend([(small, (1, SMALL)), (large, (1, LARGE))]);
        // A message that was stored and removed leaves no entry.
        let gone = put(spool.as_ref(), SMALL, false).await;
        spool.remove(gone).await.expect("remove");
        let dir = image_after_crash(&tiered, spool).await;
        Self { dir, config: tiered.config.clone(), acknowledged, on_disk, large }
    }

    fn spool(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    fn log(&self) -> PathBuf {
        self.spool().join("crash-log")
    }

    /// A copy that an opening may change.
    fn copy(&self) -> (TempDir, Config) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("spool");
        copy_dir(&self.spool(), &path);
        let mut config = self.config.clone();
        config.path = path;
        (dir, config)
    }

    /// Asserts that `Inspector`, `salvage` and an opening find `messages`. Returns the reports of
    /// the first two.
    async fn assert_is(&self, messages: &Messages, storage: Arc<dyn Storage>) -> Found {
        let (_copy, config) = self.copy();
        let found = look(&config.path, messages, storage.clone());
        let spool = TieredSpool::open_on(config, storage).await.expect("open");
        assert_eq!(spool.recovery().damage, found.damage);
        for (id, (version, len)) in messages {
            payload::assert_is(*id, *version, *len, &spool.load(*id).await.expect("load"));
        }
        for id in self.all().filter(|id| !messages.contains_key(id)) {
            assert_absent(&spool, id).await;
        }
        assert_eq!(enumerate(&spool).await.len(), messages.len());
        stop(Arc::new(spool)).await;
        found
    }

    fn all(&self) -> impl Iterator<Item = SpoolId> {
        self.on_disk.keys().chain(self.acknowledged.keys()).copied()
    }

    /// Asserts that only the messages on disk are found, without damage, and that only the log's
    /// file size is counted.
    async fn assert_ignored(&self, storage: Arc<dyn Storage>) {
        let found = self.assert_is(&self.on_disk, storage).await;
        let file_bytes = self.log().metadata().map_or(0, |file| file.len());
        assert_eq!(found.summary.crash_log, CrashLogSummary { file_bytes, ..CrashLogSummary::default() });
        assert!(found.damage.is_empty() && found.salvage.is_complete(), "{found:?}");
    }

    /// Asserts that only the messages on disk are found, and that the log is reported as unusable,
    /// for a reason that contains `part`.
    async fn assert_damaged(&self, part: &str, storage: Arc<dyn Storage>) {
        self.assert_is(&self.on_disk, storage).await.assert_damaged(part);
    }
}

#[derive(Debug)]
struct Found {
    summary: Summary,
    damage: Vec<Damage>,
    salvage: Salvage,
}

impl Found {
    /// Asserts that the log is the only damage, and that no change of it is counted.
    fn assert_damaged(self, part: &str) {
        let found = self;
        let [Damage { path, id: None, what, .. }] = &found.damage[..] else { panic!("{:?}", found.damage) };
        assert!(path.ends_with("/spool/crash-log") && what.contains(part), "{path}: {what}");
        assert!(what.starts_with("the crash log is not as the last process left it ("), "{what}");
        assert_eq!((found.salvage.unsaved, found.salvage.damage), (found.damage, vec![]));
        let CrashLogSummary { messages, message_bytes, removals, file_bytes: _ } = found.summary.crash_log;
        assert_eq!((messages, message_bytes, removals), (0, 0, 0));
    }
}

async fn store(spool: &TieredSpool, id: SpoolId, version: u64, len: usize) {
    spool.store(id, payload::shared(id, version, len), false, None).await.expect("store");
}

/// Drops the spool, which acts like a crash, and copies the directory after its threads have ended.
async fn image_after_crash(tiered: &Tiered, spool: Arc<TieredSpool>) -> TempDir {
    drop(spool);
    wait_until_unlocked(&tiered.path());
    let dir = TempDir::new().unwrap();
    copy_dir(&tiered.path(), &dir.path().join("spool"));
    dir
}

/// Waits until the threads of a dropped spool have ended.
fn wait_until_unlocked(dir: &Path) {
    let started = std::time::Instant::now();
    while let Err(error) = Inspector::open(dir) {
        assert!(error.root_cause().is::<Locked>(), "{error:#}");
        assert!(started.elapsed() < tidespool_testkit::wait::PATIENCE, "{error:#}");
    }
}

/// Compares the results of `Inspector` and `salvage` with `messages`.
fn look(dir: &Path, messages: &Messages, storage: Arc<dyn Storage>) -> Found {
    let spool = Inspector::open_on(dir, storage.clone()).expect("open");
    let mut entries: Vec<Entry> = Vec::new();
    let visit = &mut |entry| {
        entries.push(entry);
        true
    };
    spool.entries(visit).expect("entries");
    // New ids are sorted by time.
    let listed: Vec<(SpoolId, u64)> = entries.iter().map(|entry| (entry.id, entry.size)).collect();
    let expected: Vec<(SpoolId, u64)> = messages.iter().map(|(id, (_, len))| (*id, *len as u64)).collect();
    assert_eq!(listed, expected);
    for (id, (version, len)) in messages {
        payload::assert_is(*id, *version, *len, &spool.load("main", *id).expect("load"));
    }
    let bytes = expected.iter().map(|(_, len)| len).sum();
    let (summary, verified) = (spool.summary().expect("summary"), spool.verify().expect("verify"));
    assert_eq!((summary.messages, summary.message_bytes), (expected.len() as u64, bytes));
    assert_eq!((verified.messages, verified.bytes), (expected.len() as u64, bytes));
    let logged = entries.iter().filter(|entry| entry.home == Home::CrashLog);
    assert_eq!(logged.clone().count() as u64, summary.crash_log.messages);
    assert_eq!(summary.messages_by_home["crash-log"], summary.crash_log.messages);
    assert_eq!(logged.map(|entry| entry.size).sum::<u64>(), summary.crash_log.message_bytes);
    drop(spool);

    let place = TempDir::new().unwrap();
    let new = place.path().join("new");
    let salvage = salvage_on(dir, &new, storage).expect("salvage");
    assert_eq!(&whole_in(&new), messages);
    assert_eq!((salvage.saved, salvage.bytes), (expected.len() as u64, bytes));
    assert_eq!(salvage.saved_from_crash_log, summary.crash_log.messages);
    assert_eq!(salvage.removed_by_crash_log, summary.crash_log.removals);
    Found { summary, damage: verified.damage, salvage }
}

/// `ls` and `repair` ignored the crash log and showed the state on stable storage only, although
/// the spool had acknowledged more.
#[tokio::test(flavor = "multi_thread")]
async fn messages_only_in_the_crash_log_are_found_and_saved() {
    let died = Died::new().await;
    let found = died.assert_is(&died.acknowledged, Arc::new(OsStorage)).await;
    let CrashLogSummary { messages, removals, file_bytes, .. } = found.summary.crash_log;
    assert_eq!((messages, removals), CHANGES);
    assert_eq!(file_bytes, died.log().metadata().unwrap().len());
    assert!(found.damage.is_empty() && found.salvage.is_complete(), "{found:?}");
    assert!(found.salvage.damage.is_empty() && found.salvage.doubtful.is_empty(), "{found:?}");
    let spool = Inspector::open(&died.spool()).expect("open");
    for id in died.all().filter(|id| !died.acknowledged.contains_key(id)) {
        let error = spool.load("main", id).expect_err("it was removed");
        assert!(error.root_cause().is::<NotFound>(), "{error:#}");
    }
}

/// If everything on disk is checkpointed, the manifest looks as after a shutdown.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_log_with_entries_means_no_clean_shutdown() {
    let tiered = Tiered::new(|config| config.durability(Durability::Process).dirty_expire(HOUR));
    let spool = tiered.start().await;
    put(spool.as_ref(), SMALL, true).await;
    spool.compact().await.expect("compact");
    stop(spool).await;
    let is_orderly = || Inspector::open(&tiered.path()).unwrap().summary().unwrap().clean_shutdown;
    assert!(is_orderly());
    let spool = tiered.start().await;
    put(spool.as_ref(), SMALL, false).await;
    drop(spool);
    wait_until_unlocked(&tiered.path());
    assert!(!is_orderly());
}

/// A message whose newest version is in the crash log was neither removed nor replaced since.
#[tokio::test(flavor = "multi_thread")]
async fn messages_in_the_crash_log_are_not_doubtful() {
    let died = Died::new().await;
    let is_liveness = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("liveness.");
    fs::remove_file(walk(&died.spool()).into_iter().find(is_liveness).unwrap()).unwrap();
    let Found { salvage, damage, .. } = look(&died.spool(), &died.acknowledged, Arc::new(OsStorage));
    assert!(damage.iter().any(|damage| damage.what.contains("liveness.")), "{damage:?}");
    let doubtful: Vec<_> = salvage.doubtful.iter().filter_map(|damage| damage.id).collect();
    // Two of the four checkpointed messages.
    assert_eq!(doubtful.len(), 2, "{salvage:?}");
    assert!(doubtful.iter().all(|id| died.acknowledged[id] == died.on_disk[id]), "{salvage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_crash_log_is_damage_and_not_used() {
    let died = Died::new().await;
    let needle = &payload::make(died.large, 1, LARGE)[150_000..150_032];
    let bytes = fs::read(died.log()).unwrap();
    let at = bytes.windows(needle.len()).position(|window| window == needle).expect("it is in the log");
    let log = fs::File::options().write(true).open(died.log()).unwrap();
    log.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    let part = format!("the payload of message {} fails its checksum", died.large);
    died.assert_damaged(&part, Arc::new(OsStorage)).await;

    log.set_len(bytes.len() as u64 - 1).unwrap();
    died.assert_damaged("it is shorter than it was made", Arc::new(OsStorage)).await;
}

/// If an unreadable page were treated as zeros, it would hold no entry, and the rest of the log
/// would be used without it. An opening fails: see `crash_log`.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_log_that_cannot_be_read_is_damage() {
    let died = Died::new().await;
    let disk = FaultyStorage::new();
    for call in [Call::Read, Call::Open] {
        disk.heal();
        disk.inject(Fault::on(call).file("crash-log").always());
        look(&died.spool(), &died.on_disk, disk.storage()).assert_damaged("the disk can't read it: ");
        // A single read error is retried.
        disk.heal();
        disk.inject(Fault::on(call).file("crash-log"));
        look(&died.spool(), &died.acknowledged, disk.storage());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_crash_log_of_another_boot_is_ignored() {
    let died = Died::new().await;
    died.assert_ignored(Arc::new(Machine { boot: 7, maps: true })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_crash_log_of_another_spool_is_ignored() {
    let (died, other) = (Died::new().await, Died::new().await);
    fs::copy(other.log(), died.log()).unwrap();
    died.assert_ignored(Arc::new(OsStorage)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_or_missing_crash_log_is_ignored() {
    let died = Died::new().await;
    fs::File::options().write(true).open(died.log()).unwrap().set_len(0).unwrap();
    died.assert_ignored(Arc::new(OsStorage)).await;
    fs::remove_file(died.log()).unwrap();
    died.assert_ignored(Arc::new(OsStorage)).await;
}
