//! Appends records to the active segment and makes them durable. One thread owns the writer.
//!
//! The writer keeps every record in memory until a sync covers it. After a failed write or sync,
//! the next call writes all of these records again, to another segment and with the same sequence
//! numbers. The file that failed is not used again.
//!
//! A sync can run on another thread as a [`SyncJob`], while the writer writes more.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use thiserror::Error;

use super::buffers::{bytes_of, shrink};
use super::footer::{FooterEntry, Records};
use super::index::{NewestRecord, RecordPlace};
use super::pool::{FreeSegment, RESERVED};
use super::record::{HEADER_LEN, RECORD_ALIGN, RecordHeader, RecordKind, footprint, payload_crc};
use super::room::{JournalRoom, fits, needs_own_segment, own_segment_size, usable, usable_of};
use super::segment::{PAGE, Role, Segment};
use super::segments::Segments;
use super::sync_job::{SyncEnd, SyncJob};
use crate::message_id::MessageId;
use crate::storage::{at, is_no_room, write_all_at};

/// Payloads of at most this many bytes are copied behind their header: that is cheaper than another
/// slice for the kernel.
const COPY_UP_TO: usize = 2048;

/// The content of a record.
#[derive(Debug, Clone)]
pub(crate) enum JournalChange {
    /// A message and the checksum of its bytes.
    Put(Arc<Box<[u8]>>, u32),
    Remove,
    /// The put of this sequence number did not happen.
    Abort(u64),
    Mark,
}

/// Why a write or a sync failed. All records stay queued, and the next call tries again.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    /// No segment is free.
    #[error("no journal segment is free")]
    NoSegment,
    /// Writing to a segment failed.
    #[error("writing the journal: {0}")]
    Write(io::Error),
    /// Creating a file for a segment failed.
    #[error("creating a journal segment: {0}")]
    Create(io::Error),
    /// Syncing failed.
    #[error("syncing the journal: {0}")]
    Sync(io::Error),
}

/// A record that became durable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DurableState {
    pub(crate) seq: u64,
    pub(crate) newest: NewestRecord,
}

/// What a successful sync covered.
#[derive(Debug, Default)]
pub(crate) struct Synced {
    /// The records since the last sync, in the order in which they were appended.
    pub(crate) records: Vec<DurableState>,
    /// Segments to which nothing more is written. To be settled once the index has `records`.
    pub(crate) finished: Vec<Arc<Segment>>,
}

#[derive(Debug)]
struct WrittenEntry {
    id: MessageId,
    change: JournalChange,
    /// The transaction of the record continues with the next one.
    continues: bool,
    seq: u64,
    payload_len: u32,
    payload_crc: u32,
    generation: u64,
    offset: u64,
}

#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    /// The header page. `None` once it is written.
    header_page: Option<Vec<u8>>,
    tail: u64,
    /// The records in the segment, for its footer. `None`: the segment is for one record, and has
    /// no footer.
    listed: Option<Records>,
}

/// The writer of the journal.
#[derive(Debug)]
pub(crate) struct Writer {
    segments: Arc<Segments>,
    active: Option<Active>,
    next_seq: u64,
    durable_seq: u64,
    /// All records since the last successful sync.
    entries: Vec<WrittenEntry>,
    /// How many of `entries` are written.
    written: usize,
    /// Segments written to since the last sync job was taken.
    touched: Vec<Arc<Segment>>,
    /// Segments in sync jobs in flight, each with the `up_to` of its job.
    syncing: Vec<(u64, Arc<Segment>)>,
    /// Counts errors. A job of an earlier epoch is stale.
    epoch: u64,
    /// Full or failed segments that were not returned to the caller yet.
    finished: Vec<Arc<Segment>>,
    /// Segments of failed attempts that hold nothing durable. They are retired once their records
    /// are written elsewhere.
    doomed: Vec<u64>,
    /// Files for records that are larger than a segment, in the order of the records.
    prepared: VecDeque<FreeSegment>,
    /// The last attempt failed: the next segment is a new file, because those of the pool may fail
    /// as well.
    avoid_pool: bool,
    /// The error of the last segment's footer: the next write returns it.
    footer_error: Option<io::Error>,
    /// Reused between batches.
    scratch: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(segments: Arc<Segments>, next_seq: u64) -> Self {
        Self {
            segments,
            active: None,
            next_seq,
            durable_seq: next_seq - 1,
            entries: Vec::new(),
            written: 0,
            touched: Vec::new(),
            syncing: Vec::new(),
            epoch: 0,
            footer_error: None,
            finished: Vec::new(),
            doomed: Vec::new(),
            prepared: VecDeque::new(),
            avoid_pool: false,
            scratch: Vec::new(),
        }
    }

    /// The highest sequence number up to which all records are on stable storage.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// The sequence number of the last appended record.
    pub(crate) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// The number of records that are not durable yet.
    pub(crate) fn unsynced(&self) -> usize {
        self.entries.len()
    }

    /// The number of records that are written and not known to be durable.
    pub(crate) fn written(&self) -> usize {
        self.written
    }

    /// A job is in flight: `take_sync` was called and `end_sync` was not.
    pub(crate) fn is_syncing(&self) -> bool {
        !self.syncing.is_empty()
    }

    /// A queued record has no place yet, or lost it by an error.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.written < self.entries.len()
    }

    /// What fits into the existing segments. Stores leave a reserve to removes: a free segment, or
    /// the active one if none is free.
    pub(crate) fn room(&self, for_removes: bool) -> JournalRoom {
        let pool = self.segments.pool();
        let free = pool.free();
        let active = self.active.as_ref().map_or(0, Active::room);
        let usable = usable_of(pool.segment_size());
        if self.has_unwritten() {
            // The queued records come first, and may take all room. Also, nothing may join a batch
            // that is tried again: an older version of one of its ids may have become due since,
            // and would be written after the newer one.
            return JournalRoom { left: 0, free: 0, usable };
        }
        match for_removes {
            true => JournalRoom { left: active, free, usable },
            false if free < RESERVED => JournalRoom { left: 0, free: 0, usable },
            false => JournalRoom { left: active, free: free - RESERVED, usable },
        }
    }

    /// Creates the file for a message of `len` bytes that is larger than a segment. That message
    /// must be the next such record appended.
    pub(crate) fn prepare_large(&mut self, len: u64) -> io::Result<()> {
        let prepared = self.segments.pool().create_if_room(own_segment_size(len))?;
        self.prepared.push_back(prepared);
        Ok(())
    }

    /// Deletes the file that [`Writer::prepare_large`] created last: its record is not appended
    /// after all.
    pub(crate) fn discard_prepared(&mut self) {
        if let Some(prepared) = self.prepared.pop_back() {
            self.segments.pool().delete(&prepared.path);
        }
    }

    /// Queues a record. Returns its sequence number, which is the next one.
    pub(crate) fn append(&mut self, id: MessageId, change: JournalChange) -> u64 {
        self.append_part(id, change, false)
    }

    /// Queues a record whose transaction continues with the next record, if `continues`.
    pub(crate) fn append_part(&mut self, id: MessageId, change: JournalChange, continues: bool) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        let (payload_len, payload_crc) = match &change {
            // `max_message_size` is at most 1 GiB, checked in `store`.
            JournalChange::Put(data, crc) => (u32::try_from(data.len()).unwrap_or(u32::MAX), *crc),
            JournalChange::Abort(target) => (8, payload_crc(&target.to_le_bytes())),
            JournalChange::Remove | JournalChange::Mark => (0, payload_crc(&[])),
        };
        self.entries.push(WrittenEntry {
            id,
            change,
            continues,
            seq,
            payload_len,
            payload_crc,
            generation: 0,
            offset: 0,
        });
        seq
    }

    /// Writes everything queued to the operating system. From then on a kill of the process does
    /// not lose it.
    pub(crate) fn write(&mut self) -> Result<(), WriteError> {
        let written = self.write_queued();
        self.note_memory();
        // Each batch fills the buffer anew.
        self.scratch.clear();
        shrink(&mut self.scratch);
        match written {
            Ok(()) => {
                for generation in self.doomed.drain(..) {
                    self.segments.retire(generation);
                }
                Ok(())
            }
            Err(error) => {
                match error {
                    WriteError::NoSegment => self.unwrite_part(),
                    _ => self.requeue_unsynced(),
                }
                if matches!(&error, WriteError::Write(source) if is_no_room(source)) {
                    // The existing files did not fail, and a new one would take the room that is
                    // freed for the next attempt.
                    self.avoid_pool = false;
                }
                Err(error)
            }
        }
    }

    /// Writes everything queued and makes it durable. If the segments do not suffice for all of it,
    /// that holds for the records that have a place: the full segments can then be checkpointed,
    /// which frees others.
    #[cfg(test)]
    pub(crate) fn sync(&mut self) -> Result<Synced, WriteError> {
        match self.write() {
            Err(WriteError::NoSegment) if self.written > 0 => {}
            written => written?,
        }
        let job = self.take_sync();
        Ok(self.end_sync(job.run())?.unwrap_or_default())
    }

    /// Takes a job for everything that is written and in no job yet. Jobs must run in the order in
    /// which they were taken.
    pub(crate) fn take_sync(&mut self) -> SyncJob {
        let last = self.written.checked_sub(1).and_then(|last| self.entries.get(last));
        let up_to = last.map_or(self.durable_seq, |entry| entry.seq);
        let segments = std::mem::take(&mut self.touched);
        self.syncing.extend(segments.iter().map(|segment| (up_to, segment.clone())));
        SyncJob { segments, up_to, epoch: self.epoch }
    }

    /// Applies a finished job. Returns `None` if the job succeeded and is stale. A job that failed
    /// is a failure even if it is stale: the syncer accepts no other job until the committer
    /// handles it.
    pub(crate) fn end_sync(&mut self, end: SyncEnd) -> Result<Option<Synced>, WriteError> {
        if let Err(error) = end.result {
            self.requeue_unsynced();
            return Err(WriteError::Sync(error));
        }
        if end.epoch != self.epoch {
            return Ok(None);
        }
        let covered = self.entries.iter().take_while(|entry| entry.seq <= end.up_to).count();
        for (_, segment) in self.syncing.extract_if(.., |(up_to, _)| *up_to <= end.up_to) {
            segment.mark_durable();
            let of_it = |entry: &&WrittenEntry| entry.generation == segment.generation;
            let last = self.entries[..covered].iter().rfind(of_it);
            last.inspect(|entry| segment.note_last_seq(entry.seq));
        }
        self.avoid_pool = false;
        let records: Vec<DurableState> = self.entries.drain(..covered).map(|entry| entry.durable()).collect();
        self.written -= covered;
        shrink(&mut self.entries);
        self.note_memory();
        self.durable_seq = self.entries.first().map_or(self.next_seq, |next| next.seq) - 1;
        let has_more = |segment: &Segment| self.entries.iter().any(|e| e.generation == segment.generation);
        let finished = self.finished.extract_if(.., |segment| !has_more(segment)).collect();
        Ok(Some(Synced { records, finished }))
    }

    /// Writes the records of an unfinished transaction again later: a sync must cover all records
    /// of a transaction or none.
    fn unwrite_part(&mut self) {
        let is_end = |entry: &WrittenEntry| !entry.continues;
        let end = self.entries[..self.written].iter().rposition(is_end).map_or(0, |last| last + 1);
        self.entries[end..self.written].iter_mut().for_each(|entry| entry.generation = 0);
        self.written = end;
    }

    fn note_memory(&self) {
        let listed = self.active.as_ref().and_then(|active| active.listed.as_ref());
        let footer = listed.map_or(0, Records::memory);
        self.segments.buffers().note(bytes_of(&self.entries) + bytes_of(&self.scratch) + footer);
    }

    /// Ends the active segment with its footer, so that it can be checkpointed.
    /// [`Writer::end_sync`] returns the segment once all its records are durable.
    ///
    /// The footer is not synced separately: without a footer the segment is scanned. A failure to
    /// write the footer indicates a faulty or a full disk: the next [`Writer::write`] returns the
    /// error, as for a record.
    pub(crate) fn seal(&mut self) {
        if let Some(Active { segment, listed: Some(listed), .. }) = &self.active
            && let Err(error) = listed.write(segment, self.segments.salt())
        {
            tracing::debug!(path = %segment.path.display(), %error, "a segment's footer could not be written");
            self.footer_error.get_or_insert_with(|| at(&segment.path, error));
        }
        self.end_active();
    }

    fn take_footer_error(&mut self) -> Result<(), WriteError> {
        self.footer_error.take().map_or(Ok(()), |error| Err(WriteError::Write(error)))
    }

    /// Ends the active segment without a footer.
    fn end_active(&mut self) {
        if let Some(active) = self.active.take() {
            self.finished.push(active.segment);
            self.segments.pool().note_active_room(None);
        }
    }

    /// The generation of the active segment. The checkpoint considers its age and fill.
    pub(crate) fn active_generation(&self) -> Option<u64> {
        self.active.as_ref().map(|active| active.segment.generation)
    }

    /// Handles an error: all records since the last successful sync are written again, to a new
    /// segment, or to a free one if the disk is full.
    fn requeue_unsynced(&mut self) {
        self.written = 0;
        self.epoch += 1;
        // They have no place now.
        self.entries.iter_mut().for_each(|entry| entry.generation = 0);
        let fresh_failed = self.avoid_pool;
        self.avoid_pool = true;
        // The segment may have failed, and its content may differ from its list.
        self.end_active();
        let syncing = self.syncing.drain(..).map(|(_, segment)| segment);
        let mut failed: Vec<Arc<Segment>> = syncing.chain(self.touched.drain(..)).collect();
        failed.sort_unstable_by_key(|segment| segment.generation);
        failed.dedup_by_key(|segment| segment.generation);
        for segment in failed {
            segment.mark_failed();
            if fresh_failed && !segment.holds_durable() {
                // Created after the first failure, and it failed as well. It holds only records
                // that are written again elsewhere, and a faulty disk must not use up the journal's
                // capacity.
                self.finished.retain(|other| other.generation != segment.generation);
                self.doomed.push(segment.generation);
            }
        }
    }

    fn write_queued(&mut self) -> Result<(), WriteError> {
        self.take_footer_error()?;
        if self.active.as_ref().is_some_and(|active| active.segment.is_lost()) {
            // The name of the file was lost.
            self.end_active();
        }
        while self.written < self.entries.len() {
            let first = self.written;
            let (end, bytes) =
                self.active.as_ref().map_or((0, 0), |active| active.fitting(&self.entries[first..]));
            if end == 0 {
                let len = self.entries[first].payload_len;
                self.seal();
                self.take_footer_error()?;
                self.active = Some(self.next_segment(len.into())?);
                continue;
            }
            self.write_run(first, first + end, bytes).map_err(WriteError::Write)?;
        }
        Ok(())
    }

    /// Takes or creates a segment for a record with a payload of `len` bytes.
    fn next_segment(&mut self, len: u64) -> Result<Active, WriteError> {
        let pool = self.segments.pool();
        let is_large = needs_own_segment(len, pool.segment_size());
        let free = if is_large {
            let size = own_segment_size(len);
            let prepared = self.prepared.pop_front().and_then(|prepared| {
                if prepared.size != size {
                    pool.delete(&prepared.path);
                    return None;
                }
                Some(prepared)
            });
            // A record that is written again after a failure needs a new file.
            (prepared.map_or_else(|| pool.create(size), Ok).map_err(WriteError::Create)?, false)
        } else {
            (self.ordinary_segment()?, true)
        };
        let (segment, header) = self.segments.activate(free.0, Role::Journal, free.1);
        let listed = (!is_large).then(Records::default);
        Ok(Active { segment, header_page: Some(header.encode()), tail: PAGE, listed })
    }

    fn ordinary_segment(&self) -> Result<FreeSegment, WriteError> {
        let pool = self.segments.pool();
        if self.avoid_pool {
            match pool.create(pool.segment_size()) {
                Ok(fresh) => {
                    pool.count_existing();
                    return Ok(fresh);
                }
                // A full disk does not mean that the existing segments are faulty.
                Err(error) if is_no_room(&error) => {}
                Err(error) => return Err(WriteError::Create(error)),
            }
        }
        // `room` admitted the queued records. Those that are written again may use the reserve.
        pool.take(0).ok_or(WriteError::NoSegment)
    }

    /// Writes `entries[first..end]` as one batch of the active segment.
    fn write_run(&mut self, first: usize, end: usize, bytes: u64) -> io::Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let salt = self.segments.salt();
        let mut offset = active.tail;
        for entry in &mut self.entries[first..end] {
            entry.generation = active.segment.generation;
            entry.offset = offset;
            offset += entry.footprint();
        }
        let padded = bytes.next_multiple_of(PAGE);
        let header_page = active.header_page.take().unwrap_or_default();
        let start = if header_page.is_empty() { active.tail } else { 0 };
        let pieces =
            encode(&self.entries[first..end], salt, self.durable_seq, padded - bytes, &mut self.scratch);
        let mut slices = Vec::with_capacity(pieces.len() + 1);
        if !header_page.is_empty() {
            slices.push(IoSlice::new(&header_page));
        }
        slices.extend(pieces.iter().map(|piece| match piece {
            Piece::Scratch(from, to) => IoSlice::new(&self.scratch[*from..*to]),
            Piece::Payload(data) => IoSlice::new(data),
        }));
        let segment = active.segment.clone();
        if !self.touched.iter().any(|other| other.generation == segment.generation) {
            self.touched.push(segment.clone());
        }
        let result = write_all_at(&*segment.file, &mut slices, start);
        drop(slices);
        drop(pieces);
        result.map_err(|error| at(&segment.path, error))?;
        active.tail += padded;
        if let Some(listed) = &mut active.listed {
            self.entries[first..end].iter().for_each(|entry| listed.push(&entry.listed()));
        }
        self.written = end;
        self.segments.pool().note_active_room(Some(active.room()));
        Ok(())
    }
}

impl Active {
    /// What further records may cost.
    fn room(&self) -> u64 {
        self.listed.as_ref().map_or(0, |listed| usable(self.left(), listed.len()))
    }

    fn left(&self) -> u64 {
        self.segment.size.saturating_sub(self.tail)
    }

    /// How many of `entries`, from the first, fit with the footer behind them, and the bytes that
    /// they take.
    fn fitting(&self, entries: &[WrittenEntry]) -> (usize, u64) {
        let left = self.left();
        let has_room = |bytes: u64, count: u64| match &self.listed {
            Some(listed) => fits(left, bytes, listed.len() + count),
            None => bytes <= left,
        };
        let mut bytes = 0;
        for (count, entry) in entries.iter().enumerate() {
            if !has_room(bytes + entry.footprint(), count as u64 + 1) {
                return (count, bytes);
            }
            bytes += entry.footprint();
        }
        (entries.len(), bytes)
    }
}

impl WrittenEntry {
    fn footprint(&self) -> u64 {
        footprint(u64::from(self.payload_len))
    }

    fn kind(&self) -> RecordKind {
        match self.change {
            JournalChange::Put(..) => RecordKind::Put,
            JournalChange::Remove => RecordKind::Remove,
            JournalChange::Abort(_) => RecordKind::Abort,
            JournalChange::Mark => RecordKind::Mark,
        }
    }

    fn listed(&self) -> FooterEntry {
        let abort_of = match self.change {
            JournalChange::Abort(target) => Some(target),
            JournalChange::Put(..) | JournalChange::Remove | JournalChange::Mark => None,
        };
        let (kind, len) = (self.kind(), self.payload_len);
        FooterEntry { id: self.id, kind, seq: self.seq, offset: self.offset, len, abort_of }
    }

    fn durable(&self) -> DurableState {
        let place = RecordPlace { generation: self.generation, offset: self.offset, len: self.payload_len };
        let place = matches!(self.change, JournalChange::Put(..)).then_some(place);
        DurableState {
            seq: self.seq,
            newest: NewestRecord { seq: self.seq, generation: self.generation, place },
        }
    }
}

/// One slice of a vectored write.
enum Piece<'a> {
    Scratch(usize, usize),
    Payload(&'a [u8]),
}

/// Lays out a batch: headers, small payloads and padding in `scratch`, large payloads in place.
fn encode<'a>(
    entries: &'a [WrittenEntry],
    salt: u32,
    durable_seq: u64,
    padding: u64,
    scratch: &mut Vec<u8>,
) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    scratch.clear();
    let mut from = 0;
    for entry in entries {
        let header = RecordHeader {
            kind: entry.kind(),
            generation: entry.generation,
            seq: entry.seq,
            durable_seq,
            id: entry.id,
            continues: entry.continues,
            payload_len: entry.payload_len,
            payload_crc: entry.payload_crc,
        };
        scratch.extend_from_slice(&header.encode(salt));
        match &entry.change {
            JournalChange::Put(data, _) if data.len() > COPY_UP_TO => {
                pieces.push(Piece::Scratch(from, scratch.len()));
                from = scratch.len();
                pieces.push(Piece::Payload(data));
            }
            JournalChange::Put(data, _) => scratch.extend_from_slice(data),
            JournalChange::Abort(target) => scratch.extend_from_slice(&target.to_le_bytes()),
            JournalChange::Remove | JournalChange::Mark => {}
        }
        let unaligned = (HEADER_LEN as u64 + u64::from(entry.payload_len)) % RECORD_ALIGN;
        let pad = (RECORD_ALIGN - unaligned) % RECORD_ALIGN;
        extend_zeros(scratch, pad);
    }
    extend_zeros(scratch, padding);
    pieces.push(Piece::Scratch(from, scratch.len()));
    pieces
}

fn extend_zeros(scratch: &mut Vec<u8>, count: u64) {
    scratch.extend(std::iter::repeat_n(0, usize::try_from(count).unwrap_or(0)));
}
