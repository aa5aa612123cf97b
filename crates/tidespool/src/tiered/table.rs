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

use crate::checkpoint::{HighKeys, LiveIndex, Survey};
use crate::durable::Key;
use crate::journal::{MemoryIndex, NewestRecord};
use crate::memory::{Pending, Risks, Ticket};

/// More than enough that two cores seldom meet on one.
const SHARDS: usize = 64;

/// Places from which a hash chooses its shard.
const PLACES: usize = 4096;

/// The whole table.
#[derive(Debug)]
pub(crate) struct Table {
    shards: Box<[Mutex<Shard>]>,
    /// The shard of each place.
    places: Box<[u8; PLACES]>,
    hasher: RandomState,
    /// The newest version given out. Only advanced under a shard's lock.
    version: AtomicU64,
}

/// What one lock guards.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) pending: Pending,
    pub(crate) index: MemoryIndex,
    /// Counts the ids that left the index for sled: whoever saw an id in neither place can tell whether it stayed so.
    pub(crate) exits: u64,
    /// The highest keys that sled was ever told of.
    filed: HighKeys,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            places: places(),
            hasher: RandomState::default(),
            version: AtomicU64::new(0),
        }
    }

    /// Locks the shard of an id.
    pub(crate) fn lock(&self, id: &SpoolId) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(id);
        // The low bits choose a place within the shard's own tables.
        let place = usize::try_from(hash >> 52).unwrap_or(0) % PLACES;
        self.shards[usize::from(self.places[place])].lock()
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

    /// What is lost by a power cut now, and by the death of the process.
    pub(crate) fn risks(&self) -> Risks {
        self.shards().fold(Risks::default(), |sum, shard| sum.plus(shard.pending.risks()))
    }

    pub(crate) fn set_filed(&self, high: HighKeys) {
        for mut shard in self.shards() {
            shard.filed = high;
        }
    }
}

/// The last shard gets twice as many ids as the first. A hash table doubles when it is full: shards of one size would all do so in the same moment,
/// and be half empty after it. Like this a few of them do at any time, and all together are as full at one number of messages as at another.
fn places() -> Box<[u8; PLACES]> {
    let mut places = Box::new([0; PLACES]);
    for (number, place) in places.iter_mut().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let share = number as f64 / PLACES as f64;
        // Shard i's part begins at 2^(i / SHARDS) - 1.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below SHARDS")]
        let shard = ((1.0 + share).log2() * SHARDS as f64) as u8;
        *place = shard;
    }
    places
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

impl LiveIndex for Table {
    fn collect(&self, up_to: u64) -> Vec<(Key, NewestRecord)> {
        let mut found = Vec::new();
        for shard in self.shards() {
            let filed = shard.index.iter().filter(|(_, newest)| newest.generation <= up_to);
            found.extend(filed.map(|(id, newest)| (Key::of(&id), newest)));
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
            // On their way to the index. Of what is there, sled knows nothing.
            let filed = shard.pending.removals().filter(|id| shard.index.get(id).is_none());
            survey.removals += filed.count() as u64;
        }
        survey
    }

    fn is_newest(&self, id: &SpoolId, seq: u64) -> bool {
        self.lock(id).index.get(id).is_some_and(|newest| newest.seq == seq)
    }

    fn knows(&self, id: &SpoolId) -> bool {
        let shard = self.lock(id);
        shard.pending.get(id).is_some() || shard.index.get(id).is_some()
    }

    fn will_file(&self, high: HighKeys) {
        self.set_filed(high);
    }

    fn forget(&self, filed: &[(Key, NewestRecord)]) {
        for (key, newest) in filed {
            let id = key.id();
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
    fn an_indexed_message_takes_about_64_bytes_at_most_at_any_number_of_them() {
        let table = Table::new();
        let mut next_look = 100_000;
        for seq in 1..=400_000 {
            let id = SpoolId::new();
            let newest = NewestRecord { seq, generation: 1, place: None };
            table.lock(&id).index.learn(id, newest);
            if seq == next_look {
                let bytes: u64 = table.shards().map(|shard| shard.index.bytes()).sum();
                // Which ids a shard gets is chance: 58 to 64.1 was seen. With shards of one size it would be up to 85.
                assert!(bytes <= 68 * seq, "{} bytes each at {seq}", bytes / seq);
                next_look += next_look / 20;
            }
        }
    }
}
