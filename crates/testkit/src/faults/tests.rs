use std::fs;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tidespool::storage::{OpenMode, Storage as _, StorageFile};

use super::unsynced::{Undo, Unsynced};
use super::{Call, Fault, FaultyStorage};

struct Bench {
    dir: TempDir,
    storage: FaultyStorage,
}

impl Bench {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap(), storage: FaultyStorage::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn create(&self, name: &str) -> Arc<dyn StorageFile> {
        self.storage.open(&self.path(name), OpenMode::Create).unwrap()
    }
}

fn write(file: &dyn StorageFile, offset: u64, data: &[u8]) -> std::io::Result<usize> {
    file.write_vectored_at(&[IoSlice::new(data)], offset)
}

/// tmpfs does not support these reads.
fn read_in_memory(file: &dyn StorageFile, buf: &mut [u8]) -> std::io::Result<()> {
    match file.read_in_memory_at(&mut [IoSliceMut::new(buf)], 0) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(()),
        read => read.map(drop),
    }
}

#[test]
fn each_kind_of_call_fails_once_on_request() {
    let bench = Bench::new();
    let file = bench.create("a.seg");
    let storage = &bench.storage;
    let again = |mode| storage.open(&bench.path("a.seg"), mode).map(drop);
    let call = |call: Call| match call {
        Call::Create => storage.open(&bench.path("b"), OpenMode::Create).map(drop),
        Call::Open => again(OpenMode::Read),
        Call::Read => file.read_at(&mut [0; 4], 0).map(drop),
        Call::ReadInMemory => read_in_memory(&*file, &mut [0; 4]),
        Call::Write => write(&*file, 0, b"data").map(drop),
        Call::Sync => file.sync_data(),
        Call::Rename => storage.rename(&bench.path("a.seg"), &bench.path("a.seg")),
        Call::Remove => storage.remove_file(&bench.path("b")),
        Call::SyncDir => storage.sync_dir(bench.dir.path()),
        Call::Dir => storage.list(bench.dir.path()).map(drop),
        Call::State => storage.state(&bench.path("a.seg")).map(drop),
        Call::Space => storage.space(bench.dir.path()).map(drop),
    };
    use Call::{Create, Dir, Open, Read, ReadInMemory, Remove, Rename, Sync, SyncDir, Write};
    for kind in [Create, Open, Read, ReadInMemory, Write, Sync, Rename, Remove, SyncDir, Dir] {
        let before = storage.count(kind);
        storage.inject(Fault::on(kind));
        assert_eq!(call(kind).unwrap_err().raw_os_error(), Some(5), "{kind:?}");
        call(kind).unwrap_or_else(|err| panic!("{kind:?} fails again: {err}"));
        if kind == Remove {
            call(Create).unwrap();
        }
        assert_eq!(storage.count(kind), before + 2, "{kind:?}");
    }
    assert!(storage.total() > 18);
    // Count only calls that a fault affects: the number of the others depends on timing.
    let before = storage.total();
    for kind in [Call::State, Call::Space] {
        storage.inject(Fault::on(kind));
        assert_eq!(call(kind).unwrap_err().raw_os_error(), Some(5));
        call(kind).unwrap();
    }
    assert_eq!(storage.total(), before + 2);
    storage.inject(Fault::on_any());
    call(Call::State).expect("on_any excludes Call::State");
    call(Call::Space).expect("on_any excludes Call::Space");
    storage.inject(Fault::on(Call::Space).short(7));
    assert_eq!(storage.space(bench.dir.path()).unwrap().free_bytes, 7);
}

#[test]
fn a_fault_affects_only_the_selected_call() {
    let bench = Bench::new();
    let (a, b) = (bench.create("a.seg"), bench.create("manifest.new"));
    bench.storage.inject(Fault::on(Call::Sync).file(".new").nth(2));
    for _ in 0..3 {
        a.sync_data().unwrap();
    }
    b.sync_data().unwrap();
    assert!(b.sync_data().is_err());
    b.sync_data().unwrap();
    bench.storage.inject(Fault::on(Call::Write).always().full_disk());
    for _ in 0..3 {
        assert_eq!(write(&*a, 0, b"x").unwrap_err().kind(), ErrorKind::StorageFull);
        a.sync_data().unwrap();
    }
    bench.storage.heal();
    write(&*a, 0, b"x").unwrap();
    assert_eq!(bench.storage.count_where(Call::Sync, |name| name == "a.seg"), 6);
}

#[test]
fn the_nth_call_of_all_can_fail() {
    let bench = Bench::new();
    let file = bench.create("a");
    bench.storage.inject(Fault::on_any().nth(2));
    write(&*file, 0, b"x").unwrap();
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
}

#[test]
fn writes_are_short_or_torn() {
    let bench = Bench::new();
    let file = bench.create("a");
    bench.storage.inject(Fault::on(Call::Write).short(3));
    assert_eq!(write(&*file, 0, b"abcdef").unwrap(), 3);
    bench.storage.inject(Fault::on(Call::Write).torn(2));
    assert!(write(&*file, 3, b"defg").is_err());
    assert_eq!(fs::read(bench.path("a")).unwrap(), b"abcde");
}

#[test]
fn a_sync_after_a_failed_sync_is_recorded() {
    let bench = Bench::new();
    let (a, b) = (bench.create("a"), bench.create("b"));
    bench.storage.inject(Fault::on(Call::Sync).file("a"));
    assert!(a.sync_data().is_err());
    b.sync_data().unwrap();
    assert_eq!(bench.storage.trusted_again(), [""; 0]);
    a.sync_data().unwrap();
    assert_eq!(bench.storage.trusted_again(), ["a"]);
}

/// A new manifest replaces one whose sync failed: it is a different file with the same name.
#[test]
fn a_file_that_replaces_one_with_a_failed_sync_may_be_synced() {
    let bench = Bench::new();
    let old = bench.create("manifest");
    bench.storage.inject(Fault::on(Call::Sync));
    assert!(old.sync_data().is_err());
    let new = bench.create("manifest.new");
    bench.storage.rename(&bench.path("manifest.new"), &bench.path("manifest")).unwrap();
    new.sync_data().unwrap();
    assert_eq!(bench.storage.trusted_again(), [""; 0]);
    bench.storage.inject(Fault::on(Call::Sync));
    assert!(new.sync_data().is_err());
    bench.storage.rename(&bench.path("manifest"), &bench.path("manifest.old")).unwrap();
    new.sync_data().unwrap();
    assert_eq!(bench.storage.trusted_again(), ["manifest.old"]);
}

/// sled's data file is still used after an error, with a new descriptor and without its cached
/// pages.
#[test]
fn a_file_that_was_reopened_and_uncached_may_be_synced() {
    let bench = Bench::new();
    let before = bench.create("db");
    bench.storage.inject(Fault::on(Call::Sync));
    assert!(before.sync_data().is_err());
    before.forget_cached();
    before.sync_data().unwrap();
    let anew = bench.storage.open(&bench.path("db"), OpenMode::Write).unwrap();
    anew.sync_data().unwrap();
    assert_eq!(bench.storage.trusted_again(), ["db", "db"]);
    anew.forget_cached();
    anew.sync_data().unwrap();
    assert_eq!(bench.storage.trusted_again().len(), 2);
}

#[test]
fn a_blocked_call_waits_until_the_storage_is_healed() {
    let bench = Bench::new();
    let file = bench.create("a");
    bench.storage.inject(Fault::on(Call::Sync).always().block());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| file.sync_data());
        while bench.storage.blocked() == 0 {
            std::thread::yield_now();
        }
        write(&*file, 0, b"x").unwrap();
        assert!(!waits.is_finished());
        bench.storage.heal();
        waits.join().unwrap().unwrap();
    });
    assert_eq!(bench.storage.blocked(), 0);
    file.sync_data().unwrap();
}

#[test]
fn from_the_nth_call_all_fail_until_the_storage_is_healed() {
    let bench = Bench::new();
    let file = bench.create("a.seg");
    bench.storage.inject(Fault::on_any().from(3));
    write(&*file, 0, b"x").unwrap();
    file.sync_data().unwrap();
    assert!(write(&*file, 0, b"x").is_err());
    assert!(file.read_at(&mut [0; 4], 0).is_err());
    let struck = bench.storage.strikes();
    let struck: Vec<_> =
        struck.iter().map(|strike| (strike.call, strike.name.as_str(), strike.number)).collect();
    assert_eq!(struck, [(Call::Write, "a.seg", 4), (Call::Read, "a.seg", 5)]);
    bench.storage.heal();
    file.sync_data().unwrap();
    assert_eq!(bench.storage.strikes().len(), 2);
}

#[test]
fn consecutive_calls_can_fail() {
    let bench = Bench::new();
    let file = bench.create("a");
    bench.storage.inject(Fault::on(Call::Sync).nth(2).times(2));
    assert_eq!([1, 2, 3, 4].map(|_| file.sync_data().is_ok()), [true, false, false, true]);
}

#[test]
fn a_delayed_call_is_made_after_its_delay_or_on_release() {
    let bench = Bench::new();
    let file = bench.create("a");
    bench.storage.inject(Fault::on(Call::Write).delay(Duration::from_millis(1)));
    write(&*file, 0, b"late").unwrap();
    assert_eq!(fs::read(bench.path("a")).unwrap(), b"late");
    bench.storage.inject(Fault::on(Call::Sync).delay(Duration::from_secs(3600)));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| file.sync_data());
        while bench.storage.blocked() == 0 {
            std::thread::yield_now();
        }
        bench.storage.release();
        waits.join().unwrap().unwrap();
    });
}

#[test]
fn corrupt_changes_bytes_on_write_and_on_read() {
    let bench = Bench::new();
    let file = bench.create("a");
    bench.storage.inject(Fault::on(Call::Write).nth(2).corrupt());
    write(&*file, 0, b"abc").unwrap();
    assert_eq!(fs::read(bench.path("a")).unwrap(), b"abc");
    assert_eq!(write(&*file, 0, b"abc").unwrap(), 3);
    assert_eq!(fs::read(bench.path("a")).unwrap(), b"qbc");
    let mut back = [0; 3];
    for call in [Call::Read, Call::ReadInMemory] {
        bench.storage.inject(Fault::on(call).corrupt());
    }
    read_in_memory(&*file, &mut back).unwrap_err();
    file.read_at(&mut back, 0).unwrap();
    assert_eq!(&back, b"abc", "changed twice");
    read_in_memory(&*file, &mut back).unwrap();
    assert_eq!(&back, b"abc", "changed twice");
    let (mut first, mut rest) = ([0; 1], [0; 2]);
    bench.storage.inject(Fault::on(Call::Read).corrupt());
    file.read_vectored_at(&mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut rest)], 0).unwrap();
    assert_eq!((&first, &rest), (b"a", b"bc"), "changed twice");
}

#[test]
fn reads_are_short() {
    let bench = Bench::new();
    let file = bench.create("a");
    write(&*file, 0, b"abcdef").unwrap();
    let mut back = [0; 6];
    bench.storage.inject(Fault::on(Call::Read).short(2));
    assert_eq!(file.read_at(&mut back, 0).unwrap(), 2);
    bench.storage.inject(Fault::on(Call::Read).short(4));
    assert_eq!(file.read_vectored_at(&mut [IoSliceMut::new(&mut back)], 2).unwrap(), 4);
    assert_eq!(&back, b"cdef\0\0");
}

#[test]
fn a_watcher_sees_each_call_before_it_is_made() {
    let bench = Bench::new();
    let (seen, path) = (Arc::new(AtomicU64::new(0)), bench.path("a"));
    let counter = seen.clone();
    bench.storage.watch(move |moment| {
        counter.fetch_add(1, Ordering::Relaxed);
        assert_eq!(moment.call == Call::Create, !path.exists());
    });
    let file = bench.create("a");
    file.sync_data().unwrap();
    bench.storage.unwatch();
    file.sync_data().unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 2);
}

#[test]
fn a_power_cut_reverts_unsynced_writes_and_nothing_else() {
    let bench = Bench::new();
    let file = bench.create("a");
    write(&*file, 0, &[1; 8192]).unwrap();
    file.sync_data().unwrap();
    bench.storage.remember_unsynced();
    write(&*file, 0, &[2; 4096]).unwrap();
    file.sync_data().unwrap();
    assert!(bench.storage.unsynced().is_empty());
    write(&*file, 4096, &[3; 8192]).unwrap();
    write(&*file, 100, &[4; 4096]).unwrap();

    let copied = TempDir::new().unwrap();
    let image = copied.path().join("a");
    let cut = |keep: &mut dyn FnMut() -> bool| {
        fs::copy(bench.path("a"), &image).unwrap();
        bench.storage.unsynced().cut(bench.dir.path(), copied.path(), keep).unwrap();
        fs::read(&image).unwrap()
    };
    assert_eq!(cut(&mut || true), fs::read(bench.path("a")).unwrap());
    assert_eq!(cut(&mut || false), [vec![2; 4096], vec![1; 4096]].concat());
    // The newest write is reverted first: of the last write, the first page is kept.
    let mut kept = [true, false, false, false, false].into_iter();
    let torn = cut(&mut || kept.next().unwrap());
    assert_eq!((torn[99], torn[100], torn[4095], torn[4096]), (2, 4, 4, 1));
    file.sync_data().unwrap();
    assert_eq!(cut(&mut || false), fs::read(bench.path("a")).unwrap());
}

/// Regression: the manifest's file is renamed once and then written in place, and a power cut did
/// not revert these writes.
#[test]
fn a_power_cut_reverts_writes_after_a_rename() {
    let bench = Bench::new();
    let file = bench.create("new");
    write(&*file, 0, &[1; 4096]).unwrap();
    file.sync_data().unwrap();
    bench.storage.rename(&bench.path("new"), &bench.path("old")).unwrap();
    bench.storage.remember_unsynced();
    write(&*file, 0, &[2; 4096]).unwrap();

    let copied = TempDir::new().unwrap();
    let image = copied.path().join("old");
    fs::copy(bench.path("old"), &image).unwrap();
    bench.storage.unsynced().cut(bench.dir.path(), copied.path(), || false).unwrap();
    assert_eq!(fs::read(&image).unwrap(), [1; 4096]);
}

/// Callers write while the disk syncs the batch before: the sync does not cover these writes.
#[test]
fn a_sync_covers_only_writes_made_before_it() {
    let (bench, mut unsynced, path) = (Bench::new(), Unsynced::default(), Path::new("a"));
    let file = bench.create("a");
    unsynced.add(path, Undo::of(&*file, 0, 1).unwrap());
    let covered = unsynced.count(path);
    unsynced.add(path, Undo::of(&*file, 1, 1).unwrap());
    unsynced.forget_first(path, covered);
    assert_eq!(unsynced.count(path), 1);
    unsynced.forget_first(path, 1);
    assert!(unsynced.is_empty());
}
