use std::path::Path;
use std::time::Duration;

use tidespool::TieredSpool;
use tidespool_core::{Locked, Spool as _};
use tidespool_testkit::wait;

use crate::child;
use crate::setup::{assert_holds, block_on, config, open, put_some};
use crate::unsafe_calls::Forked;

/// A server forks a helper without `exec` while its spool is open. The helper inherits the
/// descriptors and the locks: after the shutdown the directory stayed "in use" until the helper
/// ended.
#[test]
fn a_shutdown_frees_the_directory_despite_forked_helpers() {
    child::run("fork::a_shutdown_frees_the_directory_despite_forked_helpers", |dir| {
        block_on(async {
            let path = dir.join("spool");
            let spool = open(&path).await;
            let stored = put_some(&spool, true).await;
            spool.compact().await.unwrap();
            let helper = Forked::new();
            spool.shutdown().await.unwrap();
            let spool = open(&path).await;
            assert_holds(&spool, &stored).await;
            drop(helper);
            // The exit of a helper unlocks no other process's spool.
            let refused = TieredSpool::open(config(&path)).await.unwrap_err();
            assert!(refused.root_cause().is::<Locked>(), "{refused:#}");
            spool.shutdown().await.unwrap();
        });
    });
}

/// The same for a spool that is dropped without a shutdown, and for tools.
#[test]
fn a_drop_frees_the_directory_despite_forked_helpers() {
    child::run("fork::a_drop_frees_the_directory_despite_forked_helpers", |dir| {
        block_on(async {
            let path = dir.join("spool");
            let spool = open(&path).await;
            let stored = put_some(&spool, true).await;
            let _helper = Forked::new();
            drop(spool);
            open_when_free(&path).await.shutdown().await.unwrap();
            let look = tidespool::inspect::Inspector::open(&path).unwrap();
            let _another = Forked::new();
            drop(look);
            let saved = tidespool::inspect::salvage(&path, &dir.join("new")).unwrap();
            assert_eq!(saved.saved, stored.len() as u64);
            let spool = open(&path).await;
            assert_holds(&spool, &stored).await;
            spool.shutdown().await.unwrap();
        });
    });
}

/// Opens when the threads of a dropped spool have ended.
async fn open_when_free(path: &Path) -> TieredSpool {
    wait::bounded("the directory is free", async {
        loop {
            match TieredSpool::open(config(path)).await {
                Ok(spool) => break spool,
                Err(error) => assert!(error.root_cause().is::<Locked>(), "{error:#}"),
            }
        }
    })
    .await
}

/// A helper keeps the file of the crash log open. An opening that is rejected meanwhile does not
/// change the file.
#[test]
fn a_forked_helper_does_not_affect_the_crash_log() {
    child::run("fork::a_forked_helper_does_not_affect_the_crash_log", |dir| {
        block_on(async {
            let path = dir.join("spool");
            // So long that nothing is flushed during the test.
            let late = config(&path).dirty_expire(Duration::from_secs(3600));
            let spool = TieredSpool::open(late).await.unwrap();
            let stored = put_some(&spool, false).await;
            let _helper = Forked::new();
            let refused = TieredSpool::open(config(&path)).await.unwrap_err();
            assert!(refused.root_cause().is::<Locked>(), "{refused:#}");
            // A drop without shutdown acts like a crash.
            drop(spool);
            let spool = open_when_free(&path).await;
            assert_eq!(spool.recovery().replayed, stored.len() as u64);
            assert_holds(&spool, &stored).await;
            spool.shutdown().await.unwrap();
        });
    });
}
