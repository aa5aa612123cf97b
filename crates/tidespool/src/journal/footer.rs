//! The footer of a sealed segment: a list of its records, so that finding them needs no scan. Pure,
//! except for [`Records::write`].
//!
//! The footer is an accelerator. A segment without a footer, or with a damaged one, is scanned.
//!
//! # Layout
//!
//! The footer ends where the segment ends. The entries come first, 32 bytes each, in file order. A
//! trailer of 40 bytes follows. Zeros fill the page before the first entry: the footer shares no
//! page with a record.
//!
//! A scan looks for the generation in each aligned word. So a word of the footer that may equal a
//! generation is stored inverted, and a scan passes over the footer.

use std::io::{self, IoSlice};

use tidespool_core::SpoolId;

use super::record::{RECORD_ALIGN, RecordKind, u32_at, u64_at};
use super::segment::{PAGE, Segment};
use crate::message_id::{MessageId, SpoolNumber};
use crate::storage::write_all_at;

/// Bytes of one entry.
pub(super) const ENTRY_LEN: u64 = ENTRY_BYTES as u64;
const ENTRY_BYTES: usize = 32;

/// Bytes of the trailer.
pub(super) const TRAILER_LEN: u64 = TRAILER_BYTES as u64;
pub(super) const TRAILER_BYTES: usize = 40;

const MAGIC: [u8; 8] = *b"TIDEFOOT";

/// The low bits of an offset are 0, and hold the kind.
const KIND_MASK: u32 = 7;
const _: () = assert!(RECORD_ALIGN == KIND_MASK as u64 + 1);

/// Bits of a sequence number. The number of the spool has the other 16.
const SEQ_BITS: u32 = 48;

/// Bytes that a footer with this many entries takes: whole pages.
pub(crate) const fn footer_len(entries: u64) -> u64 {
    (entries * ENTRY_LEN + TRAILER_LEN).next_multiple_of(PAGE)
}

/// One record of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FooterEntry {
    pub(crate) id: MessageId,
    pub(crate) kind: RecordKind,
    pub(crate) seq: u64,
    /// Offset of the record's header in the file.
    pub(crate) offset: u64,
    /// Bytes of the payload.
    pub(crate) len: u32,
    /// The sequence number of the put that an abort cancels. `None` if that put is more than
    /// `u32::MAX` numbers older: only the record has its number.
    pub(crate) abort_of: Option<u64>,
}

impl FooterEntry {
    /// `None`: the offset or the number does not fit. An ordinary segment has at most 1 GiB.
    fn encode(&self) -> Option<[u8; ENTRY_BYTES]> {
        let place = u32::try_from(self.offset).ok()? | self.kind.code();
        let seq = (self.seq >> SEQ_BITS == 0).then_some(self.seq)?;
        let seq_and_spool = seq | u64::from(self.id.spool().get()) << SEQ_BITS;
        // The payload of every abort has the same length, so the field holds its target.
        let extra = match self.kind {
            RecordKind::Abort => {
                self.abort_of.map_or(0, |of| u32::try_from(self.seq.saturating_sub(of)).unwrap_or(0))
            }
            RecordKind::Put | RecordKind::Remove | RecordKind::Mark => self.len,
        };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..16].copy_from_slice(self.id.id().as_bytes());
        bytes[16..24].copy_from_slice(&(!seq_and_spool).to_le_bytes());
        bytes[24..28].copy_from_slice(&(!extra).to_le_bytes());
        bytes[28..].copy_from_slice(&(!place).to_le_bytes());
        Some(bytes)
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[..16]);
        let seq_and_spool = !u64_at(bytes, 16);
        let seq = seq_and_spool & ((1 << SEQ_BITS) - 1);
        let spool = SpoolNumber::new((seq_and_spool >> SEQ_BITS) as u16)?;
        let (extra, place) = (!u32_at(bytes, 24), !u32_at(bytes, 28));
        let kind = RecordKind::from_code(place & KIND_MASK)?;
        let (len, abort_of) = match kind {
            RecordKind::Abort => (8, (extra > 0).then(|| seq.saturating_sub(extra.into()))),
            RecordKind::Put | RecordKind::Remove | RecordKind::Mark => (extra, None),
        };
        let offset = u64::from(place & !KIND_MASK);
        let id = MessageId::new(spool, SpoolId::from_bytes(id));
        Some(Self { id, kind, seq, offset, len, abort_of })
    }
}

/// The records of a segment, encoded in 32 bytes each.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Records {
    bytes: Vec<u8>,
    last_seq: u64,
    /// A record that no entry can describe was added: the segment gets no footer.
    is_incomplete: bool,
}

impl Records {
    pub(super) fn push(&mut self, entry: &FooterEntry) {
        match entry.encode() {
            Some(bytes) => self.bytes.extend_from_slice(&bytes),
            None => self.is_incomplete = true,
        }
        self.last_seq = self.last_seq.max(entry.seq);
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64 / ENTRY_LEN
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = FooterEntry> {
        // Entries from `push` and entries checked by `decode` always decode.
        self.bytes.as_chunks().0.iter().filter_map(FooterEntry::decode)
    }

    /// Writes the footer of `segment`, without a sync. The caller has left room for it.
    pub(super) fn write(&self, segment: &Segment, salt: u32) -> io::Result<()> {
        let len = self.bytes.len() as u64 + TRAILER_LEN;
        let start = segment.size.saturating_sub(footer_len(self.len()));
        if self.is_incomplete || start < PAGE {
            return Ok(());
        }
        let padding = [0; 4096];
        let padding = &padding[..usize::try_from(segment.size - len - start).unwrap_or(0)];
        let trailer = self.trailer(salt).encode(salt, segment.generation);
        let mut slices = [IoSlice::new(padding), IoSlice::new(&self.bytes), IoSlice::new(&trailer)];
        write_all_at(&*segment.file, &mut slices, start)
    }

    fn trailer(&self, salt: u32) -> Trailer {
        let count = u32::try_from(self.len()).unwrap_or(u32::MAX);
        Trailer { last_seq: self.last_seq, count, crc: crc32c::crc32c_append(salt, &self.bytes) }
    }

    /// Decodes the records. `None`: they do not match `trailer`, or are not in order. `end` is the
    /// offset of the footer.
    pub(super) fn decode(bytes: Vec<u8>, trailer: Trailer, salt: u32, end: u64) -> Option<Self> {
        let records = Self { bytes, last_seq: trailer.last_seq, is_incomplete: false };
        let mut after = PAGE;
        let is_in_order = records.bytes.as_chunks().0.iter().all(|bytes| {
            FooterEntry::decode(bytes).is_some_and(|entry| {
                let is_next = entry.offset >= after && entry.offset + u64::from(entry.len) < end;
                after = entry.offset + 1;
                is_next
            })
        });
        (records.trailer(salt) == trailer && is_in_order).then_some(records)
    }
}

/// The last bytes of a segment with a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    /// The highest sequence number of an entry.
    pub(super) last_seq: u64,
    /// The number of entries.
    pub(super) count: u32,
    /// CRC-32C of the entries, started from the salt.
    crc: u32,
}

impl Trailer {
    fn encode(&self, salt: u32, generation: u64) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0xff; TRAILER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&(!generation).to_le_bytes());
        bytes[16..24].copy_from_slice(&(!self.last_seq).to_le_bytes());
        bytes[24..28].copy_from_slice(&self.crc.to_le_bytes());
        bytes[28..32].copy_from_slice(&(!self.count).to_le_bytes());
        let crc = crc32c::crc32c_append(salt, &bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Bytes of the entries.
    pub(super) fn entries_len(&self) -> u64 {
        u64::from(self.count) * ENTRY_LEN
    }

    /// Decodes a trailer. `None`: the bytes are not a trailer of this spool and generation.
    pub(super) fn decode(bytes: &[u8; TRAILER_BYTES], salt: u32, generation: u64) -> Option<Self> {
        let trailer =
            Self { last_seq: !u64_at(bytes, 16), count: !u32_at(bytes, 28), crc: u32_at(bytes, 24) };
        (trailer.encode(salt, generation) == *bytes).then_some(trailer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind() -> impl Strategy<Value = RecordKind> {
        (1..=4u32).prop_map(|code| RecordKind::from_code(code).unwrap())
    }

    proptest! {
        #[test]
        fn an_entry_round_trips(kind in kind(), seq in 1u64..1 << 48, id: [u8; 16], at in 0..1u64 << 27, len: u32, back in 1u32..) {
            let abort_of = (kind == RecordKind::Abort).then(|| seq.saturating_sub(back.into()));
            let len = if kind == RecordKind::Abort { 8 } else { len };
            let entry = FooterEntry { id: MessageId::from_bytes(id), kind, seq, offset: at * 8, len, abort_of };
            prop_assert_eq!(FooterEntry::decode(&entry.encode().unwrap()), Some(entry));
        }

        #[test]
        fn a_flipped_bit_of_the_trailer_is_detected(last_seq: u64, count: u32, crc: u32, salt: u32) {
            let trailer = Trailer { last_seq, count, crc };
            let bytes = trailer.encode(salt, 7);
            prop_assert_eq!(Trailer::decode(&bytes, salt, 7), Some(trailer));
            for bit in 0..bytes.len() * 8 {
                let mut broken = bytes;
                broken[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(Trailer::decode(&broken, salt, 7), None, "bit {}", bit);
            }
        }
    }

    #[test]
    fn an_entry_omits_the_target_of_an_abort_far_back() {
        let entry = FooterEntry {
            id: MessageId::from_bytes([1; 16]),
            kind: RecordKind::Abort,
            seq: 1 << 40,
            offset: 4096,
            len: 8,
            abort_of: Some(5),
        };
        let far = FooterEntry::decode(&entry.encode().unwrap());
        assert_eq!(far, Some(FooterEntry { abort_of: None, ..entry }));
    }

    #[test]
    fn a_record_that_no_entry_can_describe_leaves_the_list_incomplete() {
        let entry = FooterEntry {
            id: MessageId::from_bytes([1; 16]),
            kind: RecordKind::Put,
            seq: 1,
            offset: 1 << 32,
            len: 8,
            abort_of: None,
        };
        let mut records = Records::default();
        records.push(&entry);
        assert!(records.is_incomplete && records.len() == 0);
    }

    #[test]
    fn a_trailer_of_another_use_or_spool_does_not_parse() {
        let trailer = Trailer { last_seq: 9, count: 3, crc: 5 };
        let bytes = trailer.encode(99, 7);
        assert_eq!(Trailer::decode(&bytes, 99, 7), Some(trailer));
        assert_eq!(Trailer::decode(&bytes, 99, 8), None, "a later use of the segment");
        assert_eq!(Trailer::decode(&bytes, 98, 7), None, "another spool");
        assert_eq!(Trailer::decode(&[0; TRAILER_BYTES], 99, 7), None, "a prewritten segment");
    }

    /// A scan would count such a word as a broken header.
    #[test]
    fn no_word_of_a_footer_equals_a_small_number() {
        let mut records = Records::default();
        for seq in 1..=64 {
            let offset = PAGE + (seq - 1) * 64;
            let kind = RecordKind::from_code(1 + (seq % 4) as u32).unwrap();
            let len = if kind == RecordKind::Abort { 8 } else { 1 };
            let id = MessageId::from_bytes([0xee; 16]);
            records.push(&FooterEntry { id, kind, seq, offset, len, abort_of: None });
        }
        let trailer = records.trailer(1).encode(1, 7);
        let words = records.bytes.as_chunks().0.iter().chain(trailer.as_chunks().0);
        assert!(words.map(|word| u64::from_le_bytes(*word)).all(|word| word > 1 << 62));
    }
}
