//! A removed message disappears immediately and permanently.

use tidespool_core::SpoolId;

use super::calls::{all_upkeep, assert_absent, assert_holds, assert_lists, put, put_as};
use crate::{Subject, ids};

/// Servers remove ids that were never stored.
pub async fn removing_the_unknown_is_ok(subject: &mut Subject) {
    let spool = subject.spool();
    spool.remove(SpoolId::new()).await.expect("remove of an unknown id");
    spool.remove(ids::v4(1)).await.expect("remove of an unknown id without a time");
    let id = SpoolId::new();
    put(spool, id, 1, 100).await;
    spool.remove(id).await.expect("remove");
    spool.remove(id).await.expect("remove again");
    all_upkeep(spool).await;
    spool.remove(id).await.expect("remove again after upkeep");
    assert_absent(spool, id).await;
}

/// The message is neither loaded nor enumerated, whether it was synced or not.
pub async fn a_removed_message_is_gone_at_once(subject: &mut Subject) {
    let spool = subject.spool();
    let kept = SpoolId::new();
    put(spool, kept, 1, 500).await;
    for force_sync in [false, true] {
        for len in [0, 100, 4096, 100_000] {
            let id = SpoolId::new();
            put_as(spool, id, 1, len, force_sync).await;
            assert_holds(spool, id, 1, len).await;
            spool.remove(id).await.expect("remove");
            assert_absent(spool, id).await;
        }
    }
    assert_lists(spool, &[(kept, 1, 500)]).await;
}

/// Upkeep does not bring a removed message back.
pub async fn a_removed_message_stays_away_through_upkeep(subject: &mut Subject) {
    let spool = subject.spool();
    let ids: Vec<SpoolId> = (0..20).map(|_| SpoolId::new()).collect();
    for (n, &id) in ids.iter().enumerate() {
        put_as(spool, id, 1, 100 + n * 1000, n % 2 == 0).await;
    }
    // Remove half of them while they are new, and half after upkeep.
    for &id in &ids[..10] {
        spool.remove(id).await.expect("remove");
    }
    all_upkeep(spool).await;
    for &id in &ids[10..] {
        spool.remove(id).await.expect("remove");
        assert_absent(spool, id).await;
    }
    for _ in 0..2 {
        all_upkeep(spool).await;
        for &id in &ids {
            assert_absent(spool, id).await;
        }
        assert_lists(spool, &[]).await;
    }
}

/// A removed id can be used again.
pub async fn a_removed_id_can_be_stored_again(subject: &mut Subject) {
    let spool = subject.spool();
    let mut stored = Vec::new();
    for force_sync in [false, true] {
        for settled in [false, true] {
            let id = SpoolId::new();
            put_as(spool, id, 1, 5000, force_sync).await;
            if settled {
                all_upkeep(spool).await;
            }
            spool.remove(id).await.expect("remove");
            put_as(spool, id, 2, 300, !force_sync).await;
            assert_holds(spool, id, 2, 300).await;
            stored.push((id, 2, 300));
        }
    }
    assert_lists(spool, &stored).await;
    all_upkeep(spool).await;
    assert_lists(spool, &stored).await;
}
