//! Shutdowns on a hanging disk. A shutdown is bounded, its error names the hanging threads only,
//! and waiting callers return.

use std::sync::Arc;
use std::time::Duration;

use tidespool::{Config, Durability, TieredSpool};
use tidespool_core::{Closed, Locked, Spool, SpoolCallerDeadlineExceeded, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinHandle;

use crate::broken::{Broken, HOUR, LARGE, begin, begin_compact, committing, is_thread};
use crate::setup::{assert_absent, assert_holds, enumerate, put, stop};

/// Nothing is checkpointed unless a caller asks for it, and hanging threads are not awaited for
/// long.
fn impatient(config: Config) -> Config {
    config.checkpoint_after(HOUR).shutdown_timeout(Duration::from_millis(400))
}

/// Shuts down and expects an error in bounded time. It must name exactly `hanging` as hanging
/// threads, and the directory must stay locked. Returns the error.
async fn shut_down_on_hanging_disk(broken: &Broken, spool: &TieredSpool, hanging: &[&str]) -> String {
    let error = wait::bounded("the shutdown", spool.shutdown()).await.expect_err("the disk hangs");
    let error = format!("{error:#}");
    for thread in hanging {
        assert!(error.contains(&format!("{thread} hangs")), "{thread}: {error}");
    }
    assert_eq!(error.matches("hangs").count(), hanging.len(), "{error}");
    let again = TieredSpool::open_on(broken.tiered.config.clone(), broken.disk.storage()).await;
    let refused = again.expect_err("a thread may still write there");
    assert!(refused.root_cause().is::<Locked>(), "{refused:#}");
    error
}

fn load(spool: &Arc<TieredSpool>, id: SpoolId) -> JoinHandle<anyhow::Result<Vec<u8>>> {
    let spool = spool.clone();
    tokio::spawn(async move { spool.load(id).await })
}

async fn assert_closed<T: std::fmt::Debug>(what: &str, caller: JoinHandle<anyhow::Result<T>>) {
    let error = wait::bounded(what, caller).await.unwrap().expect_err("the disk hangs");
    assert!(error.root_cause().is::<Closed>(), "{what}: {error:#}");
}

/// Stores messages that are on disk only.
async fn store_uncached(spool: &TieredSpool, count: usize) -> Vec<(SpoolId, usize)> {
    let mut stored = Vec::new();
    for _ in 0..count {
        stored.push((put(spool, LARGE, true).await, LARGE));
    }
    spool.compact().await.expect("compact");
    spool.advise_low_memory().await.expect("advise_low_memory");
    stored
}

/// The shutdown's own writes, the last manifest and the one with the fingerprint, were made by the
/// calling thread. With nothing dirty and no thread at work, it hung as long as the disk.
#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_the_last_manifest_is_bounded() {
    for nth in [1, 2] {
        let broken = Broken::new(impatient);
        let spool = broken.start().await;
        let stored = [(put(spool.as_ref(), LARGE, true).await, LARGE)];
        broken.disk.inject(Fault::on(Call::Sync).only(|m| m.name.starts_with("manifest")).nth(nth).block());
        let error = shut_down_on_hanging_disk(&broken, &spool, &["tide-manifest"]).await;
        assert!(error.contains("the manifest is not"), "{error}");
        assert_eq!(broken.disk.blocked(), 1);
        drop(spool);
        broken.assert_reopens_with(&stored).await;
    }
}

/// Loads behind a hanging read still waited after the shutdown had timed out, as long as the disk
/// hung. The final writes are made nevertheless: a reader changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn loads_behind_a_hanging_read_end_with_the_spool() {
    let broken = Broken::new(|config| impatient(config).read_threads(1));
    let spool = broken.start().await;
    let stored = store_uncached(&spool, 4).await;
    broken.disk.inject(Fault::on(Call::Read).file(".seg").always().block());
    let loads: Vec<_> = stored.iter().map(|(id, _)| load(&spool, *id)).collect();
    wait::until("a read hangs", || broken.disk.blocked() == 1).await;
    shut_down_on_hanging_disk(&broken, &spool, &["tide-read-0"]).await;
    for load in loads {
        assert_closed("a load", load).await;
    }
    drop(spool);
    broken.disk.heal();
    let spool = broken.start().await;
    assert!(!spool.recovery().rebuilds_index, "the fingerprint was not written");
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// A load in progress at the start of a shutdown gets its message.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_ends_in_time_is_not_interrupted() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).read_threads(1));
    let spool = broken.start().await;
    let stored = store_uncached(&spool, 1).await;
    broken.disk.inject(Fault::on(Call::Read).file(".seg").block());
    let (id, len) = stored[0];
    let load = load(&spool, id);
    wait::until("the read hangs", || broken.disk.blocked() == 1).await;
    let shutdown = {
        let spool = spool.clone();
        tokio::spawn(async move { spool.shutdown().await })
    };
    let config = Config::clone(&spool.config());
    wait::until("the spool closes", || spool.reconfigure(config.clone()).is_err()).await;
    broken.disk.heal();
    let data = wait::bounded("the load", load).await.unwrap().expect("it was being read");
    payload::assert_is(id, 1, len, &data);
    wait::bounded("the shutdown", shutdown).await.unwrap().expect("the disk works again");
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// An enumeration that hung in a read used up the time of all threads: idle threads were reported
/// as hanging, and the final writes were not made.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_enumeration_does_not_use_up_the_time_of_others() {
    let broken = Broken::new(impatient);
    let spool = broken.start().await;
    let stored = store_uncached(&spool, 4).await;
    let reads = Fault::on(Call::Read).only(|m| is_thread("tide-enum") && m.name.ends_with(".seg"));
    broken.disk.inject(reads.always().block());
    let enumeration = {
        let spool = spool.clone();
        tokio::spawn(async move { enumerate(spool.as_ref()).await })
    };
    wait::until("the enumeration hangs", || broken.disk.blocked() == 1).await;
    shut_down_on_hanging_disk(&broken, &spool, &["tide-enum"]).await;
    drop(spool);
    broken.disk.heal();
    wait::bounded("the enumeration", enumeration).await.unwrap();
    let spool = broken.start().await;
    assert!(!spool.recovery().rebuilds_index, "the fingerprint was not written");
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// A caller waiting for a checkpoint still waited after the shutdown had timed out on the
/// checkpoint thread, as long as the disk hung.
#[tokio::test(flavor = "multi_thread")]
async fn a_cleanup_ends_with_the_spool() {
    let broken = Broken::new(impatient);
    let spool = broken.start().await;
    let stored = [(put(spool.as_ref(), LARGE, true).await, LARGE)];
    let manifest =
        |fault: Fault| fault.only(|m| is_thread("tide-checkpoint") && m.name.starts_with("manifest"));
    broken.disk.inject(manifest(Fault::on(Call::Sync)).always().block());
    let compaction = begin_compact(&spool);
    wait::until("the checkpoint hangs", || broken.disk.blocked() == 1).await;
    let cleanup = {
        let spool = spool.clone();
        tokio::spawn(async move { spool.cleanup().await })
    };
    shut_down_on_hanging_disk(&broken, &spool, &["tide-checkpoint"]).await;
    assert_closed("compacting", compaction).await;
    assert_closed("cleaning up", cleanup).await;
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// A shutdown waited a minute for sled, even with a shorter `shutdown_timeout`. Here sled's last
/// sync hangs.
#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_sled_is_bounded() {
    let broken = Broken::new(impatient);
    let spool = broken.start().await;
    let stored = [(put(spool.as_ref(), LARGE, true).await, LARGE)];
    spool.compact().await.expect("compact");
    broken.disk.inject(Fault::on(Call::Sync).file("db").always().block());
    let error = shut_down_on_hanging_disk(&broken, &spool, &["tide-manifest"]).await;
    assert!(error.contains("the manifest is not"), "{error}");
    assert_eq!(broken.disk.blocked(), 1);
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// A shutdown waited without a bound for the lock that an opening of sled holds. Here an opening
/// after an error hangs. When it returns, the index is closed and the directory is free, even while
/// a caller still holds the spool.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_opening_of_sled_is_not_awaited() {
    let broken = Broken::new(impatient);
    let spool = broken.start().await;
    let stored = [(put(spool.as_ref(), LARGE, true).await, LARGE)];
    broken.disk.inject(Fault::on(Call::Open).file("db").always().block());
    broken.disk.inject(Fault::on(Call::Sync).only(|m| m.name.starts_with("liveness.")));
    spool.compact().await.expect_err("sled is ahead of the manifest and is discarded");
    wait::until("the opening of sled hangs", || broken.disk.blocked() == 1).await;
    let error = shut_down_on_hanging_disk(&broken, &spool, &["tide-checkpoint"]).await;
    assert!(!error.contains("sled"), "the close of sled had not begun: {error}");
    broken.assert_reopens_with(&stored).await;
    drop(spool);
}

/// The disk of the journal hangs in a write or a sync. No store waits longer than its deadline,
/// calls in memory continue, and only the blocked thread is reported as hanging. The directory
/// stays locked until the hanging call returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_journal_blocks_no_caller() {
    for call in [Call::Write, Call::Sync] {
        let broken = Broken::new(|config| impatient(config).durability(Durability::Memory));
        let spool = broken.start().await;
        let (kept, removed) =
            (put(spool.as_ref(), LARGE, true).await, put(spool.as_ref(), LARGE, true).await);
        broken.disk.inject(committing(Fault::on(call)).always().block());
        let store = begin(&spool, SpoolId::new(), 1, 100, Some(Duration::from_millis(50)));
        let error = wait::bounded("a synced store", store).await.unwrap().expect_err("the disk hangs");
        assert!(error.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{error:#}");
        wait::until("it hangs", || broken.disk.blocked() == 1).await;
        let unsynced = put(spool.as_ref(), 2000, false).await;
        assert_holds(spool.as_ref(), unsynced, 2000).await;
        assert_holds(spool.as_ref(), kept, LARGE).await;
        spool.remove(removed).await.expect("remove");
        assert_absent(spool.as_ref(), removed).await;
        let compaction = begin_compact(&spool);
        let error = shut_down_on_hanging_disk(&broken, &spool, &["tide-commit"]).await;
        assert!(error.contains("dirty bytes could not be written"), "{error}");
        assert_closed("compacting", compaction).await;
        drop(spool);
        broken.disk.heal();
        let spool = broken.start().await;
        assert_eq!(spool.recovery().damage, []);
        assert_holds(spool.as_ref(), kept, LARGE).await;
        stop(spool).await;
    }
}
