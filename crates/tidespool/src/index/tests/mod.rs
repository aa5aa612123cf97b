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
use tidespool_core::SpoolId;

use super::memory::{MemoryEngine, engines};
use super::{IndexChange, IndexError, IndexOp, IndexStore, Key, KeyRange, Record, Tally};

/// Far more than any call of a test needs if nothing hangs.
pub(in crate::index) const LONG: Duration = Duration::from_secs(60);

pub(in crate::index) fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Returns the n-th of a sequence of ascending keys.
pub(in crate::index) fn key(n: u32) -> Key {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    Key::of(&SpoolId::from_bytes(id))
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

/// Returns number and digest of the records that a scan finds.
pub(in crate::index) fn tally_of(store: &dyn IndexStore) -> Result<Tally, IndexError> {
    let mut tally = Tally::default();
    store.scan(&[KeyRange::ALL], &mut |key, record| {
        tally.add(&key, &record.to_bytes());
        true
    })?;
    Ok(tally)
}

/// Returns all records, in order.
pub(in crate::index) fn all(store: &dyn IndexStore) -> Vec<(Key, Record)> {
    let mut found = Vec::new();
    store
        .scan(&[KeyRange::ALL], &mut |key, record| {
            found.push((key, record));
            true
        })
        .unwrap();
    found
}
