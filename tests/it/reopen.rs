use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidespool::TieredSpool;
use tidespool_core::{Spool, SpoolId};

use crate::setup::{Tiered, assert_holds, enumerate, put, stop};

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

/// The index is kept after an orderly end and rebuilt after a crash. All messages are there each
/// time.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_did_not_change_is_kept() {
    let tiered = Tiered::new(|config| config);
    let mut stored = closed(&tiered).await;
    let spool = tiered.start().await;
    assert!(!spool.recovery().rebuilds_index);
    assert_holds_all(&spool, &stored).await;
    // What is filed in such a run counts as well.
    stored.extend(fill(&spool).await);
    drop(spool);
    let spool = tiered.start().await;
    assert!(spool.recovery().rebuilds_index, "after a crash");
    assert_holds_all(&spool, &stored).await;
    stop(spool).await;
    let spool = tiered.start().await;
    assert!(!spool.recovery().rebuilds_index);
    assert_holds_all(&spool, &stored).await;
    stop(spool).await;
}

/// The directory of the only index.
fn index(tiered: &Tiered) -> PathBuf {
    let indexes = fs::read_dir(tiered.path().join("sled")).unwrap();
    let mut indexes: Vec<PathBuf> = indexes.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(indexes.len(), 1, "{indexes:?}");
    indexes.remove(0)
}

/// Any change of the index's files is noticed, also one bit or an empty file. Then it is rebuilt,
/// and every message is there.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_changed_is_rebuilt() {
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
        change(&index(&tiered));
        let spool = tiered.start().await;
        assert!(spool.recovery().rebuilds_index, "{what} was not noticed");
        assert_holds_all(&spool, &stored).await;
        assert_eq!((spool.stats().lost, spool.stats().corrupt), (0, 0), "{what}");
        stop(spool).await;
    }
}

/// A crash leaves no index that is kept, even where its files are still the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_ledger_of_a_run_names_no_index() {
    let tiered = Tiered::new(|config| config);
    let stored = closed(&tiered).await;
    let spool = tiered.start().await;
    assert!(!spool.recovery().rebuilds_index);
    drop(spool);
    let spool = tiered.start().await;
    assert!(spool.recovery().rebuilds_index);
    assert_holds_all(&spool, &stored).await;
    stop(spool).await;
}

/// The index was damaged before the orderly end, under a running spool. So its files are what they
/// were at that end. It is compared with the ledger before it answers anything.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_damaged_before_the_end_answers_nothing() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    let stored = fill(&spool).await;
    let db = fs::File::options().write(true).open(index(&tiered).join("db")).unwrap();
    db.set_len(db.metadata().unwrap().len() / 4).unwrap();
    stop(spool).await;
    let spool = tiered.start().await;
    assert_holds_all(&spool, &stored).await;
    stop(spool).await;
}
