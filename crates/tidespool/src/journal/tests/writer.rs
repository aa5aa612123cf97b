//! The writer on files that can be made to fail, and what recovery reads of them afterwards.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::Path;

use parking_lot::Mutex;

use super::super::footer::{ENTRY_LEN, TRAILER_LEN};
use super::super::{JournalChange, Pool, PoolSettings, RESERVED, Segments, WriteError, Writer};
use super::*;
use crate::storage::{FileState, Loss, StorageFile};

/// A pool without a segment, in the bench's directory.
pub(super) fn pool(bench: &JournalBench, next_slot: u32) -> Pool {
    pool_on(bench.storage.clone(), bench.dir.path(), next_slot)
}

fn pool_on(storage: Arc<dyn Storage>, dir: &Path, next_slot: u32) -> Pool {
    let settings = PoolSettings {
        dir: dir.to_owned(),
        spool: SPOOL,
        segment_size: SIZE,
        capacity: 6 * SIZE,
        keep_free: 0,
        next_slot,
    };
    Pool::new(storage, settings, Arc::new(Silent))
}

/// What the writer asked of the files, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Write { file: String, offset: u64, len: u64 },
    Sync { file: String },
}

/// The real files, watched; the next calls fail as told.
#[derive(Debug, Default)]
pub(super) struct WatchedDisk {
    calls: Mutex<Vec<Call>>,
    pub(super) failing_writes: Mutex<VecDeque<usize>>,
    pub(super) failing_syncs: Mutex<usize>,
    /// The byte at this offset is read wrong, once.
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
            // Some of it gets there before the disk gives up.
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

/// A new journal of six segments at most, three of them prewritten, and its writer.
pub(super) struct Desk {
    pub(super) bench: JournalBench,
    pub(super) watched: Arc<WatchedDisk>,
    pub(super) segments: Arc<Segments>,
    pub(super) writer: Writer,
}

impl Desk {
    pub(super) fn new() -> Self {
        let (bench, watched) = (JournalBench::new(&[]), Arc::<WatchedDisk>::default());
        let watcher = watched.clone();
        let storage =
            Wrapping(move |name, file| Arc::new(WatchedFile { name, file, watched: watcher.clone() }));
        let pool = Arc::new(pool_on(Arc::new(storage), bench.dir.path(), 0));
        for _ in 0..3 {
            pool.give(pool.create(SIZE).unwrap());
        }
        let segments = Arc::new(Segments::new(pool, SPOOL, 1));
        let writer = Writer::new(segments.clone(), 1);
        watched.calls.lock().clear();
        Self { bench, watched, segments, writer }
    }

    pub(super) fn put(&mut self, n: u8, data: &[u8]) -> u64 {
        self.writer.append(id(n), JournalChange::Put(Arc::new(data.into()), payload_crc(data)))
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.watched.calls.lock())
    }

    /// The names of the files that were written to, and that were synced, since the last call.
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
    let mut desk = Desk::new();
    for n in 1..=12 {
        desk.put(n, &vec![n; usize::from(n) * 400]);
        if n % 3 == 0 {
            desk.writer.append(id(n), JournalChange::Remove);
        }
        if n % 4 == 0 {
            // Two batches to one sync.
            desk.writer.write().unwrap();
        }
        desk.writer.sync().unwrap();
    }
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for call in desk.calls() {
        if let Call::Write { file, offset, len } = call {
            let end = ends.entry(file).or_insert(0);
            assert_eq!(offset % PAGE, 0, "a batch that does not start a page");
            assert_eq!(len % PAGE, 0, "a batch that does not fill its last page");
            assert_eq!(offset, *end, "a page that was written before, or a hole");
            *end = offset + len;
        }
    }
    let recovered = desk.bench.recover();
    assert_clean(&recovered);
    assert_eq!(recovered.replayed.next_seq, 12 + 4 + 1);
    assert_eq!(
        contents(&recovered).values().filter(|content| **content == RecordContent::Removed).count(),
        4
    );
}

#[test]
fn records_go_on_in_the_next_segment() {
    let mut desk = Desk::new();
    let messages: Vec<(u8, Vec<u8>)> = (1..=9).map(|n| (n, vec![n; 13_000])).collect();
    for (n, data) in &messages {
        desk.put(*n, data);
    }
    let synced = desk.writer.sync().unwrap();
    assert_eq!(synced.records.len(), 9);
    let finished: Vec<u64> = synced.finished.iter().map(|segment| segment.generation).collect();
    assert_eq!(finished, [1, 2]);
    assert_eq!(desk.writer.active_generation(), Some(3));
    assert_eq!(synced.finished[0].last_seq(), 4);
    let (written, synced) = desk.touched();
    assert_eq!(written, synced, "a sync covers every file that was written to");
    let recovered = desk.bench.recover();
    let expected: Vec<(u8, &[u8])> = messages.iter().map(|(n, data)| (*n, &data[..])).collect();
    assert_holds(&recovered, &expected);
    assert_clean(&recovered);
}

#[test]
fn room_leaves_a_segment_to_removes() {
    let mut desk = Desk::new();
    // The header page, the page left out, and the trailer of the footer.
    let usable = SIZE - 2 * PAGE - TRAILER_LEN;
    assert_eq!(desk.writer.room(false).bytes(), (3 - RESERVED as u64) * usable);
    assert_eq!(desk.writer.room(true).bytes(), 3 * usable);
    desk.put(1, &[1; 100]);
    desk.writer.sync().unwrap();
    // The rest of the active segment, without the page that the batch fills and the record's entry.
    assert_eq!(desk.writer.room(false).bytes(), (usable - PAGE - ENTRY_LEN) + (2 - RESERVED as u64) * usable);
    assert_eq!(desk.writer.room(true).bytes() - desk.writer.room(false).bytes(), usable);
}

#[test]
fn without_a_free_segment_nothing_is_forgotten() {
    let mut desk = Desk::new();
    for n in 1..=3 {
        desk.put(n, &[n; 57_000]);
        desk.writer.sync().unwrap();
    }
    desk.put(4, b"waits");
    desk.put(5, &[5; 57_000]);
    // The rest of the third segment takes the first, and nothing takes the second.
    assert!(matches!(desk.writer.sync(), Err(WriteError::NoSegment)));
    assert_eq!(desk.writer.unsynced(), 2);
    let pool = desk.segments.pool();
    pool.give(pool.create(SIZE).unwrap());
    assert_eq!(desk.writer.sync().unwrap().records.len(), 2);
    let recovered = desk.bench.recover();
    assert_clean(&recovered);
    assert_eq!(contents(&recovered).len(), 5);
}

#[test]
fn a_message_larger_than_a_segment_gets_one_of_its_own() {
    let mut desk = Desk::new();
    desk.put(1, b"before");
    desk.put(2, &[2; 300_000]);
    desk.put(3, b"after");
    let synced = desk.writer.sync().unwrap();
    assert_eq!(synced.records.len(), 3);
    let large = desk.segments.get(synced.records[1].newest.generation).unwrap();
    assert!(large.size > 300_000 && large.size.is_multiple_of(PAGE) && !large.is_counted());
    let recovered = desk.bench.recover();
    assert_holds(&recovered, &[(1, b"before"), (2, &[2; 300_000]), (3, b"after")]);
    assert_clean(&recovered);
}

/// A segment was deleted while a record in it waited for its sync. The sync was good, the record
/// was acknowledged, and at the next start it was gone. The same with what was written later.
#[test]
fn no_sync_of_a_segment_that_lost_its_file_counts() {
    for is_waiting in [true, false] {
        let mut desk = Desk::new();
        desk.put(1, b"one");
        desk.writer.sync().unwrap();
        if is_waiting {
            desk.put(2, b"two");
            desk.writer.write().unwrap();
        }
        let first = desk.segments.get(1).unwrap();
        std::fs::remove_file(&first.path).unwrap();
        assert_eq!(desk.segments.look(0, 100), (vec![(first.path.clone(), Loss::Gone)], None));
        if is_waiting {
            assert!(matches!(desk.writer.sync(), Err(WriteError::Sync(_))));
        } else {
            desk.put(2, b"two");
        }
        let synced = desk.writer.sync().unwrap();
        let records: Vec<(u64, u64)> =
            synced.records.iter().map(|durable| (durable.seq, durable.newest.generation)).collect();
        assert_eq!(records, [(2, 2)]);
        assert_eq!(synced.finished.len(), 1, "it is ended, so that it can be restored");
        assert_eq!(desk.segments.restore(&first).unwrap(), SIZE);
        assert_eq!(desk.segments.look(0, 100), (Vec::new(), None));
        let recovered = desk.bench.recover();
        assert_holds(&recovered, &[(1, b"one"), (2, b"two")]);
        assert_clean(&recovered);
    }
}

#[test]
fn after_a_failed_sync_the_same_numbers_go_to_a_fresh_file() {
    let mut desk = Desk::new();
    desk.put(1, b"one");
    desk.writer.sync().unwrap();
    let (first, _) = desk.touched();
    assert_eq!([desk.put(2, b"two"), desk.put(3, &[3; 9000])], [2, 3]);
    *desk.watched.failing_syncs.lock() = 1;
    let error = desk.writer.sync().unwrap_err();
    assert!(matches!(error, WriteError::Sync(_)) && error.to_string().contains(&*first[0]), "{error}");
    assert_eq!((desk.writer.unsynced(), desk.writer.durable_seq()), (2, 1));
    desk.calls();

    assert_eq!(desk.put(4, b"four"), 4);
    let synced = desk.writer.sync().unwrap();
    let records: Vec<(u64, u64)> =
        synced.records.iter().map(|durable| (durable.seq, durable.newest.generation)).collect();
    assert_eq!(records, [(2, 2), (3, 2), (4, 2)]);
    assert_eq!(desk.writer.durable_seq(), 4);
    assert_eq!(synced.finished.len(), 1);
    assert!(synced.finished[0].has_failed() && synced.finished[0].holds_durable());
    let (written, synced) = desk.touched();
    assert!(
        written.iter().chain(&synced).all(|name| *name != first[0]),
        "the file that failed is used again"
    );

    let recovered = desk.bench.recover();
    assert_holds(&recovered, &[(1, b"one"), (2, b"two"), (3, &[3; 9000]), (4, b"four")]);
    assert_clean(&recovered);
    assert_eq!(recovered.replayed.newest[&id(2)].generation, 2);
}

#[test]
fn after_a_write_that_was_cut_short_by_an_error_all_is_written_again() {
    let mut desk = Desk::new();
    desk.put(1, b"one");
    desk.writer.sync().unwrap();
    desk.put(2, &[2; 9000]);
    desk.writer.append(id(1), JournalChange::Remove);
    desk.watched.failing_writes.lock().extend([5000, 70]);
    let error = desk.writer.sync().unwrap_err();
    assert!(matches!(error, WriteError::Write(_)) && error.to_string().contains(".seg: "), "{error}");
    // The second fails where a fresh file is made.
    let error = desk.writer.sync().unwrap_err();
    assert!(matches!(error, WriteError::Create(_)) && error.to_string().contains(".seg: "), "{error}");
    // Killed here, the first message is all that there is.
    let recovered =
        recover(&desk.bench.storage, desk.bench.dir.path(), SPOOL, &Filed::default(), false).unwrap();
    assert_holds(&recovered, &[(1, b"one")]);
    assert_eq!(desk.writer.sync().unwrap().records.len(), 2);
    let recovered = desk.bench.recover();
    assert_holds(&recovered, &[(2, &[2; 9000])]);
    assert_clean(&recovered);
}

#[test]
fn a_disk_that_goes_on_failing_does_not_use_up_the_journal() {
    let mut desk = Desk::new();
    desk.put(1, b"one");
    desk.writer.sync().unwrap();
    desk.put(2, b"two");
    // Preparing the fresh files succeeds: it is their second sync that fails.
    for _ in 0..40 {
        *desk.watched.failing_syncs.lock() = 1;
        assert!(desk.writer.sync().is_err());
    }
    let files = std::fs::read_dir(desk.bench.dir.path()).unwrap().count();
    assert!(files <= 6, "{files} files");
    assert_eq!(desk.writer.sync().unwrap().records.len(), 1);
    let recovered = desk.bench.recover();
    assert_holds(&recovered, &[(1, b"one"), (2, b"two")]);
    assert_clean(&recovered);
}

#[test]
fn the_gauge_tells_what_is_queued_and_a_burst_is_given_back() {
    let mut desk = Desk::new();
    assert_eq!(desk.segments.buffer_bytes(), 0);
    let segment_full = SIZE / footprint(0);
    for _ in 0..segment_full / 2 {
        desk.writer.append(id(1), JournalChange::Remove);
    }
    desk.writer.write().unwrap();
    let few = desk.segments.buffer_bytes();
    assert!(few > segment_full / 2 * footprint(0), "the batch is in the buffer: {few}");
    // Far more than all segments can take: they stay queued.
    for _ in 0..200_000 {
        desk.writer.append(id(1), JournalChange::Remove);
    }
    assert!(matches!(desk.writer.write(), Err(WriteError::NoSegment)));
    assert!(desk.segments.buffer_bytes() > 200_000 * 48, "{}", desk.segments.buffer_bytes());
}
