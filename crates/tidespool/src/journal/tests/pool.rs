//! What preparing a segment writes, and how many there are.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::pool::{
    PREWRITE_UP_TO, Pool, PoolSettings, READY, parse_segment_file_name, segment_file_name,
};
use super::{PAGE, Silent, Wrapping};
use crate::storage::StorageFile;

/// A file, and the bytes written to it and the others.
#[derive(Debug)]
struct CountedFile {
    file: Arc<dyn StorageFile>,
    written: Arc<AtomicU64>,
    can_allocate: bool,
}

impl StorageFile for CountedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let written = self.file.write_vectored_at(bufs, offset)?;
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.can_allocate { self.file.allocate(len) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

const SIZE: u64 = 1 << 20;

fn pool(dir: &Path, can_allocate: bool) -> (Pool, Arc<AtomicU64>) {
    let written = Arc::<AtomicU64>::default();
    let counter = written.clone();
    let storage =
        Wrapping(move |_, file| Arc::new(CountedFile { file, written: counter.clone(), can_allocate }));
    let (dir, spool) = (dir.to_owned(), [7; 16]);
    let settings =
        PoolSettings { dir, spool, segment_size: SIZE, capacity: 8 * SIZE, keep_free: 0, next_slot: 0 };
    (Pool::new(Arc::new(storage), settings, Arc::new(Silent)), written)
}

#[test]
fn a_segment_for_large_batches_is_not_written_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (pool, written) = pool(dir.path(), true);
    let made = |size| {
        let segment = pool.create_if_room(size).unwrap();
        assert_eq!(segment.file.len().unwrap(), size);
        let mut end = [1; 16];
        crate::storage::read_exact_at(&*segment.file, &mut end, size - 16).unwrap();
        assert_eq!(end, [0; 16]);
        written.swap(0, Ordering::Relaxed)
    };
    assert_eq!(made(SIZE), SIZE, "nothing is known yet");
    pool.note_batch_bytes(PREWRITE_UP_TO + 1);
    assert_eq!(made(SIZE), PAGE);
    pool.note_batch_bytes(PREWRITE_UP_TO);
    assert_eq!(made(SIZE), SIZE);
    assert_eq!(made(4 * SIZE), PAGE, "for one message");
}

#[test]
fn a_file_system_that_cannot_allocate_gets_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let (pool, written) = pool(dir.path(), false);
    assert_eq!(pool.allocate(2 * SIZE).unwrap().file.len().unwrap(), 2 * SIZE);
    assert_eq!(written.load(Ordering::Relaxed), 2 * SIZE);
}

#[test]
fn trimming_leaves_what_would_be_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (pool, _) = pool(dir.path(), true);
    for _ in 0..5 {
        pool.give(pool.allocate(SIZE).unwrap());
    }
    pool.trim(1);
    assert_eq!((pool.free(), pool.counted_bytes()), (4, 4 * SIZE));
    pool.trim(100);
    assert_eq!((pool.free(), pool.counted_bytes()), (READY, READY as u64 * SIZE));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), READY);
}

#[test]
fn file_names_round_trip_and_foreign_ones_are_none() {
    for slot in [0, 1, 0xab, u32::MAX] {
        assert_eq!(parse_segment_file_name(&segment_file_name(slot)), Some(slot));
    }
    for name in ["", ".seg", "1.seg", "+0000001.seg", "0000000A.seg", "00000001.seg.bak", "00000001"] {
        assert_eq!(parse_segment_file_name(name), None, "{name}");
    }
}
