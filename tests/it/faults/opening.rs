//! Openings fail and are retried.

use std::sync::Arc;

use tidespool::TieredSpool;
use tidespool_core::Spool;
use tidespool_testkit::faults::{Call, Fault};

use crate::broken::{Broken, HOUR, LARGE, is_thread};
use crate::setup::{assert_holds, put, stop};

/// On a disk that is full at the creation of a spool, sled's settings file finds no space until the
/// ballast is released. After a failed sync the file is read from disk before the next sync. It was
/// taken from memory, where its only copy may be.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_sled_with_a_failed_sync_is_not_trusted() {
    let broken = Broken::new(|config| config);
    broken.disk.inject(Fault::on(Call::Sync).file("conf").full_disk());
    let spool = broken.start().await;
    assert_eq!(broken.disk.trusted_again(), [""; 0]);
    let id = put(spool.as_ref(), LARGE, true).await;
    stop(spool).await;
    broken.assert_reopens_with(&[(id, LARGE)]).await;
}

/// After a shutdown, too, recovery does not trust a file whose sync failed before.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_an_opening_could_not_sync_is_not_trusted_by_the_next() {
    for ends_well in [true, false] {
        let broken = Broken::new(|config| config.checkpoint_after(HOUR));
        let spool = broken.start().await;
        let id = put(spool.as_ref(), LARGE, true).await;
        if ends_well {
            stop(spool).await;
        } else {
            drop(spool);
        }
        let syncs = || Fault::on(Call::Sync).only(|m| is_thread("tide-open") && m.name.ends_with(".seg"));
        broken.disk.inject(syncs().full_disk());
        let opened = TieredSpool::open_on(broken.tiered.config.clone(), broken.disk.storage()).await;
        // The sync is not retried unless releasing the ballast may help.
        assert_eq!(broken.disk.strikes().len(), 1, "{opened:?}");
        if let Ok(spool) = opened {
            stop(Arc::new(spool)).await;
        }
        broken.assert_reopens_with(&[(id, LARGE)]).await;
        assert_eq!(broken.disk.trusted_again(), [""; 0], "ends well: {ends_well}");
    }
}

/// If an opening misreads data once, it either finds everything or fails, and the next opening
/// finds everything. It treated a record as torn.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_opening_misreads_once_is_not_lost() {
    for (younger, part) in [(1, 0), (2, 0), (1, 100), (2, 255)] {
        let broken = Broken::new(|config| config.checkpoint_after(HOUR));
        let spool = broken.start().await;
        let checkpointed = put(spool.as_ref(), LARGE, true).await;
        spool.compact().await.expect("compact");
        let mut stored = vec![(checkpointed, LARGE)];
        for _ in 0..younger {
            stored.push((put(spool.as_ref(), LARGE, true).await, LARGE));
        }
        // A drop without shutdown acts like a crash, here and below.
        drop(spool);
        let mut nth = 0;
        loop {
            nth += 1;
            let before = broken.disk.strikes().len();
            broken.disk.inject(Fault::on(Call::Read).nth(nth).corrupt_after(part));
            let opened = TieredSpool::open_on(broken.tiered.config.clone(), broken.disk.storage()).await;
            broken.disk.heal();
            let is_struck = broken.disk.strikes().len() > before;
            if let Ok(spool) = opened {
                assert_eq!(spool.recovery().damage, [], "read {nth}");
                for &(id, len) in &stored {
                    assert_holds(&spool, id, len).await;
                }
            }
            let spool = broken.start().await;
            assert_eq!(spool.recovery().damage, [], "after read {nth}");
            for &(id, len) in &stored {
                assert_holds(spool.as_ref(), id, len).await;
            }
            if !is_struck {
                break;
            }
        }
        assert!(nth > 5, "{nth} reads");
        broken.assert_reopens_with(&stored).await;
    }
}
