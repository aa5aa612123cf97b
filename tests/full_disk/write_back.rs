use std::time::Duration;

use tidespool::TieredSpool;
use tidespool_core::{Spool as _, SpoolId};
use tidespool_testkit::{payload, wait};

use crate::mount::{Mount, Neighbour};
use crate::setup::{KIB, Live, MIB, config, durable, healthy, start_with};

/// One page of the journal. A loop device reports success for a write of several pages of which it
/// had room for the first, and the rest is lost without an error.
const SMALL: usize = 3_000;

async fn store_small(live: &mut Live, spool: &TieredSpool) -> anyhow::Result<()> {
    let id = SpoolId::new();
    wait::bounded("a store", spool.store(id, payload::shared(id, 1, SMALL), true, None)).await?;
    live.0.insert(id, SMALL);
    Ok(())
}

/// A file system that hands out room which what is below does not have: writes succeed, and are lost
/// when the kernel writes them back. A sync fails once, and then reports success.
///
/// Nothing is checkpointed meanwhile: sled writes more than a page at a time, and what is filed has no
/// other home. When a checkpoint came in between, sled could not be opened again, and this test failed
/// on a busy machine.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_took_and_could_not_keep_is_written_again() {
    let Some(mount) = Mount::thin(64 * MIB, 20 * MIB) else { return };
    let config = config(mount.path()).checkpoint_after(Duration::from_secs(3600)).journal_capacity(128 * MIB);
    let spool = start_with(config.clone()).await;
    let mut live = Live::default();
    let mut neighbour = Neighbour::of(&mount);
    for _ in 0..40 {
        store_small(&mut live, &spool).await.expect("store");
    }
    // As far as what is below has room, and a little more.
    let errors = || spool.stats().disk_errors();
    let mut grown = 0;
    while errors() == 0 && grown < 24 * MIB {
        neighbour.grow(512 * KIB);
        neighbour.sync();
        grown += 512 * KIB;
        // Those that can't be made durable are refused, and leave nothing behind.
        for _ in 0..16 {
            let _ = store_small(&mut live, &spool).await;
        }
    }
    assert!(errors() > 0, "the disk keeps everything");
    mount.widen(66 * MIB);
    healthy(&spool).await;
    for _ in 0..40 {
        store_small(&mut live, &spool).await.expect("store");
    }
    durable(&spool).await;
    live.assert_are_all(&spool).await;
    // A crash: what the kernel has in memory only, and believes to be on disk, is gone.
    drop(spool);
    let spool = live.open_with(config).await;
    spool.shutdown().await.expect("shutdown");
}
