use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidespool::TieredSpool;
use tidespool_core::{Spool, SpoolId};

use crate::setup::{Tiered, assert_holds, enumerate, put, stop};

const SMALL: usize = 900;
const COUNT: usize = 300;

/// Stores small messages, checkpoints all, and shuts down.
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

/// A modification of sled's directory.
type Change = fn(&Path);

fn flip(path: &Path, place: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 1], place).unwrap();
}

/// The index is kept after a shutdown and rebuilt after a crash. All messages are present each
/// time.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_index_is_kept_after_a_shutdown() {
    let tiered = Tiered::new(|config| config);
    let mut stored = closed(&tiered).await;
    let spool = tiered.start().await;
    assert!(!spool.recovery().rebuilds_index);
    assert_holds_all(&spool, &stored).await;
    // Messages that were checkpointed after reusing the index must be in it too.
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

/// Any change of the index's files is detected, even one bit or an empty file. The index is then
/// rebuilt, and every message is present.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_index_is_rebuilt() {
    let changes: [(&str, Change); 6] = [
        ("a bit at the beginning", |sled| flip(&sled.join("db"), 20)),
        ("a bit at the end", |sled| flip(&sled.join("db"), fs::metadata(sled.join("db")).unwrap().len() - 1)),
        ("another length", |sled| {
            let file = fs::File::options().write(true).open(sled.join("db")).unwrap();
            file.set_len(file.metadata().unwrap().len() + 1).unwrap();
        }),
        ("truncated", |sled| {
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
        assert!(spool.recovery().rebuilds_index, "{what} was not detected");
        assert_holds_all(&spool, &stored).await;
        assert_eq!((spool.stats().lost, spool.stats().corrupt), (0, 0), "{what}");
        stop(spool).await;
    }
}

/// After a crash the index is never reused, even if its files are unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_manifest_of_a_run_names_no_index() {
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

/// The index was damaged under a running spool, before the shutdown. Its files match the state that
/// the shutdown recorded. The index is compared with the manifest before it is used.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_damaged_before_the_shutdown_is_not_used() {
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
