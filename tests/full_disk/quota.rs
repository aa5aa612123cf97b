//! Each check for a full disk looked for `ENOSPC`. An exceeded quota returns `EDQUOT`, and
//! `statvfs` shows free space all the time. The ballast was not used, the gate shut as for a broken
//! disk, removals freed nothing, a shutdown lost dirty messages, and the spool could not be
//! reopened.

use tidespool::{Config, TieredSpool};
use tidespool_core::{NotFound, Spool as _, SpoolUnhealthyError};
use tidespool_testkit::wait;

use crate::mount::{Mount, Neighbour};
use crate::setup::{Live, MIB, SIZE, durable, healthy, short, start_with, stop};

/// With a quota, no free space is reserved for checkpoints. Half of the ballast has to suffice, and
/// a checkpoint here needs up to 2.3 MB.
fn config(mount: &Mount) -> Config {
    crate::setup::config(mount.path()).ballast(8 * MIB)
}

/// Loads each message until it succeeds: sled may have hit the quota, and is reopened.
async fn readable(spool: &TieredSpool, live: &Live) {
    for &id in live.0.keys() {
        wait::bounded("a load", async {
            while let Err(error) = spool.load(id).await {
                assert!(!error.root_cause().is::<NotFound>(), "{error:#}");
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// A neighbour uses up the quota while the spool is running.
#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_uses_up_the_quota_loses_nothing_acknowledged() {
    let Some(mount) = Mount::quota(SIZE) else { return };
    let spool = start_with(config(&mount)).await;
    let mut neighbour = Neighbour::of(&mount);
    let mut live = Live::default();
    live.store_all(&spool, 80).await;
    spool.compact().await.expect("compact");
    live.store_all(&spool, 40).await;
    neighbour.fill();
    assert!(mount.left().0 > SIZE, "statvfs shows the quota: {:?}", mount.left());
    let refused = loop {
        if let Err(error) = live.store(&spool, live.0.len() % 2 == 0).await {
            break error;
        }
    };
    short(&spool).await;
    readable(&spool, &live).await;
    let refused_again = live.store(&spool, false).await.expect_err("the gate is shut");
    assert!(refused_again.root_cause().is::<SpoolUnhealthyError>(), "{refused_again:#}, after {refused:#}");
    live.assert_are_all(&spool).await;
    live.remove(&spool, 3).await;
    durable(&spool).await;
    live.assert_are_all(&spool).await;
    drop(spool);

    // A crash, and openings after it.
    for _ in 0..2 {
        let spool = live.open_with(config(&mount)).await;
        live.remove(&spool, 3).await;
        durable(&spool).await;
        live.assert_are_all(&spool).await;
        stop(spool).await;
    }

    neighbour.shrink(0);
    let spool = live.open_with(config(&mount)).await;
    healthy(&spool).await;
    live.store_all(&spool, 80).await;
    live.assert_are_all(&spool).await;
    spool.compact().await.expect("compact");
    stop(spool).await;
    stop(live.open_with(config(&mount)).await).await;
}

/// The spool itself uses up the quota. Removals free space, and the gate opens.
#[tokio::test(flavor = "multi_thread")]
async fn removals_free_a_spool_that_used_up_its_quota() {
    let Some(mount) = Mount::quota(SIZE) else { return };
    let spool = start_with(config(&mount)).await;
    let mut live = Live::default();
    while live.store(&spool, live.0.len() % 4 == 0).await.is_ok() {}
    short(&spool).await;
    readable(&spool, &live).await;
    live.assert_are_all(&spool).await;
    // Removes the small one of each two consecutive messages, which frees next to nothing. Dirty
    // messages may have to wait for more space.
    live.remove(&spool, 2).await;
    live.assert_are_all(&spool).await;
    // Then the largest messages, most of the data.
    live.remove(&spool, 2).await;
    durable(&spool).await;
    live.assert_are_all(&spool).await;
    wait::bounded("the gate opens", async {
        while spool.unhealthy_reason().is_some() {
            // If nothing can be moved, later removals free space.
            let _ = spool.cleanup().await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    healthy(&spool).await;
    live.store_all(&spool, 80).await;
    live.assert_are_all(&spool).await;
    stop(spool).await;
    stop(live.open_with(config(&mount)).await).await;
}
