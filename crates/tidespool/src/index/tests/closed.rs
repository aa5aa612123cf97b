use std::sync::Arc;
use std::time::Instant;

use super::handle::{
    assert_unavailable, change, close_whole, closed_index, handle, in_memory, make_whole, reopen, soon,
    whole_in_memory, why,
};
use super::*;
use crate::index::DiskIndex;
use crate::index::memory::engines_on;
use crate::storage::{TestCall, TestStorage};

#[test]
fn an_index_that_changed_since_its_close_is_not_opened() {
    for engine in engines() {
        let dir = dir();
        let durable = handle(&engine, &dir);
        make_whole(&durable);
        let earlier = close_whole(&durable);
        let durable = reopen(&engine, &dir, earlier);
        durable.finish();
        change(&durable, [remove(1)]).unwrap();
        let later = close_whole(&durable);
        assert!(!handle(&engine, &dir).open_closed(earlier));
        let durable = reopen(&engine, &dir, later);
        durable.finish();
        assert_eq!((durable.get(&key(1)), durable.get(&key(2))), (Ok(None), Ok(Some(place(2, 10)))));
        assert_eq!(durable.close(soon()), Ok(true));
    }
}

#[test]
fn an_index_that_was_not_closed_is_not_opened() {
    let (dir, memory, durable) = whole_in_memory();
    let closed = close_whole(&durable);
    let durable = reopen(&memory.shared(), &dir, closed);
    drop(durable);
    assert!(!handle(&memory.shared(), &dir).open_closed(closed));
    assert_eq!(memory.opened(), ["1", "1"]);
}

#[test]
fn an_index_that_fails_to_open_is_rebuilt() {
    let (dir, memory, durable) = whole_in_memory();
    let closed = close_whole(&durable);
    let durable = handle(&memory.shared(), &dir);
    memory.fail();
    assert!(!durable.open_closed(closed));
    memory.heal();
    assert!(!durable.is_unchecked() && !durable.is_whole());
    durable.begin().unwrap();
    assert_eq!(memory.opened(), ["1", "1", "2"]);
}

#[test]
fn close_returns_whether_the_index_was_complete() {
    let (dir, memory) = (dir(), MemoryEngine::default());
    let closed = |prepare: &dyn Fn(&DiskIndex)| {
        let durable = handle(&memory.shared(), &dir);
        prepare(&durable);
        (durable.close(soon()), durable)
    };
    assert_eq!(closed(&|_| ()).0, Ok(false), "none");
    assert_eq!(closed(&|durable| durable.begin().unwrap()).0, Ok(false), "being filled");
    let fails = |durable: &DiskIndex| {
        make_whole(durable);
        memory.fail();
        durable.get(&key(1)).unwrap_err();
        memory.heal();
    };
    assert_eq!(closed(&fails).0, Ok(false), "discarded");
    let (was_whole, durable) = closed(&make_whole);
    assert_eq!(was_whole, Ok(true));
    let index = closed_index(&durable);
    let unchecked = |durable: &DiskIndex| assert!(durable.open_closed(index));
    assert_eq!(closed(&unchecked).0, Ok(false), "not checked");
}

#[test]
fn an_index_that_does_not_close_in_time_is_an_error() {
    let (_dir, memory, durable) = whole_in_memory();
    memory.fail();
    durable.get(&key(1)).unwrap_err();
    memory.hang();
    // A discarded index counts as well, because its thread may still write to its files.
    let error = durable.close(Instant::now()).unwrap_err();
    assert!(matches!(error, IndexError::Timeout { doing: "closing", .. }), "{error}");
}

#[test]
fn an_index_that_cannot_be_synced_at_the_close_is_not_described() {
    let disk = TestStorage::default();
    for engine in engines_on(Arc::new(disk.clone())) {
        disk.heal();
        let dir = dir();
        let durable = handle(&engine, &dir);
        make_whole(&durable);
        assert_eq!(durable.close(soon()), Ok(true));
        disk.fail("", |call| call == TestCall::Sync);
        assert_eq!(durable.sum_up(soon()).unwrap_err().raw_os_error(), Some(5));
    }
}

#[test]
fn an_index_whose_last_data_could_not_be_written_is_not_described() {
    let (_dir, memory, durable) = whole_in_memory();
    memory.fail_closing();
    assert_eq!(durable.close(soon()), Ok(false));
}

#[test]
fn an_index_that_is_begun_after_the_close_is_released() {
    let (_dir, _, durable) = in_memory();
    durable.close(soon()).unwrap();
    assert_eq!(why(durable.begin()), "it was closed");
    durable.finish();
    assert_unavailable(&durable, "it was closed");
}
