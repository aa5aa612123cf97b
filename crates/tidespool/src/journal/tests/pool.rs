//! What the preparation of a segment writes, and how many segments exist.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::super::pool::{
    PREWRITE_UP_TO, Pool, PoolSettings, READY, parse_segment_file_name, segment_file_name,
};
use super::{NoPoolEvents, PAGE};
use crate::storage::{Space, TestCall, TestStorage, is_no_room, os_code};

const SIZE: u64 = 1 << 20;

/// Returns a pool, and the bytes written to its files. Asserts that the room of a file is allocated
/// before it is written: XFS takes up to twice the room for a growing file.
fn pool(dir: &Path, can_allocate: bool) -> (Pool, Arc<AtomicU64>) {
    let written = Arc::<AtomicU64>::default();
    let (counter, rooms) = (written.clone(), Mutex::<BTreeMap<PathBuf, u64>>::default());
    let storage = TestStorage::with(move |path, call| {
        match call {
            TestCall::Allocate(_) if !can_allocate => return Err(io::ErrorKind::Unsupported.into()),
            TestCall::Allocate(len) => drop(rooms.lock().insert(path.to_owned(), len)),
            TestCall::Write { offset, end } => {
                let room = rooms.lock().get(path).copied().unwrap_or(0);
                assert!(end <= PAGE || !can_allocate || room >= end, "the file grows");
                counter.fetch_add(end - offset, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(())
    });
    (pool_on(storage, dir), written)
}

fn pool_on(storage: TestStorage, dir: &Path) -> Pool {
    let settings = PoolSettings::new(dir.to_owned(), [7; 16], SIZE, 8 * SIZE);
    Pool::new(Arc::new(storage), settings, Arc::new(NoPoolEvents))
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
    assert_eq!(made(SIZE), SIZE, "the size of a batch is not known yet");
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

/// On a small disk, all decisions used a capacity that the disk did not have room for.
#[test]
fn the_capacity_in_force_is_what_fits_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (pool, _) = pool(dir.path(), true);
    assert_eq!(pool.capacity(), 8, "the size of the disk is not known yet");
    let space = |free| Space { free_bytes: free, total_bytes: 100 * SIZE, ..Space::default() };
    pool.note_space(&space(3 * SIZE + 1));
    assert_eq!(pool.capacity(), 3);
    pool.give(pool.create(SIZE).unwrap());
    assert_eq!(pool.capacity(), 3, "one of them exists now");
    pool.set_bounds(8 * SIZE, SIZE);
    pool.note_space(&space(2 * SIZE));
    assert_eq!(pool.capacity(), 2, "segments do not use the space left to others");
    pool.note_space(&space(50 * SIZE));
    assert_eq!(pool.capacity(), 8);
    pool.note_space(&Space::default());
    assert_eq!(pool.capacity(), 8, "a file system that does not report its size");
}

/// The error of a segment that could not be prepared was logged without its path.
#[test]
fn an_error_in_making_a_segment_names_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("journal");
    let (pool, _) = pool(&missing, true);
    let named = |error: io::Error, path: &Path| {
        assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{error}");
    };
    named(pool.allocate(SIZE).unwrap_err(), &missing.join("00000000.seg"));
    named(pool.create_if_room(SIZE).unwrap_err(), &missing);
}

#[test]
fn a_file_system_that_does_not_report_its_space_is_not_full_and_gets_no_segment() {
    let dir = tempfile::tempdir().unwrap();
    let storage = TestStorage::default();
    storage.fail("", |call| call == TestCall::Space);
    let error = pool_on(storage, dir.path()).create_if_room(SIZE).unwrap_err();
    assert_eq!((is_no_room(&error), os_code(&error)), (false, Some(5)), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_segment_is_deleted_for_its_room_but_not_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let (pool, _) = pool(dir.path(), true);
    for _ in 0..2 {
        pool.give(pool.allocate(SIZE).unwrap());
    }
    assert_eq!([pool.give_up_one(), pool.give_up_one()], [true, false]);
    assert_eq!((pool.free(), pool.counted_bytes()), (1, SIZE));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn trimming_keeps_segments_that_would_be_created_again() {
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
