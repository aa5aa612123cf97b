//! A checkpoint fails, or does not end.

use tidespool::TieredSpool;
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE, is_thread};
use crate::setup::{KIB, assert_holds, enumerate, healthy, put, stop};

/// Whichever call of writing the ledger fails, in whichever of a checkpoint's two writes, and in the file that then takes its place: the
/// checkpoint is made again, and nothing is lost, not even if the process dies before.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_cannot_be_written_costs_nothing() {
    let is_ledgers = |fault: Fault| {
        fault.only(|moment| {
            is_thread("tidespool-filer")
                && (moment.name.starts_with("ledger") || moment.call == Call::SyncDir)
        })
    };
    for (call, nth) in [(Call::Write, 1), (Call::Write, 2), (Call::Sync, 1), (Call::Sync, 2)] {
        for then in [None, Some(Call::Create), Some(Call::Sync), Some(Call::Rename), Some(Call::SyncDir)] {
            for dies in [false, true] {
                let what = format!("{call:?} {nth}, then {then:?}, dies: {dies}");
                let broken = Broken::new(|config| config.checkpoint_after(HOUR));
                let spool = broken.start().await;
                let mut stored = Vec::new();
                for n in 0..12 {
                    let len = if n % 2 == 0 { LARGE } else { 900 };
                    stored.push((put(spool.as_ref(), len, true).await, len));
                }
                spool.compact().await.expect("compact");
                // Of the filed ones some go, and some come.
                for (id, _) in stored.drain(..6) {
                    spool.remove(id).await.expect("remove");
                }
                stored.push((put(spool.as_ref(), LARGE, true).await, LARGE));
                // Twice: what was removed may have made the thread rewrite a segment before it is asked for anything.
                broken.disk.inject(is_ledgers(Fault::on(call)).nth(nth));
                broken.disk.inject(is_ledgers(Fault::on(call)).nth(nth + 1));
                spool.compact().await.expect_err(&what);
                if let Some(then) = then {
                    broken.disk.inject(is_ledgers(Fault::on(then)).always());
                    spool.compact().await.expect_err(&what);
                }
                for &(id, len) in &stored {
                    assert_holds(spool.as_ref(), id, len).await;
                }
                if !dies {
                    broken.disk.heal();
                    spool.compact().await.expect(&what);
                    healthy(spool.as_ref()).await;
                    stored.push((put(spool.as_ref(), 900, true).await, 900));
                    for (id, _) in stored.drain(..2) {
                        spool.remove(id).await.expect("remove");
                    }
                    spool.compact().await.expect(&what);
                }
                drop(spool);
                broken.assert_reopens_with(&stored).await;
            }
        }
    }
}

/// Segments that a failed checkpoint was to give back are given back by the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_checkpoint_leaks_no_segments() {
    for nth in 1..=6 {
        let broken = Broken::new(|config| config.checkpoint_after(HOUR).segment_size(64 * KIB));
        let spool = broken.start().await;
        let mut stored = Vec::new();
        for _ in 0..12 {
            stored.push(put(spool.as_ref(), LARGE, true).await);
        }
        spool.compact().await.expect("compact");
        assert!(spool.stats().gauges.journal_segments_retained >= 4);
        for (n, id) in stored.iter().enumerate() {
            if n % 3 != 0 {
                spool.remove(*id).await.expect("remove");
            }
        }
        broken.disk.inject(Fault::on(Call::Rename).nth(nth));
        let _ = spool.compact().await;
        broken.disk.heal();
        spool.compact().await.expect("compact");
        for id in stored.iter().step_by(3) {
            assert_holds(spool.as_ref(), *id, LARGE).await;
            spool.remove(*id).await.expect("remove");
        }
        spool.compact().await.expect("compact");
        let gauges = spool.stats().gauges;
        assert_eq!(gauges.journal_segments_retained, 0, "failure {nth}: {gauges:?}");
        stop(spool).await;
        broken.assert_reopens_with(&[]).await;
    }
}

/// 24 messages, every other one large.
async fn store_large_and_small(spool: &TieredSpool) -> Vec<(SpoolId, usize)> {
    let mut stored = Vec::new();
    for n in 0..24 {
        let len = if n % 2 == 0 { LARGE } else { 700 };
        stored.push((put(spool, len, true).await, len));
    }
    stored
}

/// sled is changed, and a sync fails for good before the ledger counts the change.
fn no_checkpoint_ends(broken: &Broken, name: &'static str) {
    let fault = Fault::on(Call::Sync);
    let fault = fault.only(move |m| is_thread("tidespool-filer") && m.name.starts_with(name));
    broken.disk.inject(fault.always());
}

/// A checkpoint that did not end leaves records in sled that the ledger does not count as filed.
/// The opening after the second crash once took the ledger for one of an earlier time, and did not
/// replay the segment that was filed in part.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_crash_after_a_checkpoint_that_did_not_end_costs_nothing() {
    for name in ["liveness.", "ledger"] {
        let broken = Broken::new(|config| config.checkpoint_after(HOUR));
        let spool = broken.start().await;
        let stored = store_large_and_small(&spool).await;
        no_checkpoint_ends(&broken, name);
        spool.compact().await.expect_err(name);
        drop(spool);
        broken.disk.heal();
        for round in ["first", "second", "third"] {
            let spool = broken.start().await;
            assert_eq!(spool.recovery().damage, [], "the {round} time after a failure of {name}");
            for &(id, len) in &stored {
                assert_holds(spool.as_ref(), id, len).await;
            }
            // Like a crash.
            drop(spool);
        }
        broken.assert_reopens_with(&stored).await;
    }
}

/// Without a ledger no file states which segments are filed. A segment that a checkpoint had filed
/// in part once counted as filed altogether, and the rest of its messages was missing.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_ledger_a_checkpoint_that_did_not_end_costs_nothing() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let stored = store_large_and_small(&spool).await;
    no_checkpoint_ends(&broken, "liveness.");
    spool.compact().await.expect_err("the log of what lives can't be synced");
    drop(spool);
    broken.disk.heal();
    std::fs::remove_file(broken.tiered.path().join("ledger")).unwrap();
    let spool = broken.start().await;
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    assert_eq!(enumerate(spool.as_ref()).await.len(), stored.len());
    assert_ne!(spool.recovery().damage, [], "the ledger is missing");
    // Like a crash.
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// What the journal says of an id may have come after the checkpoint that did not end: what that had filed is removed since, and what it had removed is
/// there again. Neither is damage.
#[tokio::test(flavor = "multi_thread")]
async fn changes_after_a_checkpoint_that_did_not_end_are_no_damage() {
    let broken = Broken::new(|config| {
        // This test is about the disk, not about the gate.
        let health = config.health.clone().sled_errors(1_000);
        config.health(health).checkpoint_after(HOUR)
    });
    let spool = broken.start().await;
    let again = put(spool.as_ref(), 700, true).await;
    spool.compact().await.expect("compact");
    spool.remove(again).await.expect("remove");
    let mut filed = Vec::new();
    for _ in 0..3 {
        filed.push(put(spool.as_ref(), 700, true).await);
    }
    no_checkpoint_ends(&broken, "liveness.");
    spool.compact().await.expect_err("the log of what lives can't be synced");
    for id in filed {
        spool.remove(id).await.expect("remove");
    }
    spool.store(again, payload::shared(again, 1, 700), true, None).await.expect("store");
    wait::until("all of it is durable", || spool.stats().gauges.dirty_entries == 0).await;
    drop(spool);
    broken.assert_reopens_with(&[(again, 700)]).await;
}
