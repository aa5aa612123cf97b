//! id → newest version, in memory: pending versions, young copies and index entries, in shards.
//!
//! A shard's lock orders all changes of an id. Code that holds it does no I/O and never awaits.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};

use crate::checkpoint::{HighKeys, LiveIndex, Survey};
use crate::index::Key;
use crate::journal::{MemoryIndex, NewestRecord};
use crate::memory::{CacheWeights, Copies, Pending, Risks, Ticket, Visible, Young, YoungRoom};
use crate::message_id::MessageId;
use crate::stats::Tier;

/// Enough shards that two cores seldom contend for one.
const SHARDS: usize = 64;

/// Number of hash buckets. Each bucket is assigned to a shard.
const BUCKETS: usize = 4096;

/// Young copies that are moved under one lock.
const MOVED_AT_ONCE: usize = 32;

/// The pending versions, young copies and index entries of all ids.
#[derive(Debug)]
pub(crate) struct Table {
    shards: Box<[Mutex<Shard>]>,
    /// The shard of each bucket.
    buckets: Box<[u8; BUCKETS]>,
    hasher: RandomState,
    /// The newest version that was assigned. Advanced only under a shard's lock.
    version: AtomicU64,
    young_room: Arc<YoungRoom>,
    /// The shard whose young copies are removed next.
    next_popped: AtomicUsize,
}

/// What the shards hold, in sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TableSize {
    pub(crate) index_entries: u64,
    pub(crate) index_bytes: u64,
    pub(crate) young: Copies,
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
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) pending: Pending,
    /// Clean copies of newest versions.
    pub(crate) young: Young,
    pub(crate) index: MemoryIndex,
    /// Counts the ids that moved from the index to that on disk. A lookup that found an id in
    /// neither place compares two counts to detect such a move.
    pub(crate) exits: u64,
    /// The highest keys that were ever written to the index on disk.
    checkpointed: HighKeys,
}

impl Table {
    pub(crate) fn new() -> Self {
        let young_room = Arc::<YoungRoom>::default();
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(young_room.clone()))).collect(),
            buckets: buckets(),
            hasher: RandomState::default(),
            version: AtomicU64::new(0),
            young_room,
            next_popped: AtomicUsize::new(0),
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

    pub(crate) fn size(&self) -> TableSize {
        self.shards().fold(TableSize::default(), |sum, shard| TableSize {
            index_entries: sum.index_entries + shard.index.len() as u64,
            index_bytes: sum.index_bytes + shard.index.bytes(),
            young: sum.young + shard.young.size(),
        })
    }

    /// The room for the young copies of all shards.
    pub(crate) fn young_room(&self) -> &YoungRoom {
        &self.young_room
    }

    /// Applies the weights of the spools to the young copies.
    pub(crate) fn weigh_young(&self, weights: &Arc<CacheWeights>) {
        self.shards().for_each(|mut shard| shard.young.set_weights(weights));
    }

    /// Removes the oldest young copies of the shards, in proportion, until all of them take at most
    /// `bytes`. Calls `take` for each, under the shard's lock.
    pub(crate) fn pop_young(&self, bytes: u64, mut take: impl FnMut(MessageId, Arc<Box<[u8]>>)) {
        let used = self.young_room.used();
        let is_enough = || self.young_room.used() <= bytes;
        // Large copies may reach the end after a few shards: the next call begins with others.
        let mut next = self.next_popped.load(Ordering::Relaxed);
        for _ in 0..SHARDS {
            if is_enough() {
                break;
            }
            let shard = &self.shards[next % SHARDS];
            next += 1;
            let all = u128::from(shard.lock().young.size().bytes);
            let kept = u64::try_from(all * u128::from(bytes) / u128::from(used.max(1))).unwrap_or(u64::MAX);
            let mut is_left = true;
            while is_left && !is_enough() {
                let mut shard = shard.lock();
                let popped = std::iter::from_fn(|| shard.young.pop_above(kept)).take(MOVED_AT_ONCE);
                is_left = popped.map(|(id, data)| take(id, data)).count() == MOVED_AT_ONCE;
            }
        }
        self.next_popped.store(next % SHARDS, Ordering::Relaxed);
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
    fn new(young_room: Arc<YoungRoom>) -> Self {
        Self {
            pending: Pending::default(),
            young: Young::new(young_room),
            index: MemoryIndex::default(),
            exits: 0,
            checkpointed: HighKeys::default(),
        }
    }

    /// Frees memory after a burst.
    pub(crate) fn trim(&mut self) {
        self.pending.trim();
        self.young.trim();
    }

    /// The newest version, if this table has its bytes or its removal.
    pub(crate) fn newest(&self, id: &MessageId) -> Option<(Visible, Tier)> {
        if let Some(dirty) = self.pending.get(id) {
            return Some((dirty, Tier::Pending));
        }
        self.young.get(id).map(|data| (Visible::Put(data.clone()), Tier::Young))
    }

    /// True if an earlier version of `id` may be durable, so that the cache may have a copy of it.
    pub(crate) fn may_be_cached(&self, id: &MessageId) -> bool {
        self.index.get(id).is_some() || self.may_be_checkpointed(id)
    }

    /// True if the index on disk may have a record of `id`.
    pub(crate) fn may_be_checkpointed(&self, id: &MessageId) -> bool {
        self.checkpointed.may_have(&Key::of(id))
    }

    /// True if the removal of `id` must be written: a version that is durable, or is being
    /// committed, could bring the message back. `newest`: its record in the index.
    pub(crate) fn must_log_removal(&self, id: &MessageId, newest: Option<NewestRecord>) -> bool {
        let indexed = match newest {
            Some(newest) => newest.place.is_some(),
            None => self.may_be_checkpointed(id),
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
