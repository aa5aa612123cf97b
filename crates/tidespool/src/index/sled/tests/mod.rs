//! Tests with real sled in a temporary directory.
//!
//! * `store`: what sled's files hold, and what a reader sees of them.
//! * `faults`: calls that fail or hang, locks, poison, the clock.
//! * `closed`: changed files of a closed index.
//! * `damage`: damaged files of sled, in a separate process.
//! * `measure`: compares the estimate of memory with the measurement; run by hand.

mod closed;
mod damage;
mod faults;
mod measure;
mod store;

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::engine::SledEngine;
use super::store::SledStore;
use crate::index::tests::{LONG, all, apply, dir, fill, key, place, put, remove, tally_of};
use crate::index::{IndexError, IndexStore, KeyRange, Record, Tally};
use crate::storage::OsStorage;

const CACHE: u64 = 8 << 20;

pub(super) fn sled_engine() -> SledEngine {
    with_cache(CACHE)
}

fn with_cache(bytes: u64) -> SledEngine {
    SledEngine::new(bytes, Arc::new(OsStorage), Weak::<()>::new())
}

fn open(dir: &Path) -> SledStore {
    open_with(dir, &sled_engine()).unwrap()
}

fn open_with(dir: &Path, engine: &SledEngine) -> Result<SledStore, IndexError> {
    SledStore::open(&dir.join("sled"), engine)
}

fn close(store: SledStore) {
    let closing = store.engine.closing.clone();
    drop(store);
    assert_eq!(closing.join_all(LONG), 0);
}
