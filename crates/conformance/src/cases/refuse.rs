//! A store that fails returns the reason, and leaves nothing behind.

use std::sync::Arc;

use tidespool_core::{InDoubt, SpoolCallerDeadlineExceeded, SpoolId, TooLarge};

use super::calls::{all_upkeep, assert_absent, assert_holds, assert_lists, past, put_as};
use crate::{Subject, payload};

/// A store with a past deadline returns the typed error, and the message is absent.
pub async fn a_past_deadline_stores_nothing(subject: &mut Subject) {
    for force_sync in [false, true] {
        for len in [0, 100, 100_000] {
            let id = SpoolId::new();
            refused_for_its_deadline(subject, id, len, force_sync).await;
            assert_absent(subject.spool(), id).await;
        }
    }
    all_upkeep(subject.spool()).await;
    assert_lists(subject.spool(), &[]).await;
}

/// A failed replace leaves the earlier version, before and after upkeep.
pub async fn a_past_deadline_leaves_the_earlier_version(subject: &mut Subject) {
    let mut stored = Vec::new();
    for force_sync in [false, true] {
        for settled in [false, true] {
            let id = SpoolId::new();
            put_as(subject.spool(), id, 1, 3000, force_sync).await;
            if settled {
                all_upkeep(subject.spool()).await;
            }
            refused_for_its_deadline(subject, id, 200, force_sync).await;
            assert_holds(subject.spool(), id, 1, 3000).await;
            stored.push((id, 1, 3000));
        }
    }
    all_upkeep(subject.spool()).await;
    assert_lists(subject.spool(), &stored).await;
}

async fn refused_for_its_deadline(subject: &Subject, id: SpoolId, len: usize, force_sync: bool) {
    let stored = subject.spool().store(id, payload::shared(id, 9, len), force_sync, Some(past())).await;
    let err = stored.expect_err("a store with its deadline in the past");
    assert!(err.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{err:#}");
    assert!(!err.is::<InDoubt>(), "the message was never written: {err:#}");
}

/// A store above the size limit returns the typed error with the figures, and the message is
/// absent.
pub async fn a_message_too_large_stores_nothing(subject: &mut Subject) {
    for force_sync in [false, true] {
        let id = SpoolId::new();
        refused_for_its_size(subject, id, force_sync).await;
        assert_absent(subject.spool(), id).await;
    }
    all_upkeep(subject.spool()).await;
    assert_lists(subject.spool(), &[]).await;
}

/// A store above the size limit does not change the earlier version.
pub async fn a_message_too_large_leaves_the_earlier_version(subject: &mut Subject) {
    let id = SpoolId::new();
    put_as(subject.spool(), id, 1, 3000, false).await;
    refused_for_its_size(subject, id, true).await;
    refused_for_its_size(subject, id, false).await;
    assert_holds(subject.spool(), id, 1, 3000).await;
    assert_lists(subject.spool(), &[(id, 1, 3000)]).await;
}

async fn refused_for_its_size(subject: &Subject, id: SpoolId, force_sync: bool) {
    let limit = subject.factory().max_message_size();
    let size = usize::try_from(limit).expect("a limit that fits into memory") + 1;
    let data = Arc::new(vec![7; size].into_boxed_slice());
    let err = subject.spool().store(id, data, force_sync, None).await.expect_err("a message too large");
    let expected = TooLarge { id, size: limit + 1, limit };
    assert_eq!(err.root_cause().downcast_ref::<TooLarge>(), Some(&expected), "{err:#}");
}

/// A message of exactly the limit is stored.
pub async fn the_largest_message_is_taken(subject: &mut Subject) {
    let size = usize::try_from(subject.factory().max_message_size()).expect("a limit that fits into memory");
    let mut stored = Vec::new();
    for force_sync in [false, true] {
        let id = SpoolId::new();
        put_as(subject.spool(), id, 1, size, force_sync).await;
        assert_holds(subject.spool(), id, 1, size).await;
        stored.push((id, 1, size));
    }
    all_upkeep(subject.spool()).await;
    assert_lists(subject.spool(), &stored).await;
}
