use std::path::Path;
use std::time::Duration;

use tidespool_core::Spool;
use tidespool_testkit::wait;

use crate::setup::{KIB, MIB, Tiered, assert_absent, assert_holds, put, stop};

const LEN: usize = 32 * 1024;
const CAPACITY: u64 = 2 * MIB;

/// A journal smaller than the backlog, and no checkpoint during the test.
fn tiered() -> Tiered {
    Tiered::new(|config| {
        let config = config.segment_size(256 * KIB).journal_capacity(CAPACITY);
        config.checkpoint_after(Duration::from_secs(3600))
    })
}

/// Bytes in the segments. Files may come and go meanwhile.
fn journal_bytes(spool: &Path) -> u64 {
    let entries = std::fs::read_dir(spool.join("journal")).unwrap();
    entries.filter_map(|entry| entry.unwrap().metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// The space of removed messages is reclaimed soon, not at the next checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_backlog_leaves_at_most_the_journal_capacity() {
    let tiered = tiered();
    let spool = tiered.start().await;
    let mut ids = Vec::new();
    for _ in 0..512 {
        ids.push(put(spool.as_ref(), LEN, true).await);
    }
    assert!(journal_bytes(&tiered.path()) > 512 * LEN as u64);
    for id in &ids {
        spool.remove(*id).await.expect("remove");
    }
    wait::until("the space is reclaimed", || journal_bytes(&tiered.path()) <= CAPACITY).await;
    for id in ids {
        assert_absent(spool.as_ref(), id).await;
    }
    stop(spool).await;
}

/// The order of removals does not matter: surviving messages are moved together.
#[tokio::test(flavor = "multi_thread")]
async fn scattered_survivors_do_not_keep_the_space_of_removed_messages() {
    let tiered = tiered();
    let spool = tiered.start().await;
    let mut ids = Vec::new();
    for _ in 0..512 {
        ids.push(put(spool.as_ref(), LEN, true).await);
    }
    // First, every fifth message stays: too many for a segment to be reclaimed. Then every tenth.
    for keep in [5, 10] {
        for (_, id) in ids.iter().enumerate().filter(|(n, _)| n % keep != 0) {
            spool.remove(*id).await.expect("remove");
        }
        let live = ids.iter().step_by(keep).count() as u64 * LEN as u64;
        let bound = live * 3 / 2 + CAPACITY;
        wait::until("the space is reclaimed", || journal_bytes(&tiered.path()) <= bound).await;
    }
    stop(spool).await;
    let spool = tiered.start().await;
    for (n, id) in ids.into_iter().enumerate() {
        match n % 10 {
            0 => assert_holds(spool.as_ref(), id, LEN).await,
            _ => assert_absent(spool.as_ref(), id).await,
        }
    }
    stop(spool).await;
}
