//! Writes of the journal fail.

use std::time::Duration;

use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE, begin, committing};
use crate::setup::{KIB, MIB, assert_absent, assert_holds, enumerate, healthy, put, stop};

/// A single failure while writing the journal is repaired without further calls. The message is
/// stored, and present after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_once_in_writing_the_journal_is_made_good() {
    let faults = [
        Fault::on(Call::Sync),
        Fault::on(Call::Write),
        Fault::on(Call::Write).full_disk(),
        Fault::on(Call::Write).torn(5000),
        Fault::on(Call::Write).short(700),
    ];
    for fault in faults {
        let is_error = !format!("{fault:?}").contains("Short");
        let broken = Broken::new(|config| config.dirty_expire(HOUR).checkpoint_after(HOUR));
        let spool = broken.start().await;
        let before = put(spool.as_ref(), LARGE, true).await;
        broken.disk.inject(committing(fault.clone()));
        let id = SpoolId::new();
        let store = spool.store(id, payload::shared(id, 1, LARGE), true, None);
        wait::bounded("a store beside a fault", store)
            .await
            .unwrap_or_else(|err| panic!("{fault:?}: {err:#}"));
        if is_error {
            wait::until("the error is counted", || spool.stats().disk_errors() > 0).await;
        }
        healthy(spool.as_ref()).await;
        let after = put(spool.as_ref(), 100, true).await;
        assert_eq!(broken.disk.trusted_again(), [""; 0], "{fault:?}");
        // A drop without shutdown acts like a crash.
        drop(spool);
        broken.assert_reopens_with(&[(before, LARGE), (id, LARGE), (after, 100)]).await;
    }
}

/// Syncs fail for a while. No store returns `Ok` before one succeeds. A store that times out leaves
/// no message.
#[tokio::test(flavor = "multi_thread")]
async fn while_syncs_fail_stores_wait_or_leave_no_message() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let (replaced, removed) = (put(spool.as_ref(), 3000, true).await, put(spool.as_ref(), 3000, true).await);
    let kept = put(spool.as_ref(), LARGE, true).await;
    // The first commit hangs until all the stores below are queued. It succeeds, and all later ones
    // fail.
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    broken.disk.inject(committing(Fault::on(Call::Sync)).always());
    let first = SpoolId::new();
    let first_store = begin(&spool, first, 1, 500, None);
    wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
    let soon = Some(Duration::from_millis(300));
    let (late, patient) = (SpoolId::new(), SpoolId::new());
    let gave_up = [begin(&spool, late, 1, 700, soon), begin(&spool, replaced, 2, 700, soon)];
    let waits = begin(&spool, patient, 1, 900, None);
    tokio::task::yield_now().await;
    broken.disk.release();
    wait::bounded("the first store", first_store).await.unwrap().expect("it was synced");

    for store in gave_up {
        let err =
            wait::bounded("a store with a deadline", store).await.unwrap().expect_err("nothing was synced");
        assert!(err.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{err:#}");
    }
    wait::until("the spool is unhealthy", || spool.unhealthy_reason().is_some()).await;
    assert!(!waits.is_finished());
    // Calls that need no sync continue.
    assert_absent(spool.as_ref(), late).await;
    assert_holds(spool.as_ref(), replaced, 3000).await;
    assert_holds(spool.as_ref(), kept, LARGE).await;
    spool.remove(removed).await.expect("remove");
    assert_absent(spool.as_ref(), removed).await;
    assert_eq!(enumerate(spool.as_ref()).await.len(), 3);

    broken.disk.heal();
    wait::bounded("the patient store", waits).await.unwrap().expect("the disk works again");
    healthy(spool.as_ref()).await;
    assert_absent(spool.as_ref(), late).await;
    assert_holds(spool.as_ref(), replaced, 3000).await;
    assert_eq!(broken.disk.trusted_again(), [""; 0]);
    stop(spool).await;
    broken.assert_reopens_with(&[(first, 500), (patient, 900), (replaced, 3000), (kept, LARGE)]).await;
}

/// The result of an `Err` becomes durable as soon as a dirty message would, without further calls:
/// the abort is synced too.
#[tokio::test(flavor = "multi_thread")]
async fn the_abort_of_a_late_store_is_synced_by_itself() {
    // Nothing else is due for an hour, so any sync is for the abort.
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).dirty_expire(HOUR));
    let spool = broken.start().await;
    let kept = put(spool.as_ref(), 700, true).await;
    wait::until("segments are ready", || spool.stats().gauges.journal_segments_free == 2).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    let before = broken.disk.count(Call::Sync);
    let id = SpoolId::new();
    let store = begin(&spool, id, 1, 700, Some(Duration::from_millis(100)));
    wait::bounded("the store", store).await.unwrap().expect_err("the disk hangs");
    broken.disk.heal();
    wait::until("the store is aborted", || spool.stats().aborts > 0).await;
    wait::until("the abort is synced", || broken.disk.count(Call::Sync) >= before + 2).await;
    assert_absent(spool.as_ref(), id).await;
    drop(spool);
    broken.assert_reopens_with(&[(kept, 700)]).await;
}

/// A failed commit is retried while older versions of the same messages become due. They must not
/// be written after it. They were, and the older version replaced an acknowledged store
/// permanently.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_is_never_written_after_a_retried_commit() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let (stored, removed) = (SpoolId::new(), put(spool.as_ref(), 300, true).await);
    spool.store(stored, payload::shared(stored, 1, 300), false, None).await.expect("store");
    spool.remove(removed).await.expect("remove");
    broken.disk.inject(committing(Fault::on(Call::Sync)).always());
    let before = broken.disk.count(Call::Sync);
    let stores = [begin(&spool, stored, 2, 300, None), begin(&spool, removed, 2, 300, None)];
    // After these retries the older versions are due as well.
    wait::until("the sync was retried", || broken.disk.count(Call::Sync) > before + 4).await;
    broken.disk.heal();
    for store in stores {
        wait::bounded("the store", store).await.unwrap().expect("it is acknowledged");
    }
    for id in [stored, removed] {
        payload::assert_is(id, 2, 300, &spool.load(id).await.expect("load"));
    }
    drop(spool);
    let spool = broken.start().await;
    for id in [stored, removed] {
        payload::assert_is(id, 2, 300, &spool.load(id).await.expect("load after a crash"));
    }
    stop(spool).await;
}

/// A journal hardly larger than the dirty bytes survives syncs that fail for a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_journal_survives_failing_syncs() {
    let broken = Broken::new(|config| {
        config
            .segment_size(64 * KIB)
            .journal_capacity(256 * KIB)
            .dirty_limit(MIB)
            .checkpoint_after(Duration::ZERO)
    });
    let spool = broken.start().await;
    let mut stored = vec![(put(spool.as_ref(), 3000, true).await, 3000)];
    for round in 0..3 {
        // A third of the syncs fail.
        for nth in 1..=4 {
            broken.disk.inject(committing(Fault::on(Call::Sync)).nth(nth * 3 - round));
        }
        let mut stores = Vec::new();
        healthy(spool.as_ref()).await;
        for n in 0..40 {
            let (id, len) = (SpoolId::new(), 9000 + n);
            stores.push((id, len, begin(&spool, id, 1, len, None)));
        }
        for (id, len, store) in stores {
            match wait::bounded("a store", store).await.unwrap() {
                Ok(()) => stored.push((id, len)),
                Err(err) => assert!(err.root_cause().is::<tidespool_core::SpoolUnhealthyError>(), "{err:#}"),
            }
        }
        broken.disk.heal();
    }
    assert!(stored.len() > 10, "{}", stored.len());
    assert_eq!(broken.disk.trusted_again(), [""; 0]);
    healthy(spool.as_ref()).await;
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// A disk that fails to write the file of a message larger than a segment is broken, not full. The
/// gate stayed open, and only the store was rejected.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_of_a_large_messages_file_shuts_the_gate() {
    for call in [Call::Write, Call::Sync] {
        // Without unlatching, the test cannot miss the shut gate.
        let broken = Broken::new(|config| {
            let health = config.health.clone().hard_unlatch_after(HOUR);
            config.health(health).checkpoint_after(HOUR)
        });
        let spool = broken.start().await;
        let kept = put(spool.as_ref(), 300, true).await;
        broken.disk.inject(committing(Fault::on(call)));
        let large = SpoolId::new();
        let store = spool.store(large, payload::shared(large, 1, 1_000_000), true, None);
        let err = wait::bounded("the large message", store).await.expect_err("the disk fails");
        assert!(err.root_cause().is::<SpoolBackpressureTimeout>(), "{err:#}");
        wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
        assert_absent(spool.as_ref(), large).await;
        drop(spool);
        broken.assert_reopens_with(&[(kept, 300)]).await;
    }
}
