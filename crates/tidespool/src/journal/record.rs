//! The header of one journal record, as bytes. Pure.

use tidespool_core::SpoolId;

use crate::message_id::{MessageId, SpoolNumber};

/// Bytes of a record's header.
pub(crate) const HEADER_LEN: usize = 56;

/// Alignment of records within a batch, in bytes.
pub(crate) const RECORD_ALIGN: u64 = 8;

/// This bit is set if the transaction of a record continues.
const CONTINUES: u32 = 1 << 8;

/// What a record states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// The message `id` has this payload.
    Put,
    /// The message `id` is removed.
    Remove,
    /// The put whose sequence number is the payload did not happen.
    Abort,
    /// Nothing. Carries `durable_seq` when no other record does.
    Mark,
}

impl RecordKind {
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Put => 1,
            Self::Remove => 2,
            Self::Abort => 3,
            Self::Mark => 4,
        }
    }

    pub(super) const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Put),
            2 => Some(Self::Remove),
            3 => Some(Self::Abort),
            4 => Some(Self::Mark),
            _ => None,
        }
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    /// The generation of the segment. Records of an earlier use of the file have another one.
    pub(crate) generation: u64,
    pub(crate) seq: u64,
    /// Every record up to this number was on stable storage when this record was written.
    pub(crate) durable_seq: u64,
    pub(crate) id: MessageId,
    /// The transaction of this record continues with the next record. All records of a transaction
    /// happened, or none.
    pub(crate) continues: bool,
    pub(crate) payload_len: u32,
    pub(crate) payload_crc: u32,
}

impl RecordHeader {
    /// Encodes the header. `salt` is unique to the spool, so a record of another spool, in a
    /// segment or copied into a message, does not decode.
    pub(crate) fn encode(&self, salt: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[4..8].copy_from_slice(&self.word().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.seq.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable_seq.to_le_bytes());
        bytes[32..48].copy_from_slice(self.id.id().as_bytes());
        bytes[48..52].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(salt, &bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Kind, continuation and spool.
    fn word(&self) -> u32 {
        let continues = if self.continues { CONTINUES } else { 0 };
        self.kind.code() | continues | u32::from(self.id.spool().get()) << 16
    }

    /// Decodes a header. `None`: the bytes are not a record of this spool and generation.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN], salt: u32, generation: u64) -> Option<Self> {
        // The most selective field first: recovery checks every eighth byte of a range that it
        // can't read.
        if u64_at(bytes, 8) != generation {
            return None;
        }
        if u32_at(bytes, 0) != crc32c::crc32c_append(salt, &bytes[4..]) {
            return None;
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[32..48]);
        let word = u32_at(bytes, 4);
        let spool = SpoolNumber::new((word >> 16) as u16)?;
        Some(Self {
            kind: RecordKind::from_code(word & 0xffff & !CONTINUES)?,
            generation,
            seq: u64_at(bytes, 16),
            durable_seq: u64_at(bytes, 24),
            id: MessageId::new(spool, SpoolId::from_bytes(id)),
            continues: word & CONTINUES != 0,
            payload_len: u32_at(bytes, 48),
            payload_crc: u32_at(bytes, 52),
        })
    }

    /// Bytes from the start of this record to the start of the next one in its batch.
    pub(crate) const fn footprint(&self) -> u64 {
        footprint(self.payload_len as u64)
    }
}

/// Bytes that a record with a payload of this length takes in a batch.
pub(crate) const fn footprint(payload_len: u64) -> u64 {
    (HEADER_LEN as u64 + payload_len).next_multiple_of(RECORD_ALIGN)
}

/// The CRC-32C of a payload.
pub(crate) fn payload_crc(payload: &[u8]) -> u32 {
    crc32c::crc32c(payload)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: u32, seq: u64, durable_seq: u64, id: [u8; 16], len: u32, crc: u32) -> RecordHeader {
        RecordHeader {
            kind: RecordKind::from_code(kind).unwrap(),
            generation: 7,
            seq,
            durable_seq,
            id: MessageId::from_bytes(id),
            continues: seq.is_multiple_of(2),
            payload_len: len,
            payload_crc: crc,
        }
    }

    proptest! {
        #[test]
        fn round_trip(kind in 1u32..=4, seq: u64, durable: u64, id: [u8; 16], len: u32, crc: u32, salt: u32) {
            let header = header(kind, seq, durable, id, len, crc);
            prop_assert_eq!(RecordHeader::decode(&header.encode(salt), salt, 7), Some(header));
        }

        #[test]
        fn a_flipped_bit_is_detected(seq: u64, id: [u8; 16], salt: u32, bit in 0usize..HEADER_LEN * 8) {
            let mut bytes = header(1, seq, 3, id, 9, 11).encode(salt);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(RecordHeader::decode(&bytes, salt, 7), None);
        }
    }

    #[test]
    fn records_of_another_generation_or_spool_do_not_parse() {
        let bytes = header(1, 1, 0, [5; 16], 9, 11).encode(99);
        assert!(RecordHeader::decode(&bytes, 99, 7).is_some());
        assert_eq!(RecordHeader::decode(&bytes, 99, 8), None, "a later use of the segment");
        assert_eq!(RecordHeader::decode(&bytes, 98, 7), None, "another spool");
        assert_eq!(RecordHeader::decode(&[0; HEADER_LEN], 99, 0), None, "a prewritten segment");
    }
}
