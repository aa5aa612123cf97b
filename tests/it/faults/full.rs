//! A disk without free space.

use std::time::Duration;

use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE};
use crate::setup::{KIB, assert_absent, assert_holds, put, stop};

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
