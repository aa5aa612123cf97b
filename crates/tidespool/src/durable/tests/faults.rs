use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::storage::{BeforeSync, options_with};
use super::*;
use crate::durable::Durable;

/// Counts the syncs of sled's data file, and fails from the `fail_from`th on.
#[derive(Default)]
struct CountingSync {
    of_data: AtomicUsize,
    fail_from: AtomicUsize,
}

impl CountingSync {
    fn options(self: &Arc<Self>) -> SledOptions {
        options_with(self)
    }

    fn fail_from(&self, nth: usize) {
        self.fail_from.store(nth, Ordering::SeqCst);
    }
}

impl BeforeSync for CountingSync {
    fn before_sync(&self, path: &Path) -> io::Result<()> {
        if path.file_name().is_some_and(|name| name == "db") {
            let nth = self.of_data.fetch_add(1, Ordering::SeqCst) + 1;
            let fail_from = self.fail_from.load(Ordering::SeqCst);
            if fail_from != 0 && nth >= fail_from {
                return Err(io::Error::from_raw_os_error(5));
            }
        }
        Ok(())
    }
}

/// Hangs in each sync of the data file until the test lets it go.
struct HangingSync(Mutex<Receiver<()>>);

fn hanging() -> (Sender<()>, SledOptions) {
    let (release, wait) = channel();
    let options = options_with(&Arc::new(HangingSync(Mutex::new(wait))));
    (release, SledOptions { change_timeout: Duration::from_millis(50), ..options })
}

impl BeforeSync for HangingSync {
    fn before_sync(&self, path: &Path) -> io::Result<()> {
        if path.ends_with("db") {
            // Ends when the other side is dropped.
            let _ = self.0.lock().recv();
        }
        Ok(())
    }
}

fn assert_poisoned(store: &dyn DurableStore) {
    let results = [
        store.get(&key(1)).map(drop),
        apply(store, [put(1, whole(1, 1))]).map(drop),
        store.scan(&[], &mut |_, _| true),
        store.tally().map(drop),
    ];
    for result in results.into_iter().enumerate().filter(|(at, _)| *at != 2).map(|(_, result)| result) {
        let err = result.unwrap_err();
        assert!(err.poisons() && err.to_string().contains("poisoned"), "{err}");
    }
}

#[test]
fn each_change_ends_with_a_sync_of_the_data_file() {
    let dir = dir();
    let sync = Arc::new(CountingSync::default());
    let store = open_with(dir.path(), sync.options()).unwrap();
    for applied in 1..=5 {
        apply(&store, (0..600).map(|n| put(n, whole(applied, 100)))).unwrap();
        assert_eq!(sync.of_data.load(Ordering::SeqCst) as u64, applied);
    }
    apply(&store, []).unwrap();
    assert_eq!(sync.of_data.load(Ordering::SeqCst), 5, "nothing new to sync");
    close(store);
    // Whether the last opening synced everything is not known to this one.
    let store = open_with(dir.path(), sync.options()).unwrap();
    apply(&store, []).unwrap();
    assert_eq!(sync.of_data.load(Ordering::SeqCst), 6);
    close(store);
}

#[test]
fn the_files_that_sled_never_syncs_are_synced_when_it_is_opened() {
    #[derive(Default)]
    struct Names(Mutex<Vec<String>>);
    impl BeforeSync for Names {
        fn before_sync(&self, path: &Path) -> io::Result<()> {
            self.0.lock().push(path.file_name().unwrap().to_string_lossy().into_owned());
            Ok(())
        }
    }
    let dir = dir();
    let names = Arc::new(Names::default());
    close(open_with(dir.path(), options_with(&names)).unwrap());
    let parent = dir.path().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(*names.0.lock(), ["conf", "blobs", "sled", &parent]);
}

#[test]
fn a_failed_sync_is_an_error_and_poisons() {
    let dir = dir();
    let sync = Arc::new(CountingSync::default());
    let store = open_with(dir.path(), sync.options()).unwrap();
    fill(&store, 100);
    sync.fail_from(2);
    let err = apply(&store, [put(7, whole(9, 9))]).unwrap_err();
    let DurableError::Engine { doing: "flushing", kind: Some(_), what, .. } = &err else { panic!("{err:?}") };
    assert!(what.contains("Input/output error"), "{what}");
    assert_poisoned(&store);
    assert_eq!(sync.of_data.load(Ordering::SeqCst), 2, "never synced again and called good");
    close(store);
}

#[test]
fn a_hanging_sync_is_a_timeout_and_poisons() {
    let dir = dir();
    let (release, options) = hanging();
    let strays = Arc::clone(&options.strays);
    let store = open_with(dir.path(), options).unwrap();
    let err = apply(&store, [put(1, whole(1, 1))]).unwrap_err();
    assert!(matches!(err, DurableError::Timeout { doing: "flushing", .. }), "{err}");
    assert_poisoned(&store);
    let err = store.close(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(err, DurableError::Timeout { doing: "closing", .. }), "{err}");
    assert_eq!(strays.reap(), 1, "the thread is still owned");
    let err = open_with(dir.path(), SledOptions::new(CACHE)).err().unwrap();
    assert!(matches!(err, DurableError::Locked { .. }), "{err}");
    drop(release);
    assert_eq!(strays.join_all(Duration::from_secs(60)), 0);
    close(open(dir.path()));
}

#[test]
fn no_thread_is_started_when_too_many_are_stuck() {
    let options = SledOptions::new(CACHE);
    let mut releases = Vec::new();
    let mut dirs = Vec::new();
    for _ in 0..4 {
        let (release, hanging) = hanging();
        dirs.push(dir());
        let hanging = SledOptions { strays: Arc::clone(&options.strays), ..hanging };
        let store = open_with(dirs.last().unwrap().path(), hanging).unwrap();
        apply(&store, [put(1, whole(1, 1))]).unwrap_err();
        // Dropped while its thread hangs: that does not wait.
        drop(store);
        releases.push(release);
    }
    let dir = dir();
    let err = open_with(dir.path(), options.clone()).err().unwrap();
    assert!(err.to_string().contains("started again"), "{err}");
    releases.clear();
    assert_eq!(options.strays.join_all(Duration::from_secs(60)), 0);
    close(open_with(dir.path(), options).unwrap());
}

#[test]
fn an_opening_that_takes_too_long_is_a_timeout() {
    struct SlowSettle(Mutex<Receiver<()>>);
    impl BeforeSync for SlowSettle {
        fn before_sync(&self, _: &Path) -> io::Result<()> {
            let _ = self.0.lock().recv();
            Ok(())
        }
    }
    let dir = dir();
    let (release, wait) = channel();
    let options = options_with(&Arc::new(SlowSettle(Mutex::new(wait))));
    let options = SledOptions { open_timeout: Duration::from_millis(20), ..options };
    let strays = Arc::clone(&options.strays);
    let err = open_with(dir.path(), options).err().unwrap();
    assert!(matches!(err, DurableError::Timeout { doing: "opening", .. }), "{err}");
    assert_eq!(strays.reap(), 1);
    drop(release);
    assert_eq!(strays.join_all(Duration::from_secs(60)), 0, "what it opened after all is dropped");
    close(open(dir.path()));
}

#[test]
fn a_second_opener_is_told_that_it_is_locked() {
    let dir = dir();
    let store = open(dir.path());
    fill(&store, 10);
    let err = open_with(dir.path(), SledOptions::new(CACHE)).err().unwrap();
    assert!(matches!(err, DurableError::Locked { .. }) && err.is_retryable(), "{err}");
    assert_eq!(store.get(&key(3)).unwrap(), Some(whole(3, 200)), "the owner is not disturbed");
    close(store);
}

#[test]
fn an_opener_waits_a_moment_for_the_lock_of_the_one_before() {
    let dir = dir();
    let store = open(dir.path());
    let filed = fill(&store, 1_000);
    thread::scope(|scope| {
        let opener = scope.spawn(|| open_with(dir.path(), SledOptions::new(CACHE)));
        close(store);
        let store = opener.join().unwrap().unwrap();
        assert_eq!(store.tally().unwrap(), filed);
        close(store);
    });
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
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
    assert_eq!(store.tally().unwrap(), filed);
    close(store);
    assert_eq!(options.strays.join_all(Duration::from_secs(60)), 0);
}

#[test]
fn closing_ends_a_scan_under_way() {
    let dir = dir();
    let store = open(dir.path());
    fill(&store, 100);
    let mut visited = 0;
    let visit = &mut |_, _| {
        visited += 1;
        store.let_go();
        true
    };
    let err = store.scan(&[crate::durable::KeyRange::ALL], visit).unwrap_err();
    assert!(matches!(err, DurableError::Unavailable { .. }), "{err}");
    assert_eq!(visited, 1);
    close(store);
}

fn handle(dir: &Path, options: SledOptions) -> Durable {
    Durable::open_sled(&dir.join("sled"), options).unwrap()
}

fn file(durable: &Durable, ops: impl IntoIterator<Item = Op>) -> Result<Tally, DurableError> {
    durable.apply(&mut ops.into_iter(), &mut |_, _| ())
}

#[test]
fn the_handle_takes_a_broken_engine_out_of_use_and_opens_it_again() {
    let dir = dir();
    let sync = Arc::new(CountingSync::default());
    let durable = handle(dir.path(), sync.options());
    let good = file(&durable, (0..50).map(|n| put(n, whole(1, 100)))).unwrap();
    sync.fail_from(2);
    let first = file(&durable, [put(50, whole(1, 1))]).unwrap_err();
    assert!(!durable.is_open());
    for err in
        [durable.get(&key(1)).unwrap_err(), durable.tally().unwrap_err(), file(&durable, []).unwrap_err()]
    {
        let DurableError::Unavailable { why, .. } = &err else { panic!("{err:?}") };
        assert_eq!(*why, first.to_string());
        assert!(err.is_retryable());
    }
    sync.fail_from(0);
    let mut before = 0;
    let reopened = durable
        .reopen(
            &mut || {
                before += 1;
                Ok(())
            },
            &mut |store| {
                assert!(!durable.is_open(), "nobody sees it before it was checked");
                // The change that was not synced may be there or not.
                assert!([50, 51].contains(&store.tally()?.records));
                Ok(())
            },
        )
        .unwrap()
        .unwrap();
    assert_eq!((before, reopened.why), (1, first.to_string()));
    assert_eq!(durable.get(&key(1)).unwrap(), Some(whole(1, 100)));
    file(&durable, [remove(50)]).unwrap();
    assert_eq!(durable.tally().unwrap(), good);
    assert_eq!(durable.reopen(&mut || panic!("not called"), &mut |_| panic!("not called")).unwrap(), None);
    durable.close(Instant::now() + Duration::from_secs(60)).unwrap();
    assert_eq!(durable.stuck_threads(), 0);
}

#[test]
fn a_reopening_that_fails_can_be_tried_again() {
    let dir = dir();
    let durable = handle(dir.path(), SledOptions::new(CACHE));
    let filed = file(&durable, (0..50).map(|n| put(n, whole(1, 100)))).unwrap();
    durable.close(Instant::now() + Duration::from_secs(60)).unwrap();
    let no = || DurableError::Unavailable { path: dir.path().into(), why: "no room".to_owned() };
    assert_eq!(durable.reopen(&mut || Err(no()), &mut |_| panic!("not called")), Err(no()));
    assert_eq!(durable.reopen(&mut || Ok(()), &mut |_| Err(no())), Err(no()));
    assert!(!durable.is_open());
    durable.reopen(&mut || Ok(()), &mut |_| Ok(())).unwrap().unwrap();
    assert_eq!(durable.tally().unwrap(), filed);
    durable.close(Instant::now() + Duration::from_secs(60)).unwrap();
}

#[test]
fn a_damaged_message_does_not_take_the_engine_out_of_use() {
    let dir = dir();
    let durable = handle(dir.path(), SledOptions::new(CACHE));
    file(&durable, [put(1, whole(1, 10))]).unwrap();
    let err = file(&durable, [put(2, whole(1, 8_000))]).unwrap_err();
    assert!(matches!(err, DurableError::TooLarge { .. }));
    assert!(durable.is_open());
    assert!(durable.memory_bytes() > 0 && durable.size_on_disk() > 0);
    durable.close(Instant::now() + Duration::from_secs(60)).unwrap();
    assert_eq!(durable.memory_bytes(), 0);
}

#[test]
fn many_callers_meet_one_error_and_one_reopening() {
    let dir = dir();
    let sync = Arc::new(CountingSync::default());
    let durable = handle(dir.path(), sync.options());
    file(&durable, (0..500).map(|n| put(n, whole(1, 100)))).unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    for round in 1..=5_u64 {
        sync.fail_from(sync.of_data.load(Ordering::SeqCst) + 1);
        thread::scope(|scope| {
            for reader in 0..3_u32 {
                let durable = &durable;
                scope.spawn(move || {
                    loop {
                        match durable.get(&key(reader)) {
                            Ok(record) => assert_eq!(record, Some(whole(1, 100))),
                            Err(err) => break assert!(err.is_retryable(), "{err}"),
                        }
                        assert!(Instant::now() < until);
                    }
                });
            }
            file(&durable, [put(600, whole(round, 1))]).unwrap_err();
        });
        sync.fail_from(0);
        thread::scope(|scope| {
            let openers: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| durable.reopen(&mut || Ok(()), &mut |_| Ok(())).unwrap().is_some()))
                .collect();
            let opened = openers.into_iter().filter(|_| true).map(|opener| opener.join().unwrap());
            assert_eq!(opened.filter(|opened| *opened).count(), 1);
        });
    }
    durable.close(Instant::now() + Duration::from_secs(60)).unwrap();
}
