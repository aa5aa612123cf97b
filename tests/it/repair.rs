//! `salvage`, and what opening makes of damage that it can go on with or not. What each bug did stands above its test.

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

/// Small and large messages, filed and not filed, replaced and removed: what is live, and its version and length.
async fn stock(spool: &TieredSpool) -> BTreeMap<SpoolId, (u64, usize)> {
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

fn slow_to_file() -> Tiered {
    Tiered::new(|config| config.checkpoint_after(HOUR))
}

/// What the spool in `dir` gives, as whole messages.
pub(crate) fn whole_in(dir: &Path) -> BTreeMap<SpoolId, (u64, usize)> {
    let spool = Inspector::open(dir).expect("open");
    let mut ids = Vec::new();
    let visit = &mut |entry: tidespool::inspect::Entry| {
        ids.push(entry.id);
        true
    };
    spool.entries(visit).expect("entries");
    let read = |id: SpoolId| {
        let seen = payload::read(id, &spool.load(id).expect("load")).expect("whole");
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

/// Of a whole spool everything is saved, in its newest version, and nothing that was removed; and the old one is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_spool_is_copied_and_not_touched() {
    let tiered = slow_to_file();
    let spool = tiered.start().await;
    let live = stock(&spool).await;
    stop(spool).await;
    let before = contents(&tiered.path());
    let (dir, new, report) = repair(&tiered);
    assert!(contents(&tiered.path()) == before, "something was changed");
    assert!(report.is_complete() && report.doubtful.is_empty() && report.damage.is_empty(), "{report:?}");
    assert_eq!(whole_in(&new), live);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left beside the new spool");
}

/// The new spool is one like any other, also where its messages are more than the journal may hold: its first opening files them.
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

/// A place that can't be used is refused before anything is made, and what an interrupted repair left is no obstacle.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_new_or_empty_place_is_taken() {
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
    refuse(&file, "no directory");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), "x").unwrap();
    refuse(&full, "not empty");
    let work = dir.path().join("new.partial");
    fs::create_dir(&work).unwrap();
    fs::write(work.join("thesis.txt"), "years of work").unwrap();
    refuse(&new, "was not left by a repair");
    assert!(work.join("thesis.txt").exists() && !new.exists());

    // As a kill in the middle leaves it.
    fs::write(work.join("unfinished-repair"), "").unwrap();
    fs::create_dir(&new).unwrap();
    assert_eq!(salvage(&tiered.path(), &new).expect("repair").saved, 1);
    assert!(!work.exists() && whole_in(&new).len() == 1);
}

/// A spool that is in use is left alone.
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

/// A spool whose FORMAT file was deleted was taken for an empty directory: a new spool was begun in the middle of it, under another id, and every
/// segment was somebody else's from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_lost_its_format_file_is_not_begun_anew() {
    let tiered = slow_to_file();
    let spool = tiered.start().await;
    let live = stock(&spool).await;
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

/// Its id is in each segment, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_format_file_that_cannot_be_read_keeps_nothing_from_being_saved() {
    let tiered = slow_to_file();
    let spool = tiered.start().await;
    let live = stock(&spool).await;
    stop(spool).await;
    let format = tiered.path().join("FORMAT");
    fs::remove_file(&format).unwrap();
    // Reading it is an error of the system, which depends on nobody's rights.
    std::os::unix::fs::symlink(&format, &format).unwrap();
    let error = TieredSpool::open(tiered.config.clone()).await.expect_err("it can't be read");
    assert!(format!("{error:#}").contains(&format.display().to_string()), "{error:#}");
    let (_dir, new, report) = repair(&tiered);
    assert!(report.is_complete(), "{report:?}");
    assert!(report.damage.iter().any(|damage| damage.path.ends_with("FORMAT")), "{report:?}");
    assert_eq!(whole_in(&new), live);
}

/// With one bit of its id flipped, a FORMAT file named another spool: what was in the segments was left alone as that one's. It has a checksum now;
/// and where it is whole and another spool's, no segment is of that one.
#[tokio::test(flavor = "multi_thread")]
async fn a_format_file_with_another_id_is_refused() {
    let (tiered, other) = (slow_to_file(), Tiered::new(|config| config));
    let spool = tiered.start().await;
    let live = stock(&spool).await;
    stop(spool).await;
    stop(other.start().await).await;
    let format = tiered.path().join("FORMAT");
    let good = fs::read(&format).unwrap();
    let mut flipped = good.clone();
    // The last digit of the id: a bit of it, and a digit still.
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
    // The first ones had no checksum.
    fs::write(&format, &good[..good.len() - "check 01234567\n".len()]).unwrap();
    stop(tiered.start().await).await;
}

/// A ledger from an earlier opening does not list the segments that were made since: their messages were reported as damaged, and their files were
/// free to be written over.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_from_earlier_hides_no_message() {
    let tiered = slow_to_file();
    let spool = tiered.start().await;
    put(spool.as_ref(), LARGE, true).await;
    stop(spool).await;
    let ledger = tiered.path().join("ledger");
    let earlier = fs::read(&ledger).unwrap();
    let spool = tiered.start().await;
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(put(spool.as_ref(), LARGE, true).await);
    }
    spool.compact().await.expect("compact");
    // So that what is left is moved to a segment of its own.
    for id in ids.extract_if(.., |id| id.as_bytes()[7] % 2 == 0) {
        spool.remove(id).await.expect("remove");
    }
    spool.compact().await.expect("compact");
    stop(spool).await;
    fs::write(&ledger, earlier).unwrap();

    let found = Inspector::open(&tiered.path()).unwrap().verify().unwrap();
    assert!(found.damage.iter().any(|damage| damage.path.ends_with("ledger")), "{found:?}");
    let spool = tiered.start().await;
    let report = spool.recovery();
    assert!(report.damage.iter().any(|damage| damage.path.ends_with("ledger")), "{report:?}");
    for id in &ids {
        assert_holds(spool.as_ref(), *id, LARGE).await;
    }
    stop(spool).await;
}

/// Without the ledger and sled, opening took the journal for all there was: messages in older
/// segments were forgotten, and their room was free to be written over.
#[tokio::test(flavor = "multi_thread")]
async fn without_ledger_and_sled_what_the_segments_hold_is_there() {
    for how in 0..3 {
        let tiered = slow_to_file();
        let spool = tiered.start().await;
        let live = stock(&spool).await;
        spool.compact().await.expect("compact");
        stop(spool).await;
        fs::remove_file(tiered.path().join("ledger")).unwrap();
        lose_all(&tiered.path(), how);
        let (_dir, new, report) = repair(&tiered);
        assert!(report.is_complete(), "{report:?}");
        assert!(report.damage.iter().any(|damage| damage.path.ends_with("ledger")), "{report:?}");
        let saved = whole_in(&new);
        assert!(live.iter().all(|(id, what)| saved.get(id) == Some(what)), "{report:?}");
        let doubted: Vec<_> = report.doubtful.iter().filter_map(|damage| damage.id).collect();
        let back = saved.keys().filter(|id| !live.contains_key(id));
        assert!(back.into_iter().all(|id| doubted.contains(id)), "{report:?}");

        let spool = tiered.start().await;
        let recovery = spool.recovery();
        assert!(recovery.damage.iter().any(|damage| damage.path.ends_with("ledger")), "{recovery:?}");
        assert_eq!((recovery.rebuilds_index, recovery.lost), (true, 0));
        for (id, (version, len)) in &saved {
            payload::assert_is(*id, *version, *len, &spool.load(*id).await.expect("load"));
        }
        assert_eq!(enumerate(spool.as_ref()).await.len(), saved.len());
        stop(spool).await;
    }
}

/// sled does not open where its snapshot or its settings are damaged. Every small message was lost
/// with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_of_sled_costs_no_message() {
    for name in ["snap.", "conf"] {
        let tiered = slow_to_file();
        let spool = tiered.start().await;
        let live = stock(&spool).await;
        spool.compact().await.expect("compact");
        stop(spool).await;
        // A second opening of the same index writes a snapshot.
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

/// Versions of one large message in a segment that is kept for other messages, everything filed; the last of them a removal where there is no `last`.
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
    // The removal is to stand before the message that is kept.
    wait::until("all of it is durable", || spool.stats().gauges.dirty_entries == 0).await;
    // So much of it lives that it is not rewritten.
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

/// Flips a bit of this version, wherever it stands.
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
    assert!(flipped > 0, "version {version} is not there");
}

/// Messages that sled had lost were filed again from the segments, also a message whose removal
/// stands in the same segment.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_segment_says_was_removed_stays_removed_without_sled() {
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

/// Where sled had lost a message whose newest version was damaged, an older one came back in its place.
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

/// What can't be saved is named, and the rest is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_named_and_the_rest_is_saved() {
    let tiered = slow_to_file();
    let spool = tiered.start().await;
    let mut live = stock(&spool).await;
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
