//! The engine: opens sled in a directory, and states what sled needs.

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidespool_core::ClockNotSet;

use super::fingerprint::fingerprint_of;
use super::footprint::CACHE_FACTOR;
use super::store::{SledStore, TO_OPEN};
use super::worker::SledThreads;
use crate::index::{Fingerprint, IndexEngine, IndexError, IndexStore};
use crate::storage::Storage;

/// The most space to require for changes. sled writes step by step, and each step leaves the space
/// that the last one needed.
const AT_MOST: u64 = 16 << 20;

/// Bytes that sled writes for a changed record: its block, and a share of the leaf around it.
const PER_RECORD: u64 = 1 << 10;

/// Fails if the clock is before 1970. sled uses the time since 1970 in the name of a file that it
/// never creates, and panics if there is none.
pub(crate) fn check_clock(now: SystemTime) -> Result<(), ClockNotSet> {
    if now < UNIX_EPOCH { Err(ClockNotSet) } else { Ok(()) }
}

/// How sled is opened.
pub(in crate::index) struct SledEngine {
    /// Memory for the pages that sled caches, in bytes. sled gets a quarter of it, at least 1 MiB,
    /// because it uses about four times what it counts. Resident memory is more: see
    /// [`IndexStore::memory_bytes`].
    pub(super) cache_bytes: u64,
    /// Makes its files durable. sled reads and writes them itself.
    pub(super) storage: Arc<dyn Storage>,
    pub(super) threads: Arc<SledThreads>,
}

impl SledEngine {
    pub(in crate::index) fn new(
        cache_bytes: u64,
        storage: Arc<dyn Storage>,
        directory: Weak<dyn Any + Send + Sync>,
    ) -> Self {
        Self { cache_bytes, storage, threads: Arc::new(SledThreads::new(directory)) }
    }

    pub(super) fn open_store(&self, dir: &Path) -> Result<SledStore, IndexError> {
        let cache = (self.cache_bytes / CACHE_FACTOR).max(1 << 20);
        SledStore::open(dir, cache, &*self.storage, &self.threads)
    }
}

impl IndexEngine for SledEngine {
    fn open(&self, dir: &Path) -> Result<Box<dyn IndexStore>, IndexError> {
        Ok(Box::new(self.open_store(dir)?))
    }

    fn fingerprint(&self, dir: &Path, until: Option<Instant>) -> io::Result<Option<Fingerprint>> {
        fingerprint_of(dir, until)
    }

    fn join(&self, wait: Duration) -> usize {
        self.threads.join_all(wait)
    }

    fn closing_failed(&self) -> bool {
        self.threads.closing_failed()
    }

    fn bytes_to_open(&self) -> u64 {
        TO_OPEN
    }

    fn bytes_to_change(&self, records: u64) -> u64 {
        (TO_OPEN + records * PER_RECORD).min(AT_MOST)
    }
}
