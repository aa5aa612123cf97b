//! Recovery from hand-made journals, and the writer, judged by the files that it leaves.

mod damage;
mod footers;
mod pool;
mod recovery;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use super::footer::FooterEntry;
use super::pool::{NoPoolEvents, segment_file_name};
use super::record::{RecordHeader, RecordKind, footprint, payload_crc};
use super::segment::{ReadError, SegmentHeader, Use};
use super::segments::salt_of;
use super::{Checkpointed, PAGE, RecordPlace, Recovered, Role, Segment, recover};
use crate::message_id::MessageId;
use crate::storage::{OpenMode, OsStorage, Storage};

const SPOOL: [u8; 16] = [7; 16];

/// Bytes of an ordinary segment.
const SIZE: u64 = 64 * 1024;

fn id(n: u8) -> MessageId {
    MessageId::from_bytes([n; 16])
}

/// A record of a test.
#[derive(Debug, Clone)]
struct Rec {
    kind: RecordKind,
    seq: u64,
    id: MessageId,
    payload: Vec<u8>,
}

fn put(seq: u64, n: u8, payload: impl Into<Vec<u8>>) -> Rec {
    Rec { kind: RecordKind::Put, seq, id: id(n), payload: payload.into() }
}

fn remove(seq: u64, n: u8) -> Rec {
    Rec { kind: RecordKind::Remove, seq, id: id(n), payload: Vec::new() }
}

fn abort(seq: u64, n: u8, of: u64) -> Rec {
    Rec { kind: RecordKind::Abort, seq, id: id(n), payload: of.to_le_bytes().to_vec() }
}

fn mark(seq: u64) -> Rec {
    Rec { kind: RecordKind::Mark, seq, id: id(0), payload: Vec::new() }
}

/// The bytes of one segment file, under construction.
#[derive(Debug, Clone)]
struct SegmentImage {
    generation: u64,
    spool: [u8; 16],
    bytes: Vec<u8>,
    tail: usize,
    /// The offset of each record, by sequence number.
    places: BTreeMap<u64, usize>,
}

impl SegmentImage {
    fn new(generation: u64) -> Self {
        Self::sized(generation, SIZE)
    }

    fn sized(generation: u64, size: u64) -> Self {
        let bytes = vec![0; usize::try_from(size).unwrap()];
        Self { generation, spool: SPOOL, bytes, tail: 4096, places: BTreeMap::new() }.with_header(
            Role::Journal,
            generation,
            SPOOL,
        )
    }

    fn with_header(mut self, role: Role, generation: u64, spool: [u8; 16]) -> Self {
        let header = SegmentHeader { role, generation, size: self.bytes.len() as u64, spool };
        self.bytes[..4096].copy_from_slice(&header.encode());
        self
    }

    /// The file in its next use: the old content stays behind the new header page.
    fn recycled(self, generation: u64) -> Self {
        let made = self.with_header(Role::Journal, generation, SPOOL);
        Self { generation, tail: 4096, places: BTreeMap::new(), ..made }
    }

    /// Marks the file as free in its first page, as recycling does.
    fn marked_free(self) -> Self {
        self.with_header(Role::Free, 0, SPOOL)
    }

    /// Appends a batch as the writer does: at a multiple of 4096, with records aligned to 8.
    fn batch(mut self, durable_seq: u64, records: &[Rec]) -> Self {
        for record in records {
            let bytes = self.record(durable_seq, record);
            self.bytes[self.tail..self.tail + bytes.len()].copy_from_slice(&bytes);
            self.places.insert(record.seq, self.tail);
            self.tail += usize::try_from(footprint(record.payload.len() as u64)).unwrap();
        }
        self.tail = self.tail.next_multiple_of(4096);
        self
    }

    fn record(&self, durable_seq: u64, record: &Rec) -> Vec<u8> {
        let header = RecordHeader {
            kind: record.kind,
            generation: self.generation,
            seq: record.seq,
            durable_seq,
            id: record.id,
            continues: false,
            payload_len: u32::try_from(record.payload.len()).unwrap(),
            payload_crc: payload_crc(&record.payload),
        };
        [&header.encode(salt_of(self.spool))[..], &record.payload].concat()
    }

    /// Zeros the file from the start of a record on, as if that part had not reached the disk.
    fn cut_at(mut self, seq: u64) -> Self {
        let at = self.places[&seq];
        self.bytes[at..].fill(0);
        self
    }

    /// Zeros the page that contains a byte of a record, as if that page had not reached the disk.
    fn without_page_of(mut self, seq: u64, byte: usize) -> Self {
        let page = (self.places[&seq] + byte) / 4096 * 4096;
        self.bytes[page..page + 4096].fill(0);
        self
    }

    /// Flips a bit in byte `byte` of a record, counted from the start of its header.
    fn flip(mut self, seq: u64, byte: usize) -> Self {
        let at = self.places[&seq] + byte;
        self.bytes[at] ^= 0x20;
        self
    }

    fn flip_first_page(mut self) -> Self {
        self.bytes[20] ^= 1;
        self
    }
}

/// The first byte of a record's payload.
const PAYLOAD: usize = super::record::HEADER_LEN;

/// A journal directory with hand-made files.
struct JournalBench {
    dir: TempDir,
    storage: Arc<dyn Storage>,
}

impl JournalBench {
    fn new(made: &[&SegmentImage]) -> Self {
        let bench = Self { dir: TempDir::new().unwrap(), storage: Arc::new(OsStorage) };
        for (slot, made) in (0..).zip(made) {
            bench.write(slot, &made.bytes);
        }
        bench
    }

    fn path(&self, slot: u32) -> PathBuf {
        self.dir.path().join(segment_file_name(slot))
    }

    fn write(&self, slot: u32, bytes: &[u8]) {
        std::fs::write(self.path(slot), bytes).unwrap();
    }

    fn recover(&self) -> Recovered {
        self.recover_with(&Checkpointed::default())
    }

    fn recover_with(&self, checkpointed: &Checkpointed) -> Recovered {
        recover(&self.storage, self.dir.path(), SPOOL, checkpointed, true).unwrap()
    }

    /// Recovers without changing a file.
    fn inspect(&self) -> Recovered {
        recover(&self.storage, self.dir.path(), SPOOL, &Checkpointed::default(), false).unwrap()
    }

    /// Recovers, and asserts that the journal contains exactly these messages, intact, and that
    /// nothing is missing or damaged.
    #[track_caller]
    fn recover_whole(&self, messages: &[(u8, &[u8])]) -> Recovered {
        let recovered = self.recover();
        assert_holds(&recovered, messages);
        assert_clean(&recovered);
        recovered
    }
}

/// The result of reading a message from a recovered journal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum RecordContent {
    Whole(Vec<u8>),
    Damaged,
    Removed,
}

/// Reads every id in the journal.
fn contents(recovered: &Recovered) -> BTreeMap<MessageId, RecordContent> {
    let read = |id: &MessageId, place: RecordPlace| {
        let segment =
            recovered.journal.iter().find(|segment| segment.generation == place.generation).unwrap();
        match segment.read_put(salt_of(SPOOL), id, place) {
            Ok((data, _)) => RecordContent::Whole(data),
            Err(ReadError::Damaged { .. }) => RecordContent::Damaged,
            Err(error @ ReadError::Io { .. }) => panic!("{error}"),
        }
    };
    let all = recovered.replayed.newest.iter();
    all.map(|(id, newest)| (*id, newest.place.map_or(RecordContent::Removed, |place| read(id, place))))
        .collect()
}

/// Asserts that the journal contains exactly these messages, intact.
#[track_caller]
fn assert_holds(recovered: &Recovered, messages: &[(u8, &[u8])]) {
    let expected: BTreeMap<MessageId, RecordContent> =
        messages.iter().map(|(n, data)| (id(*n), RecordContent::Whole(data.to_vec()))).collect();
    let mut found = contents(recovered);
    found.retain(|_, content| *content != RecordContent::Removed);
    assert_eq!(found, expected);
}

/// Asserts that nothing is missing or damaged.
#[track_caller]
fn assert_clean(recovered: &Recovered) {
    assert_eq!(recovered.replayed.gaps, []);
    assert_eq!(recovered.replayed.damaged, []);
    assert_eq!(recovered.damage, []);
}

/// Whether a listing of the segment is from its footer, and the entries.
fn list(segment: &Segment) -> (bool, Vec<FooterEntry>) {
    let listing = segment.listing(salt_of(SPOOL)).unwrap();
    let entries: Vec<FooterEntry> = listing.entries().collect();
    assert_eq!(listing.len(), entries.len() as u64);
    (listing.from_footer, entries)
}

/// Opens a segment of an existing file.
fn open_segment(bench: &JournalBench, slot: u32, generation: u64) -> Segment {
    let header = SegmentHeader { role: Role::Journal, generation, size: SIZE, spool: SPOOL };
    let path = bench.path(slot);
    let file = bench.storage.open(&path, OpenMode::Read).unwrap();
    Segment::new(header, slot, path, file, Use { settled: true, counted: true })
}
