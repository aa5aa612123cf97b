use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tidespool::{
    Config, Gauges, HealthCause, HealthConfig, PressureConfig, PressureLevel, PressureMonitor,
    PressureSource, TieredSpool,
};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::wait;

use crate::setup::{KIB, MIB, Tiered, assert_holds, put, stop};

const LEN: usize = 64 * 1024;
const COUNT: usize = 100;

/// The `/proc` and control-group files of a machine, in a directory that the test writes.
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

    /// Replaces the file atomically: the monitor must not read a partial number.
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
        PressureMonitor::start_below(self.path(), Duration::from_millis(10), settings()).expect("a monitor")
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn settings() -> PressureConfig {
    PressureConfig::default().low(0.75).critical(0.9)
}

async fn start(tiered: &Tiered, monitor: &PressureMonitor) -> Arc<TieredSpool> {
    Arc::new(TieredSpool::open_watched(tiered.config.clone(), monitor).await.expect("open"))
}

/// Stores the messages of these tests and waits until the cache has clean copies.
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

/// Under pressure, clean copies are dropped. Afterwards the cache regains its size. No message is
/// lost.
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
    until(&spool, "clean copies are dropped", |now| now.cache_bytes < before.cache_bytes / 2).await;
    assert!(spool.stats().gauges.cache_capacity < before.cache_capacity);
    for &id in &ids {
        assert_holds(spool.as_ref(), id, LEN).await;
    }

    machine.uses(950);
    until_level(&spool, PressureLevel::Critical).await;
    // Pressure refuses no store, and is reported only if it is listed.
    wait::until("the cause is known", || spool.health_cause() == Some(HealthCause::Pressure)).await;
    assert_eq!(spool.unhealthy_reason(), None);
    let during = put(spool.as_ref(), LEN, false).await;
    assert_holds(spool.as_ref(), during, LEN).await;
    let health = HealthConfig::default().reported_causes(vec![HealthCause::Pressure]);
    spool.reconfigure(Config::clone(&spool.config()).health(health)).unwrap();
    assert_eq!(spool.unhealthy_reason(), Some("the spool is short of resources"));

    machine.uses(500);
    until_level(&spool, PressureLevel::Normal).await;
    wait::until("nothing is wrong", || spool.health_cause().is_none()).await;
    // A difference of an eighth does not cause another resize.
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

/// Two spools share a monitor. The shutdown of one does not end the other's monitoring.
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
        until(spool, "clean copies are dropped", |now| now.cache_bytes < cached / 2).await;
    }
    stop(one).await;
    machine.uses(100);
    until_level(&other, PressureLevel::Normal).await;
    for &id in &ids[1] {
        assert_holds(other.as_ref(), id, LEN).await;
    }
    // The first spool is reopened and gets the current level.
    machine.uses(850);
    let one = start(&first, &monitor).await;
    until_level(&one, PressureLevel::Low).await;
    for &id in &ids[0] {
        assert_holds(one.as_ref(), id, LEN).await;
    }
    // Without a monitor the level is normal.
    tokio::task::spawn_blocking(move || monitor.shutdown()).await.unwrap();
    assert_eq!(one.stats().gauges.pressure_level, PressureLevel::Normal);
    stop(one).await;
    stop(other).await;
}

/// The limit of the container is changed and removed.
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
    // Other processes use up the memory of the machine.
    machine.write("proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   10000000 kB\n");
    until_level(&spool, PressureLevel::Low).await;
    machine.write("proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   60000000 kB\n");
    until_level(&spool, PressureLevel::Normal).await;
    // Unreadable files cause no pressure.
    for file in ["proc/meminfo", "proc/self/status"] {
        machine.write(file, "?");
    }
    until(&spool, "no source can be read", |now| now.pressure_source.is_none()).await;
    assert_eq!(spool.stats().gauges.pressure_level, PressureLevel::Normal);
    stop(spool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stalls_raise_the_level() {
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

/// A running monitor can be disabled and enabled.
#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_monitor_has_no_effect_on_the_spool() {
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

/// Without an external monitor, the spool starts its own, for the real machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_starts_its_own_monitor() {
    // Any process is larger than this limit.
    let settings = settings().memory_limit(8 * MIB).low(0.1).critical(0.2);
    let tiered = Tiered::new(|config| config.pressure(settings));
    let spool = tiered.start().await;
    until_level(&spool, PressureLevel::Critical).await;
    // Only the process itself exceeds its limit.
    assert_eq!(spool.stats().gauges.pressure_source, Some(PressureSource::Process));
    let id = put(spool.as_ref(), LEN, false).await;
    assert_holds(spool.as_ref(), id, LEN).await;
    stop(spool).await;
}

/// Other processes use three quarters of the machine. Memory is not short, and no limit applies, so
/// the spool keeps its budget.
#[tokio::test(flavor = "multi_thread")]
async fn memory_of_other_processes_does_not_reduce_a_normal_budget() {
    let machine = Machine::new();
    // 74 % of 64 GiB.
    machine.write("proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   17448305 kB\n");
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

/// Two spools in a group whose limit is below their budgets share the memory that others leave,
/// from the start.
#[tokio::test(flavor = "multi_thread")]
async fn spools_of_one_group_share_its_limit() {
    let machine = Machine::with_limit(100);
    // 40 MiB for other processes, the process's own heap, and the two spools. 70 % of 100 MiB are
    // 70 MiB, of which 30 to 45 MiB are left.
    machine.uses(40);
    let monitor = machine.monitor();
    let (large, small) = (Tiered::new(|config| config.memory_budget(64 * MIB)), Tiered::new(|config| config));
    let (first, second) = (start(&large, &monitor).await, start(&small, &monitor).await);
    until(&first, "it has its share", |now| (20 * MIB..31 * MIB).contains(&now.memory_allowed)).await;
    until(&second, "it has its share", |now| (9 * MIB..16 * MIB).contains(&now.memory_allowed)).await;
    stop(first).await;
    // The share of the closed spool is returned slowly.
    until(&second, "it has more", |now| now.memory_allowed > 20 * MIB).await;
    stop(second).await;
}
