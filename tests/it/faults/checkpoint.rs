//! A checkpoint fails or does not end.

use tidespool::TieredSpool;
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE, is_thread};
use crate::setup::{KIB, assert_holds, enumerate, healthy, put, stop};

/// Any call of the manifest fails, in either write of a checkpoint and in the file that replaces
/// it. The checkpoint is repeated, and nothing is lost, even if the process dies first.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_of_the_manifest_loses_nothing() {
    let in_manifest = |fault: Fault| {
        fault.only(|moment| {
            is_thread("tide-checkpoint")
                && (moment.name.starts_with("manifest") || moment.call == Call::SyncDir)
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
                // Some checkpointed messages are removed, and a new one is stored.
                for (id, _) in stored.drain(..6) {
                    spool.remove(id).await.expect("remove");
                }
                stored.push((put(spool.as_ref(), LARGE, true).await, LARGE));
                // Twice, since the removals may have made the thread rewrite a segment before the
                // compaction.
                broken.disk.inject(in_manifest(Fault::on(call)).nth(nth));
                broken.disk.inject(in_manifest(Fault::on(call)).nth(nth + 1));
                spool.compact().await.expect_err(&what);
                if let Some(then) = then {
                    broken.disk.inject(in_manifest(Fault::on(then)).always());
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

/// Segments that a failed checkpoint should have reclaimed are reclaimed by the next one.
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

/// Stores 24 messages, every other one large.
async fn store_large_and_small(spool: &TieredSpool) -> Vec<(SpoolId, usize)> {
    let mut stored = Vec::new();
    for n in 0..24 {
        let len = if n % 2 == 0 { LARGE } else { 700 };
        stored.push((put(spool, len, true).await, len));
    }
    stored
}

/// Lets sled be changed, and makes a sync fail permanently before the manifest includes the change.
fn fail_checkpoints(broken: &Broken, name: &'static str) {
    let fault = Fault::on(Call::Sync);
    let fault = fault.only(move |m| is_thread("tide-checkpoint") && m.name.starts_with(name));
    broken.disk.inject(fault.always());
}

/// An incomplete checkpoint leaves records in sled that the manifest does not count as
/// checkpointed. The opening after the second crash took the manifest for an older one, and did not
/// replay the segment that was checkpointed in part.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_crash_after_an_incomplete_checkpoint_loses_nothing() {
    for name in ["liveness.", "manifest"] {
        let broken = Broken::new(|config| config.checkpoint_after(HOUR));
        let spool = broken.start().await;
        let stored = store_large_and_small(&spool).await;
        fail_checkpoints(&broken, name);
        spool.compact().await.expect_err(name);
        drop(spool);
        broken.disk.heal();
        for round in ["first", "second", "third"] {
            let spool = broken.start().await;
            assert_eq!(spool.recovery().damage, [], "the {round} time after a failure of {name}");
            for &(id, len) in &stored {
                assert_holds(spool.as_ref(), id, len).await;
            }
            // A drop without shutdown acts like a crash.
            drop(spool);
        }
        broken.assert_reopens_with(&stored).await;
    }
}

/// Without a manifest, no file states which segments are checkpointed. A segment that was
/// checkpointed in part counted as checkpointed, and the rest of its messages was missing.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_manifest_an_incomplete_checkpoint_loses_nothing() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let stored = store_large_and_small(&spool).await;
    fail_checkpoints(&broken, "liveness.");
    spool.compact().await.expect_err("the liveness log can't be synced");
    drop(spool);
    broken.disk.heal();
    std::fs::remove_file(broken.tiered.path().join("manifest")).unwrap();
    let spool = broken.start().await;
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    assert_eq!(enumerate(spool.as_ref()).await.len(), stored.len());
    assert_ne!(spool.recovery().damage, [], "the manifest is missing");
    // A drop without shutdown acts like a crash.
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// Journal records may be newer than the incomplete checkpoint: messages it indexed are removed
/// since, and messages it removed are stored again. Neither is damage.
#[tokio::test(flavor = "multi_thread")]
async fn changes_after_an_incomplete_checkpoint_are_not_damage() {
    let broken = Broken::new(|config| {
        // A high limit keeps the gate out of this test.
        let health = config.health.clone().disk_errors(1_000);
        config.health(health).checkpoint_after(HOUR)
    });
    let spool = broken.start().await;
    let again = put(spool.as_ref(), 700, true).await;
    spool.compact().await.expect("compact");
    spool.remove(again).await.expect("remove");
    let mut indexed = Vec::new();
    for _ in 0..3 {
        indexed.push(put(spool.as_ref(), 700, true).await);
    }
    fail_checkpoints(&broken, "liveness.");
    spool.compact().await.expect_err("the liveness log can't be synced");
    for id in indexed {
        spool.remove(id).await.expect("remove");
    }
    spool.store(again, payload::shared(again, 1, 700), true, None).await.expect("store");
    wait::until("everything is durable", || spool.stats().gauges.dirty_entries == 0).await;
    drop(spool);
    broken.assert_reopens_with(&[(again, 700)]).await;
}
