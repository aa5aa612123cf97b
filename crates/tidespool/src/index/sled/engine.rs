//! The engine: opens sled in a directory, and states what sled needs.

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidespool_core::ClockNotSet;

use super::fingerprint::fingerprint_of;
use super::footprint::CACHE_FACTOR;
use super::store::SledStore;
use super::worker::ClosingThreads;
use crate::index::{Fingerprint, IndexEngine, IndexError, IndexStore};
use crate::storage::Storage;

/// Disk space that sled needs to open, and to change anything: its snapshot, and the segments of
/// 512 KiB that it begins in its file.
pub(super) const TO_OPEN: u64 = 1 << 20;

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
#[derive(Clone)]
pub(in crate::index) struct SledEngine {
    /// Memory for the pages that sled caches, in bytes. sled gets a quarter of it, at least 1 MiB,
    /// because it uses about four times what it counts. Resident memory is more: see
    /// [`IndexStore::memory_bytes`].
    pub(super) cache_bytes: u64,
    /// Makes its files durable. sled reads and writes them itself.
    pub(super) storage: Arc<dyn Storage>,
    /// The locked directory, which each thread holds until it ends.
    pub(super) directory: Weak<dyn Any + Send + Sync>,
    /// The longest wait for an open. Default = 60 s.
    pub(super) open_timeout: Duration,
    /// The longest wait for a batch of changes, or for a flush and sync. Default = 60 s.
    pub(super) change_timeout: Duration,
    pub(super) closing: Arc<ClosingThreads>,
}

impl SledEngine {
    pub(in crate::index) fn new(
        cache_bytes: u64,
        storage: Arc<dyn Storage>,
        directory: Weak<dyn Any + Send + Sync>,
    ) -> Self {
        let (open_timeout, change_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
        Self { cache_bytes, storage, directory, open_timeout, change_timeout, closing: Arc::default() }
    }

    /// Returns the cache capacity that is passed to sled.
    pub(super) fn sled_cache(&self) -> u64 {
        (self.cache_bytes / CACHE_FACTOR).max(1 << 20)
    }
}

impl IndexEngine for SledEngine {
    fn open(&self, dir: &Path) -> Result<Box<dyn IndexStore>, IndexError> {
        Ok(Box::new(SledStore::open(dir, self)?))
    }

    fn fingerprint(&self, dir: &Path, until: Option<Instant>) -> io::Result<Option<Fingerprint>> {
        fingerprint_of(dir, until)
    }

    fn join(&self, wait: Duration) -> usize {
        self.closing.join_all(wait)
    }

    fn closing_failed(&self) -> bool {
        self.closing.failed()
    }

    fn bytes_to_open(&self) -> u64 {
        TO_OPEN
    }

    fn bytes_to_change(&self, records: u64) -> u64 {
        (TO_OPEN + records * PER_RECORD).min(AT_MOST)
    }
}
