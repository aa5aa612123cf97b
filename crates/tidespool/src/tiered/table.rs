//! id → what is newest, in memory: pending and index, in shards.
//!
//! One shard's lock orders everything that happens to one id. No I/O and no await under it.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};
use tidespool_core::SpoolId;

use crate::checkpoint::{HighKeys, Source};
use crate::durable::Key;
use crate::journal::{Index, Newest};
use crate::memory::{Pending, Ticket};

/// More than enough that two cores seldom meet on one.
const SHARDS: usize = 64;

/// The whole table.
#[derive(Debug)]
pub(crate) struct Table {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// The newest version given out. Only advanced under a shard's lock.
    version: AtomicU64,
}

/// What one lock guards.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) pending: Pending,
    pub(crate) index: Index,
    /// Counts the ids that left the index for sled: whoever saw an id in neither place can tell whether it stayed so.
    pub(crate) exits: u64,
    /// The highest keys that sled was ever told of.
    filed: HighKeys,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
            version: AtomicU64::new(0),
        }
    }

    /// Locks the shard of an id.
    pub(crate) fn lock(&self, id: &SpoolId) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(id);
        // The low bits choose a place within the shard's own tables.
        let shard = usize::try_from(hash >> 58).unwrap_or(0) % SHARDS;
        self.shards[shard].lock()
    }

    /// The next version. The caller holds the lock of the id that gets it, until it is in the table or in the queue.
    pub(crate) fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Shard>> + '_ {
        self.shards.iter().map(|shard| shard.lock())
    }

    /// Moves out the tickets of everything that has been dirty since `cutoff` or longer, oldest version first; and of everything older than the
    /// youngest version among them.
    pub(crate) fn drain_tickets(&self, cutoff: Instant) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        let mut cutoff = cutoff;
        loop {
            let mut reach = cutoff;
            for mut shard in self.shards() {
                reach = reach.max(shard.pending.drain_tickets(cutoff, &mut tickets));
            }
            if reach == cutoff {
                break;
            }
            cutoff = reach;
        }
        tickets.sort_unstable();
        tickets
    }

    /// When the oldest dirty version that waits for its flush was stored.
    pub(crate) fn oldest_dirty(&self) -> Option<Instant> {
        self.shards().filter_map(|mut shard| shard.pending.oldest()).min()
    }

    pub(crate) fn set_filed(&self, high: HighKeys) {
        for mut shard in self.shards() {
            shard.filed = high;
        }
    }
}

impl Shard {
    /// True if there may be an earlier durable version of `id`, and so a clean copy of it.
    pub(crate) fn may_have_copy(&self, id: &SpoolId) -> bool {
        self.index.get(id).is_some() || self.filed.may_have(&Key::of(id))
    }

    /// True if something durable, or about to be, could bring `id` back: its removal must be written.
    pub(crate) fn must_log_removal(&self, id: &SpoolId) -> bool {
        let indexed = match self.index.get(id) {
            Some(newest) => newest.place.is_some(),
            None => self.filed.may_have(&Key::of(id)),
        };
        indexed || self.pending.is_under_way(id)
    }
}

impl Source for Table {
    fn collect(&self, up_to: u64) -> Vec<(SpoolId, Newest)> {
        let mut found = Vec::new();
        for shard in self.shards() {
            found.extend(shard.index.iter().filter(|(_, newest)| newest.generation <= up_to));
        }
        found
    }

    fn live_bytes(&self) -> BTreeMap<u64, u64> {
        let mut live = BTreeMap::new();
        for shard in self.shards() {
            for place in shard.index.iter().filter_map(|(_, newest)| newest.place) {
                *live.entry(place.generation).or_default() += u64::from(place.len);
            }
        }
        live
    }

    fn is_newest(&self, id: &SpoolId, seq: u64) -> bool {
        self.lock(id).index.get(id).is_some_and(|newest| newest.seq == seq)
    }

    fn will_file(&self, high: HighKeys) {
        self.set_filed(high);
    }

    fn forget(&self, filed: &[(SpoolId, Newest)]) {
        for (id, newest) in filed {
            let mut shard = self.lock(id);
            if shard.index.forget(id, newest.seq) {
                shard.exits += 1;
            }
        }
        for mut shard in self.shards() {
            shard.index.trim();
        }
    }
}
