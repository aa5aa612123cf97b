//! Writes the large payloads that survive older segments into cold ones. Used by the checkpoint only; never replayed.

use std::io::{self, IoSlice};
use std::sync::Arc;

use tidespool_core::SpoolId;

use super::index::Place;
use super::pool::{FreeSegment, Pool, RESERVED};
use super::record::{HEADER_LEN, Header, Kind, footprint};
use super::segment::{PAGE, Role, Segment};
use super::segments::Segments;
use crate::storage::write_all_at;

/// Fills cold segments one after the other.
#[derive(Debug)]
pub(crate) struct ColdWriter<'a> {
    segments: &'a Segments,
    filled: Vec<Arc<Segment>>,
    /// Where the next record goes in the last of `filled`.
    tail: u64,
    /// Bytes of the records that are still to come, about.
    expected: u64,
    /// Bytes written since the last sync.
    unsynced: u64,
}

/// Synced step by step: one long sync would hold up the journal's own.
const SYNC_STEP: u64 = 2 << 20;

impl<'a> ColdWriter<'a> {
    /// For records of about `expected` bytes, headers included: the last segment is no larger than it has to be.
    pub(crate) fn new(segments: &'a Segments, expected: u64) -> Self {
        Self { segments, filled: Vec::new(), tail: 0, expected, unsynced: 0 }
    }

    /// Appends a payload. It is durable after [`ColdWriter::finish`].
    pub(crate) fn append(&mut self, id: SpoolId, seq: u64, data: &[u8], crc: u32) -> io::Result<Place> {
        let len = u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let need = footprint(u64::from(len));
        let segment = match self.filled.last() {
            Some(segment) if self.tail + need <= segment.size => segment.clone(),
            _ => self.next(need)?,
        };
        let header = Header {
            kind: Kind::Put,
            generation: segment.generation,
            seq,
            durable_seq: 0,
            id,
            payload_len: len,
            payload_crc: crc,
        };
        let header = header.encode(self.segments.salt());
        write_all_at(&*segment.file, &mut [IoSlice::new(&header), IoSlice::new(data)], self.tail)?;
        let place = Place { generation: segment.generation, offset: self.tail, len };
        debug_assert!(HEADER_LEN as u64 + u64::from(len) <= need);
        self.tail += need;
        self.expected = self.expected.saturating_sub(need);
        self.unsynced += need;
        if self.unsynced >= SYNC_STEP {
            segment.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(place)
    }

    fn next(&mut self, need: u64) -> io::Result<Arc<Segment>> {
        let pool = self.segments.pool();
        let size = (PAGE + self.expected).min(pool.segment_size()).max(PAGE + need).next_multiple_of(PAGE);
        let free = match pool.allocate_if_room(size) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Self::last_resort(pool, size)?,
            made => made?,
        };
        self.begin(free)
    }

    /// On a full disk a free segment may be all there is, and rewriting is what frees others.
    fn last_resort(pool: &Pool, size: u64) -> io::Result<FreeSegment> {
        let spare = if size <= pool.segment_size() { pool.take(RESERVED) } else { None };
        match spare {
            Some(spare) => {
                pool.count_out();
                Ok(spare)
            }
            None => pool.allocate(size),
        }
    }

    fn begin(&mut self, free: FreeSegment) -> io::Result<Arc<Segment>> {
        let (segment, header) = self.segments.activate(free, Role::Cold, false);
        self.filled.push(segment.clone());
        write_all_at(&*segment.file, &mut [IoSlice::new(&header.encode())], 0)?;
        self.tail = PAGE;
        Ok(segment)
    }

    /// Makes everything appended durable, and returns the segments it is in.
    pub(crate) fn finish(&mut self) -> io::Result<Vec<Arc<Segment>>> {
        for segment in &self.filled {
            segment.file.sync_data()?;
            segment.mark_durable();
            segment.settle();
        }
        Ok(std::mem::take(&mut self.filled))
    }

    /// After an error: nothing points to what was written, and the files are not trusted.
    pub(crate) fn discard(&mut self) {
        for segment in self.filled.drain(..) {
            segment.mark_failed();
            self.segments.retire(segment.generation);
        }
    }
}
