use tidespool_core::Spool as _;

use crate::mount::{Mount, Neighbour};
use crate::setup::{KIB, Live, MIB, durable, healthy, start};

/// A file system that hands out room which what is below does not have: writes succeed, and are lost when the kernel writes them back. A sync
/// tells once, and then says that all is well.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_took_and_could_not_keep_is_written_again() {
    let Some(mount) = Mount::thin(64 * MIB, 20 * MIB) else { return };
    let spool = start(mount.path()).await;
    let mut live = Live::default();
    let mut neighbour = Neighbour::of(&mount);
    live.store_all(&spool, 40).await;
    // As far as what is below has room, and a little more.
    let errors = || spool.stats().disk_errors();
    let mut grown = 0;
    while errors() == 0 && grown < 24 * MIB {
        neighbour.grow(512 * KIB);
        neighbour.sync();
        grown += 512 * KIB;
        // Those that can't be made durable are refused, and leave nothing behind.
        for _ in 0..8 {
            let _ = live.store(&spool, true).await;
        }
    }
    assert!(errors() > 0, "the disk keeps everything");
    mount.widen(66 * MIB);
    healthy(&spool).await;
    live.store_all(&spool, 40).await;
    durable(&spool).await;
    live.assert_are_all(&spool).await;
    // A crash: what the kernel has in memory only, and believes to be on disk, is gone.
    drop(spool);
    let spool = live.open(mount.path()).await;
    spool.shutdown().await.expect("shutdown");
}
