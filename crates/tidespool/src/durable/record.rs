//! What the filing engine holds for a message, as bytes. Pure: the layout, its checksum and nothing else.

use super::key::Key;

/// The largest message that may be filed whole, in bytes. In sled, larger values fill leaves until they become files
/// of their own, which sled never syncs and often never deletes.
pub(crate) const MAX_WHOLE: usize = 7_000;

/// Bytes before what a record is about: kind, checksum, sequence number.
const HEADER: usize = 13;
/// The largest value, in bytes.
#[cfg(test)]
pub(crate) const MAX_VALUE: usize = HEADER + MAX_WHOLE;

const WHOLE: u8 = 1;
const LOCATOR: u8 = 2;
const DAMAGED: u8 = 3;

/// What is filed for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// The message itself: at most [`MAX_WHOLE`] bytes.
    Whole {
        /// Sequence number of the store that it is from.
        seq: u64,
        /// The message.
        data: Box<[u8]>,
    },
    /// Where the message is: it stays in a journal segment.
    Locator {
        /// Sequence number of the store that it is from.
        seq: u64,
        /// Generation of the segment.
        generation: u64,
        /// Where in the segment, in bytes.
        offset: u64,
        /// Size of the message in bytes.
        len: u32,
        /// CRC-32C of the message.
        crc: u32,
    },
    /// There was a message, and it is lost: kept so that it is named until it is removed.
    Damaged {
        /// Sequence number of the store that it is from; 0 where that is lost too.
        seq: u64,
        /// What is wrong. Cut to what fits in a value when it is filed.
        reason: String,
    },
}

/// Bytes that are not a record of this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// Too short to be any record.
    #[error("a record of {len} bytes is too short")]
    Short {
        /// How many there are.
        len: usize,
    },
    /// The checksum is of other bytes, or of another key.
    #[error("checksum of the record is {found:08x}, its bytes give {computed:08x}")]
    Checksum {
        /// The checksum that is stored.
        found: u32,
        /// The checksum of what is there.
        computed: u32,
    },
    /// The checksum is right and the kind is not one of ours: written by a newer version.
    #[error("record of unknown kind {kind}, from a newer version")]
    Kind {
        /// The kind found.
        kind: u8,
    },
    /// The checksum is right and the rest is not what its kind should have.
    #[error("record of kind {kind} with {len} bytes is malformed")]
    Malformed {
        /// The kind.
        kind: u8,
        /// Bytes of the whole value.
        len: usize,
    },
}

impl Record {
    /// Sequence number of the store that it is from.
    pub(crate) const fn seq(&self) -> u64 {
        match self {
            Self::Whole { seq, .. } | Self::Locator { seq, .. } | Self::Damaged { seq, .. } => *seq,
        }
    }

    /// Its bytes, bound to `key`: they are no record of any other.
    pub(crate) fn encode(&self, key: &Key) -> Vec<u8> {
        let (kind, body): (u8, &[u8]) = match self {
            Self::Whole { data, .. } => (WHOLE, data),
            Self::Locator { .. } => (LOCATOR, &[]),
            Self::Damaged { reason, .. } => {
                (DAMAGED, &reason.as_bytes()[..reason.floor_char_boundary(MAX_WHOLE)])
            }
        };
        let mut value = Vec::with_capacity(HEADER + body.len().max(24));
        value.push(kind);
        value.extend_from_slice(&[0; 4]);
        value.extend_from_slice(&self.seq().to_le_bytes());
        value.extend_from_slice(body);
        if let Self::Locator { generation, offset, len, crc, .. } = self {
            value.extend_from_slice(&generation.to_le_bytes());
            value.extend_from_slice(&offset.to_le_bytes());
            value.extend_from_slice(&len.to_le_bytes());
            value.extend_from_slice(&crc.to_le_bytes());
        }
        let crc = checksum(key, kind, &value[5..]);
        value[1..5].copy_from_slice(&crc.to_le_bytes());
        value
    }

    /// The sequence number in `value`, which may be damaged as the rest of it: it says something only where it is one that is looked for.
    pub(crate) fn claimed_seq(value: &[u8]) -> Option<u64> {
        value.get(5..).and_then(<[u8]>::first_chunk).map(|seq| u64::from_le_bytes(*seq))
    }

    /// The record in `value`, which stands under `key`.
    pub(crate) fn decode(key: &Key, value: &[u8]) -> Result<Self, RecordError> {
        Self::decode_with(key, value, |data| data.into())
    }

    /// The same without the message's bytes, which are checked all the same: of a [`Record::Whole`], `data` is empty.
    pub(crate) fn outline(key: &Key, value: &[u8]) -> Result<Self, RecordError> {
        Self::decode_with(key, value, |_| Box::default())
    }

    fn decode_with(
        key: &Key,
        value: &[u8],
        data: impl FnOnce(&[u8]) -> Box<[u8]>,
    ) -> Result<Self, RecordError> {
        let Some((&[kind, c0, c1, c2, c3, s0, s1, s2, s3, s4, s5, s6, s7], body)) =
            value.split_first_chunk::<HEADER>()
        else {
            return Err(RecordError::Short { len: value.len() });
        };
        let found = u32::from_le_bytes([c0, c1, c2, c3]);
        let computed = checksum(key, kind, &value[5..]);
        if found != computed {
            return Err(RecordError::Checksum { found, computed });
        }
        let seq = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let malformed = RecordError::Malformed { kind, len: value.len() };
        match kind {
            WHOLE => Ok(Self::Whole { seq, data: data(body) }),
            LOCATOR => decode_locator(seq, body).ok_or(malformed),
            DAMAGED => match str::from_utf8(body) {
                Ok(reason) => Ok(Self::Damaged { seq, reason: reason.to_owned() }),
                Err(_) => Err(malformed),
            },
            kind => Err(RecordError::Kind { kind }),
        }
    }
}

fn decode_locator(seq: u64, body: &[u8]) -> Option<Record> {
    let (generation, rest) = body.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let crc = rest.try_into().ok()?;
    Some(Record::Locator {
        seq,
        generation: u64::from_le_bytes(*generation),
        offset: u64::from_le_bytes(*offset),
        len: u32::from_le_bytes(*len),
        crc: u32::from_le_bytes(crc),
    })
}

fn checksum(key: &Key, kind: u8, rest: &[u8]) -> u32 {
    let crc = crc32c::crc32c(key.as_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &[kind]), rest)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use tidespool_core::SpoolId;

    use super::*;

    pub(crate) fn records() -> impl Strategy<Value = Record> {
        let whole = (any::<u64>(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(seq, data)| Record::Whole { seq, data: data.into() });
        let locator = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
            |(seq, generation, offset, len, crc)| Record::Locator { seq, generation, offset, len, crc },
        );
        let damaged = (any::<u64>(), ".{0,40}").prop_map(|(seq, reason)| Record::Damaged { seq, reason });
        prop_oneof![whole, locator, damaged]
    }

    proptest! {
        #[test]
        fn every_record_comes_back(id in any::<[u8; 16]>(), record in records()) {
            let key = Key::of(&SpoolId::from_bytes(id));
            let value = record.encode(&key);
            prop_assert_eq!(Record::decode(&key, &value), Ok(record.clone()));
            prop_assert_eq!(Record::claimed_seq(&value), Some(record.seq()));
            let outline = match record {
                Record::Whole { seq, .. } => Record::Whole { seq, data: Box::default() },
                record => record,
            };
            prop_assert_eq!(Record::outline(&key, &value), Ok(outline));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(id in any::<[u8; 16]>(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(Record::decode(&Key::of(&SpoolId::from_bytes(id)), &bytes).is_err());
        }

        #[test]
        fn a_record_under_another_key_is_noticed(a in any::<[u8; 16]>(), bit in 0_usize..128, record in records()) {
            let mut b = a;
            b[bit / 8] ^= 1 << (bit % 8);
            let (key, other) = (Key::of(&SpoolId::from_bytes(a)), Key::of(&SpoolId::from_bytes(b)));
            let err = Record::decode(&other, &record.encode(&key)).unwrap_err();
            let by_checksum = matches!(err, RecordError::Checksum { .. });
            prop_assert!(by_checksum);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let key = Key::of(&SpoolId::new());
        for record in [
            Record::Whole { seq: 7, data: (0..=255).collect() },
            Record::Whole { seq: 8, data: Box::default() },
            Record::Locator { seq: 9, generation: 3, offset: 4096, len: 70_000, crc: 0xdead_beef },
            Record::Damaged { seq: 0, reason: "segment 3 is gone".to_owned() },
        ] {
            let good = record.encode(&key);
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(&key, &bad).is_err(), "bit {bit} of {record:?}");
            }
            for len in 0..good.len() {
                assert!(Record::decode(&key, &good[..len]).is_err(), "{len} bytes of {record:?}");
            }
        }
    }

    #[test]
    fn the_layout_is_the_one_on_disk() {
        let key = Key::of(&SpoolId::from_bytes([0x11; 16]));
        let locator = Record::Locator { seq: 2, generation: 3, offset: 4, len: 5, crc: 6 };
        let value = locator.encode(&key);
        assert_eq!(value[0], 2);
        assert_eq!(
            value[5..],
            [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0]
        );
        let mut covered = key.as_bytes().to_vec();
        covered.push(value[0]);
        covered.extend_from_slice(&value[5..]);
        assert_eq!(value[1..5], crc32c::crc32c(&covered).to_le_bytes());
    }

    #[test]
    fn a_kind_of_a_newer_version_is_named() {
        let key = Key::of(&SpoolId::new());
        let mut value = vec![9, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let crc = checksum(&key, 9, &value[5..]);
        value[1..5].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Record::decode(&key, &value), Err(RecordError::Kind { kind: 9 }));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let key = Key::of(&SpoolId::new());
        let value = Record::Damaged { seq: 1, reason: "é".repeat(5_000) + "x" }.encode(&key);
        assert!(value.len() <= MAX_VALUE);
        let Ok(Record::Damaged { reason, .. }) = Record::decode(&key, &value) else { panic!("not decoded") };
        assert_eq!(reason, "é".repeat(MAX_WHOLE / 2));
    }
}
