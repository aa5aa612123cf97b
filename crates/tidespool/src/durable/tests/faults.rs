use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use super::*;

/// Far more than any call of a test needs if nothing hangs.
const LONG: Duration = Duration::from_secs(60);

/// Keeps sled's thread busy until the test drops the result.
fn hang(store: &SledStore) -> Sender<()> {
    let (release, wait) = channel::<()>();
    let busy = move |_: &_| {
        // Ends when the other side is dropped.
        let _ = wait.recv();
        Ok(())
    };
    assert!(store.engine("hanging").unwrap().run(Duration::ZERO, busy).is_none());
    release
}

fn short_timeout() -> SledOptions {
    SledOptions { change_timeout: Duration::from_millis(50), ..SledOptions::new(CACHE) }
}

fn assert_poisoned(store: &dyn DurableStore) {
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
    let options = short_timeout();
    let strays = Arc::clone(&options.strays);
    let store = open_with(dir.path(), options).unwrap();
    let release = hang(&store);
    let err = apply(&store, [put(1, place(1, 1))]).unwrap_err();
    assert!(matches!(err, DurableError::Timeout { doing: "changing", .. }) && err.poisons(), "{err}");
    assert_poisoned(&store);
    let err = store.close(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(err, DurableError::Timeout { doing: "closing", .. }), "{err}");
    assert_eq!(strays.reap(), 1, "the thread is still owned");
    let err = open_with(dir.path(), SledOptions::new(CACHE)).err().unwrap();
    assert!(matches!(err, DurableError::Locked { .. }), "{err}");
    drop(release);
    assert_eq!(strays.join_all(LONG), 0);
    close(open(dir.path()));
}

#[test]
fn no_thread_is_started_when_too_many_are_stuck() {
    let options = short_timeout();
    let mut releases = Vec::new();
    let mut dirs = Vec::new();
    for _ in 0..4 {
        dirs.push(dir());
        let store = open_with(dirs.last().unwrap().path(), options.clone()).unwrap();
        releases.push(hang(&store));
        // The drop does not wait, although the thread hangs.
        drop(store);
    }
    let dir = dir();
    let err = open_with(dir.path(), options.clone()).err().unwrap();
    assert!(err.to_string().contains("must be restarted"), "{err}");
    releases.clear();
    assert_eq!(options.strays.join_all(LONG), 0);
    close(open_with(dir.path(), options).unwrap());
}

#[test]
fn an_open_that_takes_too_long_times_out() {
    let dir = dir();
    let owner = open(dir.path());
    // It waits for the lock longer than its timeout.
    let options = SledOptions { open_timeout: Duration::from_millis(20), ..SledOptions::new(CACHE) };
    let strays = Arc::clone(&options.strays);
    let err = open_with(dir.path(), options).err().unwrap();
    assert!(matches!(err, DurableError::Timeout { doing: "opening", .. }) && err.poisons(), "{err}");
    assert_eq!(strays.reap(), 1);
    close(owner);
    assert_eq!(strays.join_all(LONG), 0, "the sled that it opened late is dropped");
    close(open(dir.path()));
}

#[test]
fn a_second_open_reports_a_lock() {
    let dir = dir();
    let store = open(dir.path());
    fill(&store, 10);
    let err = open_with(dir.path(), SledOptions::new(CACHE)).err().unwrap();
    assert!(matches!(err, DurableError::Locked { .. }) && !err.poisons(), "{err}");
    assert_eq!(store.get(&key(3)).unwrap(), Some(place(3, 200)), "the owner is not affected");
    close(store);
}

#[test]
fn an_open_waits_for_the_lock_of_the_previous_engine() {
    let dir = dir();
    let store = open(dir.path());
    let filed = fill(&store, 1_000);
    thread::scope(|scope| {
        let opener = scope.spawn(|| open_with(dir.path(), SledOptions::new(CACHE)));
        close(store);
        let store = opener.join().unwrap().unwrap();
        assert_eq!(tally_of(&store).unwrap(), filed);
        close(store);
    });
}

#[test]
fn a_directory_that_cannot_be_created_is_an_error() {
    let dir = dir();
    std::fs::write(dir.path().join("sled"), "a file").unwrap();
    let err = open_with(dir.path(), SledOptions::new(CACHE)).err().unwrap();
    assert!(matches!(&err, DurableError::Engine { doing: "opening", kind: Some(_), .. }), "{err}");
}

#[test]
fn a_dropped_store_can_be_opened_again() {
    let dir = dir();
    let options = SledOptions::new(CACHE);
    let store = open_with(dir.path(), options.clone()).unwrap();
    let filed = fill(&store, 3_000);
    drop(store);
    let store = open_with(dir.path(), options.clone()).unwrap();
    assert_eq!(tally_of(&store).unwrap(), filed);
    close(store);
    assert_eq!(options.strays.join_all(Duration::from_secs(60)), 0);
}

#[test]
fn let_go_ends_a_scan_in_progress() {
    let dir = dir();
    let store = open(dir.path());
    fill(&store, 100);
    let mut visited = 0;
    let visit = &mut |_, _| {
        visited += 1;
        store.let_go();
        true
    };
    let err = store.scan(&[KeyRange::ALL], visit).unwrap_err();
    assert!(matches!(err, DurableError::Unavailable { .. }), "{err}");
    assert_eq!(visited, 1);
    close(store);
}
