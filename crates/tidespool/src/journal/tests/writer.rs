//! The writer on files with injected errors, and what recovery reads from them afterwards.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::Path;

use parking_lot::Mutex;

use super::super::footer::{ENTRY_LEN, TRAILER_LEN};
use super::super::{JournalChange, Pool, PoolSettings, RESERVED, Segments, WriteError, Writer};
use super::*;
use crate::storage::{FileState, Loss, StorageFile, TestStorage};

/// A pool without a segment, in the bench's directory.
pub(super) fn pool(bench: &JournalBench, next_slot: u32) -> Pool {
    pool_on(bench.storage.clone(), bench.dir.path(), next_slot)
}

fn pool_on(storage: Arc<dyn Storage>, dir: &Path, next_slot: u32) -> Pool {
    let settings = PoolSettings { next_slot, ..PoolSettings::new(dir.to_owned(), SPOOL, SIZE, 6 * SIZE) };
    Pool::new(storage, settings, Arc::new(NoPoolEvents))
}

/// One call of the writer to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Write { file: String, offset: u64, len: u64 },
    Sync { file: String },
}

/// Records the calls to the real files, and makes the next calls fail on request.
#[derive(Debug, Default)]
pub(super) struct WatchedDisk {
    calls: Mutex<Vec<Call>>,
    pub(super) failing_writes: Mutex<VecDeque<usize>>,
    pub(super) failing_syncs: Mutex<usize>,
    /// The byte at this offset is misread once.
    pub(super) misread: Mutex<Option<u64>>,
}

#[derive(Debug)]
struct WatchedFile {
    name: String,
    file: Arc<dyn StorageFile>,
    watched: Arc<WatchedDisk>,
}

impl StorageFile for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn state(&self) -> io::Result<FileState> {
        self.file.state()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.file.read_at(buf, offset)?;
        let mut misread = self.watched.misread.lock();
        let place = misread.and_then(|at| usize::try_from(at.checked_sub(offset)?).ok());
        if let Some(byte) = place.and_then(|place| buf[..read].get_mut(place)) {
            *byte ^= 1;
            *misread = None;
        }
        Ok(read)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let fail = self.watched.failing_writes.lock().pop_front();
        if let Some(after) = fail {
            // A part is written before the error.
            let some: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).take(after).collect();
            self.file.write_vectored_at(&[IoSlice::new(&some)], offset)?;
            return Err(io::Error::other("write fails"));
        }
        let written = self.file.write_vectored_at(bufs, offset)?;
        let call = Call::Write { file: self.name.clone(), offset, len: written as u64 };
        self.watched.calls.lock().push(call);
        Ok(written)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut failing = self.watched.failing_syncs.lock();
        if *failing > 0 {
            *failing -= 1;
            return Err(io::Error::other("sync fails"));
        }
        self.watched.calls.lock().push(Call::Sync { file: self.name.clone() });
        self.file.sync_data()
    }
}

/// A new journal of at most six segments, three of them prewritten, and its writer.
pub(super) struct WriterRig {
    pub(super) bench: JournalBench,
    pub(super) watched: Arc<WatchedDisk>,
    pub(super) segments: Arc<Segments>,
    pub(super) writer: Writer,
}

impl WriterRig {
    pub(super) fn new() -> Self {
        let (bench, watched) = (JournalBench::new(&[]), Arc::<WatchedDisk>::default());
        let watcher = watched.clone();
        let storage = TestStorage::wrapping(move |path, file| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            WatchedFile { name, file, watched: watcher.clone() }
        });
        let pool = Arc::new(pool_on(Arc::new(storage), bench.dir.path(), 0));
        for _ in 0..3 {
            pool.give(pool.create(SIZE).unwrap());
        }
        let segments = Arc::new(Segments::new(pool, SPOOL, 1));
        let writer = Writer::new(segments.clone(), 1);
        watched.calls.lock().clear();
        Self { bench, watched, segments, writer }
    }

    /// The message 1, `one`, is durable.
    pub(super) fn holding_one() -> Self {
        let mut rig = Self::new();
        rig.put(1, b"one");
        rig.writer.sync().unwrap();
        rig
    }

    pub(super) fn put(&mut self, n: u8, data: &[u8]) -> u64 {
        self.writer.append(id(n), JournalChange::Put(Arc::new(data.into()), payload_crc(data)))
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.watched.calls.lock())
    }

    /// The names of the files that were written to and of those that were synced, since the last
    /// call.
    fn touched(&self) -> (Vec<String>, Vec<String>) {
        let (mut written, mut synced) = (Vec::new(), Vec::new());
        for call in self.calls() {
            match call {
                Call::Write { file, .. } if !written.contains(&file) => written.push(file),
                Call::Sync { file } if !synced.contains(&file) => synced.push(file),
                _ => {}
            }
        }
        (written, synced)
    }
}

#[test]
fn bytes_that_were_synced_are_never_written_again() {
    let mut rig = WriterRig::new();
    for n in 1..=12 {
        rig.put(n, &vec![n; usize::from(n) * 400]);
        if n % 3 == 0 {
            rig.writer.append(id(n), JournalChange::Remove);
        }
        if n % 4 == 0 {
            // Two batches for one sync.
            rig.writer.write().unwrap();
        }
        rig.writer.sync().unwrap();
    }
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for call in rig.calls() {
        if let Call::Write { file, offset, len } = call {
            let end = ends.entry(file).or_insert(0);
            assert_eq!(offset % PAGE, 0, "a batch that does not start a page");
            assert_eq!(len % PAGE, 0, "a batch that does not fill its last page");
            assert_eq!(offset, *end, "a page that was already written, or a hole");
            *end = offset + len;
        }
    }
    let recovered = rig.bench.recover();
    assert_clean(&recovered);
    assert_eq!(recovered.replayed.next_seq, 12 + 4 + 1);
    assert_eq!(
        contents(&recovered).values().filter(|content| **content == RecordContent::Removed).count(),
        4
    );
}

#[test]
fn records_continue_in_the_next_segment() {
    let mut rig = WriterRig::new();
    let messages: Vec<(u8, Vec<u8>)> = (1..=9).map(|n| (n, vec![n; 13_000])).collect();
    for (n, data) in &messages {
        rig.put(*n, data);
    }
    let synced = rig.writer.sync().unwrap();
    assert_eq!(synced.records.len(), 9);
    let finished: Vec<u64> = synced.finished.iter().map(|segment| segment.generation).collect();
    assert_eq!(finished, [1, 2]);
    assert_eq!(rig.writer.active_generation(), Some(3));
    assert_eq!(synced.finished[0].last_seq(), 4);
    let (written, synced) = rig.touched();
    assert_eq!(written, synced, "a sync covers every file that was written to");
    let recovered = rig.bench.recover();
    let expected: Vec<(u8, &[u8])> = messages.iter().map(|(n, data)| (*n, &data[..])).collect();
    assert_holds(&recovered, &expected);
    assert_clean(&recovered);
}

#[test]
fn room_reserves_a_segment_for_removes() {
    let mut rig = WriterRig::new();
    // Without the header page, the reserved page and the footer's trailer.
    let usable = SIZE - 2 * PAGE - TRAILER_LEN;
    assert_eq!(rig.writer.room(false).bytes(), (3 - RESERVED as u64) * usable);
    assert_eq!(rig.writer.room(true).bytes(), 3 * usable);
    rig.put(1, &[1; 100]);
    rig.writer.sync().unwrap();
    // The rest of the active segment, without the page that the batch fills and without the
    // record's footer entry.
    assert_eq!(rig.writer.room(false).bytes(), (usable - PAGE - ENTRY_LEN) + (2 - RESERVED as u64) * usable);
    assert_eq!(rig.writer.room(true).bytes() - rig.writer.room(false).bytes(), usable);
}

#[test]
fn without_a_free_segment_records_stay_queued() {
    let mut rig = WriterRig::new();
    for n in 1..=3 {
        rig.put(n, &[n; 57_000]);
        rig.writer.sync().unwrap();
    }
    rig.put(4, b"waits");
    rig.put(5, &[5; 57_000]);
    // The first fits into the rest of the third segment, the second fits nowhere.
    assert!(matches!(rig.writer.sync(), Err(WriteError::NoSegment)));
    assert_eq!(rig.writer.unsynced(), 2);
    let pool = rig.segments.pool();
    pool.give(pool.create(SIZE).unwrap());
    assert_eq!(rig.writer.sync().unwrap().records.len(), 2);
    let recovered = rig.bench.recover();
    assert_clean(&recovered);
    assert_eq!(contents(&recovered).len(), 5);
}

#[test]
fn a_message_larger_than_a_segment_gets_its_own_segment() {
    let mut rig = WriterRig::new();
    rig.put(1, b"before");
    rig.put(2, &[2; 300_000]);
    rig.put(3, b"after");
    let synced = rig.writer.sync().unwrap();
    assert_eq!(synced.records.len(), 3);
    let large = rig.segments.get(synced.records[1].newest.generation).unwrap();
    assert!(large.size > 300_000 && large.size.is_multiple_of(PAGE) && !large.is_counted());
    rig.bench.recover_whole(&[(1, b"before"), (2, &[2; 300_000]), (3, b"after")]);
}

/// A segment was deleted while a record in it waited for its sync. The sync succeeded and the
/// record was acknowledged, but at the next start the record was gone. So were records written
/// later.
#[test]
fn no_sync_of_a_segment_that_lost_its_file_counts() {
    for is_waiting in [true, false] {
        let mut rig = WriterRig::holding_one();
        if is_waiting {
            rig.put(2, b"two");
            rig.writer.write().unwrap();
        }
        let first = rig.segments.get(1).unwrap();
        std::fs::remove_file(&first.path).unwrap();
        assert_eq!(rig.segments.look(0, 100), (vec![(first.path.clone(), Loss::Gone)], None));
        if is_waiting {
            assert!(matches!(rig.writer.sync(), Err(WriteError::Sync(_))));
        } else {
            rig.put(2, b"two");
        }
        let synced = rig.writer.sync().unwrap();
        let records: Vec<(u64, u64)> =
            synced.records.iter().map(|durable| (durable.seq, durable.newest.generation)).collect();
        assert_eq!(records, [(2, 2)]);
        assert_eq!(synced.finished.len(), 1, "the segment is ended, so that it can be restored");
        assert_eq!(rig.segments.restore(&first).unwrap(), SIZE);
        assert_eq!(rig.segments.look(0, 100), (Vec::new(), None));
        rig.bench.recover_whole(&[(1, b"one"), (2, b"two")]);
    }
}

#[test]
fn after_a_failed_sync_the_same_numbers_go_to_a_fresh_file() {
    let mut rig = WriterRig::holding_one();
    let (first, _) = rig.touched();
    assert_eq!([rig.put(2, b"two"), rig.put(3, &[3; 9000])], [2, 3]);
    *rig.watched.failing_syncs.lock() = 1;
    let error = rig.writer.sync().unwrap_err();
    assert!(matches!(error, WriteError::Sync(_)) && error.to_string().contains(&*first[0]), "{error}");
    assert_eq!((rig.writer.unsynced(), rig.writer.durable_seq()), (2, 1));
    rig.calls();

    assert_eq!(rig.put(4, b"four"), 4);
    let synced = rig.writer.sync().unwrap();
    let records: Vec<(u64, u64)> =
        synced.records.iter().map(|durable| (durable.seq, durable.newest.generation)).collect();
    assert_eq!(records, [(2, 2), (3, 2), (4, 2)]);
    assert_eq!(rig.writer.durable_seq(), 4);
    assert_eq!(synced.finished.len(), 1);
    assert!(synced.finished[0].has_failed() && synced.finished[0].holds_durable());
    let (written, synced) = rig.touched();
    assert!(
        written.iter().chain(&synced).all(|name| *name != first[0]),
        "the file that failed is used again"
    );

    let recovered = rig.bench.recover_whole(&[(1, b"one"), (2, b"two"), (3, &[3; 9000]), (4, b"four")]);
    assert_eq!(recovered.replayed.newest[&id(2)].generation, 2);
}

#[test]
fn after_a_partial_write_all_records_are_written_again() {
    let mut rig = WriterRig::holding_one();
    rig.put(2, &[2; 9000]);
    rig.writer.append(id(1), JournalChange::Remove);
    rig.watched.failing_writes.lock().extend([5000, 70]);
    let error = rig.writer.sync().unwrap_err();
    assert!(matches!(error, WriteError::Write(_)) && error.to_string().contains(".seg: "), "{error}");
    // The second fails when a new file is created.
    let error = rig.writer.sync().unwrap_err();
    assert!(matches!(error, WriteError::Create(_)) && error.to_string().contains(".seg: "), "{error}");
    // After a kill here, only the first message exists.
    let recovered = rig.bench.inspect();
    assert_holds(&recovered, &[(1, b"one")]);
    assert_eq!(rig.writer.sync().unwrap().records.len(), 2);
    rig.bench.recover_whole(&[(2, &[2; 9000])]);
}

#[test]
fn a_disk_that_keeps_failing_does_not_use_up_the_journal() {
    let mut rig = WriterRig::holding_one();
    rig.put(2, b"two");
    // Preparing the new files succeeds: their second sync fails.
    for _ in 0..40 {
        *rig.watched.failing_syncs.lock() = 1;
        assert!(rig.writer.sync().is_err());
    }
    let files = std::fs::read_dir(rig.bench.dir.path()).unwrap().count();
    assert!(files <= 6, "{files} files");
    assert_eq!(rig.writer.sync().unwrap().records.len(), 1);
    rig.bench.recover_whole(&[(1, b"one"), (2, b"two")]);
}

#[test]
fn the_gauge_includes_queued_records() {
    let mut rig = WriterRig::new();
    assert_eq!(rig.segments.buffer_bytes(), 0);
    let segment_full = SIZE / footprint(0);
    for _ in 0..segment_full / 2 {
        rig.writer.append(id(1), JournalChange::Remove);
    }
    rig.writer.write().unwrap();
    let few = rig.segments.buffer_bytes();
    assert!(few > segment_full / 2 * footprint(0), "the batch is in the buffer: {few}");
    // Far more than fit into all segments: they stay queued.
    for _ in 0..200_000 {
        rig.writer.append(id(1), JournalChange::Remove);
    }
    assert!(matches!(rig.writer.write(), Err(WriteError::NoSegment)));
    assert!(rig.segments.buffer_bytes() > 200_000 * 48, "{}", rig.segments.buffer_bytes());
}
