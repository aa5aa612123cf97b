//! Shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::Utc;
use tidespool_core::{Closed, InDoubt, Spool, SpoolId};
use tokio::task::JoinHandle;

use super::calls::{assert_lists, put, put_as};
use crate::{Subject, payload, wait};

/// The number of callers that store during the shutdown.
const CALLERS: usize = 8;

/// Shutdown once, again, and from several callers at a time.
pub async fn shutdown_is_safe_to_repeat(subject: &mut Subject) {
    put(subject.spool(), SpoolId::new(), 1, 5000).await;
    put_as(subject.spool(), SpoolId::new(), 1, 5000, true).await;
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let spool = subject.shared();
            tokio::spawn(async move { spool.shutdown().await })
        })
        .collect();
    for caller in callers {
        caller.await.expect("shutdown does not panic").expect("shutdown");
    }
    subject.spool().shutdown().await.expect("shutdown again");
}

/// After a shutdown, each call returns `Closed`.
pub async fn calls_after_shutdown_are_refused(subject: &mut Subject) {
    let id = SpoolId::new();
    let spool = subject.spool();
    put(spool, id, 1, 5000).await;
    spool.shutdown().await.expect("shutdown");
    assert_closed("load", spool.load(id).await);
    assert_closed("load of an absent id", spool.load(SpoolId::new()).await);
    assert_closed("remove", spool.remove(id).await);
    for force_sync in [false, true] {
        assert_closed("store", spool.store(id, payload::shared(id, 2, 10), force_sync, None).await);
    }
    let (sender, receiver) = async_channel::bounded(1);
    assert_closed("enumerate", spool.enumerate(sender, Utc::now()));
    assert!(receiver.recv().await.is_err(), "an enumeration after shutdown sent something");
    assert_closed("cleanup", spool.cleanup().await);
    assert_closed("compact", spool.compact().await);
    assert_closed("advise_low_memory", spool.advise_low_memory().await);
    assert!(spool.unhealthy_reason().is_some(), "a spool that is shut down reports that it is healthy");
}

fn assert_closed<T>(call: &str, result: anyhow::Result<T>) {
    let Err(err) = result else { panic!("{call} after shutdown succeeded") };
    assert!(err.root_cause().is::<Closed>(), "{call} after shutdown: {err:#}");
}

/// Each store in progress when the shutdown begins is either kept or rejected, and always returns.
pub async fn stores_beside_a_shutdown_are_answered(subject: &mut Subject) {
    let acknowledged: Arc<[AtomicU64; CALLERS]> = Arc::default();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| tokio::spawn(store_until_closed(subject.shared(), caller, acknowledged.clone())))
        .collect();
    // A caller whose stores are not claimed ends at once.
    let has_stored = |caller: &JoinHandle<_>, count: &AtomicU64| {
        caller.is_finished() || count.load(Ordering::Relaxed) >= 8
    };
    let all_have = || callers.iter().zip(&acknowledged[..]).all(|(caller, count)| has_stored(caller, count));
    wait::until("each caller has stored", all_have).await;
    subject.spool().shutdown().await.expect("shutdown");
    let mut kept = Vec::new();
    for caller in callers {
        kept.extend(caller.await.expect("store does not panic"));
    }
    subject.reopen().await;
    let kept: Vec<_> = kept.into_iter().map(|id| (id, 1, 2000)).collect();
    assert_lists(subject.spool(), &kept).await;
}

/// Stores messages one after the other until a store is rejected. Returns the ids of the
/// acknowledged messages. Every second caller uses `force_sync`.
async fn store_until_closed(
    spool: Arc<dyn Spool>,
    caller: usize,
    acknowledged: Arc<[AtomicU64; CALLERS]>,
) -> Vec<SpoolId> {
    let force_sync = caller.is_multiple_of(2);
    let mut kept = Vec::new();
    loop {
        let id = SpoolId::new();
        if let Err(err) = spool.store(id, payload::shared(id, 1, 2000), force_sync, None).await {
            assert!(err.root_cause().is::<Closed>(), "store beside a shutdown: {err:#}");
            assert!(!err.is::<InDoubt>(), "an orderly shutdown leaves no store in doubt: {err:#}");
            return kept;
        }
        kept.push(id);
        acknowledged[caller].fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
}
