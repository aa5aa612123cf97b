//! Callers that do not wait for the result: a `store` future may be dropped at any await point.

use std::time::{Duration, Instant};

use futures_lite::future;
use tidespool_core::{NotFound, Spool, SpoolId};

use super::calls::{all_upkeep, assert_absent, assert_holds, assert_lists, list, put, put_as};
use crate::{Subject, payload};

/// Begins a store and drops it after at most `polls` polls. Returns the result if the store ended
/// by then.
async fn abandon(
    spool: &dyn Spool,
    id: SpoolId,
    version: u64,
    len: usize,
    force_sync: bool,
    polls: usize,
) -> Option<anyhow::Result<()>> {
    let mut store = spool.store(id, payload::shared(id, version, len), force_sync, None);
    for _ in 0..polls {
        if let Some(result) = future::poll_once(&mut store).await {
            return Some(result);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// The message is stored in full or not at all. A replace leaves the old version or the new one.
pub async fn a_dropped_store_is_done_whole_or_not_at_all(subject: &mut Subject) {
    let spool = subject.spool();
    let (mut fresh, mut replaced) = (Vec::new(), Vec::new());
    for n in 0..60 {
        let (new, old) = (SpoolId::new(), SpoolId::new());
        put_as(spool, old, 1, 2000, n % 2 == 0).await;
        let answer = abandon(spool, new, 1, 3000, n % 3 != 0, n % 4).await;
        fresh.push((new, matches!(answer, Some(Ok(())))));
        let answer = abandon(spool, old, 2, 1000, n % 3 != 0, n % 4).await;
        replaced.push((old, matches!(answer, Some(Ok(())))));
    }
    // A synced store comes after all stores that were queued before it.
    put_as(spool, SpoolId::new(), 1, 10, true).await;
    all_upkeep(spool).await;
    let found = list(spool).await;
    for (id, acknowledged) in fresh {
        match spool.load(id).await {
            Ok(data) => payload::assert_is(id, 1, 3000, &data),
            Err(err) => {
                assert!(err.root_cause().is::<NotFound>() && !acknowledged, "{err:#}");
                assert!(!found.contains_key(&id), "{id} is enumerated but cannot be loaded");
            }
        }
    }
    for (id, acknowledged) in replaced {
        let data = spool.load(id).await.expect("a replaced message is always present");
        let seen = payload::read(id, &data).expect("whole");
        assert!(seen.version == Some(2) || !acknowledged, "an acknowledged replace did not happen");
        assert!(matches!((seen.version, seen.len), (Some(1), 2000) | (Some(2), 1000)), "{seen:?}");
        assert_eq!(found.get(&id), Some(&data), "load and enumerate differ");
    }
}

/// The space reserved for a dropped store is released. The stores dropped here need far more space
/// than any spool under test has.
pub async fn dropped_stores_leak_no_room(subject: &mut Subject) {
    let spool = subject.spool();
    for n in 0..300 {
        let id = SpoolId::new();
        drop(abandon(spool, id, 1, 256 * 1024, n % 2 == 0, 1 + n % 3).await);
        spool.remove(id).await.expect("remove");
    }
    for force_sync in [false, true] {
        let id = SpoolId::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        let data = payload::shared(id, 1, 256 * 1024);
        spool.store(id, data, force_sync, Some(deadline)).await.expect("there is room again");
        assert_holds(spool, id, 1, 256 * 1024).await;
    }
}

/// A store that was dropped while queued must not overwrite one that was acknowledged after it.
pub async fn a_later_store_beats_a_dropped_one(subject: &mut Subject) {
    let spool = subject.spool();
    let mut stored = Vec::new();
    for n in 0..60 {
        let id = SpoolId::new();
        drop(abandon(spool, id, 1, 3000, true, 1).await);
        put_as(spool, id, 2, 1000, n % 2 == 0).await;
        assert_holds(spool, id, 2, 1000).await;
        stored.push((id, 2, 1000));
    }
    put_as(spool, SpoolId::from_bytes([0; 16]), 1, 10, true).await;
    stored.push((SpoolId::from_bytes([0; 16]), 1, 10));
    assert_lists(spool, &stored).await;
    all_upkeep(spool).await;
    assert_lists(spool, &stored).await;
}

/// A store that was dropped while queued must not bring back a message that was removed after it.
pub async fn a_later_remove_beats_a_dropped_store(subject: &mut Subject) {
    let spool = subject.spool();
    let mut ids = Vec::new();
    for n in 0..60 {
        let id = SpoolId::new();
        if n % 2 == 0 {
            put(spool, id, 1, 500).await;
        }
        drop(abandon(spool, id, 2, 3000, true, 1).await);
        spool.remove(id).await.expect("remove");
        assert_absent(spool, id).await;
        ids.push(id);
    }
    let barrier = SpoolId::new();
    put_as(spool, barrier, 1, 10, true).await;
    for settled in [false, true] {
        if settled {
            all_upkeep(spool).await;
        }
        for &id in &ids {
            assert_absent(spool, id).await;
        }
        assert_lists(spool, &[(barrier, 1, 10)]).await;
    }
}
