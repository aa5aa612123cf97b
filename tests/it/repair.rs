//! `salvage`, and openings of damaged spools. A regression test starts with the bug it guards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tidespool::TieredSpool;
use tidespool::inspect::{IndexState, Inspector, Salvage, salvage};
use tidespool_core::{Corrupt, DamagedSpool, Spool, SpoolEntry, SpoolId};
use tidespool_testkit::{payload, wait};

use crate::lost_sled::lose_all;
use crate::setup::{KIB, MIB, Tiered, assert_absent, assert_holds, enumerate, healthy, put, stop, walk};

const LARGE: usize = 20_000;
const SMALL: usize = 700;
const HOUR: Duration = Duration::from_secs(3600);

/// Stores small and large messages, checkpointed or not, and replaces and removes some. Returns the
/// live messages with version and length.
async fn fill(spool: &TieredSpool) -> BTreeMap<SpoolId, (u64, usize)> {
    let mut live = BTreeMap::new();
    for n in 0..60 {
        let len = if n % 2 == 0 { LARGE + n } else { SMALL + n };
        live.insert(put(spool, len, true).await, (1, len));
        if n == 40 {
            spool.compact().await.expect("compact");
        }
    }
    let ids: Vec<SpoolId> = live.keys().copied().collect();
    for (n, id) in ids.into_iter().enumerate() {
        if n % 5 == 0 {
            spool.remove(id).await.expect("remove");
            live.remove(&id);
        } else if n % 5 == 1 {
            spool.store(id, payload::shared(id, 2, SMALL), true, None).await.expect("store");
            live.insert(id, (2, SMALL));
        }
    }
    live
}

fn without_checkpoints() -> Tiered {
    Tiered::new(|config| config.checkpoint_after(HOUR))
}

/// The messages in the spool at `dir`, all undamaged.
pub(crate) fn whole_in(dir: &Path) -> BTreeMap<SpoolId, (u64, usize)> {
    let spool = Inspector::open(dir).expect("open");
    let mut ids = Vec::new();
    let visit = &mut |entry: tidespool::inspect::Entry| {
        ids.push((entry.spool, entry.id));
        true
    };
    spool.entries(visit).expect("entries");
    let read = |(name, id): (String, SpoolId)| {
        let seen = payload::read(id, &spool.load(&name, id).expect("load")).expect("whole");
        (id, (seen.version.expect("long enough"), seen.len))
    };
    ids.into_iter().map(read).collect()
}

fn repair(tiered: &Tiered) -> (TempDir, PathBuf, Salvage) {
    let dir = TempDir::new().unwrap();
    let new = dir.path().join("new");
    let report = salvage(&tiered.path(), &new).unwrap_or_else(|error| panic!("{error:#}"));
    (dir, new, report)
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let content = |path: &PathBuf| path.is_file().then(|| fs::read(path).unwrap());
    walk(dir).into_iter().map(|path| (path.clone(), content(&path))).collect()
}

fn damaged_spool(error: &anyhow::Error) -> &DamagedSpool {
    error.root_cause().downcast_ref().unwrap_or_else(|| panic!("{error:#}"))
}

/// All messages of an undamaged spool are saved in their newest version, removed ones are not, and
/// the old spool is not changed.
#[tokio::test(flavor = "multi_thread")]
async fn an_undamaged_spool_is_copied_and_not_changed() {
    let tiered = without_checkpoints();
    let spool = tiered.start().await;
    let live = fill(&spool).await;
    stop(spool).await;
    let before = contents(&tiered.path());
    let (dir, new, report) = repair(&tiered);
    assert!(contents(&tiered.path()) == before, "something was changed");
    assert!(report.is_complete() && report.doubtful.is_empty() && report.damage.is_empty(), "{report:?}");
    assert_eq!(whole_in(&new), live);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left beside the new spool");
}

/// The new spool works like any other, even if its messages exceed the journal: its first opening
/// checkpoints them.
#[tokio::test(flavor = "multi_thread")]
async fn the_new_spool_works() {
    let tiered = Tiered::new(|config| config.segment_size(64 * KIB).journal_capacity(MIB));
    let spool = tiered.start().await;
    let mut ids = Vec::new();
    for _ in 0..200 {
        ids.push(put(spool.as_ref(), LARGE, false).await);
    }
    stop(spool).await;
    let (_dir, new, report) = repair(&tiered);
    assert_eq!((report.saved, report.is_complete()), (200, true), "{report:?}");
    let mut config = tiered.config.clone();
    config.path.clone_from(&new);
    let spool = Arc::new(TieredSpool::open(config).await.expect("open"));
    assert!(spool.recovery().damage.is_empty(), "{:?}", spool.recovery());
    for id in &ids {
        assert_holds(spool.as_ref(), *id, LARGE).await;
    }
    spool.remove(ids[0]).await.expect("remove");
    let id = put(spool.as_ref(), LARGE, true).await;
    spool.compact().await.expect("compact");
    assert_absent(spool.as_ref(), ids[0]).await;
    assert_holds(spool.as_ref(), id, LARGE).await;
    assert_eq!(enumerate(spool.as_ref()).await.len(), 200);
    stop(spool).await;
}

/// An unusable target is rejected before anything is created. The remains of an interrupted repair
/// are accepted.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_new_or_empty_target_is_accepted() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    put(spool.as_ref(), LARGE, true).await;
    stop(spool).await;
    let dir = TempDir::new().unwrap();
    let refuse = |place: &Path, part: &str| {
        let error = format!("{:#}", salvage(&tiered.path(), place).expect_err("refused"));
        assert!(error.contains(part), "{error}");
    };
    refuse(&tiered.path(), "inside the damaged spool");
    refuse(&tiered.path().join("new"), "inside the damaged spool");
    refuse(&dir.path().join("no").join("new"), "must exist");
    let (file, full, new) = (dir.path().join("file"), dir.path().join("full"), dir.path().join("new"));
    fs::write(&file, "x").unwrap();
    refuse(&file, "is not a directory");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), "x").unwrap();
    refuse(&full, "not empty");
    let work = dir.path().join("new.partial");
    fs::create_dir(&work).unwrap();
    fs::write(work.join("thesis.txt"), "years of work").unwrap();
    refuse(&new, "was not left by a repair");
    assert!(work.join("thesis.txt").exists() && !new.exists());

    // The state that a killed repair leaves.
    fs::write(work.join("unfinished-repair"), "").unwrap();
    fs::create_dir(&new).unwrap();
    assert_eq!(salvage(&tiered.path(), &new).expect("repair").saved, 1);
    assert!(!work.exists() && whole_in(&new).len() == 1);
}

/// A spool in use is not repaired.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_in_use_is_not_repaired() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    let dir = TempDir::new().unwrap();
    let error = salvage(&tiered.path(), &dir.path().join("new")).expect_err("in use");
    assert!(error.root_cause().is::<tidespool_core::Locked>(), "{error:#}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    stop(spool).await;
}

/// A spool without its FORMAT file was treated as an empty directory. A new spool with another id
/// was created in it, and all segments counted as foreign.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_without_its_format_file_is_not_replaced_by_a_new_one() {
    let tiered = without_checkpoints();
    let spool = tiered.start().await;
    let live = fill(&spool).await;
    stop(spool).await;
    fs::remove_file(tiered.path().join("FORMAT")).unwrap();
    let before = contents(&tiered.path());
    let error = TieredSpool::open(tiered.config.clone()).await.expect_err("refused");
    let damaged = damaged_spool(&error);
    assert_eq!((&damaged.dir, &damaged.path), (&tiered.path(), &tiered.path().join("FORMAT")));
    assert!(
        error.to_string().contains("opening the spool") && damaged.to_string().contains("tidespool repair")
    );
    damaged_spool(&Inspector::open(&tiered.path()).expect_err("refused"));
    assert!(contents(&tiered.path()) == before, "something was changed");

    let (_dir, new, report) = repair(&tiered);
    assert!(report.is_complete(), "{report:?}");
    assert!(report.damage.iter().any(|damage| damage.path.ends_with("FORMAT")), "{report:?}");
    assert_eq!(whole_in(&new), live);
}

/// Each segment contains the id of the spool, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_format_file_does_not_prevent_a_repair() {
    let tiered = without_checkpoints();
    let spool = tiered.start().await;
    let live = fill(&spool).await;
    stop(spool).await;
    let format = tiered.path().join("FORMAT");
    fs::remove_file(&format).unwrap();
    // A symlink loop makes reading it a system error, also for root.
    std::os::unix::fs::symlink(&format, &format).unwrap();
    let error = TieredSpool::open(tiered.config.clone()).await.expect_err("it can't be read");
    assert!(format!("{error:#}").contains(&format.display().to_string()), "{error:#}");
    let (_dir, new, report) = repair(&tiered);
    assert!(report.is_complete(), "{report:?}");
    assert!(report.damage.iter().any(|damage| damage.path.ends_with("FORMAT")), "{report:?}");
    assert_eq!(whole_in(&new), live);
}

/// With one flipped bit in its id, a FORMAT file named another spool, and all segments counted as
/// foreign. It has a checksum now. If it is the intact file of another spool, no segment matches
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_format_file_with_another_id_is_rejected() {
    let (tiered, other) = (without_checkpoints(), Tiered::new(|config| config));
    let spool = tiered.start().await;
    let live = fill(&spool).await;
    stop(spool).await;
    stop(other.start().await).await;
    let format = tiered.path().join("FORMAT");
    let good = fs::read(&format).unwrap();
    let mut flipped = good.clone();
    // Changes the last digit of the id by one bit into another digit.
    flipped[46] ^= if matches!(good[46], b'a' | b'f') { 2 } else { 1 };
    let others = fs::read(other.path().join("FORMAT")).unwrap();
    for (bytes, part) in [(flipped, "checksum"), (others, "no segment is of that one")] {
        fs::write(&format, bytes).unwrap();
        let error = TieredSpool::open(tiered.config.clone()).await.expect_err("refused");
        assert!(damaged_spool(&error).what.contains(part), "{error:#}");
        let (_dir, new, report) = repair(&tiered);
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(whole_in(&new), live);
    }
}

/// A manifest of an earlier opening does not list later segments. Their messages were reported as
/// damaged, and their files could be overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn an_outdated_manifest_hides_no_message() {
    let tiered = without_checkpoints();
    let spool = tiered.start().await;
    put(spool.as_ref(), LARGE, true).await;
    stop(spool).await;
    let manifest = tiered.path().join("manifest");
    let earlier = fs::read(&manifest).unwrap();
    let spool = tiered.start().await;
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(put(spool.as_ref(), LARGE, true).await);
    }
    spool.compact().await.expect("compact");
    // Causes the remaining messages to be moved to a new segment.
    for id in ids.extract_if(.., |id| id.as_bytes()[7] % 2 == 0) {
        spool.remove(id).await.expect("remove");
    }
    spool.compact().await.expect("compact");
    stop(spool).await;
    fs::write(&manifest, earlier).unwrap();

    let found = Inspector::open(&tiered.path()).unwrap().verify().unwrap();
    assert!(found.damage.iter().any(|damage| damage.path.ends_with("manifest")), "{found:?}");
    let spool = tiered.start().await;
    let report = spool.recovery();
    assert!(report.damage.iter().any(|damage| damage.path.ends_with("manifest")), "{report:?}");
    for id in &ids {
        assert_holds(spool.as_ref(), *id, LARGE).await;
    }
    stop(spool).await;
}

/// Without the manifest and sled, opening only considered the journal. Messages in older segments
/// were missing, and their space could be overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn without_manifest_and_sled_all_messages_in_segments_are_found() {
    for how in 0..3 {
        let tiered = without_checkpoints();
        let spool = tiered.start().await;
        let live = fill(&spool).await;
        spool.compact().await.expect("compact");
        stop(spool).await;
        fs::remove_file(tiered.path().join("manifest")).unwrap();
        lose_all(&tiered.path(), how);
        let (_dir, new, report) = repair(&tiered);
        assert!(report.is_complete(), "{report:?}");
        assert!(report.damage.iter().any(|damage| damage.path.ends_with("manifest")), "{report:?}");
        let saved = whole_in(&new);
        assert!(live.iter().all(|(id, what)| saved.get(id) == Some(what)), "{report:?}");
        let doubted: Vec<_> = report.doubtful.iter().filter_map(|damage| damage.id).collect();
        let back = saved.keys().filter(|id| !live.contains_key(id));
        assert!(back.into_iter().all(|id| doubted.contains(id)), "{report:?}");

        let spool = tiered.start().await;
        let recovery = spool.recovery();
        assert!(recovery.damage.iter().any(|damage| damage.path.ends_with("manifest")), "{recovery:?}");
        assert_eq!((recovery.rebuilds_index, recovery.lost), (true, 0));
        for (id, (version, len)) in &saved {
            payload::assert_is(*id, *version, *len, &spool.load(*id).await.expect("load"));
        }
        assert_eq!(enumerate(spool.as_ref()).await.len(), saved.len());
        stop(spool).await;
    }
}

/// sled does not open if its snapshot or its settings are damaged. Every small message was lost
/// with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_of_sled_loses_no_message() {
    for name in ["snap.", "conf"] {
        let tiered = without_checkpoints();
        let spool = tiered.start().await;
        let live = fill(&spool).await;
        spool.compact().await.expect("compact");
        stop(spool).await;
        // The second opening of an index writes a snapshot.
        let spool = tiered.start().await;
        assert!(!spool.recovery().rebuilds_index);
        stop(spool).await;
        let files = walk(&tiered.path().join("sled"));
        let named = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(name);
        let path = files.iter().find(named).unwrap_or_else(|| panic!("no {name}"));
        let mut bytes = fs::read(path).unwrap();
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(path, bytes).unwrap();

        let verified = Inspector::open(&tiered.path()).unwrap().verify().unwrap();
        assert_eq!((verified.index, verified.damage), (IndexState::RebuiltAtNextOpen, vec![]), "{name}");
        let (_dir, new, report) = repair(&tiered);
        assert!(report.is_complete() && report.damage.is_empty(), "{name}: {report:?}");
        assert_eq!(whole_in(&new), live, "{name}");
        let spool = tiered.start().await;
        let report = spool.recovery();
        assert!(report.rebuilds_index && report.lost == 0 && report.damage.is_empty(), "{name}: {report:?}");
        assert_eq!(enumerate(spool.as_ref()).await.len(), live.len(), "{name}");
        stop(spool).await;
    }
}

/// Versions of one large message in a segment that is retained for other messages, all
/// checkpointed. Without `last`, the last one is a removal.
async fn versions_in_one_segment(tiered: &Tiered, last: Option<u64>) -> (SpoolId, Vec<SpoolId>) {
    let spool = tiered.start().await;
    let id = SpoolId::new();
    for version in 1..=2 {
        spool.store(id, payload::shared(id, version, LARGE), true, None).await.expect("store");
    }
    match last {
        Some(version) => {
            spool.store(id, payload::shared(id, version, LARGE), true, None).await.expect("store");
        }
        None => spool.remove(id).await.expect("remove"),
    }
    // The removal must come before the messages that are kept.
    wait::until("everything is durable", || spool.stats().gauges.dirty_entries == 0).await;
    // Enough live messages that the segment is not rewritten.
    let mut others = Vec::new();
    for _ in 0..9 {
        others.push(put(spool.as_ref(), LARGE, true).await);
    }
    spool.cleanup().await.expect("cleanup");
    stop(spool).await;
    let homes = Inspector::open(&tiered.path()).unwrap().summary().unwrap().messages_by_home;
    assert_eq!(homes["journal"], 0, "{homes:?}");
    (id, others)
}

/// Flips a bit of this version in all places.
fn flip(dir: &Path, id: SpoolId, version: u64) {
    let needle = &payload::make(id, version, LARGE)[5000..5032];
    let mut flipped = 0;
    for path in walk(dir).into_iter().filter(|path| path.is_file()) {
        let bytes = fs::read(&path).unwrap();
        for (at, _) in bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle) {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0, "version {version} is not on disk");
}

/// Messages that sled had lost were indexed again from the segments, including a message whose
/// removal is in the same segment.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_in_a_segment_stays_in_effect_without_sled() {
    let tiered = Tiered::new(|config| config.checkpoint_after(Duration::ZERO));
    let (id, others) = versions_in_one_segment(&tiered, None).await;
    fs::remove_dir_all(tiered.path().join("sled")).unwrap();
    let (_dir, new, _) = repair(&tiered);
    assert_eq!(whole_in(&new).into_keys().collect::<Vec<_>>(), others);
    let spool = tiered.start().await;
    assert_eq!(enumerate(spool.as_ref()).await.len(), others.len());
    assert_absent(spool.as_ref(), id).await;
    stop(spool).await;
}

/// If sled had lost a message whose newest version was damaged, an older version was restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_newest_version_is_not_replaced_by_an_older_one() {
    let tiered = Tiered::new(|config| config.checkpoint_after(Duration::ZERO));
    let (id, others) = versions_in_one_segment(&tiered, Some(3)).await;
    fs::remove_dir_all(tiered.path().join("sled")).unwrap();
    flip(&tiered.path(), id, 3);
    let (_dir, new, report) = repair(&tiered);
    assert_eq!(whole_in(&new).into_keys().collect::<Vec<_>>(), others);
    assert_eq!(report.unsaved.iter().map(|damage| damage.id).collect::<Vec<_>>(), [Some(id)], "{report:?}");
    let spool = tiered.start().await;
    assert_holds(spool.as_ref(), others[0], LARGE).await;
    let error = spool.load(id).await.expect_err("an older version");
    assert!(error.root_cause().is::<Corrupt>(), "{error:#}");
    let is_it = |entry: &SpoolEntry| matches!(entry, SpoolEntry::Corrupt { id: one, .. } if *one == id);
    assert_eq!(enumerate(spool.as_ref()).await.iter().filter(|entry| is_it(entry)).count(), 1);
    healthy(spool.as_ref()).await;
    spool.remove(id).await.expect("remove");
    stop(spool).await;
}

/// Damaged messages are named, and all others are saved.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_messages_are_named_and_the_others_are_saved() {
    let tiered = without_checkpoints();
    let spool = tiered.start().await;
    let mut live = fill(&spool).await;
    stop(spool).await;
    let (id, _) = *live
        .iter()
        .map(|(id, (_, len))| (*id, *len))
        .collect::<Vec<_>>()
        .iter()
        .find(|(_, len)| *len >= LARGE)
        .unwrap();
    let (version, len) = live.remove(&id).unwrap();
    let needle = &payload::make(id, version, len)[5000..5032];
    for path in walk(&tiered.path()).into_iter().filter(|path| path.is_file()) {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let (_dir, new, report) = repair(&tiered);
    assert_eq!((report.saved, report.lost), (live.len() as u64, 0), "{report:?}");
    assert_eq!(report.unsaved.iter().map(|damage| damage.id).collect::<Vec<_>>(), [Some(id)], "{report:?}");
    assert_eq!(whole_in(&new), live);
}
