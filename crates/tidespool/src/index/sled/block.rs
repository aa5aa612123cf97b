//! The value that sled holds under one key: a block with the places of up to [`MOST`]
//! messages whose keys follow each other. Pure.
//!
//! A block costs sled as much time, and as much memory beside its bytes, as a single message
//! would.
//!
//! ```text
//! offset  size  field
//!      0     4  CRC-32C of the block's key and everything behind this field
//!      4     1  number of messages, n
//!      5     .  n entries, in ascending order of keys
//! ```
//!
//! An entry is encoded as the difference to the previous one (the first: to the block's key and
//! zeros). It starts with two bytes: how many bytes at the start of the key are equal, and how many
//! at the end of the rest. Then come the bytes between, and sequence number, generation, offset and
//! message length as [differences](crate::varint::put_difference).

use crate::index::key::{KEY_LEN, Key};
use crate::index::record::Record;
use crate::varint::{put_difference, take_difference};

/// The most messages in a block.
pub(super) const MOST: usize = 32;

const CRC_LEN: usize = 4;

/// The key of a message, and its place.
pub(super) type BlockEntry = (Key, Record);

/// A [`BlockEntry`] whose key bytes may be invalid.
type Raw = ([u8; KEY_LEN], Record);

const ZEROS: Record = Record { seq: 0, generation: 0, offset: 0, len: 0 };

/// Encodes `entries` as the block under the key `at`. There are 1 to [`MOST`] entries in ascending
/// order of keys, and none is before `at`.
pub(super) fn encode(at: &Key, entries: &[BlockEntry]) -> Vec<u8> {
    debug_assert!(!entries.is_empty() && entries.len() <= MOST);
    debug_assert!(entries[0].0 >= *at && entries.is_sorted_by(|(a, _), (b, _)| a < b));
    // Most entries take fewer bytes than their key.
    let mut bytes = Vec::with_capacity(CRC_LEN + 1 + entries.len() * KEY_LEN);
    bytes.extend([0; CRC_LEN]);
    bytes.push(u8::try_from(entries.len()).unwrap_or(u8::MAX));
    let mut before = (*at, ZEROS);
    for entry in entries {
        put_entry(&mut bytes, &before, entry);
        before = *entry;
    }
    let crc = checksum(at, &bytes[CRC_LEN..]);
    bytes[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Decodes the block under `at`. `None` if the bytes are not a valid block.
pub(super) fn decode(at: &Key, bytes: &[u8]) -> Option<Vec<BlockEntry>> {
    let (count, mut rest) = checked(at, bytes)?;
    let mut entries: Vec<BlockEntry> = Vec::with_capacity(count);
    let mut before = (*at.as_bytes(), ZEROS);
    for _ in 0..count {
        let entry = take_entry(&mut rest, &before)?;
        // The first entry may have the block's own key.
        let ascends = if entries.is_empty() { entry.0 >= before.0 } else { entry.0 > before.0 };
        if !ascends {
            return None;
        }
        entries.push((Key::from_slice(&entry.0).ok()?, entry.1));
        before = entry;
    }
    rest.is_empty().then_some(entries)
}

/// Returns the record under `key` in the block under `at`. `None` if the bytes that were read are
/// not those of a block.
pub(super) fn find(at: &Key, bytes: &[u8], key: &Key) -> Option<Option<Record>> {
    let (count, mut rest) = checked(at, bytes)?;
    let mut entry = (*at.as_bytes(), ZEROS);
    for _ in 0..count {
        entry = take_entry(&mut rest, &entry)?;
        if entry.0 >= *key.as_bytes() {
            return Some((entry.0 == *key.as_bytes()).then_some(entry.1));
        }
    }
    Some(None)
}

/// Returns the number of entries, and their bytes.
fn checked<'a>(at: &Key, bytes: &'a [u8]) -> Option<(usize, &'a [u8])> {
    let (crc, rest) = bytes.split_first_chunk()?;
    if u32::from_le_bytes(*crc) != checksum(at, rest) {
        return None;
    }
    let (&count, rest) = rest.split_first()?;
    let count = usize::from(count);
    (count > 0 && count <= MOST).then_some((count, rest))
}

fn put_entry(bytes: &mut Vec<u8>, (key_before, before): &BlockEntry, (key, record): &BlockEntry) {
    let (old, new) = (key_before.as_bytes(), key.as_bytes());
    let same = |pair: &(&u8, &u8)| pair.0 == pair.1;
    let start = old.iter().zip(new).take_while(same).count();
    let end = old[start..].iter().rev().zip(new[start..].iter().rev()).take_while(same).count();
    // Both fit into a byte, because they are at most the length of a key.
    bytes.extend([start, end].map(|count| u8::try_from(count).unwrap_or(u8::MAX)));
    bytes.extend(&new[start..KEY_LEN - end]);
    put_difference(bytes, before.seq, record.seq);
    put_difference(bytes, before.generation, record.generation);
    put_difference(bytes, before.offset, record.offset);
    put_difference(bytes, before.len.into(), record.len.into());
}

fn take_entry(rest: &mut &[u8], (key_before, before): &Raw) -> Option<Raw> {
    let (&[start, end], behind) = rest.split_first_chunk()?;
    let (start, end) = (usize::from(start), usize::from(end));
    let between = KEY_LEN.checked_sub(start)?.checked_sub(end)?;
    let (new, behind) = behind.split_at_checked(between)?;
    *rest = behind;
    let mut key = *key_before;
    key[start..KEY_LEN - end].copy_from_slice(new);
    let record = Record {
        seq: take_difference(rest, before.seq)?,
        generation: take_difference(rest, before.generation)?,
        offset: take_difference(rest, before.offset)?,
        len: u32::try_from(take_difference(rest, before.len.into())?).ok()?,
    };
    Some((key, record))
}

fn checksum(at: &Key, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(at.as_bytes()), rest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::message_id::MessageId;

    fn entries() -> impl Strategy<Value = Vec<BlockEntry>> {
        let record = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>())
            .prop_map(|(seq, generation, offset, len)| Record { seq, generation, offset, len });
        let id = prop_oneof![any::<[u8; 16]>(), (0..64_u8).prop_map(|n| [n; 16])];
        prop::collection::btree_map(id.prop_map(|id| Key::of(&MessageId::from_bytes(id))), record, 1..=MOST)
            .prop_map(|entries: BTreeMap<Key, Record>| entries.into_iter().collect())
    }

    proptest! {
        #[test]
        fn every_block_is_decoded_as_it_was_encoded(entries in entries(), lowers: bool) {
            let at = if lowers { Key::of(&MessageId::from_bytes([0; 16])) } else { entries[0].0 };
            let bytes = encode(&at, &entries);
            for (key, record) in &entries {
                prop_assert_eq!(find(&at, &bytes, key), Some(Some(*record)));
            }
            let others = (0..=255_u8).map(|n| Key::of(&MessageId::from_bytes([n; 16])));
            for other in others.filter(|other| entries.iter().all(|(key, _)| key != other)) {
                prop_assert_eq!(find(&at, &bytes, &other), Some(None));
            }
            prop_assert_eq!(decode(&at, &bytes), Some(entries));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(id: [u8; 16], mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let at = Key::of(&MessageId::from_bytes(id));
            prop_assert_eq!(decode(&at, &bytes), None);
            // With the correct checksum, decoding reaches the entries.
            if bytes.len() > CRC_LEN {
                let crc = checksum(&at, &bytes[CRC_LEN..]);
                bytes[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
                let _ = find(&at, &bytes, &at);
                let entries = decode(&at, &bytes).unwrap_or_default();
                prop_assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
            }
        }

        #[test]
        fn a_block_under_another_key_is_rejected(entries in entries(), bit in 0_usize..128) {
            let at = entries[0].0;
            let mut other = *at.message().id().as_bytes();
            other[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&Key::of(&MessageId::from_bytes(other)), &encode(&at, &entries)), None);
        }
    }

    fn ids(count: u64, id: impl Fn(u64) -> [u8; 16]) -> Vec<BlockEntry> {
        let record = |n| Record { seq: 1_000_000 + n, generation: 60, offset: 4_096 + n * 1_072, len: 1_024 };
        (0..count).map(|n| (Key::of(&MessageId::from_bytes(id(n))), record(n))).collect()
    }

    #[test]
    fn every_flipped_bit_and_every_other_length_is_rejected() {
        let entries = ids(5, |n| (u128::from(n) << 64).to_be_bytes());
        let at = entries[0].0;
        let bytes = encode(&at, &entries);
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&at, &broken), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(decode(&at, &bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(decode(&at, &[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn a_block_is_small() {
        // A message alone: no more bytes than sled keeps without an allocation.
        let one = ids(1, |_| [0xaa; 16]);
        assert!(encode(&one[0].0, &one).len() <= 22);
        // Times of one host, a few microseconds apart.
        let near = ids(MOST as u64, |n| (0x0006_2000_1234_0000_u128 + u128::from(n) * 37).to_be_bytes());
        assert!(encode(&near[0].0, &near).len() < MOST * 12);
    }
}
