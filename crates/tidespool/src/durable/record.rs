//! What sled holds for a message, as bytes: where the message is. Pure.

use super::key::Key;

/// Bytes of a record.
pub(crate) const RECORD_LEN: usize = 32;

/// Where the newest filed version of a message is: in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Sequence number of the store that wrote it.
    pub(crate) seq: u64,
    /// Generation of the segment.
    pub(crate) generation: u64,
    /// Offset of the record in the segment, in bytes.
    pub(crate) offset: u64,
    /// Size of the message in bytes.
    pub(crate) len: u32,
}

impl Record {
    /// Its bytes. The checksum includes `key`: they are no record of any other.
    pub(crate) fn encode(&self, key: &Key) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        bytes[4..12].copy_from_slice(&self.seq.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.generation.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.offset.to_le_bytes());
        bytes[28..].copy_from_slice(&self.len.to_le_bytes());
        let crc = checksum(key, &bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The record in `bytes`, which stand under `key`. `None`: they are not the bytes that were
    /// written there.
    pub(crate) fn decode(key: &Key, bytes: &[u8]) -> Option<Self> {
        let (crc, rest) = bytes.split_first_chunk()?;
        if bytes.len() != RECORD_LEN || u32::from_le_bytes(*crc) != checksum(key, rest) {
            return None;
        }
        let (seq, rest) = rest.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        Some(Self {
            seq: u64::from_le_bytes(*seq),
            generation: u64::from_le_bytes(*generation),
            offset: u64::from_le_bytes(*offset),
            len: u32::from_le_bytes(rest.try_into().ok()?),
        })
    }
}

fn checksum(key: &Key, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidespool_core::SpoolId;

    use super::*;

    proptest! {
        #[test]
        fn every_record_is_decoded_as_it_was_encoded(
            id in any::<[u8; 16]>(), seq: u64, generation: u64, offset: u64, len: u32,
        ) {
            let key = Key::of(&SpoolId::from_bytes(id));
            let record = Record { seq, generation, offset, len };
            prop_assert_eq!(Record::decode(&key, &record.encode(&key)), Some(record));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(id in any::<[u8; 16]>(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(Record::decode(&Key::of(&SpoolId::from_bytes(id)), &bytes), None);
        }

        #[test]
        fn a_record_under_another_key_is_rejected(a in any::<[u8; 16]>(), bit in 0_usize..128, seq: u64) {
            let mut b = a;
            b[bit / 8] ^= 1 << (bit % 8);
            let (key, other) = (Key::of(&SpoolId::from_bytes(a)), Key::of(&SpoolId::from_bytes(b)));
            let record = Record { seq, generation: 1, offset: 4096, len: 7 };
            prop_assert_eq!(Record::decode(&other, &record.encode(&key)), None);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_other_length_is_rejected() {
        let key = Key::of(&SpoolId::new());
        let bytes = Record { seq: 9, generation: 3, offset: 4096, len: 70_000 }.encode(&key);
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&key, &broken), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(Record::decode(&key, &bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(Record::decode(&key, &[&bytes[..], &[0]].concat()), None);
    }
}
