//! The filing engine over real sled in a temporary directory.
//!
//! * `filing`: what is put in comes out: apply, get, scan, tally, reopening.
//! * `faults`: syncs that fail or hang, locks, poison, the handle's reopening.
//! * `damage`: sled's files changed behind its back, in a process of its own.
//! * `measure`: what the estimate of memory is worth; run by hand.
//! * `storage`: files whose syncs a test has a say in.

mod damage;
mod faults;
mod filing;
mod measure;
mod storage;

use std::path::Path;

use tempfile::TempDir;
use tidespool_core::SpoolId;

use super::handle::Opening;
use super::{Change, DurableError, DurableStore, Key, Op, Record, SledOptions, SledStore, Tally};

const CACHE: u64 = 8 << 20;

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(dir: &Path) -> SledStore {
    open_with(dir, SledOptions::new(CACHE)).unwrap()
}

fn open_with(dir: &Path, options: SledOptions) -> Result<SledStore, DurableError> {
    SledStore::open(&dir.join("sled"), options, Opening::First)
}

fn close(store: SledStore) {
    store.close(std::time::Duration::from_secs(60)).unwrap();
    drop(store);
}

/// The n-th of a row of keys that is in order.
fn key(n: u32) -> Key {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    Key::of(&SpoolId::from_bytes(id))
}

fn whole(seq: u64, len: usize) -> Record {
    Record::Whole { seq, data: vec![seq.to_le_bytes()[0]; len].into() }
}

fn put(n: u32, record: Record) -> Op {
    Op { key: key(n), change: Change::Put(record) }
}

fn remove(n: u32) -> Op {
    Op { key: key(n), change: Change::Remove }
}

fn apply(store: &dyn DurableStore, ops: impl IntoIterator<Item = Op>) -> Result<Tally, DurableError> {
    store.apply(&mut ops.into_iter(), &mut |_, _| ())
}

fn fill(store: &dyn DurableStore, count: u32) -> Tally {
    apply(store, (0..count).map(|n| put(n, whole(n.into(), 200)))).unwrap()
}
