//! A stored message is returned in its newest version.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use tidespool_core::SpoolId;

use super::calls::{LENGTHS, all_upkeep, assert_absent, assert_holds, assert_lists, get, put, put_as};
use crate::{Subject, ids, payload};

/// A load of an id that was never stored returns `NotFound` with the text `no such key {id}`.
pub async fn an_absent_message_is_not_found(subject: &mut Subject) {
    let spool = subject.spool();
    assert_absent(spool, SpoolId::new()).await;
    let stored = SpoolId::new();
    put(spool, stored, 1, 100).await;
    assert_absent(spool, SpoolId::new()).await;
    assert_absent(spool, ids::v4(1)).await;
    all_upkeep(spool).await;
    assert_absent(spool, SpoolId::new()).await;
}

/// From 0 bytes to 1 MiB, synced or not, immediately and after upkeep moved every message.
pub async fn messages_of_every_size_come_back(subject: &mut Subject) {
    let spool = subject.spool();
    let mut stored = Vec::new();
    for force_sync in [false, true] {
        for len in LENGTHS {
            let id = SpoolId::new();
            put_as(spool, id, 1, len, force_sync).await;
            assert_holds(spool, id, 1, len).await;
            stored.push((id, 1, len));
        }
    }
    all_upkeep(spool).await;
    for &(id, version, len) in &stored {
        assert_holds(spool, id, version, len).await;
    }
    assert_lists(spool, &stored).await;
}

/// No byte value is special to the spool.
pub async fn bytes_of_every_value_come_back(subject: &mut Subject) {
    let spool = subject.spool();
    let every_value: Vec<u8> = (0..=255).cycle().take(5 * 1024).collect();
    let contents = [every_value, vec![0; 5000], vec![0xff; 5000], b"\r\n.\r\n".to_vec(), vec![0], vec![0xff]];
    let mut stored = Vec::new();
    for content in contents {
        for force_sync in [false, true] {
            let id = SpoolId::new();
            let data = Arc::new(content.clone().into_boxed_slice());
            spool.store(id, data, force_sync, None).await.expect("store");
            stored.push((id, content.clone()));
        }
    }
    for (id, content) in &stored {
        assert_eq!(&get(spool, *id).await, content, "message {id}");
    }
    all_upkeep(spool).await;
    for (id, content) in &stored {
        assert_eq!(&get(spool, *id).await, content, "message {id} after upkeep");
    }
}

/// A store replaces the earlier version: smaller, larger, empty, synced or not.
pub async fn the_last_store_counts(subject: &mut Subject) {
    let spool = subject.spool();
    let mut stored = Vec::new();
    for (first, second) in [(false, false), (false, true), (true, false), (true, true)] {
        for (before, after) in
            [(5000, 200), (200, 5000), (3000, 0), (0, 3000), (1000, 1000), (70_000, 70_000)]
        {
            let id = SpoolId::new();
            put_as(spool, id, 1, before, first).await;
            // Load in between: a stale cached copy would be returned later.
            assert_holds(spool, id, 1, before).await;
            put_as(spool, id, 2, after, second).await;
            assert_holds(spool, id, 2, after).await;
            stored.push((id, 2, after));
        }
    }
    assert_lists(spool, &stored).await;
    all_upkeep(spool).await;
    for &(id, version, len) in &stored {
        assert_holds(spool, id, version, len).await;
    }
    assert_lists(spool, &stored).await;
}

/// A version that upkeep has moved is replaced like a new one.
pub async fn a_settled_version_is_replaced(subject: &mut Subject) {
    let spool = subject.spool();
    let mut stored = Vec::new();
    for force_sync in [false, true] {
        for (before, after) in [(100, 200), (100, 50_000), (50_000, 100), (50_000, 0), (0, 100)] {
            let id = SpoolId::new();
            put(spool, id, 1, before).await;
            stored.push((id, 2, after, force_sync));
        }
    }
    all_upkeep(spool).await;
    for &(id, version, len, force_sync) in &stored {
        drop(get(spool, id).await);
        put_as(spool, id, version, len, force_sync).await;
        assert_holds(spool, id, version, len).await;
    }
    let stored: Vec<_> = stored.into_iter().map(|(id, version, len, _)| (id, version, len)).collect();
    assert_lists(spool, &stored).await;
    all_upkeep(spool).await;
    assert_lists(spool, &stored).await;
}

/// Any UUID is an id: of any version or none, all zeros, all ones, and ids that differ in one bit.
pub async fn ids_of_every_kind_are_kept_apart(subject: &mut Subject) {
    let spool = subject.spool();
    let mut all = ids::assorted(Utc::now(), 40);
    all.extend([SpoolId::from_bytes([0; 16]), SpoolId::from_bytes([0xff; 16])]);
    let base = *ids::v1(Utc::now(), 7).as_bytes();
    for bit in 0..128 {
        let mut bytes = base;
        bytes[bit / 8] ^= 1 << (bit % 8);
        all.push(SpoolId::from_bytes(bytes));
    }
    let stored: Vec<_> = all.into_iter().map(|id| (id, 1, 40)).collect();
    for &(id, version, len) in &stored {
        put(spool, id, version, len).await;
    }
    all_upkeep(spool).await;
    for &(id, version, len) in &stored {
        assert_holds(spool, id, version, len).await;
    }
    assert_lists(spool, &stored).await;
}

/// A deadline in the future does not affect a store.
pub async fn a_deadline_ahead_is_met(subject: &mut Subject) {
    let spool = subject.spool();
    for force_sync in [false, true] {
        let id = SpoolId::new();
        let deadline = Instant::now() + Duration::from_secs(300);
        let data = payload::shared(id, 1, 1000);
        spool.store(id, data, force_sync, Some(deadline)).await.expect("store with a deadline ahead");
        assert_holds(spool, id, 1, 1000).await;
    }
}
