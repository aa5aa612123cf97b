//! Tests of the index engine with real sled in a temporary directory.
//!
//! * `changes`: apply, get, scan, and a reopen after an orderly close.
//! * `faults`: calls that fail or hang, locks, poison.
//! * `handle`: the states of the index that the spool uses, and when it is discarded.
//! * `closed`: the index at an orderly close, and at the next open.
//! * `engine`: an engine in memory with injected faults.
//! * `damage`: damaged files of sled, in a separate process.
//! * `measure`: compares the estimate of memory with the measurement; run by hand.

mod changes;
mod closed;
mod damage;
mod engine;
mod faults;
mod handle;
mod measure;

use std::path::Path;

use tempfile::TempDir;
use tidespool_core::SpoolId;

use super::{
    DurableError, DurableStore, IndexChange, IndexOp, Key, KeyRange, Record, SledOptions, SledStore, Tally,
};

const CACHE: u64 = 8 << 20;

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(dir: &Path) -> SledStore {
    open_with(dir, SledOptions::new(CACHE)).unwrap()
}

fn open_with(dir: &Path, options: SledOptions) -> Result<SledStore, DurableError> {
    SledStore::open(&dir.join("sled"), options)
}

fn close(store: SledStore) {
    store.close(std::time::Duration::from_secs(60)).unwrap();
    drop(store);
}

/// Returns the n-th of a sequence of ascending keys.
fn key(n: u32) -> Key {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    Key::of(&SpoolId::from_bytes(id))
}

/// Returns a place computed from the two numbers.
fn place(seq: u64, len: u32) -> Record {
    Record { seq, generation: 7, offset: 4096 + seq * 64, len }
}

fn put(n: u32, record: Record) -> IndexOp {
    IndexOp { key: key(n), change: IndexChange::Put(record) }
}

fn remove(n: u32) -> IndexOp {
    IndexOp { key: key(n), change: IndexChange::Remove }
}

fn apply(store: &dyn DurableStore, ops: impl IntoIterator<Item = IndexOp>) -> Result<Tally, DurableError> {
    store.apply(&mut ops.into_iter(), &mut |_, _| ())
}

fn fill(store: &dyn DurableStore, count: u32) -> Tally {
    apply(store, (0..count).map(|n| put(n, place(n.into(), 200)))).unwrap()
}

/// Returns number and digest of the records that a scan finds.
fn tally_of(store: &dyn DurableStore) -> Result<Tally, DurableError> {
    let mut tally = Tally::default();
    store.scan(&[KeyRange::ALL], &mut |key, record| {
        tally.add(&key, &record.to_bytes());
        true
    })?;
    Ok(tally)
}
