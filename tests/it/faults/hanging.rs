//! A disk that hangs, or fails until the shutdown.

use std::time::Duration;

use tidespool::Durability;
use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE, NEARLY_A_MIB, begin, committing};
use crate::setup::{MIB, assert_absent, assert_holds, healthy, put, stop};

/// The spool's own deadline also ends the wait, with its own error.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_hanging_disk_the_spools_deadline_holds() {
    let broken = Broken::new(|config| config.store_deadline(Duration::from_millis(100)));
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let id = SpoolId::new();
    let err =
        wait::bounded("the store", begin(&spool, id, 1, 100, None)).await.unwrap().expect_err("it hangs");
    assert!(err.root_cause().is::<SpoolBackpressureTimeout>(), "{err:#}");
    assert_absent(spool.as_ref(), id).await;
    broken.disk.heal();
    stop(spool).await;
    broken.assert_reopens_with(&[]).await;
}

/// A lasting backlog shuts the gate, by its bytes or by its age. The gate opens when the backlog is
/// gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_backlog_shuts_the_gate_until_it_is_gone() {
    const BACKLOG: &str = "the spool is catching up";
    for by_age in [false, true] {
        let broken = Broken::new(|config| {
            let health = config.health.clone().backlog_latch_after(Duration::from_millis(50));
            let health =
                if by_age { health.dirty_age(Duration::from_millis(200)) } else { health.dirty_age(HOUR) };
            config.health(health).dirty_limit(MIB)
        });
        let spool = broken.start().await;
        broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
        let mut stored = vec![(put(spool.as_ref(), 1000, false).await, 1000)];
        if !by_age {
            for len in NEARLY_A_MIB {
                stored.push((put(spool.as_ref(), len, false).await, len));
            }
        }
        wait::until("the gate is shut", || spool.unhealthy_reason() == Some(BACKLOG)).await;
        let id = SpoolId::new();
        let refused = spool.store(id, payload::shared(id, 1, 10), false, None).await;
        assert!(refused.unwrap_err().root_cause().is::<tidespool_core::SpoolUnhealthyError>());
        for &(id, len) in &stored {
            assert_holds(spool.as_ref(), id, len).await;
        }
        broken.disk.heal();
        healthy(spool.as_ref()).await;
        stored.push((put(spool.as_ref(), 1000, true).await, 1000));
        stop(spool).await;
        broken.assert_reopens_with(&stored).await;
    }
}

/// Two shutdowns on a failing disk end, and the error states how much is lost. The retries are
/// rate-limited.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_on_a_failing_disk_ends_and_reports_the_loss() {
    let broken = Broken::new(|config| {
        config.durability(Durability::Memory).shutdown_timeout(Duration::from_millis(400))
    });
    let spool = broken.start().await;
    let kept = put(spool.as_ref(), LARGE, true).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always());
    put(spool.as_ref(), 5000, false).await;
    let before = broken.disk.count(Call::Sync);
    for _ in 0..2 {
        let ended = wait::bounded("the shutdown", spool.shutdown()).await;
        let err = format!("{:#}", ended.expect_err("something is lost"));
        assert!(err.contains("5256 dirty bytes could not be written"), "{err}");
    }
    let tries = broken.disk.count(Call::Sync) - before;
    assert!(tries < 100, "{tries} syncs");
    drop(spool);
    broken.disk.heal();
    let spool = broken.start().await;
    assert_holds(spool.as_ref(), kept, LARGE).await;
    stop(spool).await;
}
