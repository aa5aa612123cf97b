use std::fs;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::thread;
use std::time::Instant;

use super::*;
use crate::index::{ClosedIndex, DiskIndex, IndexEngine};

pub(in crate::index) fn handle(engine: &Arc<dyn IndexEngine>, dir: &TempDir) -> DiskIndex {
    DiskIndex::new(&dir.path().join("index"), engine.clone())
}

/// Returns an engine in memory, and a handle of it.
pub(super) fn in_memory() -> (TempDir, MemoryEngine, DiskIndex) {
    let (dir, memory) = (dir(), MemoryEngine::default());
    let durable = handle(&memory.shared(), &dir);
    (dir, memory, durable)
}

/// As [`in_memory`], with a complete index of two records.
pub(super) fn whole_in_memory() -> (TempDir, MemoryEngine, DiskIndex) {
    let (dir, memory, durable) = in_memory();
    make_whole(&durable);
    (dir, memory, durable)
}

fn fill_in(durable: &DiskIndex, ops: impl IntoIterator<Item = IndexOp>) -> Result<Tally, IndexError> {
    durable.fill(&mut ops.into_iter(), &mut |_, _| ())
}

pub(super) fn change(
    durable: &DiskIndex,
    ops: impl IntoIterator<Item = IndexOp>,
) -> Result<Tally, IndexError> {
    durable.apply(&mut ops.into_iter(), &mut |_, _| ())
}

/// The deadline of a close.
pub(in crate::index) fn soon() -> Instant {
    Instant::now() + LONG
}

/// Makes a complete index of two records.
pub(in crate::index) fn make_whole(durable: &DiskIndex) {
    durable.begin().unwrap();
    fill_in(durable, [put(1, place(1, 10)), put(2, place(2, 10))]).unwrap();
    durable.finish();
}

/// Returns why a call was not answered.
pub(super) fn why<T: std::fmt::Debug>(answer: Result<T, IndexError>) -> String {
    match answer {
        Err(IndexError::Unavailable { why, .. }) => why,
        answered => panic!("{answered:?}"),
    }
}

/// Asserts that no call is answered, for this reason.
pub(in crate::index) fn assert_unavailable(durable: &DiskIndex, reason: &str) {
    assert_eq!(why(durable.get(&key(1))), reason, "an existing record");
    assert_eq!(why(durable.get(&key(9))), reason, "a missing record");
    assert_eq!(why(change(durable, [remove(1)])), reason);
    assert_eq!(why(durable.scan(&[KeyRange::ALL], &mut |_, _| panic!("visited"))), reason);
    assert!(!durable.is_whole());
}

/// Closes a complete index.
pub(in crate::index) fn close_whole(durable: &DiskIndex) -> ClosedIndex {
    assert_eq!(durable.close(soon()), Ok(true));
    closed_index(durable)
}

pub(in crate::index) fn closed_index(durable: &DiskIndex) -> ClosedIndex {
    durable.sum_up(soon()).unwrap().unwrap()
}

/// Opens a closed index, as the next run does.
pub(in crate::index) fn reopen(
    engine: &Arc<dyn IndexEngine>,
    dir: &TempDir,
    closed: ClosedIndex,
) -> DiskIndex {
    let durable = handle(engine, dir);
    assert!(durable.open_closed(closed));
    durable
}

#[test]
fn no_call_is_answered_before_there_is_an_index() {
    for engine in engines() {
        let dir = dir();
        let durable = handle(&engine, &dir);
        assert_unavailable(&durable, "the index of the last run is being checked");
        assert_eq!((durable.size_on_disk(), durable.memory_bytes()), (0, 0));
        assert!(!durable.is_unchecked() && durable.data_file().is_none());
    }
}

#[test]
fn an_index_that_is_being_filled_answers_only_for_its_records() {
    for engine in engines() {
        let dir = dir();
        let durable = handle(&engine, &dir);
        durable.begin().unwrap();
        fill_in(&durable, [put(1, place(1, 10))]).unwrap();
        assert!(!durable.is_whole() && !durable.is_unchecked());
        assert_eq!(durable.get(&key(1)), Ok(Some(place(1, 10))));
        let reason = "the index is being rebuilt from the segments";
        assert_eq!(why(durable.get(&key(2))), reason, "it may still be added");
        assert_eq!(why(change(&durable, [remove(1)])), reason);
        assert_eq!(why(durable.scan(&[KeyRange::ALL], &mut |_, _| panic!("visited"))), reason);
        assert_eq!(durable.get_filled(&key(2)), Ok(None), "the rebuild reads what it has put in so far");
        durable.finish();
        assert!(durable.is_whole());
        assert_eq!(durable.get(&key(2)), Ok(None));
        change(&durable, [remove(1), put(2, place(2, 20))]).unwrap();
        assert_eq!((durable.get(&key(1)), durable.get(&key(2))), (Ok(None), Ok(Some(place(2, 20)))));
        assert!(durable.memory_bytes() > 0 && durable.size_on_disk() > 0);
        assert_eq!(durable.close(soon()), Ok(true));
        assert_unavailable(&durable, "it was closed");
        assert_eq!(durable.memory_bytes(), 0);
    }
}

/// While an index was begun, an older copy of the files appeared. Its records were returned as if
/// the rebuild had found them.
#[test]
fn an_index_that_is_not_empty_when_it_is_begun_is_not_used() {
    let (_dir, memory, durable) = in_memory();
    memory.leave(key(1), place(1, 10));
    let error = durable.begin().unwrap_err().to_string();
    assert!(error.contains("it holds records of an earlier index"), "{error}");
    assert_unavailable(&durable, "it holds records of an earlier index");
}

#[test]
fn distrust_affects_only_the_index_with_that_number() {
    for engine in engines() {
        let dir = dir();
        let durable = handle(&engine, &dir);
        make_whole(&durable);
        let (_, number) = durable.find(&key(1)).unwrap().unwrap();
        durable.distrust(number + 1, "another one is wrong");
        assert!(durable.is_whole());
        durable.distrust(number, "it is wrong");
        assert_unavailable(&durable, "it is wrong");
        make_whole(&durable);
        durable.distrust(number, "the earlier one is wrong");
        assert!(durable.is_whole());
        assert_eq!(durable.close(soon()), Ok(true));
    }
}

#[test]
fn an_unchecked_index_answers_no_call() {
    for engine in engines() {
        let dir = dir();
        let durable = handle(&engine, &dir);
        make_whole(&durable);
        let closed = close_whole(&durable);

        let durable = reopen(&engine, &dir, closed);
        assert!(durable.is_unchecked());
        assert_unavailable(&durable, "the index of the last run is being checked");
        let mut found = Vec::new();
        let visit = &mut |key, record| {
            found.push((key, record));
            true
        };
        durable.scan_all(visit).unwrap();
        assert_eq!(found, [(key(1), place(1, 10)), (key(2), place(2, 10))]);
        durable.finish();
        assert!(durable.is_whole() && !durable.is_unchecked());
        assert_eq!((durable.get(&key(1)), durable.get(&key(9))), (Ok(Some(place(1, 10))), Ok(None)));
        assert_eq!(durable.close(soon()), Ok(true));
    }
}

#[test]
fn a_new_index_has_a_new_number_and_replaces_the_others() {
    let (dir, memory, durable) = in_memory();
    let root = dir.path().join("index");
    for other in ["3", "17", "blobs"] {
        fs::create_dir_all(root.join(other)).unwrap();
        fs::write(root.join(other).join("data"), "of earlier").unwrap();
    }
    fs::write(root.join("conf"), "of earlier").unwrap();
    let names = || {
        let entries = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    make_whole(&durable);
    assert_eq!(names(), ["18"]);
    // No number is used twice, even if a directory is gone or could not be removed.
    fs::remove_dir_all(root.join("18")).unwrap();
    durable.begin().unwrap();
    assert_eq!(names(), ["19"]);
    assert!(!durable.is_whole());
    assert_eq!(why(durable.get(&key(1))), "the index is being rebuilt from the segments", "it is empty");
    assert_eq!(memory.opened(), ["18", "19"]);
}

#[test]
fn an_index_with_an_error_is_never_opened_again() {
    type IndexCall = fn(&DiskIndex) -> Result<(), IndexError>;
    let calls: [IndexCall; 6] = [
        |durable| durable.get(&key(1)).map(drop),
        |durable| durable.get_filled(&key(1)).map(drop),
        |durable| change(durable, [remove(1)]).map(drop),
        |durable| fill_in(durable, [remove(1)]).map(drop),
        |durable| durable.scan(&[KeyRange::ALL], &mut |_, _| true),
        |durable| durable.scan_all(&mut |_, _| true),
    ];
    for call in calls {
        let (dir, memory, durable) = whole_in_memory();
        let error = memory.fail();
        assert_eq!(call(&durable), Err(error.clone()));
        // The disk works again, which changes nothing.
        memory.heal();
        assert_unavailable(&durable, &error.to_string());
        assert_eq!(why(call(&durable)), error.to_string());
        durable.finish();
        assert!(!durable.is_whole() && !durable.is_unchecked());
        assert_eq!(memory.opened(), ["1"]);
        make_whole(&durable);
        assert_eq!(durable.get(&key(1)), Ok(Some(place(1, 10))));
        assert_eq!(memory.opened(), ["1", "2"]);
        assert!(!dir.path().join("index/1").exists());
    }
}

#[test]
fn an_error_that_does_not_poison_keeps_the_engine_in_use() {
    let (dir, memory, durable) = whole_in_memory();
    memory.fail_with(IndexError::Locked { path: dir.path().into() });
    durable.get(&key(1)).unwrap_err();
    memory.heal();
    assert_eq!(durable.get(&key(1)), Ok(Some(place(1, 10))));
    assert!(durable.is_whole());
}

#[test]
fn after_a_failed_begin_there_is_no_index() {
    let (_dir, memory, durable) = whole_in_memory();
    let error = memory.fail();
    assert_eq!(durable.begin(), Err(error));
    memory.heal();
    assert_unavailable(&durable, "the index is being rebuilt from the segments");
    assert!(durable.data_file().is_none());
    durable.begin().unwrap();
    assert_eq!(memory.opened(), ["1", "2", "3"]);
}

#[test]
fn an_error_of_a_replaced_index_keeps_the_new_one_in_use() {
    let (_dir, memory, durable) = whole_in_memory();
    let ops = (1..3).map(|n| {
        make_whole(&durable);
        memory.fail();
        remove(n)
    });
    change(&durable, ops).unwrap_err();
    memory.heal();
    assert!(durable.is_whole());
    assert_eq!(durable.get(&key(1)), Ok(Some(place(1, 10))));
}

#[test]
fn concurrent_errors_discard_the_index_once() {
    let (_dir, memory, durable) = in_memory();
    for round in 1..=20 {
        make_whole(&durable);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| while durable.get(&key(1)).is_ok_and(|found| found.is_some()) {});
            }
            memory.fail();
            durable.get(&key(1)).unwrap_err();
        });
        memory.heal();
        assert!(!durable.is_whole());
        assert_eq!(memory.opened().len(), round);
    }
}

#[test]
fn waiters_wake_when_the_index_is_complete_and_at_the_close() {
    let (_dir, _, durable) = in_memory();
    let mut context = Context::from_waker(Waker::noop());
    durable.begin().unwrap();
    let mut waiting = pin!(durable.whole());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    durable.finish();
    assert!(waiting.poll(&mut context).is_ready());
    assert!(pin!(durable.whole()).poll(&mut context).is_ready(), "whole already");

    durable.begin().unwrap();
    let mut waiting = pin!(durable.whole());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    durable.close(soon()).unwrap();
    assert!(waiting.poll(&mut context).is_ready());
    assert!(pin!(durable.whole()).poll(&mut context).is_ready(), "closed already");
}
