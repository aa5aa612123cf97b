use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tidespool::{Gauges, PressureConfig, PressureLevel, PressureMonitor, PressureSource, TieredSpool};
use tidespool_core::SpoolId;
use tidespool_testkit::wait;

use crate::setup::{KIB, MIB, Tiered, assert_holds, put, stop};

const LEN: usize = 64 * 1024;
const COUNT: usize = 100;

/// The files of a machine, in a directory. The test writes them; the spool believes them.
struct Machine(TempDir);

const GROUP: &str = "sys/fs/cgroup/mail";

impl Machine {
    /// A process in a group of version 2 without a limit, on a machine with 64 GiB.
    fn new() -> Self {
        let machine = Self(TempDir::new().unwrap());
        machine.write("proc/self/cgroup", "0::/mail\n");
        machine.write("proc/self/status", "Name:\tspool\nVmRSS:\t   100000 kB\n");
        machine.write("proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   60000000 kB\n");
        machine
    }

    /// The same with a limit on the group.
    fn with_limit(limit_mib: u64) -> Self {
        let machine = Self::new();
        machine.write(&format!("{GROUP}/memory.stat"), "anon 1000\ninactive_file 0\n");
        machine.limit(&(limit_mib * MIB).to_string());
        machine.uses(0);
        machine
    }

    /// In place at once: the monitor must not see half a number.
    fn write(&self, file: &str, text: &str) {
        let path = self.0.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn uses(&self, mib: u64) {
        self.write(&format!("{GROUP}/memory.current"), &format!("{}\n", mib * MIB));
    }

    fn limit(&self, limit: &str) {
        self.write(&format!("{GROUP}/memory.max"), &format!("{limit}\n"));
    }

    fn monitor(&self) -> PressureMonitor {
        PressureMonitor::start_below(self.path(), settings()).expect("a monitor")
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn settings() -> PressureConfig {
    PressureConfig::default().interval(Duration::from_millis(10)).low(0.8).critical(0.9).hysteresis(0.1)
}

async fn start(tiered: &Tiered, monitor: &PressureMonitor) -> Arc<TieredSpool> {
    Arc::new(TieredSpool::open_watched(tiered.config.clone(), monitor).await.expect("open"))
}

/// Clean copies of messages: as many as these tests are about.
async fn fill(spool: &TieredSpool) -> Vec<SpoolId> {
    let mut ids = Vec::new();
    for _ in 0..COUNT {
        ids.push(put(spool, LEN, true).await);
    }
    wait::until("there are clean copies", || spool.stats().gauges.cache_entries >= COUNT as u64).await;
    ids
}

async fn until(spool: &TieredSpool, what: &str, holds: impl Fn(&Gauges) -> bool) {
    wait::until(what, || holds(&spool.stats().gauges)).await;
}

async fn until_level(spool: &TieredSpool, level: PressureLevel) {
    until(spool, &format!("the level is {level:?}"), |now| now.pressure_level == level).await;
}

/// Pressure comes: clean copies go. It goes: the cache has its old size again. No message is lost by it.
#[tokio::test(flavor = "multi_thread")]
async fn the_spool_shrinks_and_grows_back() {
    let machine = Machine::with_limit(1000);
    machine.uses(500);
    let monitor = machine.monitor();
    let tiered = Tiered::new(|config| config);
    let spool = start(&tiered, &monitor).await;
    let ids = fill(&spool).await;
    let before = spool.stats().gauges;
    assert_eq!((before.pressure_used, before.pressure_limit), (500 * MIB, 1000 * MIB));
    assert_eq!(before.pressure_source, Some(PressureSource::CgroupV2));
    assert_eq!((before.pressure_level, before.resident_bytes), (PressureLevel::Normal, 100_000 * KIB));

    machine.uses(850);
    until_level(&spool, PressureLevel::Low).await;
    until(&spool, "clean copies have gone", |now| now.cache_bytes < before.cache_bytes / 2).await;
    assert!(spool.stats().gauges.cache_capacity < before.cache_capacity);
    for &id in &ids {
        assert_holds(spool.as_ref(), id, LEN).await;
    }

    machine.uses(950);
    until_level(&spool, PressureLevel::Critical).await;
    let during = put(spool.as_ref(), LEN, false).await;
    assert_holds(spool.as_ref(), during, LEN).await;

    machine.uses(500);
    until_level(&spool, PressureLevel::Normal).await;
    // An eighth is not worth touching every copy for.
    let size = before.cache_capacity / 8 * 7;
    until(&spool, "the cache has its size back", |now| now.cache_capacity >= size).await;
    for &id in ids.iter().chain([&during]) {
        assert_holds(spool.as_ref(), id, LEN).await;
    }
    let stats = spool.stats();
    assert_eq!(stats.pressure_changes, 3);
    assert!(stats.low_memory_calls > 0, "{:?}", stats.gauges);
    stop(spool).await;
}

/// Two spools, one monitor. The end of one is not the end of the other's watch.
#[tokio::test(flavor = "multi_thread")]
async fn spools_share_a_monitor() {
    let machine = Machine::with_limit(1000);
    let monitor = machine.monitor();
    let (first, second) = (Tiered::new(|config| config), Tiered::new(|config| config));
    let (one, other) = (start(&first, &monitor).await, start(&second, &monitor).await);
    let ids = [fill(&one).await, fill(&other).await];
    let cached = one.stats().gauges.cache_bytes;
    machine.uses(850);
    for spool in [&one, &other] {
        until_level(spool, PressureLevel::Low).await;
        until(spool, "clean copies have gone", |now| now.cache_bytes < cached / 2).await;
    }
    stop(one).await;
    machine.uses(100);
    until_level(&other, PressureLevel::Normal).await;
    for &id in &ids[1] {
        assert_holds(other.as_ref(), id, LEN).await;
    }
    // The first comes back, and is told what it has missed.
    machine.uses(850);
    let one = start(&first, &monitor).await;
    until_level(&one, PressureLevel::Low).await;
    for &id in &ids[0] {
        assert_holds(one.as_ref(), id, LEN).await;
    }
    // Nobody watches any more: nothing is held back.
    tokio::task::spawn_blocking(move || monitor.shutdown()).await.unwrap();
    assert_eq!(one.stats().gauges.pressure_level, PressureLevel::Normal);
    stop(one).await;
    stop(other).await;
}

/// An operator gives the container another limit, and takes it away.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_changes_while_the_spool_runs() {
    let machine = Machine::with_limit(1000);
    machine.uses(500);
    let monitor = machine.monitor();
    let tiered = Tiered::new(|config| config);
    let spool = start(&tiered, &monitor).await;
    machine.limit(&(600 * MIB).to_string());
    until_level(&spool, PressureLevel::Low).await;
    machine.limit(&(500 * MIB).to_string());
    until_level(&spool, PressureLevel::Critical).await;
    machine.limit("max");
    until_level(&spool, PressureLevel::Normal).await;
    assert_eq!(spool.stats().gauges.pressure_source, Some(PressureSource::System));
    // Others use up the machine.
    machine.write("proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   10000000 kB\n");
    until_level(&spool, PressureLevel::Low).await;
    machine.write("proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   60000000 kB\n");
    until_level(&spool, PressureLevel::Normal).await;
    // Nothing to read any more is no reason to do anything.
    for file in ["proc/meminfo", "proc/self/status"] {
        machine.write(file, "?");
    }
    until(&spool, "nothing is known", |now| now.pressure_source.is_none()).await;
    assert_eq!(spool.stats().gauges.pressure_level, PressureLevel::Normal);
    stop(spool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalls_are_an_early_sign() {
    let machine = Machine::with_limit(1000);
    let monitor = machine.monitor();
    let tiered = Tiered::new(|config| config);
    let spool = start(&tiered, &monitor).await;
    machine.write(&format!("{GROUP}/memory.pressure"), "some avg10=25.00 avg60=0.00 avg300=0.00 total=0\n");
    until_level(&spool, PressureLevel::Low).await;
    assert_eq!(spool.stats().gauges.memory_stall_ratio, Some(0.25));
    machine.write(&format!("{GROUP}/memory.pressure"), "some avg10=1.00 avg60=0.00 avg300=0.00 total=0\n");
    until_level(&spool, PressureLevel::Normal).await;
    stop(spool).await;
}

/// A running monitor is turned off and on.
#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_is_turned_off_leaves_the_spool_alone() {
    let machine = Machine::with_limit(1000);
    let monitor = machine.monitor();
    let tiered = Tiered::new(|config| config);
    let spool = start(&tiered, &monitor).await;
    let whole = spool.stats().gauges.cache_capacity;
    fill(&spool).await;
    machine.uses(850);
    until_level(&spool, PressureLevel::Low).await;
    until(&spool, "the cache is smaller", |now| now.cache_capacity < whole).await;
    monitor.reconfigure(settings().enabled(false)).unwrap();
    until_level(&spool, PressureLevel::Normal).await;
    until(&spool, "the cache has its size back", |now| now.cache_capacity == whole).await;
    monitor.reconfigure(settings()).unwrap();
    until_level(&spool, PressureLevel::Low).await;
    stop(spool).await;
}

/// Without a monitor from outside the spool has one of its own, for this very machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_has_a_monitor_of_its_own() {
    // Any process is larger than this.
    let settings = settings().memory_limit(8 * MIB).low(0.01).critical(0.02).hysteresis(0.005);
    let tiered = Tiered::new(|config| config.pressure(settings));
    let spool = tiered.start().await;
    until_level(&spool, PressureLevel::Critical).await;
    // Above its limit, which nothing else can be.
    assert_eq!(spool.stats().gauges.pressure_source, Some(PressureSource::Process));
    let id = put(spool.as_ref(), LEN, false).await;
    assert_holds(spool.as_ref(), id, LEN).await;
    stop(spool).await;
}

/// A machine that others fill to three quarters is no reason to be small: memory is not short, and no limit kills.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_use_of_the_machine_takes_nothing_while_memory_is_normal() {
    let machine = Machine::new();
    // 76 % of 64 GiB.
    machine.write("proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   16106127 kB\n");
    let monitor = machine.monitor();
    let tiered = Tiered::new(|config| config);
    let spool = start(&tiered, &monitor).await;
    fill(&spool).await;
    let now = spool.stats().gauges;
    assert_eq!(
        (now.pressure_source, now.pressure_level),
        (Some(PressureSource::System), PressureLevel::Normal)
    );
    assert_eq!(now.memory_allowed, tiered.config.memory_budget);
    stop(spool).await;
}

/// Two spools in a group whose limit is below what was promised to them share what the others leave, from the start.
#[tokio::test(flavor = "multi_thread")]
async fn spools_of_one_group_share_its_limit() {
    let machine = Machine::with_limit(100);
    // Others, the process's own heap among them, and what the two spools take themselves: 70 % of 100 MiB are 70, of which 30 to 45 are left.
    machine.uses(40);
    let monitor = machine.monitor();
    let (large, small) = (Tiered::new(|config| config.memory_budget(64 * MIB)), Tiered::new(|config| config));
    let (first, second) = (start(&large, &monitor).await, start(&small, &monitor).await);
    until(&first, "it has its part", |now| (20 * MIB..31 * MIB).contains(&now.memory_allowed)).await;
    until(&second, "it has its part", |now| (9 * MIB..16 * MIB).contains(&now.memory_allowed)).await;
    stop(first).await;
    // What the other one had comes back, slowly.
    until(&second, "it has more", |now| now.memory_allowed > 20 * MIB).await;
    stop(second).await;
}
