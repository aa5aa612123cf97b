use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidespool::{BacklogRefusal, Config, Durability, HealthCause, HealthConfig, HealthSignal, TieredSpool};
use tidespool_core::{Closed, NotFound, Spool, SpoolCallerDeadlineExceeded, SpoolId, SpoolUnhealthyError};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinHandle;

use crate::broken::{Broken, HOUR, LARGE, NEARLY_A_MIB, begin, begin_compact, committing, is_thread, queue};
use crate::setup::{MIB, Tiered, assert_absent, assert_holds, enumerate, healthy, put, stop};

const BROKEN: &str = "the spool is not accepting writes";
const BACKLOG: &str = "the spool is catching up";

fn health(config: Config, adjust: impl FnOnce(HealthConfig) -> HealthConfig) -> Config {
    let health = adjust(config.health.clone());
    config.health(health)
}

async fn shut_for(spool: &TieredSpool, signal: HealthSignal) {
    wait::until("the gate is shut", || spool.stats().gauges.unhealthy == Some(signal)).await;
}

async fn assert_refused(spool: &TieredSpool, force_sync: bool) {
    let id = SpoolId::new();
    let refused = spool.store(id, payload::shared(id, 1, 100), force_sync, None).await;
    let error = refused.expect_err("the gate is shut");
    assert!(error.root_cause().is::<SpoolUnhealthyError>(), "{error:#}");
    assert_absent(spool, id).await;
}

/// One failed sync shuts the gate. A receiver of health changes is notified, also when the gate
/// opens.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_error_notifies_receivers_of_health_changes() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let mut changes = spool.health_changes();
    assert_eq!(*changes.borrow_and_update(), None);
    broken.disk.inject(committing(Fault::on(Call::Sync)));
    let id = put(spool.as_ref(), LARGE, true).await;
    wait::bounded("the gate shuts", changes.changed()).await.unwrap();
    // The gate may have opened already: the test may be slow.
    wait::bounded("the gate opens", async {
        while changes.borrow_and_update().is_some() {
            changes.changed().await.unwrap();
        }
    })
    .await;
    assert_eq!(spool.unhealthy_reason(), None);
    assert_holds(spool.as_ref(), id, LARGE).await;
    stop(spool).await;
    wait::bounded("the end", async { while changes.changed().await.is_ok() {} }).await;
    broken.assert_reopens_with(&[(id, LARGE)]).await;
}

/// The gate opens only after a file was written, synced and read back through the same storage.
#[tokio::test(flavor = "multi_thread")]
async fn the_gate_stays_shut_while_the_probe_fails() {
    for call in [Call::Create, Call::Write, Call::Sync, Call::Read, Call::Remove] {
        let broken = Broken::new(|config| config.checkpoint_after(HOUR));
        let spool = broken.start().await;
        broken.disk.inject(Fault::on(call).file("probe").always());
        broken.disk.inject(committing(Fault::on(Call::Sync)));
        let probes = || broken.disk.count_where(call, |name| name == "probe");
        put(spool.as_ref(), LARGE, true).await;
        wait::until("the disk was probed three times", || probes() >= 3).await;
        assert_eq!(spool.unhealthy_reason(), Some(BROKEN), "{call:?}");
        assert_refused(spool.as_ref(), false).await;
        broken.disk.heal();
        healthy(spool.as_ref()).await;
        stop(spool).await;
        assert!(!broken.tiered.path().join("probe").exists());
    }
}

/// A backlog alone can be configured to reject synced stores only. A more serious signal rejects
/// all.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_rejects_the_configured_stores() {
    for refusal in [BacklogRefusal::All, BacklogRefusal::Synced] {
        let broken = Broken::new(|config| {
            let config = config.checkpoint_after(HOUR).dirty_limit(MIB);
            health(config, |health| {
                health.backlog_latch_after(Duration::ZERO).dirty_age(HOUR).backlog_refusal(refusal)
            })
        });
        let spool = broken.start().await;
        // The first sync hangs, and all after it fail.
        broken.disk.inject(committing(Fault::on(Call::Sync)).block());
        broken.disk.inject(committing(Fault::on(Call::Sync)).always());
        put(spool.as_ref(), 100, false).await;
        wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
        for len in NEARLY_A_MIB {
            put(spool.as_ref(), len, false).await;
        }
        shut_for(&spool, HealthSignal::DirtyBytes).await;
        assert_eq!(spool.unhealthy_reason(), Some(BACKLOG));
        assert_refused(&spool, true).await;
        if refusal == BacklogRefusal::All {
            assert_refused(&spool, false).await;
        } else {
            let id = put(spool.as_ref(), 100, false).await;
            assert_holds(spool.as_ref(), id, 100).await;
        }
        broken.disk.release();
        wait::until("the gate reports the more serious signal", || spool.unhealthy_reason() == Some(BROKEN))
            .await;
        assert_refused(&spool, false).await;
        broken.disk.heal();
        healthy(spool.as_ref()).await;
        stop(spool).await;
    }
}

/// A cause that is not reported refuses stores, those that wait as well, and gives no reason. It is
/// reported from the moment on at which the setting lists it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cause_that_is_not_reported_refuses_stores_without_a_reason() {
    let reported = |config, causes| health(config, |health| health.reported_causes(causes));
    let broken = Broken::new(|config| {
        let config = config.checkpoint_after(HOUR).dirty_limit(MIB).store_deadline(HOUR);
        let config = health(config, |health| health.backlog_latch_after(Duration::ZERO).dirty_age(HOUR));
        reported(config, vec![HealthCause::Broken])
    });
    let spool = broken.start().await;
    let mut changes = spool.health_changes();
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    put(spool.as_ref(), 100, false).await;
    wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
    for len in NEARLY_A_MIB {
        put(spool.as_ref(), len, false).await;
    }
    let waits = begin(&spool, SpoolId::new(), 1, LARGE, None);
    let error = wait::bounded("the waiting store is refused", waits).await.unwrap().unwrap_err();
    assert!(error.root_cause().is::<SpoolUnhealthyError>(), "{error:#}");
    shut_for(&spool, HealthSignal::DirtyBytes).await;
    assert_eq!((spool.health_cause(), spool.unhealthy_reason()), (Some(HealthCause::Backlog), None));
    assert_refused(&spool, false).await;
    assert!(!changes.has_changed().unwrap());

    let config = Config::clone(&spool.config());
    spool.reconfigure(reported(config, vec![HealthCause::Broken, HealthCause::Backlog])).unwrap();
    assert_eq!(spool.unhealthy_reason(), Some(BACKLOG));
    assert_eq!(*changes.borrow_and_update(), Some(BACKLOG));
    broken.disk.release();
    healthy(spool.as_ref()).await;
    assert_eq!(spool.health_cause(), None);
    stop(spool).await;
}

/// With synced stores only, memory holds no dirty bytes. Stores that wait for the disk count as
/// backlog.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_sync_shuts_the_gate_and_blocks_no_caller() {
    let broken = Broken::new(|config| {
        let config = config.checkpoint_after(HOUR).shutdown_timeout(Duration::from_millis(400));
        health(config, |health| {
            health.dirty_age(Duration::from_millis(200)).backlog_latch_after(Duration::from_millis(50))
        })
    });
    let spool = broken.start().await;
    // On a busy machine, a store may complete so late that it shuts the gate for a moment.
    let kept = put_when_healthy(&spool, LARGE).await;
    let removed = put_when_healthy(&spool, LARGE).await;
    healthy(spool.as_ref()).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let patient = begin(&spool, SpoolId::new(), 1, 500, None);
    wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
    let stores = [100, 300].map(|ms| begin(&spool, SpoolId::new(), 1, 500, Some(Duration::from_millis(ms))));
    shut_for(&spool, HealthSignal::DirtyAge).await;
    for store in stores {
        let error =
            wait::bounded("a store with a deadline", store).await.unwrap().expect_err("the disk hangs");
        let root = error.root_cause();
        // The gate may have been shut before the store came.
        assert!(root.is::<SpoolCallerDeadlineExceeded>() || root.is::<SpoolUnhealthyError>(), "{error:#}");
    }
    assert!(!patient.is_finished());
    assert_refused(&spool, true).await;
    assert_holds(spool.as_ref(), kept, LARGE).await;
    spool.remove(removed).await.expect("remove");
    assert_absent(spool.as_ref(), removed).await;
    assert_eq!(wait::bounded("enumerating", enumerate(spool.as_ref())).await.len(), 1);
    let error = wait::bounded("the shutdown", spool.shutdown()).await.expect_err("the disk hangs");
    assert!(format!("{error:#}").contains("dirty bytes could not be written"), "{error:#}");
    patient.abort();
    let _ = patient.await;
    drop(spool);
    broken.disk.heal();
}

async fn put_when_healthy(spool: &TieredSpool, len: usize) -> SpoolId {
    let id = SpoolId::new();
    loop {
        healthy(spool).await;
        match spool.store(id, payload::shared(id, 1, len), true, None).await {
            Ok(()) => return id,
            Err(error) => assert!(error.root_cause().is::<SpoolUnhealthyError>(), "{error:#}"),
        }
    }
}

/// The disk hangs while the committer does work that no store waits for. Later stores wait for it,
/// and count as backlog.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_before_the_first_store_shuts_the_gate() {
    let hurried = |config: Config| {
        health(config.checkpoint_after(HOUR), |health| {
            health.dirty_age(Duration::from_millis(200)).backlog_latch_after(Duration::from_millis(50))
        })
    };
    // The mark that says that the last commit was durable, and the file of a message larger than a
    // segment.
    for (call, len) in [(Call::Write, 500), (Call::Create, 1_000_000)] {
        let broken = Broken::new(hurried);
        let spool = broken.start().await;
        let kept = put_when_healthy(&spool, LARGE).await;
        broken.disk.inject(committing(Fault::on(call)).block());
        healthy(spool.as_ref()).await;
        if call == Call::Write {
            wait::until("the mark is being written", || broken.disk.blocked() == 1).await;
        }
        let id = SpoolId::new();
        let store = begin(&spool, id, 1, len, None);
        shut_for(&spool, HealthSignal::DirtyAge).await;
        assert!(!store.is_finished());
        assert_refused(&spool, true).await;
        broken.disk.heal();
        wait::bounded("the store", store).await.unwrap().expect("the disk works again");
        healthy(spool.as_ref()).await;
        stop(spool).await;
        broken.assert_reopens_with(&[(kept, LARGE), (id, len)]).await;
    }
}

/// Stores that wait for space are rejected as soon as the gate shuts.
#[tokio::test(flavor = "multi_thread")]
async fn stores_that_wait_for_space_are_rejected_when_the_gate_shuts() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).dirty_limit(MIB));
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    let stores: Vec<_> = (0..60).map(|_| begin_in_memory(&spool, SpoolId::new(), 20_000)).collect();
    wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
    let finished = || stores.iter().filter(|store| store.is_finished()).count();
    wait::until("the space is used up", || spool.stats().gauges.dirty_bytes > MIB / 2).await;
    assert!(finished() < stores.len(), "there was space for all stores");
    let config = Config::clone(&spool.config());
    spool.reconfigure(health(config, |health| health.backlog_latch_after(Duration::ZERO))).unwrap();
    let mut rejected = 0;
    for store in stores {
        if let Err(error) = wait::bounded("a store", store).await.unwrap() {
            assert!(error.root_cause().is::<SpoolUnhealthyError>(), "{error:#}");
            rejected += 1;
        }
    }
    assert!(rejected > 0);
    assert_eq!(broken.disk.blocked(), 1, "a blocked call returned");
    broken.disk.heal();
    healthy(spool.as_ref()).await;
    stop(spool).await;
}

fn begin_in_memory(spool: &Arc<TieredSpool>, id: SpoolId, len: usize) -> JoinHandle<anyhow::Result<()>> {
    let spool = spool.clone();
    tokio::spawn(async move { spool.store(id, payload::shared(id, 1, len), false, None).await })
}

/// A sync fails while the committer hangs in a write. The gate shuts on the error, before the write
/// returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_shuts_the_gate_while_the_committer_hangs() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    wait::until("segments are ready", || spool.stats().gauges.journal_segments_free == 2).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    let first = SpoolId::new();
    let mut stores = vec![(first, begin(&spool, first, 1, 60_000, None))];
    wait::until("the first sync hangs", || broken.disk.blocked() == 1).await;
    // These form one batch for the syncer. Its sync fails once the committer hangs in the next
    // batch.
    for _ in 0..8 {
        let id = SpoolId::new();
        stores.push((id, queue(&spool, id, 1, 60_000).await));
    }
    let (begun, disk) = (Arc::new(AtomicBool::new(false)), broken.disk.clone());
    let (syncing, writing) = (begun.clone(), begun.clone());
    broken.disk.watch(move |moment| {
        if is_thread("tide-sync") && moment.call == Call::Sync {
            syncing.store(true, Ordering::SeqCst);
            while disk.blocked() == 0 {
                std::thread::yield_now();
            }
        }
    });
    broken.disk.inject(Fault::on(Call::Sync).only(|_| is_thread("tide-sync")));
    let is_next = move || is_thread("tide-commit") && writing.load(Ordering::SeqCst);
    broken.disk.inject(Fault::on(Call::Write).only(move |_| is_next()).block());
    broken.disk.release();
    wait::until("the syncer has begun", || begun.load(Ordering::SeqCst)).await;
    for _ in 0..8 {
        let id = SpoolId::new();
        stores.push((id, begin(&spool, id, 1, 60_000, None)));
    }
    shut_for(&spool, HealthSignal::JournalErrors).await;
    assert_eq!(broken.disk.blocked(), 1, "the committer hangs");
    broken.disk.unwatch();
    broken.disk.heal();
    let mut stored = Vec::new();
    for (id, store) in stores {
        match wait::bounded("a store", store).await.unwrap() {
            Ok(()) => stored.push((id, 60_000)),
            Err(error) => assert!(error.root_cause().is::<SpoolUnhealthyError>(), "{error:#}"),
        }
    }
    healthy(spool.as_ref()).await;
    assert_eq!(spool.stats().errors_journal_sync, 1, "counted once");
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// The rebuild of the index hangs. Loads that time out on the index are not counted as disk errors.
#[tokio::test(flavor = "multi_thread")]
async fn loads_without_the_index_are_not_disk_errors() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).read_wait(Duration::ZERO));
    let spool = broken.start().await;
    let id = put(spool.as_ref(), 700, true).await;
    spool.compact().await.expect("compact");
    // From here on, the message is only in the index.
    drop(spool);
    broken.disk.inject(Fault::on(Call::Open).file("db").always().block());
    let spool = broken.start().await;
    wait::until("the index is being opened", || broken.disk.blocked() == 1).await;
    let before = spool.stats().disk_errors();
    for _ in 0..50 {
        let error = spool.load(id).await.expect_err("the index is not available");
        assert!(error.root_cause().is::<std::io::Error>(), "{error:#}");
    }
    assert_eq!(spool.stats().disk_errors(), before);
    broken.disk.heal();
    wait::bounded("the index is rebuilt", async {
        while spool.load(id).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    stop(spool).await;
}

/// The recreation of the ballast hangs, so the checkpoint thread is stalled.
#[tokio::test(flavor = "multi_thread")]
async fn a_ballast_whose_recreation_hangs_shuts_the_gate() {
    let broken = Broken::new(|config| {
        let config = config.checkpoint_after(HOUR).ballast(MIB);
        health(config, |health| health.checkpoint_stall(Duration::from_secs(1)))
    });
    let spool = broken.start().await;
    let id = put(spool.as_ref(), LARGE, true).await;
    // The manifest finds a full disk once, and the ballast is released.
    broken.disk.inject(
        Fault::on(Call::Write).only(|m| is_thread("tide-checkpoint") && m.name == "manifest").full_disk(),
    );
    broken
        .disk
        .inject(Fault::on(Call::Sync).only(|m| is_thread("tide-checkpoint") && m.name == "ballast").block());
    let compacting = begin_compact(&spool);
    wait::until("the ballast hangs", || broken.disk.blocked() == 1).await;
    shut_for(&spool, HealthSignal::StalledCheckpoint).await;
    broken.disk.heal();
    let _ = wait::bounded("compacting", compacting).await.unwrap();
    healthy(spool.as_ref()).await;
    stop(spool).await;
    broken.assert_reopens_with(&[(id, LARGE)]).await;
}

/// The checkpoint thread hangs in the sync of the manifest: nothing fails, and nothing progresses.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_checkpoint_shuts_the_gate_until_it_continues() {
    let broken = Broken::new(|config| {
        let config = config.checkpoint_after(Duration::ZERO);
        health(config, |health| health.checkpoint_stall(Duration::from_secs(1)))
    });
    let spool = broken.start().await;
    let id = put(spool.as_ref(), LARGE, true).await;
    let in_manifest =
        |fault: Fault| fault.only(|moment| is_thread("tide-checkpoint") && moment.name == "manifest");
    broken.disk.inject(in_manifest(Fault::on(Call::Sync)).block());
    let compacting = begin_compact(&spool);
    shut_for(&spool, HealthSignal::StalledCheckpoint).await;
    assert_eq!(spool.unhealthy_reason(), Some(BROKEN));
    assert_holds(spool.as_ref(), id, LARGE).await;
    broken.disk.heal();
    wait::bounded("compacting", compacting).await.unwrap().expect("the disk works again");
    healthy(spool.as_ref()).await;
    stop(spool).await;
    broken.assert_reopens_with(&[(id, LARGE)]).await;
}

/// A thread that panicked is not restarted. The gate stays shut until the spool is reopened. Calls
/// that do not need the thread still work.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_thread_shuts_the_gate_permanently() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let id = put(spool.as_ref(), LARGE, true).await;
    broken.disk.watch(|moment| {
        let dies = is_thread("tide-checkpoint") && moment.name.starts_with("manifest");
        assert!(!dies, "a thread of the spool is made to panic");
    });
    spool.compact().await.expect_err("the checkpoint thread panics");
    broken.disk.unwatch();
    // A later call was queued for the dead thread, and its caller waited for ever.
    let cleanup =
        wait::bounded("cleaning up", spool.cleanup()).await.expect_err("the checkpoint thread is dead");
    assert!(!cleanup.root_cause().is::<Closed>(), "{cleanup:#}");
    wait::bounded("compacting", spool.compact()).await.expect_err("the checkpoint thread is dead");
    shut_for(&spool, HealthSignal::DeadWorker).await;
    assert_refused(&spool, true).await;
    assert_holds(spool.as_ref(), id, LARGE).await;
    spool.remove(id).await.expect("remove");
    assert_absent(spool.as_ref(), id).await;
    wait::bounded("the shutdown", spool.shutdown()).await.expect_err("a thread had panicked");
    drop(spool);
    broken.assert_reopens_with(&[]).await;
}

/// Failing reads shut the gate at the configured number. With a long unlatch time it does
/// not open.
#[tokio::test(flavor = "multi_thread")]
async fn failing_reads_shut_the_gate_which_can_be_set_to_stay_shut() {
    for unlatch_after in [Duration::from_millis(10), HOUR] {
        let broken = Broken::new(|config| {
            health(config.checkpoint_after(HOUR), |health| {
                health.disk_errors(2).hard_unlatch_after(unlatch_after)
            })
        });
        let spool = broken.start().await;
        let id = put(spool.as_ref(), LARGE, true).await;
        drop(spool);
        // A reopened spool has an empty cache.
        let spool = broken.start().await;
        broken.disk.inject(Fault::on(Call::Read).file(".seg").nth(1));
        broken.disk.inject(Fault::on(Call::Read).file(".seg").nth(2));
        for _ in 0..2 {
            assert_eq!(spool.unhealthy_reason(), None);
            let error = spool.load(id).await.expect_err("the disk fails");
            assert!(!error.root_cause().is::<NotFound>(), "{error:#}");
        }
        if unlatch_after < HOUR {
            wait::until("the gate was shut", || spool.stats().disk_errors() == 2).await;
            healthy(spool.as_ref()).await;
        } else {
            shut_for(&spool, HealthSignal::ReadErrors).await;
            assert_holds(spool.as_ref(), id, LARGE).await;
            let probed = broken.disk.count_where(Call::Create, |name| name == "probe");
            assert_eq!(probed, 0, "the disk was probed");
            assert_refused(&spool, false).await;
        }
        stop(spool).await;
        broken.assert_reopens_with(&[(id, LARGE)]).await;
    }
}

/// Thresholds can be changed while the gate is shut.
#[tokio::test(flavor = "multi_thread")]
async fn a_shut_gate_follows_new_settings() {
    let broken =
        Broken::new(|config| health(config.checkpoint_after(HOUR), |health| health.hard_unlatch_after(HOUR)));
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)));
    put(spool.as_ref(), LARGE, true).await;
    shut_for(&spool, HealthSignal::JournalErrors).await;
    let config = Config::clone(&spool.config());
    let sooner = health(config, |health| health.hard_unlatch_after(Duration::from_millis(10)));
    spool.reconfigure(sooner).unwrap();
    healthy(spool.as_ref()).await;
    assert_eq!(Arc::strong_count(&spool), 1);
    stop(spool).await;
}

/// After a shutdown, `unhealthy_reason` was `None` and the gauge 0, while every store failed. A
/// server that checks during its shutdown must not get `None`, and a receiver of health changes is
/// notified.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_shut_down_reports_it() {
    let tiered = Tiered::with(Durability::Memory);
    let spool = tiered.start().await;
    let mut changes = spool.health_changes();
    assert_eq!(spool.unhealthy_reason(), None);
    assert!(spool.prometheus_text().contains("tidespool_unhealthy 0"));
    stop(spool.clone()).await;
    assert_eq!(spool.unhealthy_reason(), Some("the spool is shut down"));
    assert!(changes.has_changed().expect("the channel is open"));
    assert_eq!(*changes.borrow_and_update(), Some("the spool is shut down"));
    assert!(spool.prometheus_text().contains("tidespool_unhealthy 1"));
    assert_eq!(spool.stats().gauges.unhealthy, None, "a shutdown is not a failure");
}

/// The same while a shutdown waits for the disk: every store fails with `Closed`, not with the
/// error of a shut gate.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_shutting_down_reports_it() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    let store = begin(&spool, SpoolId::new(), 1, LARGE, None);
    wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
    let shutdown = {
        let spool = spool.clone();
        tokio::spawn(async move { spool.shutdown().await })
    };
    wait::until("the gate is shut", || spool.unhealthy_reason() == Some("the spool is shut down")).await;
    for force_sync in [false, true] {
        let id = SpoolId::new();
        let refused =
            spool.store(id, payload::shared(id, 1, 100), force_sync, None).await.expect_err("closed");
        assert!(refused.root_cause().is::<Closed>(), "{refused:#}");
    }
    broken.disk.heal();
    wait::bounded("the store", store).await.unwrap().expect("the disk works again");
    wait::bounded("the shutdown", shutdown).await.unwrap().expect("the disk works again");
    assert_eq!(spool.unhealthy_reason(), Some("the spool is shut down"));
}
