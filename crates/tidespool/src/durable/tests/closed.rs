use std::fs;
use std::sync::Arc;
use std::time::Instant;

use super::engine::Faults;
use super::handle::{assert_unavailable, closed_index, make_whole, sled, soon, why};
use super::*;
use crate::durable::DiskIndex;

#[test]
fn an_index_with_changed_files_is_not_opened() {
    let dir = dir();
    let durable = sled(dir.path());
    make_whole(&durable);
    assert_eq!(durable.close(soon()), Ok(true));
    let closed = closed_index(&durable);
    let (root, faults) = (dir.path().join("sled"), Arc::<Faults>::default());
    let index = root.join("1");
    let is_opened = || faults.handle(&root).open_closed(closed);

    let mut files = 0;
    for path in fs::read_dir(&index).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
    {
        let (good, name) = (fs::read(&path).unwrap(), path.display());
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [&flipped[..], &good[..good.len() - 1], &[], &[&good[..], &[0]].concat()] {
            fs::write(&path, bad).unwrap();
            assert!(!is_opened(), "{name} with {} of {} bytes", bad.len(), good.len());
        }
        fs::remove_file(&path).unwrap();
        assert!(!is_opened(), "{name} missing");
        fs::write(&path, good).unwrap();
        files += 1;
    }
    assert!(files >= 2, "db, conf");
    fs::write(index.join("more"), "").unwrap();
    assert!(!is_opened(), "one file more");
    fs::remove_file(index.join("more")).unwrap();
    fs::rename(&index, root.join("2")).unwrap();
    assert!(!is_opened(), "under another number");
    assert_eq!(faults.opened(), <[&str; 0]>::default());
    fs::rename(root.join("2"), &index).unwrap();
    assert!(is_opened());
    assert_eq!(faults.opened(), ["1"]);
}

#[test]
fn an_index_that_fails_to_open_is_rebuilt() {
    let (dir, faults) = (dir(), Arc::<Faults>::default());
    let durable = faults.handle(dir.path());
    make_whole(&durable);
    assert_eq!(durable.close(soon()), Ok(true));
    let closed = closed_index(&durable);
    let durable = faults.handle(dir.path());
    faults.fail();
    assert!(!durable.open_closed(closed));
    faults.heal();
    assert!(!durable.is_unchecked() && !durable.is_whole());
    durable.begin().unwrap();
    assert_eq!(faults.opened(), ["1", "1", "2"]);
}

#[test]
fn close_returns_whether_the_index_was_complete() {
    let (dir, faults) = (dir(), Arc::<Faults>::default());
    let closed = |prepare: &dyn Fn(&DiskIndex)| {
        let durable = faults.handle(dir.path());
        prepare(&durable);
        (durable.close(soon()), durable)
    };
    assert_eq!(closed(&|_| ()).0, Ok(false), "none");
    assert_eq!(closed(&|durable| durable.begin().unwrap()).0, Ok(false), "being filled");
    let fails = |durable: &DiskIndex| {
        make_whole(durable);
        faults.fail();
        durable.get(&key(1)).unwrap_err();
        faults.heal();
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
    let (dir, faults) = (dir(), Arc::<Faults>::default());
    let durable = faults.handle(dir.path());
    make_whole(&durable);
    faults.fail();
    durable.get(&key(1)).unwrap_err();
    faults.hang(true);
    // A discarded index counts as well, because its thread may still write to its files.
    let error = durable.close(Instant::now()).unwrap_err();
    assert!(matches!(error, DurableError::Timeout { doing: "closing", .. }), "{error}");
}

#[test]
fn an_index_that_cannot_be_synced_at_the_close_is_not_described() {
    let (dir, faults) = (dir(), Arc::<Faults>::default());
    let durable = faults.handle(dir.path());
    make_whole(&durable);
    assert_eq!(durable.close(soon()), Ok(true));
    faults.fail_syncs();
    assert_eq!(durable.sum_up(soon()).unwrap_err().raw_os_error(), Some(5));
}

#[test]
fn an_index_that_is_begun_after_the_close_is_released() {
    let (dir, faults) = (dir(), Arc::<Faults>::default());
    let durable = faults.handle(dir.path());
    durable.close(soon()).unwrap();
    assert_eq!(why(durable.begin()), "it was closed");
    durable.finish();
    assert_unavailable(&durable, "it was closed");
}
