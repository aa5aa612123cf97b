//! A shutdown on a disk that hangs: it has a bound, its error tells who hangs and nobody else, and whoever waits is let go.

use std::sync::Arc;
use std::time::Duration;

use tidespool::{Config, Durability, TieredSpool};
use tidespool_core::{Closed, Locked, Spool, SpoolCallerDeadlineExceeded, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinHandle;

use crate::broken::{Broken, HOUR, LARGE, begin, begin_compact, committing, is_thread};
use crate::setup::{assert_absent, assert_holds, enumerate, put, stop};

/// Nothing is filed unless somebody asks, and no thread that hangs is waited for long.
fn impatient(config: Config) -> Config {
    config.checkpoint_after(HOUR).shutdown_timeout(Duration::from_millis(400))
}

/// Shuts down, which must not take for ever, and fail. Exactly `hanging` are said to hang, the directory stays locked, and the error is returned.
async fn give_up(broken: &Broken, spool: &TieredSpool, hanging: &[&str]) -> String {
    let error = wait::bounded("the shutdown", spool.shutdown()).await.expect_err("the disk hangs");
    let error = format!("{error:#}");
    for thread in hanging {
        assert!(error.contains(&format!("{thread} hangs")), "{thread}: {error}");
    }
    assert_eq!(error.matches("hangs").count(), hanging.len(), "{error}");
    let again = TieredSpool::open_on(broken.tiered.config.clone(), broken.disk.storage()).await;
    let refused = again.expect_err("somebody may still write there");
    assert!(refused.root_cause().is::<Locked>(), "{refused:#}");
    error
}

fn load(spool: &Arc<TieredSpool>, id: SpoolId) -> JoinHandle<anyhow::Result<Vec<u8>>> {
    let spool = spool.clone();
    tokio::spawn(async move { spool.load(id).await })
}

async fn assert_let_go<T: std::fmt::Debug>(what: &str, caller: JoinHandle<anyhow::Result<T>>) {
    let error = wait::bounded(what, caller).await.unwrap().expect_err("the disk hangs");
    assert!(error.root_cause().is::<Closed>(), "{what}: {error:#}");
}

/// Messages that only the disk has.
async fn cold(spool: &TieredSpool, count: usize) -> Vec<(SpoolId, usize)> {
    let mut stored = Vec::new();
    for _ in 0..count {
        stored.push((put(spool, LARGE, true).await, LARGE));
    }
    spool.compact().await.expect("compact");
    spool.advise_low_memory().await.expect("advise_low_memory");
    stored
}

/// The shutdown's own writes, the last ledger and the one with the fingerprint, were made by whoever called it: with nothing dirty and no thread at
/// work it hung for as long as the disk did.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_ledger_is_not_waited_for_longer_than_anything_else() {
    for nth in [1, 2] {
        let broken = Broken::new(impatient);
        let spool = broken.start().await;
        let stored = [(put(spool.as_ref(), LARGE, true).await, LARGE)];
        broken.disk.inject(Fault::on(Call::Sync).only(|m| m.name.starts_with("ledger")).nth(nth).block());
        let error = give_up(&broken, &spool, &["tidespool-ledger"]).await;
        assert!(error.contains("the ledger is not"), "{error}");
        assert_eq!(broken.disk.blocked(), 1);
        drop(spool);
        broken.assert_reopens_with(&stored).await;
    }
}

/// Loads that waited behind a read that hangs waited on after the shutdown had given up, for as long as the disk hung. What the threads write at the
/// end is written all the same: a reader changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn loads_behind_a_read_that_hangs_end_with_the_spool() {
    let broken = Broken::new(|config| impatient(config).read_threads(1));
    let spool = broken.start().await;
    let stored = cold(&spool, 4).await;
    broken.disk.inject(Fault::on(Call::Read).file(".seg").always().block());
    let loads: Vec<_> = stored.iter().map(|(id, _)| load(&spool, *id)).collect();
    wait::until("a read hangs", || broken.disk.blocked() == 1).await;
    give_up(&broken, &spool, &["tidespool-read-0"]).await;
    for load in loads {
        assert_let_go("a load", load).await;
    }
    drop(spool);
    broken.disk.heal();
    let spool = broken.start().await;
    assert!(!spool.recovery().rebuilds_index, "the fingerprint was left out");
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// A load that is being read when an orderly shutdown begins gets its message.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_ends_in_time_is_not_cut_off() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).read_threads(1));
    let spool = broken.start().await;
    let stored = cold(&spool, 1).await;
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
    wait::bounded("the shutdown", shutdown).await.unwrap().expect("nothing hangs any more");
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// An enumeration that hung in a read ate the time of all: idle threads were said to hang, and what is written last was not.
#[tokio::test(flavor = "multi_thread")]
async fn an_enumeration_that_hangs_takes_nobody_elses_time() {
    let broken = Broken::new(impatient);
    let spool = broken.start().await;
    let stored = cold(&spool, 4).await;
    let reads = Fault::on(Call::Read).only(|m| is_thread("tidespool-enum") && m.name.ends_with(".seg"));
    broken.disk.inject(reads.always().block());
    let enumeration = {
        let spool = spool.clone();
        tokio::spawn(async move { enumerate(spool.as_ref()).await })
    };
    wait::until("the enumeration hangs", || broken.disk.blocked() == 1).await;
    give_up(&broken, &spool, &["tidespool-enum"]).await;
    drop(spool);
    broken.disk.heal();
    wait::bounded("the enumeration", enumeration).await.unwrap();
    let spool = broken.start().await;
    assert!(!spool.recovery().rebuilds_index, "the fingerprint was left out");
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// Whoever asked for a checkpoint waited, after the shutdown had given up on the thread that makes it, for as long as the disk hung.
#[tokio::test(flavor = "multi_thread")]
async fn cleaning_up_ends_with_the_spool() {
    let broken = Broken::new(impatient);
    let spool = broken.start().await;
    let stored = [(put(spool.as_ref(), LARGE, true).await, LARGE)];
    let ledger = |fault: Fault| fault.only(|m| is_thread("tidespool-filer") && m.name.starts_with("ledger"));
    broken.disk.inject(ledger(Fault::on(Call::Sync)).always().block());
    let compaction = begin_compact(&spool);
    wait::until("the checkpoint hangs", || broken.disk.blocked() == 1).await;
    let cleanup = {
        let spool = spool.clone();
        tokio::spawn(async move { spool.cleanup().await })
    };
    give_up(&broken, &spool, &["tidespool-filer"]).await;
    assert_let_go("compacting", compaction).await;
    assert_let_go("cleaning up", cleanup).await;
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// A shutdown waited a minute for sled, however short its own time was: here sled's last sync
/// hangs.
#[tokio::test(flavor = "multi_thread")]
async fn sled_is_not_waited_for_longer_than_anything_else() {
    let broken = Broken::new(impatient);
    let spool = broken.start().await;
    let stored = [(put(spool.as_ref(), LARGE, true).await, LARGE)];
    spool.compact().await.expect("compact");
    broken.disk.inject(Fault::on(Call::Sync).file("db").always().block());
    let error = give_up(&broken, &spool, &["tidespool-ledger"]).await;
    assert!(error.contains("the ledger is not"), "{error}");
    assert_eq!(broken.disk.blocked(), 1);
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// The lock that an opening of sled holds was waited for without end: here one after an error hangs. What it opens after all is closed again, and the
/// directory is free, though the spool is still held by somebody.
#[tokio::test(flavor = "multi_thread")]
async fn an_opening_of_sled_that_hangs_is_not_waited_for() {
    let broken = Broken::new(impatient);
    let spool = broken.start().await;
    let stored = [(put(spool.as_ref(), LARGE, true).await, LARGE)];
    broken.disk.inject(Fault::on(Call::Open).file("db").always().block());
    broken.disk.inject(Fault::on(Call::Sync).only(|m| m.name.starts_with("liveness.")));
    spool.compact().await.expect_err("sled is ahead of the ledger, and is thrown away");
    wait::until("the opening hangs", || broken.disk.blocked() == 1).await;
    let error = give_up(&broken, &spool, &["tidespool-filer"]).await;
    assert!(!error.contains("sled"), "sled itself was not begun yet: {error}");
    broken.assert_reopens_with(&stored).await;
    drop(spool);
}

/// The journal's disk hangs, in a write or in a sync: no store waits longer than its deadline, memory goes on working, and only the thread that is at
/// it is said to hang. The directory stays locked until the hanging call has returned.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_hangs_hangs_nobody() {
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
        let error = give_up(&broken, &spool, &["tidespool-commit"]).await;
        assert!(error.contains("dirty bytes could not be written"), "{error}");
        assert_let_go("compacting", compaction).await;
        drop(spool);
        broken.disk.heal();
        let spool = broken.start().await;
        assert_eq!(spool.recovery().damage, []);
        assert_holds(spool.as_ref(), kept, LARGE).await;
        stop(spool).await;
    }
}
