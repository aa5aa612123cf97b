//! id → place of the newest record in the journal, for one shard. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::record::RECORD_ALIGN;
use crate::message_id::MessageId;

/// The place of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordPlace {
    /// Generation of the segment.
    pub(crate) generation: u64,
    /// Offset of the record's header in the segment's file.
    pub(crate) offset: u64,
    /// Payload bytes.
    pub(crate) len: u32,
}

/// The newest record of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewestRecord {
    pub(crate) seq: u64,
    /// The generation of the segment that holds the record.
    pub(crate) generation: u64,
    /// The place of a put. `None`: the record is a removal.
    pub(crate) place: Option<RecordPlace>,
}

/// [`NewestRecord`] in 20 bytes. Memory holds one for each message that is not checkpointed yet. An
/// array of bytes, because integers would be aligned.
///
/// From the lowest bit: length, offset in units of [`RECORD_ALIGN`], generation, sequence number.
#[derive(Debug, Clone, Copy)]
struct Packed([u8; 20]);

/// No payload is longer (`max_message_size` is at most 1 GiB).
const LEN_BITS: u32 = 31;
/// A segment has at most 1 GiB, or a single record at its start.
const OFFSET_BITS: u32 = 28;
/// Enough for 8 million openings of the spool. The 46 bits that are left for sequence numbers are
/// enough for 22 years of 100 000 records a second.
const GENERATION_BITS: u32 = 55;

/// The length that marks a removal.
const REMOVED: u32 = (1 << LEN_BITS) - 1;

impl Packed {
    fn pack(newest: NewestRecord) -> Self {
        let (offset, len) = newest.place.map_or((0, REMOVED), |place| (place.offset, place.len));
        let mut low = u128::from(newest.seq);
        low = low << GENERATION_BITS | u128::from(newest.generation);
        low = low << OFFSET_BITS | u128::from(offset / RECORD_ALIGN);
        // The highest bits of the sequence number, which do not fit into the 128.
        let high = newest.seq >> (128 - LEN_BITS - OFFSET_BITS - GENERATION_BITS);
        low = low << LEN_BITS | u128::from(len);
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&low.to_le_bytes());
        bytes[16..].copy_from_slice(&high.to_le_bytes()[..4]);
        Self(bytes)
    }

    fn low(self) -> u128 {
        let mut low = [0; 16];
        low.copy_from_slice(&self.0[..16]);
        u128::from_le_bytes(low)
    }

    fn seq(self) -> u64 {
        let mut high = [0; 8];
        high[..4].copy_from_slice(&self.0[16..]);
        let below = LEN_BITS + OFFSET_BITS + GENERATION_BITS;
        u64::from_le_bytes(high) << (128 - below) | bits(self.low(), below, 128 - below)
    }

    fn unpack(self) -> NewestRecord {
        let low = self.low();
        let generation = bits(low, LEN_BITS + OFFSET_BITS, GENERATION_BITS);
        let len = u32::try_from(bits(low, 0, LEN_BITS)).unwrap_or(REMOVED);
        let place = (len != REMOVED).then(|| RecordPlace {
            generation,
            offset: bits(low, LEN_BITS, OFFSET_BITS) * RECORD_ALIGN,
            len,
        });
        NewestRecord { seq: self.seq(), generation, place }
    }
}

/// Extracts `count` bits, at most 64, from bit `from` on.
fn bits(number: u128, from: u32, count: u32) -> u64 {
    let mask = (1_u128 << count) - 1;
    u64::try_from(number >> from & mask).unwrap_or(u64::MAX)
}

/// The result of [`MemoryIndex::learn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learned {
    /// The index had no record of the id.
    New,
    /// The index had an earlier record of the id, or the same one.
    Replaced,
    /// The index has a newer record.
    Older,
}

/// One shard of the index.
#[derive(Debug, Default)]
pub(crate) struct MemoryIndex {
    map: HashMap<MessageId, Packed, foldhash::fast::RandomState>,
}

impl MemoryIndex {
    /// Inserts a record, unless the index has a newer one. The same record at another place
    /// replaces the older place.
    pub(crate) fn learn(&mut self, id: MessageId, newest: NewestRecord) -> Learned {
        match self.map.entry(id) {
            Entry::Occupied(entry) if entry.get().seq() > newest.seq => Learned::Older,
            Entry::Occupied(mut entry) => {
                entry.insert(Packed::pack(newest));
                Learned::Replaced
            }
            Entry::Vacant(entry) => {
                entry.insert(Packed::pack(newest));
                Learned::New
            }
        }
    }

    pub(crate) fn get(&self, id: &MessageId) -> Option<NewestRecord> {
        self.map.get(id).map(|packed| packed.unpack())
    }

    /// Removes the record `seq` after its checkpoint, unless a newer one replaced it. True if it
    /// was removed.
    pub(crate) fn forget(&mut self, id: &MessageId, seq: u64) -> bool {
        match self.map.entry(*id) {
            Entry::Occupied(entry) if entry.get().seq() == seq => {
                entry.remove();
                true
            }
            _ => false,
        }
    }

    /// Shrinks the table after a burst, if most of it is empty.
    pub(crate) fn trim(&mut self) {
        if self.map.capacity() > 64 && self.map.len() < self.map.capacity() / 4 {
            self.map.shrink_to(self.map.len() * 2);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (MessageId, NewestRecord)> + '_ {
        self.map.iter().map(|(id, packed)| (*id, packed.unpack()))
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Bytes of memory: the table's slots with a control byte each.
    pub(crate) fn bytes(&self) -> u64 {
        (self.map.capacity() as u64 * 8 / 7) * (size_of::<(MessageId, Packed)>() as u64 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(seq: u64, generation: u64, offset: u64) -> NewestRecord {
        NewestRecord { seq, generation, place: Some(RecordPlace { generation, offset, len: 10 }) }
    }

    #[test]
    fn an_older_record_never_replaces_a_newer_one() {
        let (mut index, id) = (MemoryIndex::default(), MessageId::random());
        index.learn(id, put(5, 1, 4096));
        index.learn(id, put(4, 2, 8192));
        assert_eq!(index.get(&id), Some(put(5, 1, 4096)));
        index.learn(id, put(5, 2, 8192));
        assert_eq!(index.get(&id), Some(put(5, 2, 8192)), "the same record at a newer place");
        let removal = NewestRecord { seq: 6, generation: 2, place: None };
        index.learn(id, removal);
        assert_eq!(index.get(&id), Some(removal));
    }

    #[test]
    fn forget_keeps_a_newer_record() {
        let (mut index, id) = (MemoryIndex::default(), MessageId::random());
        index.learn(id, put(5, 1, 4096));
        assert!(!index.forget(&id, 4));
        assert!(index.get(&id).is_some());
        assert!(index.forget(&id, 5));
        assert!(index.get(&id).is_none());
    }

    #[test]
    fn an_entry_takes_the_documented_bytes() {
        assert_eq!(size_of::<(MessageId, Packed)>(), 38);
    }

    #[test]
    fn the_largest_numbers_round_trip() {
        let (mut index, id) = (MemoryIndex::default(), MessageId::random());
        let newest = put((1 << 46) - 1, (1 << 55) - 1, (1 << 31) - 8);
        index.learn(id, newest);
        assert_eq!(index.get(&id), Some(newest));
    }
}
