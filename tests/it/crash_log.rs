use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use tidespool::{Durability, TieredSpool};
use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::{payload, wait};

use crate::machine::Machine;
use crate::setup::{
    KIB, MIB, Tiered, assert_absent, assert_holds, copy_dir, enumerate, put, stop, when_free,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Settings under which the journal is written only when necessary.
fn quiet(durability: Durability) -> Tiered {
    Tiered::new(|config| config.durability(durability).dirty_expire(HOUR).dirty_limit(16 * MIB))
}

fn log_of(tiered: &Tiered) -> std::path::PathBuf {
    tiered.path().join("crash-log")
}

/// Waits until the threads of a dropped spool have ended.
async fn wait_until_free(dir: &Path) {
    let lock = fs::File::open(dir.join("LOCK")).unwrap();
    wait::until("the directory is free", || lock.try_lock().is_ok()).await;
}

async fn replace(spool: &dyn Spool, id: SpoolId, version: u64, len: usize) {
    spool.store(id, payload::shared(id, version, len), false, None).await.expect("store");
}

/// The messages before a crash, which must be the same afterwards.
struct Before {
    stored: Vec<(SpoolId, usize)>,
    replaced: SpoolId,
    removed: Vec<SpoolId>,
}

impl Before {
    async fn of(spool: &TieredSpool) -> Self {
        let lens = [0, 1, 500, 16 << 10, 64 << 10, 70_000, 1 << 20];
        let mut stored = Vec::new();
        for len in lens {
            stored.push((put(spool, len, false).await, len));
        }
        // A synced and an unsynced replacement of a message.
        let replaced = put(spool, 3_000, true).await;
        replace(spool, replaced, 2, 4_000).await;
        // Removed messages: synced; unsynced; replaced and then removed; checkpointed.
        let removed =
            [put(spool, 100, true).await, put(spool, 100, false).await, put(spool, 9_000, true).await];
        replace(spool, removed[2], 2, 50).await;
        let checkpointed = put(spool, 777, true).await;
        spool.compact().await.expect("compact");
        let removed: Vec<SpoolId> = removed.into_iter().chain([checkpointed]).collect();
        // The compaction has made everything durable. The crash log has the changes from here on.
        for (id, len) in &stored {
            replace(spool, *id, 1, *len).await;
        }
        replace(spool, replaced, 3, 5_000).await;
        let young = put(spool, 333, false).await;
        for id in removed.iter().chain([&young]) {
            spool.remove(*id).await.expect("remove");
        }
        Self { stored, replaced, removed: [removed, vec![young]].concat() }
    }

    async fn assert_is(&self, spool: &TieredSpool) {
        for (id, len) in &self.stored {
            assert_holds(spool, *id, *len).await;
        }
        payload::assert_is(self.replaced, 3, 5_000, &spool.load(self.replaced).await.expect("load"));
        for id in &self.removed {
            assert_absent(spool, *id).await;
        }
        assert_eq!(enumerate(spool).await.len(), self.stored.len() + 1);
    }
}

/// By default, a kill lost 576 of 1 350 acknowledged stores, and 290 removed messages came back.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_loses_nothing_and_restores_nothing() {
    for durability in [Durability::Process, Durability::Synced] {
        let tiered = quiet(durability);
        let spool = tiered.start().await;
        let before = Before::of(&spool).await;
        before.assert_is(&spool).await;
        let now = spool.stats().gauges;
        assert_eq!((now.process_risk_bytes, now.process_risk_removals), (0, 0));
        // The removal of a message that is only in memory is not at risk.
        assert_eq!(now.at_risk_removals, if durability == Durability::Process { 4 } else { 5 });
        // A drop without shutdown acts like a kill.
        drop(spool);
        for round in 0..3 {
            let spool = tiered.start().await;
            let report = spool.recovery();
            assert!(report.damage.is_empty(), "{report:?}");
            // From the second opening on, it is in the journal.
            assert_eq!(report.replayed > 0, round == 0, "{report:?}");
            before.assert_is(&spool).await;
            if round < 2 {
                drop(spool);
            } else {
                stop(spool).await;
            }
        }
        let spool = tiered.start().await;
        assert_eq!(spool.recovery().replayed, 0);
        before.assert_is(&spool).await;
        stop(spool).await;
    }
}

/// Images of the directory before each call of an opening that replays the crash log: the state
/// after a death at that call.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_at_any_call_of_a_replay_loses_nothing() {
    let tiered = quiet(Durability::Process);
    let spool = tiered.start().await;
    let before = Before::of(&spool).await;
    drop(spool);
    wait_until_free(&tiered.path()).await;
    let disk = Arc::new(FaultyStorage::new());
    let images = Arc::new(Mutex::new(Vec::new()));
    {
        let (disk, images, path) = (disk.clone(), images.clone(), tiered.path());
        disk.clone().watch(move |moment| {
            if matches!(moment.call, Call::Open | Call::Read | Call::ReadInMemory | Call::Dir) {
                return;
            }
            let log = || fs::read(path.join("crash-log")).ok();
            let before = log();
            let image = TempDir::new().unwrap();
            copy_dir(&path, &image.path().join("spool"));
            // If another thread continued meanwhile, the image has no consistent state.
            if disk.total() == moment.number && log() == before {
                images.lock().push((format!("{:?} of {}", moment.call, moment.name), image));
            }
        });
    }
    let spool = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await.unwrap();
    disk.unwatch();
    assert!(spool.recovery().replayed > 0);
    stop(Arc::new(spool)).await;
    let images = std::mem::take(&mut *images.lock());
    let is_replayed = |(at, _): &(String, _)| at == "Rename of crash-log";
    assert!(images.iter().any(is_replayed), "{:?}", images.iter().map(|(at, _)| at).collect::<Vec<_>>());
    for (at, image) in images {
        println!("a death before {at}");
        let mut config = tiered.config.clone();
        config.path = image.path().join("spool");
        let spool = Arc::new(TieredSpool::open(config).await.unwrap());
        assert!(spool.recovery().damage.is_empty(), "{:?}", spool.recovery());
        before.assert_is(&spool).await;
        stop(spool).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_memory_durability_there_is_no_log_and_gauges_count_the_risk() {
    let tiered = quiet(Durability::Memory);
    let spool = tiered.start().await;
    assert!(!log_of(&tiered).exists());
    let (synced, id) = (put(&*spool, 300, true).await, put(&*spool, 200, false).await);
    spool.remove(synced).await.unwrap();
    let now = spool.stats().gauges;
    assert!(now.process_risk_bytes >= 200 && now.process_risk_bytes == now.at_risk_bytes, "{now:?}");
    assert_eq!((now.process_risk_removals, now.at_risk_removals, now.crash_log_disk_bytes), (1, 1, 0));
    drop(spool);
    let spool = tiered.start().await;
    assert_absent(&*spool, id).await;
    assert_holds(&*spool, synced, 300).await;
    stop(spool).await;
}

/// The settings change between runs. Messages that the previous run acknowledged remain.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_opened_at_another_level_restores_acknowledged_messages() {
    let mut tiered = quiet(Durability::Process);
    let spool = tiered.start().await;
    let id = put(&*spool, 2_000, false).await;
    drop(spool);
    tiered.config = tiered.config.clone().durability(Durability::Memory);
    let spool = tiered.start().await;
    assert_eq!(spool.recovery().replayed, 1);
    assert!(!log_of(&tiered).exists(), "its entries are in the journal");
    assert_holds(&*spool, id, 2_000).await;
    drop(spool);
    let spool = tiered.start().await;
    assert_holds(&*spool, id, 2_000).await;
    // The same at run time.
    spool.reconfigure(spool.config().as_ref().clone().durability(Durability::Process)).unwrap();
    let id = put(&*spool, 3_000, false).await;
    wait::until("there is a log", || spool.stats().gauges.crash_log_disk_bytes > 0).await;
    let second = put(&*spool, 4_000, false).await;
    assert_eq!(spool.stats().gauges.process_risk_bytes, 0);
    drop(spool);
    let spool = tiered.start().await;
    assert_holds(&*spool, id, 3_000).await;
    assert_holds(&*spool, second, 4_000).await;
    stop(spool).await;
}

/// After a power cut the file holds whatever was written back, possibly entries of messages that
/// were removed since.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_from_before_a_restart_of_the_machine_is_ignored() {
    let tiered = quiet(Durability::Process);
    let spool = Machine { boot: 1, maps: true }.open(&tiered).await;
    let (synced, young) = (put(&spool, 100, true).await, put(&spool, 100, false).await);
    spool.remove(synced).await.unwrap();
    drop(spool);
    let spool = Machine { boot: 2, maps: true }.open(&tiered).await;
    assert_eq!((spool.recovery().replayed, spool.recovery().damage.len()), (0, 0));
    assert_absent(&spool, young).await;
    assert_holds(&spool, synced, 100).await;
    spool.shutdown().await.unwrap();
}

/// The log of another spool, garbage, and files that are too short.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_a_log_of_this_spool_is_replaced() {
    let other = quiet(Durability::Process);
    let spool = other.start().await;
    put(&*spool, 100, false).await;
    drop(spool);
    let theirs = fs::read(log_of(&other)).unwrap();
    for bytes in [theirs, vec![], vec![0x5a; 100], vec![0x5a; 1 << 20], vec![0; 1 << 20]] {
        let tiered = quiet(Durability::Process);
        let spool = tiered.start().await;
        let id = put(&*spool, 100, true).await;
        stop(spool).await;
        fs::write(log_of(&tiered), bytes).unwrap();
        let spool = tiered.start().await;
        assert_eq!((spool.recovery().replayed, spool.recovery().damage.len()), (0, 0));
        assert_holds(&*spool, id, 100).await;
        assert_eq!(enumerate(&*spool).await.len(), 1);
        stop(spool).await;
    }
}

/// With an outdated page, the whole log is ignored, and the report names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_reported_and_not_used() {
    let tiered = quiet(Durability::Process);
    let spool = tiered.start().await;
    let (synced, young) = (put(&*spool, 100, true).await, put(&*spool, 5_000, false).await);
    let data = payload::make(young, 1, 5_000);
    drop(spool);
    wait_until_free(&tiered.path()).await;
    let bytes = fs::read(log_of(&tiered)).unwrap();
    let at = bytes.windows(32).position(|window| window == &data[64..96]).expect("the payload");
    let file = fs::File::options().write(true).open(log_of(&tiered)).unwrap();
    file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    // If two readings differ, neither counts.
    let disk = FaultyStorage::new();
    disk.inject(Fault::on(Call::Read).file("crash-log").corrupt());
    let error = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await.expect_err("no log");
    assert!(format!("{error:#}").contains("two reads of it differ"), "{error:#}");
    wait_until_free(&tiered.path()).await;
    let spool = tiered.start().await;
    let report = spool.recovery();
    assert_eq!((report.replayed, report.damage.len()), (0, 1), "{report:?}");
    assert!(report.damage[0].path.ends_with("crash-log"), "{report:?}");
    assert_absent(&*spool, young).await;
    assert_holds(&*spool, synced, 100).await;
    stop(spool).await;
}

/// Another process deletes, replaces or truncates the file. A truncated file would have killed the
/// server.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_lost_under_a_running_spool_is_replaced() {
    for how in 0..4 {
        let tiered = quiet(Durability::Process);
        let spool = tiered.start().await;
        let before = put(&*spool, 20_000, false).await;
        let (log, aside) = (log_of(&tiered), tiered.path().join("journal/aside"));
        match how {
            0 => fs::remove_file(&log).unwrap(),
            1 => fs::rename(&log, &aside).unwrap(),
            2 => {
                fs::remove_file(&log).unwrap();
                fs::write(&log, [1; 100]).unwrap();
            }
            _ => fs::File::options().write(true).open(&log).unwrap().set_len(0).unwrap(),
        }
        let at_once = put(&*spool, 50_000, false).await;
        wait::until("the loss is counted", || spool.stats().crash_logs_lost > 0).await;
        wait::until("there is another log", || spool.stats().gauges.crash_log_disk_bytes > 0).await;
        wait::until("its messages are in the journal", || spool.stats().gauges.at_risk_bytes == 0).await;
        let after = put(&*spool, 50_000, false).await;
        assert_eq!(spool.stats().gauges.process_risk_bytes, 0);
        let _ = fs::remove_file(aside);
        drop(spool);
        let spool = tiered.start().await;
        for (id, len) in [(before, 20_000), (at_once, 50_000), (after, 50_000)] {
            assert_holds(&*spool, id, len).await;
        }
        assert!(spool.recovery().damage.is_empty(), "{:?}", spool.recovery());
        stop(spool).await;
    }
}

/// If a file cannot be mapped, changes that must survive a kill are synced.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_mapping_everything_is_synced() {
    let tiered = quiet(Durability::Process);
    let spool = Machine { boot: 1, maps: false }.open(&tiered).await;
    let (id, removed) = (put(&spool, 100, false).await, put(&spool, 100, false).await);
    spool.remove(removed).await.unwrap();
    let stats = spool.stats();
    assert_eq!((stats.stores, stats.stores_synced, stats.crash_log_bypassed), (2, 2, 3));
    assert_eq!((stats.gauges.at_risk_bytes, stats.gauges.at_risk_removals), (0, 0));
    drop(spool);
    let spool = Machine { boot: 2, maps: false }.open(&tiered).await;
    assert_holds(&spool, id, 100).await;
    assert_absent(&spool, removed).await;
    spool.shutdown().await.unwrap();
}

/// Without space for the file, the spool opens and works. It creates the log as soon as there is
/// space.
/// Waits until the probe thread has checked the log twice.
async fn wait_until_checked(disk: &FaultyStorage) {
    let checks = Arc::new(AtomicU64::new(0));
    let count = checks.clone();
    disk.inject(Fault::on(Call::State).file("crash-log").always().only(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        false
    }));
    // The third check begins after the second one has ended.
    wait::until("the log is checked", || checks.load(Ordering::SeqCst) >= 3).await;
}

/// Once the probe thread had missed the log in a directory that was moved, removals failed after
/// `store_deadline`, although the log had moved along.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_moved_with_its_directory_stays_active() {
    let mut tiered = quiet(Durability::Process);
    tiered.config = tiered.config.clone().store_deadline(Duration::from_secs(2));
    let disk = FaultyStorage::new();
    let spool = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await.unwrap();
    let removed = put(&spool, 200, true).await;
    let kept = put(&spool, 12_000, false).await;
    let aside = TempDir::new().unwrap();
    let moved = aside.path().join("moved");
    fs::rename(tiered.path(), &moved).unwrap();
    wait_until_checked(&disk).await;
    spool.remove(removed).await.expect("remove");
    assert_eq!(spool.stats().crash_logs_lost, 0);
    drop(spool);
    wait_until_free(&moved).await;
    tiered.config.path = moved;
    let spool = TieredSpool::open(tiered.config.clone()).await.unwrap();
    assert_eq!(spool.recovery().replayed, 2, "{:?}", spool.recovery());
    assert_holds(&spool, kept, 12_000).await;
    assert_absent(&spool, removed).await;
    stop(Arc::new(spool)).await;
}

/// The file of the log is deleted, so that it protects nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_deleted_with_its_directory_is_lost() {
    let tiered = quiet(Durability::Process);
    let spool = tiered.start().await;
    put(&*spool, 12_000, false).await;
    fs::remove_dir_all(tiered.path()).unwrap();
    wait::until("the log is lost", || spool.stats().crash_logs_lost == 1).await;
    wait::until("no log is active", || spool.stats().gauges.crash_log_disk_bytes == 0).await;
}

/// Read errors of the log made an opening give up all that it holds.
#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_cannot_read_the_log_fails_and_the_next_one_restores_it() {
    let tiered = quiet(Durability::Process);
    let spool = tiered.start().await;
    let before = Before::of(&spool).await;
    drop(spool);
    wait_until_free(&tiered.path()).await;
    let log = fs::read(log_of(&tiered)).unwrap();
    for call in [Call::Open, Call::Read] {
        let disk = FaultyStorage::new();
        disk.inject(Fault::on(call).file("crash-log").always());
        let error = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await.expect_err("no log");
        let text = format!("{error:#}");
        assert!(error.root_cause().is::<std::io::Error>() && text.contains("tidespool repair "), "{text}");
        wait_until_free(&tiered.path()).await;
        assert!(fs::read(log_of(&tiered)).unwrap() == log, "the log was changed");
    }
    let spool = tiered.start().await;
    assert!(spool.recovery().damage.is_empty() && spool.recovery().replayed > 0);
    before.assert_is(&spool).await;
    stop(spool).await;
}

/// One wrong byte of one reading made an opening report the log as damaged, or take it for a log of
/// which nothing is needed, and give up all that it holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_byte_in_one_reading_of_the_log_loses_nothing() {
    let tiered = quiet(Durability::Process);
    let spool = tiered.start().await;
    let before = Before::of(&spool).await;
    drop(spool);
    wait_until_free(&tiered.path()).await;
    let mut reading = 1;
    loop {
        let image = TempDir::new().unwrap();
        let mut config = tiered.config.clone();
        config.path = image.path().join("spool");
        copy_dir(&tiered.path(), &config.path);
        let disk = FaultyStorage::new();
        disk.inject(Fault::on(Call::Read).file("crash-log").corrupt().nth(reading));
        let spool = Arc::new(TieredSpool::open_on(config, disk.storage()).await.unwrap());
        let report = spool.recovery();
        assert!(report.damage.is_empty() && report.replayed > 0, "reading {reading}: {report:?}");
        before.assert_is(&spool).await;
        stop(spool).await;
        if disk.strikes().is_empty() {
            break;
        }
        reading += 1;
    }
    assert!(reading > 3, "the log was read in {reading} parts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_without_space_for_a_log_creates_it_later() {
    let tiered = quiet(Durability::Process);
    let disk = FaultyStorage::new();
    disk.inject(Fault::on(Call::Create).only(|moment| moment.name.starts_with("crash-log")).always());
    let open = || TieredSpool::open_on(tiered.config.clone(), disk.storage());
    let spool = when_free(open).await.expect("open");
    let id = put(&spool, 100, false).await;
    assert_eq!((spool.stats().stores_synced, spool.stats().gauges.crash_log_disk_bytes), (1, 0));
    disk.heal();
    wait::until("there is a log", || spool.stats().gauges.crash_log_disk_bytes > 0).await;
    let second = put(&spool, 100, false).await;
    assert_eq!(spool.stats().stores_synced, 1);
    drop(spool);
    let spool = tiered.start().await;
    assert_holds(&*spool, id, 100).await;
    assert_holds(&*spool, second, 100).await;
    stop(spool).await;
}

/// Changes that do not fit in the full log go to the journal. Removals fit longer.
#[tokio::test(flavor = "multi_thread")]
async fn changes_that_do_not_fit_in_the_log_are_synced() {
    let tiered = Tiered::new(|config| {
        config.memory_budget(64 * MIB).dirty_limit(2 * MIB).dirty_expire(HOUR).durability(Durability::Process)
    });
    let spool = tiered.start().await;
    let room = spool.stats().gauges.crash_log_disk_bytes;
    // The dirty limit is raised, while the log has the size for the old one.
    spool.reconfigure(spool.config().as_ref().clone().dirty_limit(32 * MIB)).unwrap();
    // Until the new limit is in force, dirty data is written, and the log never becomes full.
    wait::until("the limit is raised", || spool.stats().gauges.dirty_limit > 8 * MIB).await;
    let mut stored = Vec::new();
    while spool.stats().crash_log_bypassed == 0 {
        stored.push(put(&*spool, 60_000, false).await);
        assert!((stored.len() as u64) < room / 60_000 + 2, "the log never becomes full");
    }
    assert_eq!(spool.stats().stores_synced, 1);
    drop(spool);
    let spool = tiered.start().await;
    for id in &stored {
        assert_holds(&*spool, *id, 60_000).await;
    }
    assert!(spool.recovery().replayed > stored.len() as u64 / 2, "{:?}", spool.recovery());
    stop(spool).await;
}

/// 1 553 of 38 897 webhooks were delivered twice after two power cuts.
#[tokio::test(flavor = "multi_thread")]
async fn a_synced_removal_survives_a_power_cut() {
    let tiered = quiet(Durability::Process);
    let disk = FaultyStorage::new();
    disk.remember_unsynced();
    let spool = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await.unwrap();
    let ids: Vec<SpoolId> = four_synced(&spool).await;
    spool.remove_synced(ids[0], None).await.unwrap();
    spool.remove_all(&ids[1..3], None).await.unwrap();
    // An id that does not exist.
    spool.remove_synced(SpoolId::new(), None).await.unwrap();
    spool.remove(ids[3]).await.unwrap();
    assert_eq!(spool.stats().gauges.at_risk_removals, 1);
    let unsynced = disk.unsynced();
    drop(spool);
    wait_until_free(&tiered.path()).await;
    unsynced.cut(&tiered.path(), &tiered.path(), || false).unwrap();
    let spool = tiered.start().await;
    for id in &ids[..3] {
        assert_absent(&*spool, *id).await;
    }
    // The last removal only had to survive the process.
    assert_holds(&*spool, ids[3], 100).await;
    stop(spool).await;
}

async fn four_synced(spool: &TieredSpool) -> Vec<SpoolId> {
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(put(spool, 100, true).await);
    }
    ids
}

/// A removal that cannot be made durable in time has taken effect, and is written later.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_synced_removal_stays_in_effect() {
    let tiered = quiet(Durability::Process);
    let disk = FaultyStorage::new();
    let spool = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await.unwrap();
    let ids = four_synced(&spool).await;
    disk.inject(Fault::on(Call::Write).only(|moment| moment.name.ends_with(".seg")).always());
    let now = std::time::Instant::now();
    let error = spool.remove_synced(ids[0], Some(now)).await.unwrap_err();
    assert!(error.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{error:#}");
    assert!(format!("{error:#}").contains("took effect"), "{error:#}");
    let short = spool.config().as_ref().clone().store_deadline(Duration::from_millis(1));
    spool.reconfigure(short).unwrap();
    let error = spool.remove_synced(ids[1], None).await.unwrap_err();
    assert!(error.root_cause().is::<SpoolBackpressureTimeout>(), "{error:#}");
    for id in &ids[..2] {
        assert_absent(&spool, *id).await;
    }
    disk.heal();
    wait::until("the removals are written", || spool.stats().gauges.at_risk_removals == 0).await;
    spool.shutdown().await.unwrap();
    let spool = tiered.start().await;
    for id in &ids[..2] {
        assert_absent(&*spool, *id).await;
    }
    stop(spool).await;
}

/// If the disk accepts no writes at the shutdown, the log keeps the changes for the next opening.
#[tokio::test(flavor = "multi_thread")]
async fn changes_a_shutdown_could_not_write_are_found_at_the_next_opening() {
    let mut tiered = quiet(Durability::Process);
    tiered.config = tiered.config.clone().shutdown_timeout(Duration::from_millis(100));
    let disk = FaultyStorage::new();
    let spool = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await.unwrap();
    let synced = put(&spool, 200, true).await;
    disk.inject(Fault::on(Call::Write).only(|moment| moment.name.ends_with(".seg")).always());
    let id = put(&spool, 12_000, false).await;
    spool.remove(synced).await.unwrap();
    let error = spool.shutdown().await.unwrap_err();
    assert!(format!("{error:#}").contains("in the crash log"), "{error:#}");
    drop(spool);
    let spool = tiered.start().await;
    assert_eq!(spool.recovery().replayed, 2);
    assert_holds(&*spool, id, 12_000).await;
    assert_absent(&*spool, synced).await;
    stop(spool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_counts_in_the_budget_and_returns_its_memory() {
    let tiered = quiet(Durability::Process);
    let spool = tiered.start().await;
    for _ in 0..64 {
        put(&*spool, 60_000, false).await;
    }
    let now = spool.stats().gauges;
    assert!(now.crash_log_bytes >= 64 * 60 * KIB, "{now:?}");
    assert!(now.accounted_bytes >= now.crash_log_bytes + now.dirty_bytes, "{now:?}");
    spool.advise_low_memory().await.unwrap();
    let now = spool.stats().gauges;
    assert_eq!((now.at_risk_bytes, now.crash_log_bytes), (0, 0), "{now:?}");
    // The log still works afterwards.
    let id = put(&*spool, 60_000, false).await;
    drop(spool);
    let spool = tiered.start().await;
    assert_holds(&*spool, id, 60_000).await;
    stop(spool).await;
}

/// After a change to `memory`, a lost log was not replaced, and the loss was reported four times a
/// second for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_that_is_not_needed_is_closed() {
    let tiered = quiet(Durability::Process);
    let spool = tiered.start().await;
    let id = put(&*spool, 100, false).await;
    spool.reconfigure(spool.config().as_ref().clone().durability(Durability::Memory)).unwrap();
    fs::remove_file(log_of(&tiered)).unwrap();
    wait::until("the log is closed", || spool.stats().gauges.crash_log_disk_bytes == 0).await;
    wait::until("its messages are in the journal", || spool.stats().gauges.at_risk_bytes == 0).await;
    assert_eq!(spool.stats().crash_logs_lost, 1);
    drop(spool);
    let spool = tiered.start().await;
    assert_holds(&*spool, id, 100).await;
    stop(spool).await;
}
