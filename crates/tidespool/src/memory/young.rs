//! The clean copies that came last, for one shard.
//!
//! Every clean copy comes here first: that of a message that became durable, where its dirty bytes
//! were before, and that of a message that was read. Most messages are removed soon after they were
//! stored, so their copies never enter moka, where a copy costs about ten times as much work. When
//! the room is short, the oldest copies go on to moka.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cache_weights::CacheWeights;
use super::copies::Copies;
use super::is_sparse;
use crate::message_id::MessageId;

/// Memory of a copy beside the message's bytes: its entries in the table and in the queue, the
/// reference counts, and the allocator's headers. 160 to 180 bytes were measured with 30 000 to
/// 90 000 copies; the queue may have places of copies that are gone.
const ENTRY_OVERHEAD: u64 = 192;

/// A message may take at most one part in so many of the room. A larger one would push out too many
/// others.
const LARGEST_PART: u64 = 4;

/// The room for the young copies of all shards.
#[derive(Debug, Default)]
pub(crate) struct YoungRoom {
    /// Bytes of all copies, overhead included.
    used: AtomicU64,
    limit: AtomicU64,
}

impl YoungRoom {
    /// The part of the room for all clean copies that young ones get, in bytes.
    pub(crate) fn part_of(clean: u64) -> u64 {
        clean / 2
    }

    /// Bytes.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The young copies of one shard. For one id there is never a copy here and in moka.
#[derive(Debug)]
pub(crate) struct Young {
    copies: HashMap<MessageId, YoungCopy, foldhash::fast::RandomState>,
    /// By age, the oldest first. A copy that was removed or replaced leaves its place here.
    order: VecDeque<Place>,
    /// The number of the last place.
    last: u64,
    /// Bytes of this shard's copies, overhead included.
    bytes: u64,
    room: Arc<YoungRoom>,
    weights: Arc<CacheWeights>,
}

#[derive(Debug)]
struct YoungCopy {
    data: Arc<Box<[u8]>>,
    /// The number of its place.
    number: u64,
}

/// A place in the order of the copies.
#[derive(Debug, Clone, Copy)]
struct Place {
    number: u64,
    id: MessageId,
}

/// The result of [`Young::insert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// The copy is here. The id had none.
    New,
    /// The copy is here, in place of an earlier version.
    Replaced,
    /// The copy is too large for the room. An earlier version was dropped.
    TooLarge,
    /// Copies of this spool are not kept. An earlier version was dropped.
    Unwanted,
}

impl Young {
    /// `room`: that of all shards.
    pub(crate) fn new(room: Arc<YoungRoom>) -> Self {
        Self {
            copies: HashMap::default(),
            order: VecDeque::new(),
            last: 0,
            bytes: 0,
            room,
            weights: Arc::default(),
        }
    }

    pub(crate) fn get(&self, id: &MessageId) -> Option<&Arc<Box<[u8]>>> {
        self.copies.get(id).map(|copy| &copy.data)
    }

    /// Inserts the copy of the newest version of `id`. The caller makes room for it with
    /// [`pop_excess`](Self::pop_excess).
    pub(crate) fn insert(&mut self, id: MessageId, data: &Arc<Box<[u8]>>) -> Inserted {
        let bytes = bytes_of(data);
        if bytes > self.room.limit() / LARGEST_PART {
            self.remove(&id);
            return Inserted::TooLarge;
        }
        if !self.weights.keeps(id.spool()) {
            self.remove(&id);
            return Inserted::Unwanted;
        }
        self.last += 1;
        let copy = YoungCopy { data: data.clone(), number: self.last };
        let replaced = match self.copies.entry(id) {
            Entry::Occupied(mut entry) => Some(entry.insert(copy)),
            Entry::Vacant(entry) => {
                entry.insert(copy);
                None
            }
        };
        self.bytes += bytes;
        self.room.take(bytes);
        self.order.push_back(Place { number: self.last, id });
        self.drop_stale_places();
        match replaced {
            Some(replaced) => {
                self.note_gone(&replaced.data);
                Inserted::Replaced
            }
            None => Inserted::New,
        }
    }

    /// Removes the copy of an id. Returns true if there was one.
    pub(crate) fn remove(&mut self, id: &MessageId) -> bool {
        let Some(copy) = self.copies.remove(id) else { return false };
        self.note_gone(&copy.data);
        true
    }

    fn note_gone(&mut self, data: &[u8]) {
        self.bytes -= bytes_of(data);
        self.room.give_back(bytes_of(data));
    }

    /// Removes and returns the oldest copy of this shard, if the copies of all shards exceed the
    /// room.
    pub(crate) fn pop_excess(&mut self) -> Option<(MessageId, Arc<Box<[u8]>>)> {
        if self.room.used() > self.room.limit() { self.pop() } else { None }
    }

    /// Removes and returns the oldest copy, if those of this shard take more than `bytes`.
    pub(crate) fn pop_above(&mut self, bytes: u64) -> Option<(MessageId, Arc<Box<[u8]>>)> {
        if self.bytes > bytes { self.pop() } else { None }
    }

    fn pop(&mut self) -> Option<(MessageId, Arc<Box<[u8]>>)> {
        loop {
            let Place { number, id } = self.order.pop_front()?;
            if let Entry::Occupied(entry) = self.copies.entry(id)
                && entry.get().number == number
            {
                let data = entry.remove().data;
                self.note_gone(&data);
                return Some((id, data));
            }
        }
    }

    /// Applies the weights of the spools: drops the copies of those that have the weight zero.
    pub(crate) fn set_weights(&mut self, weights: &Arc<CacheWeights>) {
        if Arc::ptr_eq(&self.weights, weights) {
            return;
        }
        self.weights = weights.clone();
        let unwanted = self.copies.extract_if(|id, _| !weights.keeps(id.spool()));
        let gone = unwanted.map(|(_, copy)| bytes_of(&copy.data)).sum();
        self.bytes -= gone;
        self.room.give_back(gone);
    }

    /// Drops every copy.
    pub(crate) fn clear(&mut self) {
        self.copies = HashMap::default();
        self.order = VecDeque::new();
        self.room.give_back(std::mem::take(&mut self.bytes));
    }

    pub(crate) fn size(&self) -> Copies {
        Copies { entries: self.copies.len() as u64, bytes: self.bytes }
    }

    /// Shrinks sparse tables after a burst.
    pub(crate) fn trim(&mut self) {
        if is_sparse(self.copies.len(), self.copies.capacity()) {
            self.copies.shrink_to(self.copies.len() * 2);
        }
        if is_sparse(self.order.len(), self.order.capacity()) {
            self.order.shrink_to(self.order.len() * 2);
        }
    }

    /// Bounds the places that removed copies have left, by the number of copies.
    fn drop_stale_places(&mut self) {
        if self.order.len() > 64 + 2 * self.copies.len() {
            let copies = &self.copies;
            self.order.retain(|place| copies.get(&place.id).is_some_and(|copy| copy.number == place.number));
        }
    }
}

fn bytes_of(data: &[u8]) -> u64 {
    data.len() as u64 + ENTRY_OVERHEAD
}

#[cfg(test)]
mod tests {
    use tidespool_core::SpoolId;

    use super::*;
    use crate::message_id::SpoolNumber;

    const LEN: usize = 808;
    /// Bytes of a copy of [`message`].
    const SIZE: u64 = LEN as u64 + ENTRY_OVERHEAD;

    fn message(byte: u8) -> Arc<Box<[u8]>> {
        Arc::new(vec![byte; LEN].into_boxed_slice())
    }

    /// Two shards with room for `count` copies together.
    fn room_for(count: u64) -> [Young; 2] {
        let room = Arc::<YoungRoom>::default();
        room.set_limit(count * SIZE);
        [Young::new(room.clone()), Young::new(room)]
    }

    fn fill(young: &mut Young, count: u64) -> Vec<MessageId> {
        let ids: Vec<MessageId> = (0..count).map(|_| MessageId::random()).collect();
        ids.iter().for_each(|id| assert_eq!(young.insert(*id, &message(1)), Inserted::New));
        ids
    }

    fn all_excess(young: &mut Young) -> Vec<MessageId> {
        std::iter::from_fn(|| young.pop_excess().map(|(id, _)| id)).collect()
    }

    fn all_above(young: &mut Young, count: u64) -> Vec<MessageId> {
        std::iter::from_fn(|| young.pop_above(count * SIZE).map(|(id, _)| id)).collect()
    }

    #[test]
    fn the_oldest_copies_leave_first_and_only_if_room_is_short() {
        let [mut young, mut other] = room_for(10);
        let ids = fill(&mut young, 8);
        assert_eq!(young.pop_excess(), None);
        let last = fill(&mut other, 4);
        assert_eq!(all_excess(&mut young), ids[..2], "the room is that of all shards");
        assert_eq!(young.size(), Copies { entries: 6, bytes: 6 * SIZE });
        assert_eq!(young.room.used(), 10 * SIZE);
        assert_eq!(all_above(&mut young, 4), ids[2..4]);
        assert!(ids[4..].iter().all(|id| young.get(id).is_some()));
        young.room.set_limit(0);
        assert_eq!((all_excess(&mut young), all_excess(&mut other)), (ids[4..].to_vec(), last));
        assert_eq!((young.size(), young.room.used(), young.pop()), (Copies::default(), 0, None));
    }

    #[test]
    fn a_replaced_copy_has_the_age_of_its_newest_version() {
        let [mut young, _] = room_for(8);
        let ids = fill(&mut young, 8);
        assert_eq!(young.insert(ids[0], &message(2)), Inserted::Replaced);
        assert_eq!(young.size(), Copies { entries: 8, bytes: 8 * SIZE });
        assert_eq!(young.room.used(), 8 * SIZE);
        assert_eq!(young.get(&ids[0]).unwrap()[0], 2);
        assert_eq!(all_above(&mut young, 4), ids[1..5]);
        assert!(young.get(&ids[0]).is_some());
    }

    #[test]
    fn a_removed_copy_is_gone_and_its_place_is_skipped() {
        let [mut young, _] = room_for(8);
        let ids = fill(&mut young, 8);
        assert!(young.remove(&ids[0]) && !young.remove(&ids[0]));
        assert!(young.get(&ids[0]).is_none());
        assert_eq!((young.size().bytes, young.room.used()), (7 * SIZE, 7 * SIZE));
        assert_eq!(all_above(&mut young, 6), ids[1..2]);
    }

    #[test]
    fn what_is_not_kept_drops_the_earlier_version() {
        let [mut young, _] = room_for(8);
        let id = fill(&mut young, 1)[0];
        let limit = usize::try_from(8 * SIZE / LARGEST_PART - ENTRY_OVERHEAD).unwrap();
        let of_len = |len| Arc::new(vec![0; len].into_boxed_slice());
        assert_eq!(young.insert(id, &of_len(limit)), Inserted::Replaced);
        assert_eq!(young.insert(id, &of_len(limit + 1)), Inserted::TooLarge);
        assert_eq!((young.get(&id), young.size()), (None, Copies::default()));
        let [refused, kept] = [1, 2].map(|spool| SpoolNumber::new(spool).unwrap());
        let old = [refused, kept].map(|spool| MessageId::new(spool, SpoolId::new()));
        old.iter().for_each(|id| assert_eq!(young.insert(*id, &message(1)), Inserted::New));
        young.set_weights(&Arc::new(CacheWeights::of([(refused, 0), (kept, 1)].into_iter())));
        assert_eq!((young.get(&old[0]), young.get(&old[1]).is_some()), (None, true));
        assert_eq!(young.size(), Copies { entries: 1, bytes: SIZE });
        assert_eq!(young.insert(old[0], &message(1)), Inserted::Unwanted);
        assert_eq!(young.insert(old[1], &message(1)), Inserted::Replaced);
        assert_eq!(young.room.used(), SIZE);
    }

    #[test]
    fn memory_of_a_burst_and_of_removed_copies_is_freed() {
        let [mut young, _] = room_for(10_000);
        let ids = fill(&mut young, 2_000);
        young.trim();
        assert!(young.copies.capacity() >= 2_000 && young.order.capacity() >= 2_000, "it is in use");
        ids[10..].iter().for_each(|id| assert!(young.remove(id)));
        for _ in 0..10_000 {
            let id = MessageId::random();
            young.insert(id, &message(1));
            young.remove(&id);
            assert!(young.order.len() <= 64 + 2 * 11 + 1, "{}", young.order.len());
        }
        young.trim();
        let left = [young.copies.capacity(), young.order.capacity()];
        assert!(left.iter().all(|capacity| *capacity < 300), "{left:?}");
        assert!(ids[..10].iter().all(|id| young.get(id).is_some()));
        young.clear();
        assert_eq!(
            (young.size(), young.copies.capacity(), young.order.capacity()),
            (Copies::default(), 0, 0)
        );
        assert_eq!(young.room.used(), 0);
    }
}
