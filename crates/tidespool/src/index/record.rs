//! The place of a message. Pure.

/// The place of the newest checkpointed version of a message: a record in a segment.
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
    /// Returns the fields as bytes. [`Tally`](super::Tally) sums them up.
    pub(crate) fn to_bytes(self) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&self.seq.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }
}
