//! Writes the messages that survive older segments into cold segments. Only the checkpointer does
//! so. Cold segments are never replayed.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::footer::{FooterEntry, Records, footer_len};
use super::index::RecordPlace;
use super::pool::{FreeSegment, Pool, RESERVED};
use super::record::{HEADER_LEN, RecordHeader, RecordKind, footprint};
use super::room::{fits, needs_own_segment, own_segment_size};
use super::segment::{PAGE, Role, Segment};
use super::segments::Segments;
use crate::message_id::MessageId;
use crate::storage::{at, is_no_room, write_all_at};

/// Fills cold segments one after the other.
#[derive(Debug)]
pub(crate) struct ColdWriter<'a> {
    segments: &'a Segments,
    filled: Vec<Arc<Segment>>,
    /// Offset of the next record in the last of `filled`.
    tail: u64,
    /// The records in the last of `filled`, for its footer. `None`: the segment is for one record,
    /// and has no footer.
    listed: Option<Records>,
    /// Bytes of the records still to come, approximately.
    expected: u64,
    /// Number of the records still to come, approximately.
    expected_records: u64,
    /// Bytes written since the last sync.
    unsynced: u64,
}

/// Bytes written between two syncs: one long sync would delay the journal's syncs.
const SYNC_STEP: u64 = 2 << 20;

impl<'a> ColdWriter<'a> {
    /// For about `records` records of `bytes` bytes in total, headers included. The last segment is
    /// made no larger than they need.
    pub(crate) fn new(segments: &'a Segments, records: u64, bytes: u64) -> Self {
        Self {
            segments,
            filled: Vec::new(),
            tail: 0,
            listed: None,
            expected: bytes,
            expected_records: records,
            unsynced: 0,
        }
    }

    /// Appends a payload. It is durable after [`ColdWriter::finish`].
    pub(crate) fn append(
        &mut self,
        id: MessageId,
        seq: u64,
        data: &[u8],
        crc: u32,
    ) -> io::Result<RecordPlace> {
        let len = u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let need = footprint(u64::from(len));
        let segment = match self.filled.last() {
            Some(segment) if self.has_room(segment, need) => segment.clone(),
            _ => self.next(len)?,
        };
        let header = RecordHeader {
            kind: RecordKind::Put,
            generation: segment.generation,
            seq,
            durable_seq: 0,
            id,
            continues: false,
            payload_len: len,
            payload_crc: crc,
        };
        let header = header.encode(self.segments.salt());
        write_all_at(&*segment.file, &mut [IoSlice::new(&header), IoSlice::new(data)], self.tail)
            .map_err(|error| at(&segment.path, error))?;
        let place = RecordPlace { generation: segment.generation, offset: self.tail, len };
        debug_assert!(HEADER_LEN as u64 + u64::from(len) <= need);
        if let Some(listed) = &mut self.listed {
            listed.push(&FooterEntry {
                id,
                kind: RecordKind::Put,
                seq,
                offset: self.tail,
                len,
                abort_of: None,
            });
        }
        self.tail += need;
        self.expected = self.expected.saturating_sub(need);
        self.expected_records = self.expected_records.saturating_sub(1);
        self.unsynced += need;
        if self.unsynced >= SYNC_STEP {
            segment.file.sync_data().map_err(|error| at(&segment.path, error))?;
            self.unsynced = 0;
        }
        Ok(place)
    }

    /// Whether a record of `need` bytes fits into the last segment, with the footer behind it.
    fn has_room(&self, segment: &Segment, need: u64) -> bool {
        let records = self.listed.as_ref().map(Records::len);
        records.is_some_and(|records| fits(segment.size - PAGE, self.tail - PAGE + need, records + 1))
    }

    /// Ends the last segment with its footer. As in the journal, a missing footer only costs a
    /// scan.
    fn seal(&mut self) {
        if let (Some(segment), Some(listed)) = (self.filled.last(), self.listed.take())
            && let Err(error) = listed.write(segment, self.segments.salt())
        {
            tracing::debug!(path = %segment.path.display(), %error, "a segment's footer could not be written");
        }
    }

    /// Begins a segment for a record with a payload of `len` bytes.
    fn next(&mut self, len: u32) -> io::Result<Arc<Segment>> {
        self.seal();
        let pool = self.segments.pool();
        let is_large = needs_own_segment(len.into(), pool.segment_size());
        let size = if is_large {
            own_segment_size(len.into())
        } else {
            let expected = self.expected.next_multiple_of(PAGE) + footer_len(self.expected_records);
            let least = own_segment_size(len.into()) + footer_len(1);
            (PAGE + expected).min(pool.segment_size()).max(least)
        };
        let free = match pool.allocate_if_room(size) {
            Err(error) if is_no_room(&error) => Self::last_resort(pool, size)?,
            made => made?,
        };
        self.listed = (!is_large).then(Records::default);
        self.begin(free)
    }

    /// On a full disk, takes a free segment: there may be no other room, and rewriting frees other
    /// segments.
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
        header.write(&*segment.file).map_err(|error| at(&segment.path, error))?;
        self.tail = PAGE;
        Ok(segment)
    }

    /// Makes everything appended durable, and returns the segments that contain it.
    pub(crate) fn finish(&mut self) -> io::Result<Vec<Arc<Segment>>> {
        self.seal();
        for segment in &self.filled {
            segment.file.sync_data().map_err(|error| at(&segment.path, error))?;
            segment.mark_durable();
            segment.settle();
        }
        Ok(std::mem::take(&mut self.filled))
    }

    /// Discards everything written, after an error. Nothing refers to it, and the files are not
    /// used again.
    pub(crate) fn discard(&mut self) {
        self.listed = None;
        for segment in self.filled.drain(..) {
            segment.mark_failed();
            self.segments.retire(segment.generation);
        }
    }
}
