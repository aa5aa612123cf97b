use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::UNIX_EPOCH;

use tidespool_core::ClockNotSet;

use super::*;
use crate::index::check_clock;

/// Keeps sled's thread busy until the test drops the result.
fn hang(store: &SledStore) -> Sender<()> {
    let (release, wait) = channel::<()>();
    let busy = move |_: &_| {
        // Ends when the other side is dropped.
        let _ = wait.recv();
        Ok(())
    };
    assert!(store.sled("hanging").unwrap().run(Duration::ZERO, busy).is_none());
    release
}

fn assert_poisoned(store: &dyn IndexStore) {
    let results = [
        store.get(&key(1)).map(drop),
        apply(store, [put(1, place(1, 1))]).map(drop),
        tally_of(store).map(drop),
    ];
    for result in results {
        let err = result.unwrap_err();
        assert!(err.poisons() && err.to_string().contains("poisoned"), "{err}");
    }
}

#[test]
fn a_hanging_change_times_out_and_poisons() {
    let dir = dir();
    let engine = with_timeouts(LONG, Duration::from_millis(50));
    let store = open_with(dir.path(), &engine).unwrap();
    let release = hang(&store);
    let err = apply(&store, [put(1, place(1, 1))]).unwrap_err();
    assert!(matches!(err, IndexError::Timeout { doing: "changing", .. }) && err.poisons(), "{err}");
    assert_poisoned(&store);
    store.close();
    assert_eq!(engine.threads.join_all(Duration::from_millis(20)), 1, "the thread is still owned");
    let err = open_with(dir.path(), &sled_engine()).err().unwrap();
    assert!(matches!(err, IndexError::Locked { .. }), "{err}");
    drop(release);
    assert_eq!(engine.threads.join_all(LONG), 0);
    close(open(dir.path()));
}

/// Released threads counted as stuck only after a minute. Until then, each retry opened another
/// sled.
#[test]
fn no_thread_is_started_when_too_many_are_stuck_or_closing() {
    for (count, change_timeout) in [(4, Duration::ZERO), (8, LONG)] {
        let engine = with_timeouts(LONG, change_timeout);
        let dirs: Vec<_> = (0..count).map(|_| dir()).collect();
        // The drop of each store does not wait, although its thread hangs.
        let hanging = |dir: &TempDir| hang(&open_with(dir.path(), &engine).unwrap());
        let releases: Vec<_> = dirs.iter().map(hanging).collect();
        let dir = dir();
        let err = open_with(dir.path(), &engine).err().unwrap();
        assert!(err.to_string().contains("must be restarted"), "{err}");
        drop(releases);
        assert_eq!(engine.threads.join_all(LONG), 0);
        close(open_with(dir.path(), &engine).unwrap());
    }
}

#[test]
fn an_open_that_takes_too_long_times_out() {
    let dir = dir();
    let owner = open(dir.path());
    // It waits for the lock longer than its timeout.
    let engine = with_timeouts(Duration::from_millis(20), LONG);
    let err = open_with(dir.path(), &engine).err().unwrap();
    assert!(matches!(err, IndexError::Timeout { doing: "opening", .. }) && err.poisons(), "{err}");
    assert_eq!(engine.threads.reap(), 1);
    close(owner);
    assert_eq!(engine.threads.join_all(LONG), 0, "the sled that it opened late is dropped");
    close(open(dir.path()));
}

#[test]
fn a_second_open_reports_a_lock() {
    let (dir, store) = new_store();
    fill(&store, 10);
    let err = open_with(dir.path(), &sled_engine()).err().unwrap();
    assert!(matches!(err, IndexError::Locked { .. }) && !err.poisons(), "{err}");
    assert_eq!(store.get(&key(3)).unwrap(), Some(place(3, 200)), "the owner is not affected");
    close(store);
}

#[test]
fn an_open_waits_for_the_lock_of_the_previous_engine() {
    let (dir, store) = new_store();
    let filled = fill(&store, 1_000);
    thread::scope(|scope| {
        let opener = scope.spawn(|| open_with(dir.path(), &sled_engine()));
        close(store);
        let store = opener.join().unwrap().unwrap();
        assert_eq!(tally_of(&store).unwrap(), filled);
        close(store);
    });
}

#[test]
fn a_directory_that_cannot_be_created_is_an_error() {
    let dir = dir();
    std::fs::write(dir.path().join("sled"), "a file").unwrap();
    let err = open_with(dir.path(), &sled_engine()).err().unwrap();
    assert!(matches!(&err, IndexError::Engine { doing: "opening", kind: Some(_), .. }), "{err}");
}

#[test]
fn a_dropped_store_can_be_opened_again() {
    let dir = dir();
    let engine = sled_engine();
    let store = open_with(dir.path(), &engine).unwrap();
    let filled = fill(&store, 3_000);
    drop(store);
    let store = open_with(dir.path(), &engine).unwrap();
    assert_eq!(tally_of(&store).unwrap(), filled);
    close(store);
    assert_eq!(engine.threads.join_all(LONG), 0);
}

#[test]
fn a_close_ends_a_scan_in_progress() {
    let (_dir, store) = new_store();
    fill(&store, 100);
    let mut visited = 0;
    let visit = &mut |_, _| {
        visited += 1;
        store.close();
        true
    };
    let err = store.scan(&[KeyRange::ALL], visit).unwrap_err();
    assert!(matches!(err, IndexError::Unavailable { .. }), "{err}");
    assert_eq!(visited, 1);
    close(store);
}

/// On a machine whose clock has no battery, a server that started before the clock was set panicked
/// in sled.
#[test]
fn a_clock_before_1970_is_an_error_with_advice() {
    let moment = Duration::from_nanos(1);
    assert_eq!(check_clock(UNIX_EPOCH), Ok(()));
    assert_eq!(check_clock(UNIX_EPOCH + Duration::from_secs(1 << 40)), Ok(()));
    for before in [moment, Duration::from_secs(1 << 40)] {
        assert_eq!(check_clock(UNIX_EPOCH - before), Err(ClockNotSet));
    }
    let error = anyhow::Error::from(ClockNotSet).context("opening the spool");
    assert!(error.root_cause().is::<ClockNotSet>());
    assert!(error.root_cause().to_string().contains("set it"), "{error:#}");
}
