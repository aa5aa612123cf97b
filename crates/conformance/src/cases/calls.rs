//! The calls that most cases share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tidespool_core::{NotFound, Spool, SpoolEntry, SpoolId};

use crate::{payload, wait};

/// Lengths around the sizes that spools may treat differently: empty, smaller than a header, a
/// page, many pages, a segment.
pub(super) const LENGTHS: [usize; 8] = [0, 1, 100, 4095, 4096, 4097, 100 * 1024, 1024 * 1024];

/// Waits until each of `turns` has grown by `by`. This ensures that both sides of a race run, even
/// on a busy machine.
pub(super) async fn advance(what: &str, turns: &[AtomicU64], by: u64) {
    let counts = || turns.iter().map(|turns| turns.load(Ordering::Relaxed));
    let before: Vec<u64> = counts().collect();
    wait::until(what, || counts().zip(&before).all(|(now, before)| now >= before + by)).await;
}

/// Stores version `version` of `id`, `len` bytes, without a sync.
pub(super) async fn put(spool: &dyn Spool, id: SpoolId, version: u64, len: usize) {
    put_as(spool, id, version, len, false).await;
}

/// Stores version `version` of `id`, `len` bytes.
pub(super) async fn put_as(spool: &dyn Spool, id: SpoolId, version: u64, len: usize, force_sync: bool) {
    let data = payload::shared(id, version, len);
    let stored = spool.store(id, data, force_sync, None).await;
    stored.unwrap_or_else(|err| panic!("store of {id}, {len} bytes, force_sync {force_sync}: {err:#}"));
}

/// Loads `id`, which must be present.
pub(super) async fn get(spool: &dyn Spool, id: SpoolId) -> Vec<u8> {
    spool.load(id).await.unwrap_or_else(|err| panic!("load of {id}: {err:#}"))
}

/// Checks that `id` has version `version` of `len` bytes.
pub(super) async fn assert_holds(spool: &dyn Spool, id: SpoolId, version: u64, len: usize) {
    payload::assert_is(id, version, len, &get(spool, id).await);
}

/// Checks that there is no message `id`, and that the error of a load is as specified.
pub(super) async fn assert_absent(spool: &dyn Spool, id: SpoolId) {
    let err = match spool.load(id).await {
        Ok(data) => panic!("message {id} should be absent, but has {} bytes", data.len()),
        Err(err) => err,
    };
    let root = err.root_cause();
    assert_eq!(root.downcast_ref::<NotFound>(), Some(&NotFound { id }), "load of an absent id: {err:#}");
    assert_eq!(root.to_string(), format!("no such key {id}"));
}

/// Enumerates all messages. Each must occur once, and none may be damaged.
pub(super) async fn list(spool: &dyn Spool) -> BTreeMap<SpoolId, Vec<u8>> {
    // Later than the last time in a UUID: some ids here have arbitrary bits.
    list_before(spool, Utc::now() + chrono::TimeDelta::days(10_000 * 365)).await
}

/// Enumerates the messages created before `start`. Each must occur once, and none may be damaged.
pub(super) async fn list_before(spool: &dyn Spool, start: DateTime<Utc>) -> BTreeMap<SpoolId, Vec<u8>> {
    let (sender, receiver) = async_channel::bounded(1024);
    spool.enumerate(sender, start).expect("enumerate");
    let mut found = BTreeMap::new();
    while let Ok(entry) = receiver.recv().await {
        collect(&mut found, entry);
    }
    found
}

/// Adds an entry that must be intact and new.
pub(super) fn collect(found: &mut BTreeMap<SpoolId, Vec<u8>>, entry: SpoolEntry) {
    match entry {
        SpoolEntry::Item { id, data } => {
            assert!(found.insert(id, data).is_none(), "message {id} was enumerated twice");
        }
        SpoolEntry::Corrupt { id, error } => panic!("message {id} was enumerated as damaged: {error}"),
    }
}

/// Checks that the spool enumerates exactly these messages: (id, version, length).
pub(super) async fn assert_lists(spool: &dyn Spool, expected: &[(SpoolId, u64, usize)]) {
    let mut found = list(spool).await;
    for &(id, version, len) in expected {
        let data = found.remove(&id).unwrap_or_else(|| panic!("message {id} was not enumerated"));
        payload::assert_is(id, version, len, &data);
    }
    assert!(found.is_empty(), "enumerated, but should be absent: {:?}", found.keys());
}

/// Makes all calls that move messages inside the spool.
pub(super) async fn all_upkeep(spool: &dyn Spool) {
    spool.advise_low_memory().await.expect("advise_low_memory");
    spool.cleanup().await.expect("cleanup");
    spool.compact().await.expect("compact");
}

/// A time in the past.
pub(super) fn past() -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(1)).unwrap_or(now)
}
