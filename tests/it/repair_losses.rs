//! The report of `salvage` for a spool with losses. It must never claim a complete copy, or save an
//! older version in place of a newer one. A regression test starts with the bug it guards.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tidespool::TieredSpool;
use tidespool::inspect::{Inspector, Salvage, salvage, salvage_on};
use tidespool_core::{NotFound, Spool, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::{payload, wait};

use crate::setup::{Tiered, copy_dir, enumerate, put, stop, walk};

const LARGE: usize = 20_000;
const SMALL: usize = 700;
const HOUR: Duration = Duration::from_secs(3600);

/// A spool in which a checkpoint includes everything at once.
fn with_immediate_checkpoints() -> Tiered {
    Tiered::new(|config| config.checkpoint_after(Duration::ZERO))
}

async fn wait_until_durable(spool: &TieredSpool) {
    wait::until("everything is durable", || spool.stats().gauges.dirty_entries == 0).await;
}

fn repair(dir: &Path) -> (TempDir, PathBuf, Salvage) {
    let place = TempDir::new().unwrap();
    let new = place.path().join("new");
    let report = salvage(dir, &new).unwrap_or_else(|error| panic!("{error:#}"));
    (place, new, report)
}

/// The version of a message in a repaired spool.
fn version_in(dir: &Path, id: SpoolId) -> Option<u64> {
    let spool = Inspector::open(dir).expect("open");
    // The name of the only spool, also if `FORMAT` was lost.
    let name = spool.spools().pop()?;
    match spool.load(&name, id) {
        Ok(data) => Some(payload::read(id, &data).expect("whole").version.expect("long enough")),
        Err(error) => {
            assert!(error.root_cause().is::<NotFound>(), "{error:#}");
            None
        }
    }
}

/// Removed messages that came back with the loss of sled were counted in place of lost messages,
/// and repair reported a complete copy. Without sled, no message is lost and none comes back.
/// Without the liveness log, messages that may have been removed are reported as doubtful.
#[tokio::test(flavor = "multi_thread")]
async fn restored_removed_messages_do_not_hide_lost_ones() {
    let tiered = with_immediate_checkpoints();
    let spool = tiered.start().await;
    for _ in 0..3 {
        put(spool.as_ref(), SMALL, true).await;
    }
    // After this their segment is free.
    spool.cleanup().await.expect("cleanup");
    let mut large = Vec::new();
    for _ in 0..30 {
        large.push(put(spool.as_ref(), LARGE, true).await);
    }
    spool.cleanup().await.expect("cleanup");
    // Too few for a segment to be rewritten, except the last one.
    for id in large.iter().step_by(5) {
        spool.remove(*id).await.expect("remove");
    }
    wait_until_durable(&spool).await;
    spool.cleanup().await.expect("cleanup");
    stop(spool).await;
    fs::remove_dir_all(tiered.path().join("sled")).unwrap();
    let (_place, _new, report) = repair(&tiered.path());
    assert_eq!((report.saved, report.lost, report.is_complete()), (27, 0, true), "{report:?}");
    assert!(report.doubtful.is_empty() && report.damage.is_empty(), "{report:?}");

    fs::remove_file(log_of(&tiered.path())).unwrap();
    let (_place, _new, report) = repair(&tiered.path());
    assert!(report.saved > 27, "no removed message came back: {report:?}");
    assert_eq!((report.lost, report.doubtful.len() as u64), (0, report.saved), "{report:?}");
    assert!(report.damage.iter().any(|damage| damage.what.contains("liveness.")), "{report:?}");
    // The removed messages that come back must not hide this loss.
    let lost = retained(&tiered.path()).pop().unwrap();
    fs::remove_file(lost).unwrap();
    let (_place, _new, report) = repair(&tiered.path());
    assert!(report.lost > 0 && !report.is_complete(), "{report:?}");
}

/// The liveness log.
fn log_of(dir: &Path) -> PathBuf {
    let is_log = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("liveness.");
    walk(dir).into_iter().find(is_log).unwrap()
}

/// The segments that are not free.
fn retained(dir: &Path) -> Vec<PathBuf> {
    let segments = walk(dir).into_iter().filter(|path| path.extension().is_some_and(|it| it == "seg"));
    segments.filter(|path| fs::read(path).unwrap()[12..16] != [0; 4]).collect()
}

/// Records that an incomplete checkpoint should have indexed counted as records without a
/// checkpoint, and as many lost messages were not reported.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_checkpoint_hides_no_loss() {
    let tiered = Tiered::new(|config| config.checkpoint_after(HOUR));
    let disk = FaultyStorage::new();
    let opened = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await;
    let spool = Arc::new(opened.expect("open"));
    for _ in 0..5 {
        put(spool.as_ref(), SMALL, true).await;
    }
    spool.compact().await.expect("compact");
    let image = TempDir::new().unwrap();
    let to = image.path().join("spool");
    let checkpointed: Vec<PathBuf> = retained(&tiered.path())
        .iter()
        .map(|path| to.join("journal").join(path.file_name().unwrap()))
        .collect();
    assert_eq!(checkpointed.len(), 1, "{checkpointed:?}");
    for _ in 0..10 {
        put(spool.as_ref(), SMALL, true).await;
    }
    // The state after a crash that follows the change of sled.
    let (from, target) = (tiered.path(), to.clone());
    disk.watch(move |moment| {
        if moment.call == Call::Sync && moment.name.starts_with("liveness.") && !target.exists() {
            copy_dir(&from, &target);
        }
    });
    spool.compact().await.expect("compact");
    disk.unwatch();
    stop(spool).await;
    fs::remove_dir_all(to.join("sled")).unwrap();
    let (_place, _new, report) = repair(&to);
    assert_eq!((report.saved, report.lost, report.is_complete()), (15, 0, true), "{report:?}");
    fs::remove_file(&checkpointed[0]).unwrap();
    let (_place, _new, report) = repair(&to);
    assert_eq!((report.saved, report.lost, report.is_complete()), (10, 5, false), "{report:?}");
}

/// If the newest version is damaged with its header, an older readable version replaced it, and
/// everything counted as saved.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_known_as_damaged_is_not_replaced_by_an_older_version() {
    let tiered = with_immediate_checkpoints();
    let spool = tiered.start().await;
    let id = SpoolId::new();
    for version in 1..=3 {
        spool.store(id, payload::shared(id, version, LARGE), true, None).await.expect("store");
    }
    // Enough live messages that the segment is not rewritten.
    for _ in 0..9 {
        put(spool.as_ref(), LARGE, true).await;
    }
    spool.cleanup().await.expect("cleanup");
    stop(spool).await;
    // Damages the payload first: an opening without sled writes a record of that damage.
    let at = places_of(&tiered.path(), &payload::make(id, 3, LARGE)[5000..5032]);
    for (path, at) in &at {
        overwrite(path, *at, &[0x5a; 8]);
    }
    fs::remove_dir_all(tiered.path().join("sled")).unwrap();
    stop(tiered.start().await).await;
    // Then damages the header.
    for (path, at) in &at {
        overwrite(path, at - 5000 - 56, &[0; 56]);
    }
    let (_place, new, report) = repair(&tiered.path());
    assert_eq!(version_in(&new, id), None, "{report:?}");
    assert_eq!(report.unsaved.iter().map(|damage| damage.id).collect::<Vec<_>>(), [Some(id)], "{report:?}");
}

fn places_of(dir: &Path, needle: &[u8]) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for path in walk(dir).into_iter().filter(|path| path.extension().is_some_and(|it| it == "seg")) {
        let bytes = fs::read(&path).unwrap();
        let all = bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
        found.extend(all.map(|(at, _)| (path.clone(), at as u64)));
    }
    assert!(!found.is_empty(), "the bytes are not on disk");
    found
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// A spool without its manifest. A newer segment contains the replacement of a message in an older
/// segment, or its removal if `newer` is `None`. The older segment is checkpointed, or part of the
/// journal.
async fn without_manifest(newer: Option<u64>, is_checkpointed: bool) -> (Tiered, SpoolId) {
    let tiered = Tiered::new(|config| config.checkpoint_after(HOUR));
    let spool = tiered.start().await;
    let id = SpoolId::new();
    spool.store(id, payload::shared(id, 1, LARGE), true, None).await.expect("store");
    // Twelve messages of this size fill a segment.
    for _ in 0..11 {
        put(spool.as_ref(), LARGE, true).await;
    }
    if is_checkpointed {
        spool.compact().await.expect("compact");
    }
    match newer {
        Some(version) => {
            spool.store(id, payload::shared(id, version, LARGE), true, None).await.expect("store");
        }
        None => spool.remove(id).await.expect("remove"),
    }
    wait_until_durable(&spool).await;
    for _ in 0..9 {
        put(spool.as_ref(), LARGE, true).await;
    }
    stop(spool).await;
    fs::remove_file(tiered.path().join("manifest")).unwrap();
    (tiered, id)
}

/// Without a manifest, a segment to which sled pointed counted as checkpointed. The older version
/// was saved in place of the newer one, and a removed message came back. Neither was reported.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_manifest_the_newest_version_is_found() {
    for (newer, is_checkpointed) in [(Some(2), false), (None, false), (Some(2), true), (None, true)] {
        let (tiered, id) = without_manifest(newer, is_checkpointed).await;
        let dir = tiered.path();
        let (_place, new, report) = repair(&dir);
        assert_eq!(version_in(&new, id), newer, "{report:?}");
        let seen = Inspector::open(&dir).unwrap();
        let homes = seen.summary().unwrap().messages_by_home;
        assert_eq!(
            (homes["segment"] > 0, report.saved),
            (is_checkpointed, 20 + newer.map_or(0, |_| 1)),
            "{homes:?}"
        );
        drop(seen);
        assert_eq!(version_in(&dir, id), newer);
        assert!(report.doubtful.iter().all(|damage| damage.id != Some(id)), "{report:?}");
        let spool = tiered.start().await;
        assert_eq!(enumerate(spool.as_ref()).await.len() as u64, report.saved);
        match (newer, spool.load(id).await) {
            (Some(version), Ok(data)) => payload::assert_is(id, version, LARGE, &data),
            (None, Err(error)) => assert!(error.root_cause().is::<NotFound>(), "{error:#}"),
            (_, other) => panic!("{newer:?}: {other:?}"),
        }
        stop(spool).await;
    }
}

/// An unreadable sector, even in the first page of a free segment, made opening, verify and repair
/// fail.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_file_is_reported_and_the_rest_is_saved() {
    let tiered = Tiered::new(|config| config.checkpoint_after(HOUR));
    let spool = tiered.start().await;
    let mut messages = 0;
    for round in 0..2 {
        for _ in 0..20 {
            put(spool.as_ref(), LARGE, true).await;
            put(spool.as_ref(), SMALL, true).await;
            messages += 2;
        }
        if round == 0 {
            spool.compact().await.expect("compact");
        }
    }
    stop(spool).await;
    let files = walk(&tiered.path()).into_iter().filter(|path| path.is_file());
    let is_read = |name: &str| name.ends_with(".seg") || name == "manifest" || name.starts_with("liveness.");
    let names: Vec<String> =
        files.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let mut free = 0;
    for name in names.into_iter().filter(|name| is_read(name)) {
        let disk = FaultyStorage::new();
        let bad = name.clone();
        disk.inject(Fault::on(Call::Read).only(move |moment| moment.name == bad).always());
        let place = TempDir::new().unwrap();
        let new = place.path().join("new");
        let report = salvage_on(&tiered.path(), &new, disk.storage());
        let report = report.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let is_reported = |damage: &tidespool::inspect::Damage| {
            damage.path.ends_with(&name) && damage.what.contains("can't be read")
        };
        assert!(report.damage.iter().any(is_reported), "{name}: {report:?}");
        let counted = report.saved + report.lost + report.unsaved.len() as u64;
        let unknown = report.unsaved.iter().any(|damage| damage.id.is_none());
        assert!(counted >= messages || unknown, "{name}: {report:?}");
        assert!(report.saved > 0, "{name}: {report:?}");
        free += u64::from(report.is_complete());
        let spool = Inspector::open_on(&tiered.path(), disk.storage()).expect(&name);
        assert!(spool.verify().expect(&name).damage.iter().any(is_reported), "{name}");
        drop(spool);
        if name.ends_with(".seg") {
            let opened = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await;
            let error = format!("{:#}", opened.expect_err("it can't be read"));
            assert!(error.contains("tidespool repair") && error.contains(&name), "{error}");
        }
        // A single read error is retried.
        disk.heal();
        let bad = name.clone();
        disk.inject(Fault::on(Call::Read).only(move |moment| moment.name == bad));
        let again = place.path().join("again");
        let report = salvage_on(&tiered.path(), &again, disk.storage()).expect(&name);
        assert_eq!((report.saved, report.is_complete()), (messages, true), "{name}: {report:?}");
    }
    assert!(free > 0, "no segment was free");
}

/// Records torn by a crash were not counted by verify and repair, although a flipped bit in the
/// last batch looks the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_is_reported_and_is_not_damage() {
    let tiered = Tiered::new(|config| config.checkpoint_after(HOUR));
    let spool = tiered.start().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(put(spool.as_ref(), LARGE, true).await);
    }
    let image = TempDir::new().unwrap();
    let dir = image.path().join("spool");
    copy_dir(&tiered.path(), &dir);
    stop(spool).await;
    let last = *ids.last().unwrap();
    for (path, at) in places_of(&dir, &payload::make(last, 1, LARGE)[5000..5032]) {
        // Removes the later records too, which would show that it was durable.
        let len = path.metadata().unwrap().len();
        overwrite(&path, at, &vec![0; usize::try_from(len - at).unwrap()]);
    }
    let (_place, new, report) = repair(&dir);
    assert_eq!((report.saved, report.is_complete(), version_in(&new, last)), (4, true, None), "{report:?}");
    let verified = Inspector::open(&dir).unwrap().verify().unwrap();
    assert!(verified.damage.is_empty(), "{verified:?}");
    for torn in [report.torn, verified.torn] {
        assert_eq!(torn.iter().map(|record| record.id).collect::<Vec<_>>(), [Some(last)], "{torn:?}");
        assert!(torn[0].what.contains("not whole"), "{torn:?}");
    }
}
