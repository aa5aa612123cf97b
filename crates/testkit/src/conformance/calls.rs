//! The calls that most cases are made of.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tidespool_core::{NotFound, Spool, SpoolEntry, SpoolId};

use crate::{payload, wait};

/// A length on each side of what spools treat differently: nothing, less than a header, a page, a record that is
/// filed whole or not, a segment.
pub(super) const LENGTHS: [usize; 8] = [0, 1, 100, 4095, 4096, 4097, 100 * 1024, 1024 * 1024];

/// Waits until each of `turns` has grown by `by`: a race is only tried where both sides run, however loaded the machine.
pub(super) async fn advance(what: &str, turns: &[AtomicU64], by: u64) {
    let counts = || turns.iter().map(|turns| turns.load(Ordering::Relaxed));
    let before: Vec<u64> = counts().collect();
    wait::until(what, || counts().zip(&before).all(|(now, before)| now >= before + by)).await;
}

/// Stores version `version` of `id`, `len` bytes, not synced.
pub(super) async fn put(spool: &dyn Spool, id: SpoolId, version: u64, len: usize) {
    put_as(spool, id, version, len, false).await;
}

/// Stores version `version` of `id`, `len` bytes.
pub(super) async fn put_as(spool: &dyn Spool, id: SpoolId, version: u64, len: usize, force_sync: bool) {
    let data = payload::shared(id, version, len);
    let stored = spool.store(id, data, force_sync, None).await;
    stored.unwrap_or_else(|err| panic!("store of {id}, {len} bytes, force_sync {force_sync}: {err:#}"));
}

/// Loads `id`, which must be there and whole.
pub(super) async fn get(spool: &dyn Spool, id: SpoolId) -> Vec<u8> {
    spool.load(id).await.unwrap_or_else(|err| panic!("load of {id}: {err:#}"))
}

/// Checks that `id` is there as version `version`, `len` bytes.
pub(super) async fn assert_holds(spool: &dyn Spool, id: SpoolId, version: u64, len: usize) {
    payload::assert_is(id, version, len, &get(spool, id).await);
}

/// Checks that there is no message `id`, and that the spool says so as promised.
pub(super) async fn assert_absent(spool: &dyn Spool, id: SpoolId) {
    let err = match spool.load(id).await {
        Ok(data) => panic!("message {id} should not be there, and has {} bytes", data.len()),
        Err(err) => err,
    };
    let root = err.root_cause();
    assert_eq!(root.downcast_ref::<NotFound>(), Some(&NotFound { id }), "load of an absent id: {err:#}");
    assert_eq!(root.to_string(), format!("no such key {id}"));
}

/// Every message, by enumeration. Each one once, none damaged.
pub(super) async fn list(spool: &dyn Spool) -> BTreeMap<SpoolId, Vec<u8>> {
    // Beyond the last time that a UUID can tell: some ids here are made of arbitrary bits.
    list_before(spool, Utc::now() + chrono::TimeDelta::days(10_000 * 365)).await
}

/// The messages created before `start`, by enumeration. Each one once, none damaged.
pub(super) async fn list_before(spool: &dyn Spool, start: DateTime<Utc>) -> BTreeMap<SpoolId, Vec<u8>> {
    let (sender, receiver) = async_channel::bounded(1024);
    spool.enumerate(sender, start).expect("enumerate");
    let mut found = BTreeMap::new();
    while let Ok(entry) = receiver.recv().await {
        collect(&mut found, entry);
    }
    found
}

/// Adds an entry that must be whole and new.
pub(super) fn collect(found: &mut BTreeMap<SpoolId, Vec<u8>>, entry: SpoolEntry) {
    match entry {
        SpoolEntry::Item { id, data } => {
            assert!(found.insert(id, data).is_none(), "message {id} was enumerated twice");
        }
        SpoolEntry::Corrupt { id, error } => panic!("message {id} was enumerated as damaged: {error}"),
    }
}

/// Checks that the spool enumerates these messages, (id, version, length), and no others.
pub(super) async fn assert_lists(spool: &dyn Spool, expected: &[(SpoolId, u64, usize)]) {
    let mut found = list(spool).await;
    for &(id, version, len) in expected {
        let data = found.remove(&id).unwrap_or_else(|| panic!("message {id} was not enumerated"));
        payload::assert_is(id, version, len, &data);
    }
    assert!(found.is_empty(), "enumerated, and should not be there: {:?}", found.keys());
}

/// Everything that moves messages about inside the spool.
pub(super) async fn all_upkeep(spool: &dyn Spool) {
    spool.advise_low_memory().await.expect("advise_low_memory");
    spool.cleanup().await.expect("cleanup");
    spool.compact().await.expect("compact");
}

/// A moment that is over.
pub(super) fn past() -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(1)).unwrap_or(now)
}
