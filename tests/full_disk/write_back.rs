use std::time::Duration;

use tidespool::TieredSpool;
use tidespool_core::{Spool as _, SpoolId};
use tidespool_testkit::{payload, wait};

use crate::mount::{Mount, Neighbour};
use crate::setup::{KIB, Live, MIB, config, durable, healthy, start_with};

/// Length in bytes of a message that fills one page of the journal. A loop device reports success
/// for a write of several pages of which only the first has space, and loses the others without an
/// error.
const SMALL: usize = 3_000;

async fn store_small(live: &mut Live, spool: &TieredSpool) -> anyhow::Result<()> {
    let id = SpoolId::new();
    wait::bounded("a store", spool.store(id, payload::shared(id, 1, SMALL), true, None)).await?;
    live.0.insert(id, SMALL);
    Ok(())
}

/// A file system hands out space that its device does not have. Writes succeed, and are lost at the
/// kernel's write-back. A sync fails once and then succeeds.
///
/// No checkpoints are made: sled writes more than a page at a time. With a checkpoint in between,
/// sled could not be reopened, and this test failed on a busy machine.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_the_disk_lost_are_repeated() {
    let Some(mount) = Mount::thin(64 * MIB, 20 * MIB) else { return };
    let config = config(mount.path()).checkpoint_after(Duration::from_secs(3600)).journal_capacity(128 * MIB);
    let spool = start_with(config.clone()).await;
    let mut live = Live::default();
    let mut neighbour = Neighbour::of(&mount);
    for _ in 0..40 {
        store_small(&mut live, &spool).await.expect("store");
    }
    // Takes a little more than the space of the device.
    let errors = || spool.stats().disk_errors();
    let mut grown = 0;
    while errors() == 0 && grown < 24 * MIB {
        neighbour.grow(512 * KIB);
        neighbour.sync();
        grown += 512 * KIB;
        // Stores that cannot be made durable are rejected, and leave no message.
        for _ in 0..16 {
            let _ = store_small(&mut live, &spool).await;
        }
    }
    assert!(errors() > 0, "the disk lost no write");
    mount.widen(66 * MIB);
    healthy(&spool).await;
    for _ in 0..40 {
        store_small(&mut live, &spool).await.expect("store");
    }
    durable(&spool).await;
    live.assert_are_all(&spool).await;
    // A crash loses data that is only in the kernel's memory, which treats it as written.
    drop(spool);
    let spool = live.open_with(config).await;
    spool.shutdown().await.expect("shutdown");
}
