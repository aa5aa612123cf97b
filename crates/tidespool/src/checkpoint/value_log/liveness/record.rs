//! The format of the liveness log. Pure: no I/O.
//!
//! A file begins with a header of [`HEADER_LEN`] bytes, little endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `TIDELIVE` |
//! | 8 | 4 | CRC-32C of the magic and of bytes 12..24 |
//! | 12 | 4 | version of the format |
//! | 16 | 8 | number of the file |
//!
//! Batches follow without gaps. Header of a batch, [`BATCH_HEADER_LEN`] bytes, then its payload:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length of the payload |
//! | 4 | 4 | CRC-32C of the payload |
//! | 8 | 8 | `after`: the end of the last batch that counts before this one |
//! | 16 | 4 | CRC-32C of bytes 0..16 |
//!
//! Both checksums start from the number of the file and the offset of the batch, so bytes of
//! another file or place never pass. Bytes between `after` and the batch were never committed.
//!
//! A payload holds entries: kind (1 byte), then as varints generation, count and length of the
//! list, then the list ([`Offsets`]). Zeros fill it up to a multiple of [`PAGE`], so a later write
//! never touches a page that was synced.

use super::offsets::Offsets;
use crate::varint::{put_varint, take_varint};

pub(super) const HEADER_LEN: u64 = 24;
pub(super) const BATCH_HEADER_LEN: u64 = 20;
/// Each append ends at a multiple of this.
pub(super) const PAGE: u64 = 4096;
/// The version that is written, and the only version that can be read.
pub(super) const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"TIDELIVE";
/// A batch ends when it reaches this size, because damage costs a whole batch.
const BATCH_TARGET: usize = 64 << 10;

/// What an entry states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LivenessKind {
    /// Exactly these records live. Replaces all earlier entries of the segment.
    First,
    /// These records live too.
    More,
    /// These records died.
    Dead,
    /// Entries before this one are missing. It belongs to no segment.
    Gap,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LivenessEntry {
    pub(super) kind: LivenessKind,
    pub(super) generation: u64,
    pub(super) offsets: Offsets,
}

impl LivenessEntry {
    pub(super) fn gap() -> Self {
        Self { kind: LivenessKind::Gap, generation: 0, offsets: Offsets::default() }
    }

    /// Returns true if the entry concerns the whole log, not a segment.
    pub(super) fn is_of_all(&self) -> bool {
        self.kind == LivenessKind::Gap
    }
}

/// The fields of a file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) version: u32,
    pub(super) number: u64,
}

impl FileHeader {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut rest = self.version.to_le_bytes().to_vec();
        rest.extend(self.number.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&MAGIC), &rest);
        [&MAGIC[..], &crc.to_le_bytes(), &rest].concat()
    }

    /// Returns `None` if the bytes are damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let version = u32::from_le_bytes(field(bytes, 12)?);
        let header = Self { version, number: u64::from_le_bytes(field(bytes, 16)?) };
        (header.encode() == bytes).then_some(header)
    }
}

/// The fields of a batch's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) len: u32,
    pub(super) crc: u32,
    pub(super) after: u64,
}

impl BatchHeader {
    fn encode(self, number: u64, offset: u64) -> Vec<u8> {
        let mut bytes = [self.len.to_le_bytes(), self.crc.to_le_bytes()].concat();
        bytes.extend(self.after.to_le_bytes());
        let crc = crc32c::crc32c_append(seed(number, offset), &bytes);
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    /// Returns `None` if the bytes are damaged.
    pub(super) fn decode(bytes: &[u8], number: u64, offset: u64) -> Option<Self> {
        let header = Self {
            len: u32::from_le_bytes(field(bytes, 0)?),
            crc: u32::from_le_bytes(field(bytes, 4)?),
            after: u64::from_le_bytes(field(bytes, 8)?),
        };
        (header.encode(number, offset) == bytes).then_some(header)
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn seed(number: u64, offset: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &offset.to_le_bytes())
}

/// Returns the checksum of the payload of the batch at `offset`.
pub(super) fn payload_crc(number: u64, offset: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(seed(number, offset), payload)
}

/// Encodes entries as batches to be written at `offset`. Earlier bytes from `after` on do not
/// count. The batches end at a multiple of [`PAGE`].
pub(super) fn encode_run(entries: &[LivenessEntry], number: u64, offset: u64, after: u64) -> Vec<u8> {
    let (mut run, mut payload, mut after) = (Vec::new(), Vec::new(), after);
    for entry in entries {
        put_entry(&mut payload, entry);
        if payload.len() >= BATCH_TARGET {
            put_batch(&mut run, &payload, number, offset, after);
            payload.clear();
            after = offset + run.len() as u64;
        }
    }
    let end = offset + run.len() as u64 + BATCH_HEADER_LEN + payload.len() as u64;
    let padding = usize::try_from(end.next_multiple_of(PAGE) - end).unwrap_or(0);
    payload.resize(payload.len() + padding, 0);
    put_batch(&mut run, &payload, number, offset, after);
    run
}

fn put_batch(run: &mut Vec<u8>, payload: &[u8], number: u64, offset: u64, after: u64) {
    let offset = offset + run.len() as u64;
    // The target plus one list: even a segment of 32 GiB full of the smallest records has less.
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let header = BatchHeader { len, crc: payload_crc(number, offset, payload), after };
    run.extend(header.encode(number, offset));
    run.extend(payload);
}

fn put_entry(payload: &mut Vec<u8>, entry: &LivenessEntry) {
    payload.push(match entry.kind {
        LivenessKind::First => 1,
        LivenessKind::More => 2,
        LivenessKind::Dead => 3,
        LivenessKind::Gap => 4,
    });
    let list = entry.offsets.bytes();
    for number in [entry.generation, entry.offsets.count(), list.len() as u64] {
        put_varint(payload, number);
    }
    payload.extend(list);
}

/// Decodes the entries of a payload. `None` if the payload is malformed.
pub(super) fn decode_entries(payload: &[u8]) -> Option<Vec<LivenessEntry>> {
    let (mut rest, mut entries) = (payload, Vec::new());
    while let Some((kind, tail)) = rest.split_first() {
        let kind = match kind {
            // Padding.
            0 => return tail.iter().all(|byte| *byte == 0).then_some(entries),
            1 => LivenessKind::First,
            2 => LivenessKind::More,
            3 => LivenessKind::Dead,
            4 => LivenessKind::Gap,
            _ => return None,
        };
        rest = tail;
        let (generation, count) = (take_varint(&mut rest)?, take_varint(&mut rest)?);
        let len = usize::try_from(take_varint(&mut rest)?).ok()?;
        let (list, tail) = rest.split_at_checked(len)?;
        entries.push(LivenessEntry { kind, generation, offsets: Offsets::parse(count, list)? });
        rest = tail;
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = LivenessEntry> {
        let kind = prop_oneof![
            Just(LivenessKind::First),
            Just(LivenessKind::More),
            Just(LivenessKind::Dead),
            Just(LivenessKind::Gap)
        ];
        (kind, any::<u64>(), proptest::collection::btree_set(0..u64::MAX / 8, 0..20)).prop_map(
            |(kind, generation, units)| LivenessEntry {
                kind,
                generation,
                offsets: Offsets::from_ascending(units),
            },
        )
    }

    fn decode_run(run: &[u8], number: u64, offset: u64, mut after: u64) -> Option<Vec<LivenessEntry>> {
        let (mut entries, mut at) = (Vec::new(), 0);
        while at < run.len() {
            let start = offset + at as u64;
            let header = run.get(at..at + usize::try_from(BATCH_HEADER_LEN).unwrap())?;
            let header = BatchHeader::decode(header, number, start)?;
            at += usize::try_from(BATCH_HEADER_LEN).unwrap();
            let payload = run.get(at..at + header.len as usize)?;
            if header.after != after || header.crc != payload_crc(number, start, payload) {
                return None;
            }
            entries.extend(decode_entries(payload)?);
            at += payload.len();
            after = offset + at as u64;
        }
        Some(entries)
    }

    /// Entries for several batches.
    fn many_entries() -> Vec<LivenessEntry> {
        let offsets = Offsets::from_ascending((0..20_000).map(|record| record * 136));
        (0..5)
            .map(|generation| LivenessEntry {
                kind: LivenessKind::First,
                generation,
                offsets: offsets.clone(),
            })
            .collect()
    }

    #[test]
    fn a_long_run_is_split_into_batches() {
        let run = encode_run(&many_entries(), 3, PAGE, HEADER_LEN);
        assert_eq!(decode_run(&run, 3, PAGE, HEADER_LEN), Some(many_entries()));
        let first = BatchHeader::decode(&run[..20], 3, PAGE).unwrap();
        assert!((first.len as usize) < run.len() / 2);
    }

    #[test]
    fn a_file_header_is_read_back_and_no_flipped_bit_passes() {
        let header = FileHeader { version: VERSION, number: 77 };
        let bytes = header.encode();
        assert_eq!(bytes.len() as u64, HEADER_LEN);
        assert_eq!(FileHeader::decode(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FileHeader::decode(&flipped), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(FileHeader::decode(&bytes[..len]), None);
        }
    }

    #[test]
    fn no_flipped_bit_of_a_run_passes() {
        let offsets = Offsets::from_ascending([1, 5, 900]);
        let run =
            encode_run(&[LivenessEntry { kind: LivenessKind::Dead, generation: 8, offsets }], 4, 24, 24);
        assert!(decode_run(&run, 4, 24, 24).is_some());
        for bit in 0..run.len() * 8 {
            let mut flipped = run.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_run(&flipped, 4, 24, 24), None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn entries_are_read_back(
            entries in proptest::collection::vec(entry(), 0..10),
            number in any::<u64>(),
            page in 0..1000u64,
        ) {
            let (offset, after) = (page * PAGE + HEADER_LEN, page);
            let run = encode_run(&entries, number, offset, after);
            prop_assert!((offset + run.len() as u64).is_multiple_of(PAGE));
            prop_assert_eq!(decode_run(&run, number, offset, after), Some(entries));
            prop_assert_eq!(decode_run(&run, number.wrapping_add(1), offset, after), None);
            prop_assert_eq!(decode_run(&run, number, offset + PAGE, after), None);
        }

        #[test]
        fn any_payload_is_decoded_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_entries(&bytes);
            let _ = BatchHeader::decode(&bytes, 0, 0);
            let _ = FileHeader::decode(&bytes);
        }

        /// The checksum does not protect against a bug in the writer.
        #[test]
        fn a_changed_payload_is_decoded_without_a_panic(
            entries in proptest::collection::vec(entry(), 1..5),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut payload = Vec::new();
            entries.iter().for_each(|entry| put_entry(&mut payload, entry));
            let at = at.index(payload.len());
            payload[at] = byte;
            let _ = decode_entries(&payload);
        }
    }
}
