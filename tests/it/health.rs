use std::sync::Arc;
use std::time::Duration;

use tidespool::{BacklogRefusal, Config, HealthConfig, HealthSignal, SignalTimes, TieredSpool};
use tidespool_core::{NotFound, Spool, SpoolId, SpoolUnhealthyError};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE, begin, committing, is_thread};
use crate::setup::{MIB, assert_absent, assert_holds, enumerate, healthy, put, stop};

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

/// One failed sync shuts the gate; whoever follows it hears of it, and of its opening, without asking.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_error_is_told_to_those_who_wait_for_it() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let mut changes = spool.health_changes();
    assert_eq!(*changes.borrow_and_update(), None);
    broken.disk.inject(committing(Fault::on(Call::Sync)));
    let id = put(spool.as_ref(), LARGE, true).await;
    wait::bounded("the gate shuts", changes.changed()).await.unwrap();
    // It may be open again by now: the test does not rush.
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

/// The gate does not open on hope: a file has to be written, synced and read back, through the same storage.
#[tokio::test(flavor = "multi_thread")]
async fn it_stays_shut_while_the_disk_fails_when_it_is_tried() {
    for call in [Call::Create, Call::Write, Call::Sync, Call::Read, Call::Remove] {
        let broken = Broken::new(|config| config.checkpoint_after(HOUR));
        let spool = broken.start().await;
        broken.disk.inject(Fault::on(call).file("probe").always());
        broken.disk.inject(committing(Fault::on(Call::Sync)));
        let tries = || broken.disk.count_where(call, |name| name == "probe");
        put(spool.as_ref(), LARGE, true).await;
        wait::until("the disk was tried three times", || tries() >= 3).await;
        assert_eq!(spool.unhealthy_reason(), Some(BROKEN), "{call:?}");
        assert_refused(spool.as_ref(), false).await;
        broken.disk.heal();
        healthy(spool.as_ref()).await;
        stop(spool).await;
        assert!(!broken.tiered.path().join("probe").exists());
    }
}

/// A backlog alone may be set to refuse only those who would wait for the disk. Something worse refuses all.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_refuses_whom_it_is_told_to() {
    for refusal in [BacklogRefusal::All, BacklogRefusal::Synced] {
        let broken = Broken::new(|config| {
            let config = config.checkpoint_after(HOUR).dirty_limit(MIB);
            health(config, |health| {
                health
                    .backlog_latch_after(Duration::ZERO)
                    .dirty_fraction(0.3)
                    .dirty_age(HOUR)
                    .backlog_refusal(refusal)
            })
        });
        let spool = broken.start().await;
        // The first sync hangs, and all after it fail.
        broken.disk.inject(committing(Fault::on(Call::Sync)).block());
        broken.disk.inject(committing(Fault::on(Call::Sync)).always());
        put(spool.as_ref(), 200_000, false).await;
        wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
        put(spool.as_ref(), 200_000, false).await;
        shut_for(&spool, HealthSignal::DirtyBytes).await;
        assert_eq!(spool.unhealthy_reason(), Some(BACKLOG));
        assert_refused(&spool, true).await;
        match refusal {
            BacklogRefusal::All => assert_refused(&spool, false).await,
            BacklogRefusal::Synced => {
                let id = put(spool.as_ref(), 100, false).await;
                assert_holds(spool.as_ref(), id, 100).await;
            }
        }
        broken.disk.release();
        wait::until("the gate tells of what is worse", || spool.unhealthy_reason() == Some(BROKEN)).await;
        assert_refused(&spool, false).await;
        broken.disk.heal();
        healthy(spool.as_ref()).await;
        stop(spool).await;
    }
}

/// With nothing but synced stores nothing is dirty in memory. Those that wait for the disk count all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_does_not_return_shuts_the_gate_and_hangs_nobody() {
    let broken = Broken::new(|config| {
        let config = config.checkpoint_after(HOUR).shutdown_timeout(Duration::from_millis(400));
        health(config, |health| {
            health.dirty_age(Duration::from_millis(200)).backlog_latch_after(Duration::from_millis(50))
        })
    });
    let spool = broken.start().await;
    let kept = put(spool.as_ref(), LARGE, true).await;
    let removed = put(spool.as_ref(), LARGE, true).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let stores = [100, 300].map(|ms| begin(&spool, SpoolId::new(), 1, 500, Some(Duration::from_millis(ms))));
    shut_for(&spool, HealthSignal::DirtyAge).await;
    for store in stores {
        let error =
            wait::bounded("a store with a deadline", store).await.unwrap().expect_err("the disk hangs");
        assert!(error.root_cause().is::<tidespool_core::SpoolCallerDeadlineExceeded>(), "{error:#}");
    }
    assert_refused(&spool, true).await;
    assert_holds(spool.as_ref(), kept, LARGE).await;
    spool.remove(removed).await.expect("remove");
    assert_absent(spool.as_ref(), removed).await;
    assert_eq!(wait::bounded("enumerating", enumerate(spool.as_ref())).await.len(), 1);
    let error = wait::bounded("the shutdown", spool.shutdown()).await.expect_err("the disk hangs");
    assert!(format!("{error:#}").contains("dirty bytes could not be written"), "{error:#}");
    drop(spool);
    broken.disk.heal();
}

/// The thread that files hangs in the ledger's sync: nothing fails, and nothing gets on.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_hangs_shuts_the_gate_until_it_gets_on() {
    let broken = Broken::new(|config| {
        let config = config.checkpoint_after(Duration::ZERO);
        health(config, |health| health.checkpoint_stall(Duration::from_secs(1)))
    });
    let spool = broken.start().await;
    let id = put(spool.as_ref(), LARGE, true).await;
    let in_ledger =
        |fault: Fault| fault.only(|moment| is_thread("tidespool-filer") && moment.name == "ledger");
    broken.disk.inject(in_ledger(Fault::on(Call::Sync)).block());
    let compacting = {
        let spool = spool.clone();
        tokio::spawn(async move { spool.compact().await })
    };
    shut_for(&spool, HealthSignal::StalledCheckpoint).await;
    assert_eq!(spool.unhealthy_reason(), Some(BROKEN));
    assert_holds(spool.as_ref(), id, LARGE).await;
    broken.disk.heal();
    wait::bounded("compacting", compacting).await.unwrap().expect("the disk works again");
    healthy(spool.as_ref()).await;
    stop(spool).await;
    broken.assert_reopens_with(&[(id, LARGE)]).await;
}

/// A thread that panics does not come back: the gate stays shut until the spool is opened anew, and what can be done without that thread is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_thread_shuts_the_gate_for_good() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let id = put(spool.as_ref(), LARGE, true).await;
    broken.disk.watch(|moment| {
        let dies = is_thread("tidespool-filer") && moment.name.starts_with("ledger");
        assert!(!dies, "a thread of the spool is made to panic");
    });
    spool.compact().await.expect_err("its thread dies");
    broken.disk.unwatch();
    shut_for(&spool, HealthSignal::DeadWorker).await;
    assert_refused(&spool, true).await;
    assert_holds(spool.as_ref(), id, LARGE).await;
    spool.remove(id).await.expect("remove");
    assert_absent(spool.as_ref(), id).await;
    wait::bounded("the shutdown", spool.shutdown()).await.expect_err("a thread had panicked");
    drop(spool);
    broken.assert_reopens_with(&[]).await;
}

/// Damage, reads that fail, and a gate that is told never to open by itself.
#[tokio::test(flavor = "multi_thread")]
async fn failing_reads_shut_the_gate_at_their_number_and_it_can_be_told_to_stay() {
    for allow_unlatch in [true, false] {
        let broken = Broken::new(|config| {
            health(config.checkpoint_after(HOUR), |health| health.read_errors(2).allow_unlatch(allow_unlatch))
        });
        let spool = broken.start().await;
        let id = put(spool.as_ref(), LARGE, true).await;
        drop(spool);
        // A start with an empty cache.
        let spool = broken.start().await;
        broken.disk.inject(Fault::on(Call::Read).file(".seg").nth(1));
        broken.disk.inject(Fault::on(Call::Read).file(".seg").nth(2));
        for _ in 0..2 {
            assert_eq!(spool.unhealthy_reason(), None);
            let error = spool.load(id).await.expect_err("the disk fails");
            assert!(!error.root_cause().is::<NotFound>(), "{error:#}");
        }
        if allow_unlatch {
            wait::until("the gate was shut", || spool.stats().disk_errors() == 2).await;
            healthy(spool.as_ref()).await;
        } else {
            shut_for(&spool, HealthSignal::ReadErrors).await;
            assert_holds(spool.as_ref(), id, LARGE).await;
            let probed = broken.disk.count_where(Call::Create, |name| name == "probe");
            assert_eq!(probed, 0, "nobody asked");
            assert_refused(&spool, false).await;
        }
        stop(spool).await;
        broken.assert_reopens_with(&[(id, LARGE)]).await;
    }
}

/// Thresholds can be changed while the gate is shut.
#[tokio::test(flavor = "multi_thread")]
async fn a_shut_gate_follows_other_settings() {
    let broken = Broken::new(|config| {
        let times = SignalTimes::default().unlatch_after(HOUR);
        health(config.checkpoint_after(HOUR), |health| health.signal(HealthSignal::JournalErrors, times))
    });
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)));
    put(spool.as_ref(), LARGE, true).await;
    shut_for(&spool, HealthSignal::JournalErrors).await;
    let config = Config::clone(&spool.config());
    let sooner = health(config, |health| health.signal(HealthSignal::JournalErrors, SignalTimes::default()));
    spool.reconfigure(sooner).unwrap();
    healthy(spool.as_ref()).await;
    assert_eq!(Arc::strong_count(&spool), 1);
    stop(spool).await;
}
