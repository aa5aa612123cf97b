//! A disk without room.

use std::time::Duration;

use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE};
use crate::setup::{KIB, assert_absent, assert_holds, put, stop};

/// No room for new segments: stores wait for room and give up in time; removes go on, and what they free is enough to go on with.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_removes_go_on_and_make_room() {
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
        assert!(stored.len() < 100, "segments come from nowhere");
    };
    assert!(refused.root_cause().is::<SpoolBackpressureTimeout>(), "{refused:#}");
    for &id in &stored {
        assert_holds(spool.as_ref(), id, LARGE).await;
        spool.remove(id).await.expect("remove");
    }
    let id = SpoolId::new();
    wait::bounded("room", async {
        while spool.store(id, payload::shared(id, 1, LARGE), true, None).await.is_err() {
            spool.cleanup().await.expect("cleanup");
        }
    })
    .await;
    stop(spool).await;
    broken.assert_reopens_with(&[(id, LARGE)]).await;
}

/// A message that needs a file of its own, on a disk that has no room for it, is refused; nobody waits behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_for_a_full_disk_keeps_nobody_waiting() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let small = put(spool.as_ref(), 300, true).await;
    wait::until("segments are ready", || spool.stats().gauges.journal_segments_free == 2).await;
    broken.disk.inject(Fault::on(Call::Create).file(".seg").always().full_disk());
    for force_sync in [false, true] {
        let large = SpoolId::new();
        let store = spool.store(large, payload::shared(large, 1, 1_000_000), force_sync, None);
        let err = wait::bounded("the large message", store).await.expect_err("there is no room");
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
