//! Tests of the index, and what the tests of an engine need.
//!
//! * `contract`: what an engine does, on each engine.
//! * `handle`: the states of the index that the spool uses, and when it is discarded.
//! * `closed`: the index at an orderly close, and at the next open.

mod closed;
mod contract;
pub(super) mod handle;

use std::time::Duration;

use tempfile::TempDir;

use super::memory::{MemoryEngine, engines};
use super::{IndexChange, IndexError, IndexOp, IndexStore, Key, KeyRange, Record, Tally};
use crate::message_id::MessageId;

/// Far more than any call of a test needs if nothing hangs.
pub(in crate::index) const LONG: Duration = Duration::from_secs(60);

pub(in crate::index) fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Returns the n-th of a sequence of ascending keys.
pub(in crate::index) fn key(n: u32) -> Key {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    Key::of(&MessageId::from_bytes(id))
}

/// Returns a place computed from the two numbers.
pub(in crate::index) fn place(seq: u64, len: u32) -> Record {
    Record { seq, generation: 7, offset: 4096 + seq * 64, len }
}

pub(in crate::index) fn put(n: u32, record: Record) -> IndexOp {
    IndexOp { key: key(n), change: IndexChange::Put(record) }
}

pub(in crate::index) fn remove(n: u32) -> IndexOp {
    IndexOp { key: key(n), change: IndexChange::Remove }
}

pub(in crate::index) fn apply(
    store: &dyn IndexStore,
    ops: impl IntoIterator<Item = IndexOp>,
) -> Result<Tally, IndexError> {
    store.apply(&mut ops.into_iter(), &mut |_, _| ())
}

pub(in crate::index) fn fill(store: &dyn IndexStore, count: u32) -> Tally {
    apply(store, (0..count).map(|n| put(n, place(n.into(), 200)))).unwrap()
}

/// Returns all records that a scan visits, in order.
pub(in crate::index) fn scan(store: &dyn IndexStore) -> Result<Vec<(Key, Record)>, IndexError> {
    let mut found = Vec::new();
    let visit = &mut |key, record| {
        found.push((key, record));
        true
    };
    store.scan(&[KeyRange::ALL], visit).map(|()| found)
}

pub(in crate::index) fn all(store: &dyn IndexStore) -> Vec<(Key, Record)> {
    scan(store).unwrap()
}

/// Applies `ops`. Also returns the key and the previous record of each.
pub(in crate::index) fn replace(
    store: &dyn IndexStore,
    ops: impl IntoIterator<Item = IndexOp>,
) -> (Tally, Vec<(Key, Option<Record>)>) {
    let mut replaced = Vec::new();
    let note = &mut |key: &Key, old| replaced.push((*key, old));
    let delta = store.apply(&mut ops.into_iter(), note).unwrap();
    (delta, replaced)
}

/// Returns number and digest of the records that a scan finds.
pub(in crate::index) fn tally_of(store: &dyn IndexStore) -> Result<Tally, IndexError> {
    let mut tally = Tally::default();
    scan(store)?.iter().for_each(|(key, record)| tally.add(key, &record.to_bytes()));
    Ok(tally)
}

/// Asserts that a scan visits no key twice, and each of these keys.
pub(in crate::index) fn assert_scan_finds(store: &dyn IndexStore, mut keys: impl Iterator<Item = Key>) {
    let found = all(store);
    assert!(found.is_sorted_by(|(a, _), (b, _)| a < b), "in order, none twice");
    assert!(keys.all(|key| found.binary_search_by_key(&key, |(key, _)| *key).is_ok()), "none left out");
}
