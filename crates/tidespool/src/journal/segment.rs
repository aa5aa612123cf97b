//! One use of a segment file: its header page, and reading records back.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use thiserror::Error;

use super::index::RecordPlace;
use super::record::{HEADER_LEN, RecordHeader, RecordKind, payload_crc, u32_at, u64_at};
use crate::message_id::MessageId;
use crate::storage::{StorageFile, read_exact_vectored_at, write_all_at};

/// Bytes before the first record, and the alignment of batches.
pub(crate) const PAGE: u64 = 4096;

/// What a segment is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing.
    Free,
    /// The journal: replayed at open unless checkpointed.
    Journal,
    /// Messages that survived older segments. Never replayed: a cold segment that the manifest does
    /// not list is garbage.
    Cold,
}

const MAGIC: [u8; 8] = *b"TIDESEG1";

/// The first bytes of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) role: Role,
    pub(crate) generation: u64,
    pub(crate) size: u64,
    pub(crate) spool: [u8; 16],
}

impl SegmentHeader {
    /// Encodes the whole first page.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let role: u32 = match self.role {
            Role::Free => 0,
            Role::Journal => 1,
            Role::Cold => 2,
        };
        let mut page = Vec::with_capacity(4096);
        page.extend_from_slice(&MAGIC);
        page.extend_from_slice(&[0; 4]);
        page.extend_from_slice(&role.to_le_bytes());
        page.extend_from_slice(&self.generation.to_le_bytes());
        page.extend_from_slice(&self.size.to_le_bytes());
        page.extend_from_slice(&self.spool);
        let crc = crc32c::crc32c(&page[12..48]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        page.resize(4096, 0);
        page
    }

    /// Writes the first page of a segment file, without a sync.
    pub(super) fn write(&self, file: &dyn StorageFile) -> io::Result<()> {
        write_all_at(file, &mut [IoSlice::new(&self.encode())], 0)
    }

    /// Decodes a header. `None`: the bytes are not one.
    pub(crate) fn decode(bytes: &[u8; 48]) -> Option<Self> {
        let mut spool = [0; 16];
        spool.copy_from_slice(&bytes[32..48]);
        if bytes[..8] != MAGIC || u32_at(bytes, 8) != crc32c::crc32c(&bytes[12..48]) {
            return None;
        }
        let role = match u32_at(bytes, 12) {
            0 => Role::Free,
            1 => Role::Journal,
            2 => Role::Cold,
            _ => return None,
        };
        Some(Self { role, generation: u64_at(bytes, 16), size: u64_at(bytes, 24), spool })
    }
}

/// The id of the spool that a segment file with these first bytes belongs to. `None`: the bytes are
/// not a segment header.
pub(crate) fn spool_of_segment(bytes: &[u8; 48]) -> Option<[u8; 16]> {
    SegmentHeader::decode(bytes).map(|header| header.spool)
}

/// A segment in use. Each holder of the `Arc` may read from it: the file is recycled only when no
/// holder is left.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) generation: u64,
    pub(crate) slot: u32,
    pub(crate) role: Role,
    pub(crate) size: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn StorageFile>,
    /// A write or sync failed: the file is deleted instead of recycled.
    failed: AtomicBool,
    /// The footer may list records that do not exist.
    footer_void: AtomicBool,
    /// The name does not lead to the file: see [`Loss`](crate::storage::Loss).
    lost: AtomicBool,
    /// Length of the file when this use began, in bytes. The file never gets shorter.
    least: u64,
    /// The segment was found at open: what it holds is durable.
    found: bool,
    /// Syncs that covered records of this segment.
    syncs: AtomicU64,
    /// The segment counts against the journal's capacity.
    counted: AtomicBool,
    /// The highest durable sequence number in the segment.
    last_seq: AtomicU64,
    /// When this use of it began.
    pub(crate) used_since: Instant,
    /// When the segment was settled: nothing more is written to it, and the index has all its
    /// records.
    settled_at: OnceLock<Instant>,
}

/// How a use of a segment begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    /// Found at open: nothing more is written to the segment.
    pub(crate) settled: bool,
    /// The segment counts against the journal's capacity.
    pub(crate) counted: bool,
}

/// Why a record could not be read.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    /// Reading failed. The record may be intact.
    #[error("reading {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The bytes are not the record that was written.
    #[error("{path} at byte {offset}: {what}", path = path.display())]
    Damaged { path: PathBuf, offset: u64, what: &'static str },
}

impl Segment {
    pub(crate) fn new(
        header: SegmentHeader,
        slot: u32,
        path: PathBuf,
        file: Arc<dyn StorageFile>,
        use_of: Use,
    ) -> Self {
        Self {
            footer_void: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            least: file.len().unwrap_or(0).min(header.size),
            generation: header.generation,
            slot,
            role: header.role,
            size: header.size,
            path,
            file,
            failed: AtomicBool::new(false),
            found: use_of.settled,
            syncs: AtomicU64::new(0),
            counted: AtomicBool::new(use_of.counted),
            last_seq: AtomicU64::new(0),
            used_since: Instant::now(),
            settled_at: if use_of.settled { OnceLock::from(Instant::now()) } else { OnceLock::new() },
        }
    }

    /// The same use of the segment, in another file with the same bytes.
    pub(super) fn in_file(&self, file: Arc<dyn StorageFile>) -> Self {
        Self {
            generation: self.generation,
            slot: self.slot,
            role: self.role,
            size: self.size,
            path: self.path.clone(),
            file,
            failed: AtomicBool::new(false),
            footer_void: AtomicBool::new(self.is_footer_void()),
            lost: AtomicBool::new(false),
            least: self.size,
            found: true,
            syncs: AtomicU64::new(self.syncs()),
            counted: AtomicBool::new(self.is_counted()),
            last_seq: AtomicU64::new(self.last_seq()),
            used_since: self.used_since,
            settled_at: self.settled_at.clone(),
        }
    }

    /// The least length that the file should have, in bytes.
    pub(super) fn least(&self) -> u64 {
        self.least
    }

    /// The name does not lead to the file: what is written to it is missing at the next start.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(super) fn set_lost(&self, lost: bool) {
        self.lost.store(lost, Ordering::Release);
    }

    pub(crate) fn settle(&self) {
        self.settled_at.get_or_init(Instant::now);
    }

    /// When the segment was settled. `None`: it is not.
    pub(crate) fn settled_at(&self) -> Option<Instant> {
        self.settled_at.get().copied()
    }

    pub(crate) fn note_last_seq(&self, seq: u64) {
        self.last_seq.fetch_max(seq, Ordering::Relaxed);
    }

    pub(crate) fn last_seq(&self) -> u64 {
        self.last_seq.load(Ordering::Relaxed)
    }

    pub(crate) fn mark_failed(&self) {
        self.failed.store(true, Ordering::Release);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Makes listings scan the records instead of reading the footer.
    pub(super) fn void_footer(&self) {
        self.footer_void.store(true, Ordering::Release);
    }

    /// True if the footer must not be read. After a failed sync it may list records that are not on
    /// disk.
    pub(super) fn is_footer_void(&self) -> bool {
        self.footer_void.load(Ordering::Acquire) || self.has_failed()
    }

    pub(crate) fn mark_durable(&self) {
        self.syncs.fetch_add(1, Ordering::Release);
    }

    /// Syncs since the spool was opened that covered records of this segment.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Acquire)
    }

    pub(crate) fn holds_durable(&self) -> bool {
        self.found || self.syncs() > 0
    }

    pub(crate) fn is_counted(&self) -> bool {
        self.counted.load(Ordering::Acquire)
    }

    /// Stops counting the segment against the journal's capacity. True if it counted until now.
    pub(crate) fn uncount(&self) -> bool {
        self.counted.swap(false, Ordering::AcqRel)
    }

    /// Reads and checks the payload of the put of `id` at `place`. Returns it with its checksum.
    pub(crate) fn read_put(
        &self,
        salt: u32,
        id: &MessageId,
        place: RecordPlace,
    ) -> Result<(Vec<u8>, u32), ReadError> {
        self.with_damage_confirmed(|| {
            let (mut header, mut payload) = ([0; HEADER_LEN], vec![0; place.len as usize]);
            let mut bufs = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut payload)];
            read_exact_vectored_at(&*self.file, &mut bufs, place.offset)
                .map_err(|source| self.failed(place.offset, source))?;
            let crc = self.check_put(salt, id, place, &header, &payload)?;
            Ok((payload, crc))
        })
    }

    /// Repeats a read that found damage, from the disk. The first read may have been corrupted in
    /// transfer or in memory. Damage is final: the checkpointer gives up the record.
    fn with_damage_confirmed<T>(&self, read: impl Fn() -> Result<T, ReadError>) -> Result<T, ReadError> {
        match read() {
            Err(first @ ReadError::Damaged { .. }) => {
                self.file.forget_cached();
                let again = read();
                if again.is_ok() {
                    tracing::warn!(%first, "a second read succeeded: the disk or memory is faulty");
                }
                again
            }
            first => first,
        }
    }

    /// Reads the payload if all of the record is in memory and intact. Never blocks on a disk.
    /// `None` says nothing about the record.
    pub(crate) fn read_put_in_memory(
        &self,
        salt: u32,
        id: &MessageId,
        place: RecordPlace,
    ) -> Option<Vec<u8>> {
        let (mut header, mut payload) = ([0; HEADER_LEN], vec![0; place.len as usize]);
        let mut bufs = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut payload)];
        let read = self.file.read_in_memory_at(&mut bufs, place.offset).ok()?;
        let is_whole = read == HEADER_LEN + payload.len();
        (is_whole && self.check_put(salt, id, place, &header, &payload).is_ok()).then_some(payload)
    }

    /// Checks that `header` and `payload` are the put of `id` at `place`. Returns the payload's
    /// checksum.
    pub(super) fn check_put(
        &self,
        salt: u32,
        id: &MessageId,
        place: RecordPlace,
        header: &[u8; HEADER_LEN],
        payload: &[u8],
    ) -> Result<u32, ReadError> {
        let header = RecordHeader::decode(header, salt, self.generation)
            .ok_or_else(|| self.damaged(place.offset, "the record's header fails its checksum"))?;
        if header.id != *id || header.kind != RecordKind::Put || header.payload_len != place.len {
            return Err(self.damaged(place.offset, "another record stands there"));
        }
        if header.payload_crc != payload_crc(payload) {
            return Err(self.damaged(place.offset, "the payload fails its checksum"));
        }
        Ok(header.payload_crc)
    }

    fn failed(&self, offset: u64, source: io::Error) -> ReadError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged(offset, "the file ends before the record does"),
            _ => ReadError::Io { path: self.path.clone(), source },
        }
    }

    fn damaged(&self, offset: u64, what: &'static str) -> ReadError {
        ReadError::Damaged { path: self.path.clone(), offset, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_round_trips_and_a_flipped_bit_is_detected() {
        for role in [Role::Free, Role::Journal, Role::Cold] {
            let header = SegmentHeader { role, generation: 9, size: 1 << 20, spool: [3; 16] };
            let page = header.encode();
            assert_eq!(page.len() as u64, PAGE);
            let mut bytes = [0; 48];
            bytes.copy_from_slice(&page[..48]);
            assert_eq!(SegmentHeader::decode(&bytes), Some(header));
            for bit in 0..48 * 8 {
                let mut broken = bytes;
                broken[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(SegmentHeader::decode(&broken), None, "bit {bit}");
            }
        }
        assert_eq!(SegmentHeader::decode(&[0; 48]), None);
    }
}
