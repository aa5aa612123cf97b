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

use tempfile::TempDir;

use super::engine::SledEngine;
use super::store::SledStore;
use super::worker::SledThreads;
use crate::index::tests::{
    LONG, all, apply, assert_scan_finds, dir, fill, key, place, put, remove, replace, scan, tally_of,
};
use crate::index::{IndexError, IndexStore, KeyRange, Record, Tally};
use crate::storage::OsStorage;

const CACHE: u64 = 8 << 20;

fn sled_engine() -> SledEngine {
    with_cache(CACHE)
}

fn with_cache(bytes: u64) -> SledEngine {
    SledEngine::new(bytes, Arc::new(OsStorage), Weak::<()>::new())
}

fn with_timeouts(open_timeout: Duration, change_timeout: Duration) -> SledEngine {
    let mut threads = SledThreads::new(Weak::<()>::new());
    (threads.open_timeout, threads.change_timeout) = (open_timeout, change_timeout);
    SledEngine { threads: Arc::new(threads), ..sled_engine() }
}

fn open(dir: &Path) -> SledStore {
    open_with(dir, &sled_engine()).unwrap()
}

fn new_store() -> (TempDir, SledStore) {
    let dir = dir();
    let store = open(dir.path());
    (dir, store)
}

fn open_with(dir: &Path, engine: &SledEngine) -> Result<SledStore, IndexError> {
    engine.open_store(&dir.join("sled"))
}

fn close(store: SledStore) {
    let threads = store.threads.clone();
    drop(store);
    assert_eq!(threads.join_all(LONG), 0);
}
