use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use tidespool::TieredSpool;
use tidespool_core::{NotFound, Spool, SpoolId};
use tidespool_testkit::wait;

use crate::setup::{Tiered, assert_holds, enumerate, put, stop};

/// Below `separate_above`: whole in sled.
const SMALL: usize = 900;
const COUNT: usize = 300;

/// Small messages, all filed, and an orderly end.
async fn closed(tiered: &Tiered) -> Vec<SpoolId> {
    let spool = tiered.start().await;
    let stored = fill(&spool).await;
    stop(spool).await;
    stored
}

async fn fill(spool: &Arc<TieredSpool>) -> Vec<SpoolId> {
    let mut stored = Vec::new();
    for _ in 0..COUNT {
        stored.push(put(spool.as_ref(), SMALL, false).await);
    }
    spool.compact().await.expect("compact");
    stored
}

async fn assert_holds_all(spool: &TieredSpool, stored: &[SpoolId]) {
    assert_eq!(spool.recovery().damage, []);
    for id in stored {
        assert_holds(spool, *id, SMALL).await;
    }
    assert_eq!(enumerate(spool).await.len(), stored.len());
}

/// Something done to sled's directory.
type Change = fn(&Path);

fn flip(path: &Path, place: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 1], place).unwrap();
}

/// After an orderly end nothing is counted that did not change, time and again; and everything is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_change_is_not_counted_again() {
    let tiered = Tiered::new(|config| config);
    let mut stored = closed(&tiered).await;
    let spool = tiered.start().await;
    assert!(!spool.recovery().counted);
    assert_holds_all(&spool, &stored).await;
    // What is filed in such a run counts as well.
    stored.extend(fill(&spool).await);
    drop(spool);
    let spool = tiered.start().await;
    assert!(spool.recovery().counted, "after a crash everything is counted");
    assert_holds_all(&spool, &stored).await;
    stop(spool).await;
    let spool = tiered.start().await;
    assert!(!spool.recovery().counted);
    assert_holds_all(&spool, &stored).await;
    stop(spool).await;
}

/// Whatever was done to sled's files since, be it one bit or one more empty file: they are counted.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_changed_is_counted() {
    let changes: [(&str, Change); 6] = [
        ("a bit at the beginning", |sled| flip(&sled.join("db"), 20)),
        ("a bit at the end", |sled| flip(&sled.join("db"), fs::metadata(sled.join("db")).unwrap().len() - 1)),
        ("another length", |sled| {
            let file = fs::File::options().write(true).open(sled.join("db")).unwrap();
            file.set_len(file.metadata().unwrap().len() + 1).unwrap();
        }),
        ("cut short", |sled| {
            let file = fs::File::options().write(true).open(sled.join("db")).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("one more file", |sled| fs::write(sled.join("blobs").join("1"), "").unwrap()),
        ("a link", |sled| std::os::unix::fs::symlink("db", sled.join("link")).unwrap()),
    ];
    for (what, change) in changes {
        let tiered = Tiered::new(|config| config);
        let stored = closed(&tiered).await;
        change(&tiered.path().join("sled"));
        let spool = tiered.start().await;
        assert!(spool.recovery().counted, "{what} was not noticed");
        let mut missing = 0;
        for id in stored {
            if let Err(error) = spool.load(id).await {
                missing += u64::from(error.root_cause().is::<NotFound>());
            }
        }
        assert_eq!(spool.stats().lost, missing, "{what}: reported, and missing");
        stop(spool).await;
    }
}

/// What the ledger of an earlier orderly end says is not believed of files that have changed since.
#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_of_an_earlier_end_is_not_believed() {
    let tiered = Tiered::new(|config| config);
    let stored = closed(&tiered).await;
    let old = fs::read(tiered.path().join("ledger")).unwrap();
    let spool = tiered.start().await;
    assert!(!spool.recovery().counted);
    for id in &stored {
        spool.remove(*id).await.expect("remove");
    }
    spool.compact().await.expect("compact");
    stop(spool).await;
    fs::write(tiered.path().join("ledger"), old).unwrap();
    let spool = tiered.start().await;
    assert!(spool.recovery().counted);
    assert_eq!(spool.recovery().lost, COUNT as u64, "the removals are not in that ledger");
    drop(spool);
}

/// The first ledger of a run says nothing of sled's files any more: a crash at any moment after it leaves nothing to believe, even where they
/// are still the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_nothing_to_believe() {
    let tiered = Tiered::new(|config| config);
    let stored = closed(&tiered).await;
    let spool = tiered.start().await;
    assert!(!spool.recovery().counted);
    let ledger = fs::read(tiered.path().join("ledger")).unwrap();
    assert!(!String::from_utf8_lossy(&ledger).contains("\"files\""), "in either of its two places");
    drop(spool);
    let spool = tiered.start().await;
    assert!(spool.recovery().counted);
    assert_holds_all(&spool, &stored).await;
    stop(spool).await;
}

/// What was damaged before the orderly end, under a running spool, is in the fingerprint as it is. The count that the opening leaves out is made
/// afterwards, and tells.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_damaged_before_the_end_is_reported_after_the_opening() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    let stored = fill(&spool).await;
    let db = fs::File::options().write(true).open(tiered.path().join("sled").join("db")).unwrap();
    db.set_len(db.metadata().unwrap().len() / 4).unwrap();
    stop(spool).await;

    let spool = tiered.start().await;
    assert!(!spool.recovery().counted, "the files are what they were at the end");
    wait::until("the loss is reported", || spool.stats().lost > 0).await;
    let mut missing = 0;
    for id in stored {
        if let Err(error) = spool.load(id).await {
            assert!(error.root_cause().is::<NotFound>(), "{error:#}");
            missing += 1;
        }
    }
    assert_eq!(spool.stats().lost, missing);
    stop(spool).await;
    let spool = tiered.start().await;
    assert!(spool.recovery().counted, "a run that found damage leaves nothing to believe");
    assert_eq!(spool.recovery().damage, []);
    stop(spool).await;
}
