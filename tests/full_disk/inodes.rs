use tidespool_core::Spool as _;

use crate::mount::{KINDS, Kind, Mount, Neighbour};
use crate::setup::{Live, MIB, SIZE, durable, healthy, short, start, stop};

/// Without a free inode, no segment, manifest or snapshot of sled can be created, however many
/// bytes are free.
async fn runs_out(kind: Kind) {
    let Some(mount) = Mount::with_inodes(kind, SIZE, 600) else { return };
    let spool = start(mount.path()).await;
    let mut neighbour = Neighbour::of(&mount);
    let mut live = Live::default();
    live.store_all(&spool, 40).await;
    neighbour.take_inodes();
    assert!(mount.left().1 == 0 && mount.left().0 > 16 * MIB, "{:?}", mount.left());
    short(&spool).await;
    let stats = spool.stats();
    assert_eq!((stats.errors_journal_write, stats.errors_journal_sync), (0, 0), "a write failed");
    live.assert_are_all(&spool).await;
    live.remove(&spool, 3).await;
    durable(&spool).await;
    // Fails if survivors would have to be moved, since there is no inode for their segment.
    let _ = spool.cleanup().await;
    live.assert_are_all(&spool).await;

    // A crash and an opening. The opening needs the inode of the ballast or of a spare segment.
    drop(spool);
    let spool = live.open(mount.path()).await;
    neighbour.take_inodes();
    short(&spool).await;
    live.remove(&spool, 3).await;
    durable(&spool).await;
    neighbour.give_inodes(300);
    healthy(&spool).await;
    live.store_all(&spool, 40).await;
    live.assert_are_all(&spool).await;
    stop(spool).await;
    stop(live.open(mount.path()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_without_inodes_shuts_the_gate_until_inodes_are_free() {
    for kind in KINDS {
        runs_out(kind).await;
    }
}
