//! id → newest version, in memory: pending versions and index entries, in shards.
//!
//! A shard's lock orders all changes of an id. Code that holds it does no I/O and never awaits.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};

use crate::checkpoint::{HighKeys, LiveIndex, Survey};
use crate::index::Key;
use crate::journal::{MemoryIndex, NewestRecord};
use crate::memory::{Pending, Risks, Ticket};
use crate::message_id::MessageId;

/// Enough shards that two cores seldom contend for one.
const SHARDS: usize = 64;

/// Number of hash buckets. Each bucket is assigned to a shard.
const BUCKETS: usize = 4096;

/// The pending versions and index entries of all ids.
#[derive(Debug)]
pub(crate) struct Table {
    shards: Box<[Mutex<Shard>]>,
    /// The shard of each bucket.
    buckets: Box<[u8; BUCKETS]>,
    hasher: RandomState,
    /// The newest version that was assigned. Advanced only under a shard's lock.
    version: AtomicU64,
}

/// The locked shards of several ids.
pub(crate) struct LockedShards<'a> {
    table: &'a Table,
    guards: BTreeMap<usize, MutexGuard<'a, Shard>>,
}

impl LockedShards<'_> {
    /// The shard of one of the ids. `None`: the id is not one of them.
    pub(crate) fn get(&mut self, id: &MessageId) -> Option<&mut Shard> {
        self.guards.get_mut(&self.table.shard_of(id)).map(|guard| &mut **guard)
    }
}

/// The part of the table behind one lock.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) pending: Pending,
    pub(crate) index: MemoryIndex,
    /// Counts the ids that moved from the index to that on disk. A lookup that found an id in
    /// neither place compares two counts to detect such a move.
    pub(crate) exits: u64,
    /// The highest keys that were ever written to the index on disk.
    checkpointed: HighKeys,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            buckets: buckets(),
            hasher: RandomState::default(),
            version: AtomicU64::new(0),
        }
    }

    /// Locks the shard of an id.
    pub(crate) fn lock(&self, id: &MessageId) -> MutexGuard<'_, Shard> {
        self.shards[self.shard_of(id)].lock()
    }

    /// Locks the shards of several ids. The order of the locks is that of the shards, so that no
    /// two callers wait for each other.
    pub(crate) fn lock_all<'a>(&self, ids: impl Iterator<Item = &'a MessageId>) -> LockedShards<'_> {
        let shards: BTreeSet<usize> = ids.map(|id| self.shard_of(id)).collect();
        LockedShards {
            table: self,
            guards: shards.into_iter().map(|shard| (shard, self.shards[shard].lock())).collect(),
        }
    }

    fn shard_of(&self, id: &MessageId) -> usize {
        let hash = self.hasher.hash_one(id);
        // The high bits: the shard's own hash tables use the low ones.
        let bucket = usize::try_from(hash >> 52).unwrap_or(0) % BUCKETS;
        usize::from(self.buckets[bucket])
    }

    /// Assigns the next version. The caller holds the lock of the id's shard until the version is
    /// in the table or in the commit queue.
    pub(crate) fn next_version(&self) -> u64 {
        self.next_versions(1)
    }

    /// Assigns the next `count` versions, and returns the first. The caller holds the locks of all
    /// ids, as for [`next_version`](Self::next_version).
    pub(crate) fn next_versions(&self, count: u64) -> u64 {
        self.version.fetch_add(count, Ordering::Relaxed) + 1
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Shard>> + '_ {
        self.shards.iter().map(|shard| shard.lock())
    }

    /// Removes and returns the tickets of everything that has been dirty since `cutoff` or longer,
    /// and of everything that was stored before the youngest version among them. Oldest version
    /// first.
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

    /// Returns when the oldest dirty version that waits for its flush was stored.
    pub(crate) fn oldest_dirty(&self) -> Option<Instant> {
        self.shards().filter_map(|mut shard| shard.pending.oldest()).min()
    }

    /// Returns what a power cut would lose now, and what the death of the process would lose.
    pub(crate) fn risks(&self) -> Risks {
        self.shards().fold(Risks::default(), |sum, shard| sum.plus(shard.pending.risks()))
    }

    /// Sets the highest keys that the index on disk may have.
    pub(crate) fn set_checkpointed(&self, high: HighKeys) {
        for mut shard in self.shards() {
            shard.checkpointed = high;
        }
    }
}

/// Assigns each bucket to a shard, so that the last shard gets twice as many ids as the first.
///
/// A hash table doubles when it is full. Shards of equal size would all double at the same moment
/// and be half empty afterwards. With unequal sizes a few shards double at a time, and the total
/// load factor is about the same at any number of messages.
fn buckets() -> Box<[u8; BUCKETS]> {
    let mut buckets = Box::new([0; BUCKETS]);
    for (number, bucket) in buckets.iter_mut().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let share = number as f64 / BUCKETS as f64;
        // Shard i begins at the fraction 2^(i / SHARDS) - 1 of the buckets.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below SHARDS")]
        let shard = ((1.0 + share).log2() * SHARDS as f64) as u8;
        *bucket = shard;
    }
    buckets
}

impl Shard {
    /// True if an earlier version of `id` may be durable, so that the cache may hold a copy of it.
    pub(crate) fn may_have_copy(&self, id: &MessageId) -> bool {
        self.index.get(id).is_some() || self.checkpointed.may_have(&Key::of(id))
    }

    /// True if the removal of `id` must be written: a version that is durable, or is being
    /// committed, could bring the message back.
    pub(crate) fn must_log_removal(&self, id: &MessageId) -> bool {
        let indexed = match self.index.get(id) {
            Some(newest) => newest.place.is_some(),
            None => self.checkpointed.may_have(&Key::of(id)),
        };
        indexed || self.pending.is_under_way(id)
    }
}

impl LiveIndex for Table {
    fn collect(&self, up_to: u64) -> Vec<(Key, NewestRecord)> {
        let mut found = Vec::new();
        for shard in self.shards() {
            let entries = shard.index.iter().filter(|(_, newest)| newest.generation <= up_to);
            found.extend(entries.map(|(id, newest)| (Key::of(&id), newest)));
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

    fn survey(&self) -> Survey {
        let mut survey = Survey::default();
        for shard in self.shards() {
            for (_, newest) in shard.index.iter() {
                match newest.place {
                    Some(place) => survey.live_bytes += u64::from(place.len),
                    None => survey.removals += 1,
                }
            }
            // Pending removals of messages that only the index on disk has. Messages in the index
            // in memory are not there yet.
            let removals = shard.pending.removals().filter(|id| shard.index.get(id).is_none());
            survey.removals += removals.count() as u64;
        }
        survey
    }

    fn is_newest(&self, id: &MessageId, seq: u64) -> bool {
        self.lock(id).index.get(id).is_some_and(|newest| newest.seq == seq)
    }

    fn has_in_memory(&self, id: &MessageId) -> bool {
        let shard = self.lock(id);
        shard.pending.get(id).is_some() || shard.index.get(id).is_some()
    }

    fn will_checkpoint(&self, high: HighKeys) {
        self.set_checkpointed(high);
    }

    fn forget(&self, checkpointed: &[(Key, NewestRecord)]) {
        for (key, newest) in checkpointed {
            let id = key.message();
            let mut shard = self.lock(&id);
            if shard.index.forget(&id, newest.seq) {
                shard.exits += 1;
            }
        }
        for mut shard in self.shards() {
            shard.index.trim();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_entry_takes_at_most_about_64_bytes_at_any_number_of_messages() {
        let table = Table::new();
        let mut next_look = 100_000;
        for seq in 1..=400_000 {
            let id = MessageId::random();
            let newest = NewestRecord { seq, generation: 1, place: None };
            table.lock(&id).index.learn(id, newest);
            if seq == next_look {
                let bytes: u64 = table.shards().map(|shard| shard.index.bytes()).sum();
                // The ids of a shard are random: 58 to 64.1 bytes were measured. With shards of
                // equal size it would be up to 85.
                assert!(bytes <= 68 * seq, "{} bytes each at {seq}", bytes / seq);
                next_look += next_look / 20;
            }
        }
    }
}
