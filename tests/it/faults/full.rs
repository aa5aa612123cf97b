//! A disk without free space.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tidespool::{HealthSignal, MinFree};
use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolId};
use tidespool_testkit::faults::{Call, Fault, Moment};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE};
use crate::setup::{KIB, assert_absent, assert_holds, healthy, put, stop};

/// New segments find no space: stores wait and time out. Removes continue, and the space they free
/// lets stores continue.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_removes_continue_and_free_space() {
    let broken = Broken::new(|config| {
        let config = config.segment_size(64 * KIB).journal_capacity(256 * KIB);
        config.store_deadline(Duration::from_millis(500)).checkpoint_after(Duration::ZERO)
    });
    let spool = broken.start().await;
    broken.disk.inject(Fault::on(Call::Create).file(".seg").always().full_disk());
    let mut stored = Vec::new();
    let refused = loop {
        let id = SpoolId::new();
        match spool.store(id, payload::shared(id, 1, LARGE), true, None).await {
            Ok(()) => stored.push(id),
            Err(err) => break err,
        }
        assert!(stored.len() < 100, "more segments than the disk can hold");
    };
    assert!(refused.root_cause().is::<SpoolBackpressureTimeout>(), "{refused:#}");
    for &id in &stored {
        assert_holds(spool.as_ref(), id, LARGE).await;
        spool.remove(id).await.expect("remove");
    }
    let id = SpoolId::new();
    wait::bounded("free space", async {
        while spool.store(id, payload::shared(id, 1, LARGE), true, None).await.is_err() {
            spool.cleanup().await.expect("cleanup");
        }
    })
    .await;
    stop(spool).await;
    broken.assert_reopens_with(&[(id, LARGE)]).await;
}

/// A message that needs its own file is rejected if the disk has no space for it. Later stores do
/// not wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_for_a_full_disk_blocks_no_store() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let small = put(spool.as_ref(), 300, true).await;
    wait::until("segments are ready", || spool.stats().gauges.journal_segments_free == 2).await;
    broken.disk.inject(Fault::on(Call::Create).file(".seg").always().full_disk());
    for force_sync in [false, true] {
        let large = SpoolId::new();
        let store = spool.store(large, payload::shared(large, 1, 1_000_000), force_sync, None);
        let err = wait::bounded("the large message", store).await.expect_err("the disk is full");
        assert!(err.root_cause().is::<SpoolBackpressureTimeout>(), "{err:#}");
        assert_absent(spool.as_ref(), large).await;
    }
    let next = put(spool.as_ref(), 300, true).await;
    spool.remove(small).await.expect("remove");
    wait::until("the removal is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    assert_eq!(spool.unhealthy_reason(), None);
    drop(spool);
    broken.assert_reopens_with(&[(next, 300)]).await;
}

/// While the file system does not report its free space, that closes no gate, and opens none.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_free_space_is_neither_little_nor_plenty() {
    const REAL: u8 = 0;
    const UNKNOWN: u8 = 1;
    const NONE: u8 = 2;
    /// Four queries a second: longer than low space must last until the gate shuts.
    const LONG: u64 = 16;
    let broken = Broken::new(|config| {
        let health = config.health.clone().min_free(MinFree::Bytes(1));
        config.checkpoint_after(HOUR).health(health)
    });
    let spool = broken.start().await;
    wait::until("segments are ready", || spool.stats().gauges.journal_segments_free == 2).await;
    let shown = Arc::new(AtomicU8::new(REAL));
    let while_shown = |state: u8| {
        let shown = shown.clone();
        move |_: &Moment<'_>| shown.load(Ordering::SeqCst) == state
    };
    broken.disk.inject(Fault::on(Call::Space).only(while_shown(UNKNOWN)).always());
    broken.disk.inject(Fault::on(Call::Space).only(while_shown(NONE)).always().short(0));
    let become_unknown = async || {
        shown.store(UNKNOWN, Ordering::SeqCst);
        let before = broken.disk.count(Call::Space);
        wait::until("queries fail", || broken.disk.count(Call::Space) >= before + LONG).await;
    };
    become_unknown().await;
    assert_eq!(spool.unhealthy_reason(), None);
    let id = put(spool.as_ref(), 300, true).await;
    shown.store(NONE, Ordering::SeqCst);
    let cause = || spool.stats().gauges.unhealthy;
    wait::until("the gate is shut", || cause() == Some(HealthSignal::LowSpace)).await;
    become_unknown().await;
    assert_eq!(cause(), Some(HealthSignal::LowSpace));
    shown.store(REAL, Ordering::SeqCst);
    healthy(spool.as_ref()).await;
    stop(spool).await;
    broken.assert_reopens_with(&[(id, 300)]).await;
}
