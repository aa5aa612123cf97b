use std::sync::Arc;

use tidespool::TieredSpool;
use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolUnhealthyError};
use tidespool_testkit::wait;
use tokio::task::JoinHandle;

use crate::mount::{KINDS, Kind, Mount, Neighbour};
use crate::setup::{KIB, Live, MIN_FREE, SIZE, durable, healthy, short, start, stop};

/// A caller that stores, and removes half of the messages, until a store is rejected.
fn traffic(spool: &Arc<TieredSpool>, mut live: Live) -> JoinHandle<(Live, anyhow::Error)> {
    let spool = spool.clone();
    tokio::spawn(async move {
        loop {
            for n in 0..4 {
                if let Err(err) = live.store(&spool, n % 2 == 0).await {
                    return (live, err);
                }
            }
            for _ in 0..2 {
                let (id, _) = live.0.pop_last().unwrap();
                spool.remove(id).await.expect("remove");
            }
            // Bounds the backlog, so that only the lack of disk space rejects stores.
            while live.0.len() > 20 {
                let (id, _) = live.0.pop_first().unwrap();
                spool.remove(id).await.expect("remove");
            }
        }
    })
}

/// The neighbour grows in steps of `step` bytes, each after some stores, or takes everything at
/// once.
async fn runs_full(kind: Kind, step: Option<u64>) {
    let Some(mount) = Mount::make(kind, SIZE) else { return };
    let spool = start(mount.path()).await;
    let mut neighbour = Neighbour::of(&mount);
    let mut live = Live::default();
    live.store_all(&spool, 40).await;

    // Until the gate shuts, stores succeed or wait for a segment. New segments must leave more
    // space than the gate requires, and without timely checkpoints no old one is free.
    let stored = || spool.stats().stores;
    let storing = traffic(&spool, live);
    match step {
        Some(step) => {
            // Free space is checked four times per second, and the neighbour is fast. It stops at
            // half of the minimum.
            while mount.left().0 > MIN_FREE / 2 + step && neighbour.grow(step) {
                let before = stored();
                wait_until("some stores completed", || stored() > before + 3 || storing.is_finished()).await;
            }
            short(&spool).await;
            assert!(mount.left().0 > 0, "the disk is full before the gate is shut");
        }
        None => neighbour.fill(),
    }
    short(&spool).await;
    let (mut live, refused) = storing.await.unwrap();
    // Earlier stores may have used all segments. The next store then waits for one, and dirty
    // messages stay dirty.
    let waited = refused.root_cause().is::<SpoolBackpressureTimeout>();
    assert!(waited || refused.root_cause().is::<SpoolUnhealthyError>(), "{refused:#}");
    let stats = spool.stats();
    assert_eq!((stats.errors_journal_write, stats.errors_journal_sync), (0, 0), "a write failed");
    assert!(mount.left().0 < MIN_FREE);

    // The last byte is taken too. Everything but stores continues.
    neighbour.fill();
    live.assert_are_all(&spool).await;
    live.remove(&spool, 3).await;
    if let Err(err) = wait::bounded("cleaning up", spool.cleanup()).await {
        // The space of the ballast was used, and its user has not freed it.
        assert!(!ballast_in(&mount) && format!("{err:#}").contains("bytes free"), "{err:#}");
    }
    // Takes the space of the ballast too.
    neighbour.fill();
    live.remove(&spool, 2).await;
    let refused = live.store(&spool, false).await.expect_err("the disk is full");
    assert!(refused.root_cause().is::<SpoolUnhealthyError>(), "{refused:#}");
    live.assert_are_all(&spool).await;

    // Space is free again.
    neighbour.shrink(0);
    healthy(&spool).await;
    durable(&spool).await;
    live.store_all(&spool, 80).await;
    live.assert_are_all(&spool).await;
    spool.cleanup().await.expect("cleanup");
    stop(spool).await;
    stop(live.open(mount.path()).await).await;
}

fn ballast_in(mount: &Mount) -> bool {
    mount.path().join("spool/ballast").exists()
}

async fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait::until(what, condition).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_shuts_before_a_growing_neighbour_fills_the_disk() {
    for kind in KINDS {
        runs_full(kind, Some(512 * KIB)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_at_once_loses_nothing_acknowledged() {
    for kind in KINDS {
        runs_full(kind, None).await;
    }
}
