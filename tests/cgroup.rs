//! A spool in a control group (version 1) with a memory limit far below the spool's budget. Stores
//! far exceed the limit. The process must not be killed, and no acknowledged message may be
//! missing.
//!
//! In a second test the program itself takes too much memory and is killed. Nothing is lost, and no
//! removed message is restored.
//!
//! Each test starts itself as a child in a new group. If no group can be created (version 2 only,
//! or not root), it prints that to standard error and passes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use tidespool::{Config, HealthConfig, MinFree, PressureConfig, TieredSpool};
use tidespool_core::{NotFound, Spool, SpoolBackpressureTimeout, SpoolId, SpoolUnhealthyError};
use tidespool_testkit::payload;
use tokio::task::JoinSet;

const MIB: u64 = 1 << 20;

/// Memory limit of the group, in bytes.
const LIMIT: u64 = 192 * MIB;

/// Memory budget of the spool in the group, in bytes.
const BUDGET: u64 = 1024 * MIB;

/// Bytes to store: eight times the limit.
const STORED: u64 = 1536 * MIB;

/// Concurrent callers.
const CALLERS: u64 = 8;

/// Longest time that the child may take, far above the normal time.
const PATIENCE: Duration = Duration::from_secs(600);

/// Environment variables of the child: the group that it joins, and the directory that it works in.
const CHILD_GROUP: &str = "TIDESPOOL_CGROUP_GROUP";
const CHILD_DIR: &str = "TIDESPOOL_CGROUP_DIR";

fn config(dir: &Path) -> Config {
    // The dirty limit alone exceeds the limit of the group.
    Config::new(dir.join("spool"))
        .memory_budget(BUDGET)
        .dirty_limit(BUDGET / 4)
        .ballast(0)
        .pressure(PressureConfig::default())
        .health(HealthConfig::default().min_free(MinFree::Bytes(0)))
}

/// A temporary directory that is not in memory: the usual one, or one beside the build.
fn dir_on_a_disk() -> Option<TempDir> {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC`.
    const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
    let places = [std::env::temp_dir(), env!("CARGO_TARGET_TMPDIR").into()];
    let on_a_disk =
        places.into_iter().find(|place| !IN_MEMORY.contains(&rustix::fs::statfs(place).unwrap().f_type))?;
    Some(tempfile::Builder::new().prefix("tidespool-cgroup-").tempdir_in(on_a_disk).unwrap())
}

/// A control group, and a directory for a spool. If a test can't run, prints the reason and returns
/// `None`.
fn group_and_dir() -> Option<(Group, TempDir)> {
    let group = Group::make()
        .inspect_err(|why| eprintln!("not run: no control group can be made here: {why}"))
        .ok()?;
    let dir = dir_on_a_disk();
    if dir.is_none() {
        eprintln!("skipped: files in memory would count against the limit of the control group");
    }
    Some((group, dir?))
}

#[test]
fn a_process_filled_far_past_the_limit_is_not_killed() {
    let Some((group, dir)) = group_and_dir() else { return };
    let status = run_child(&group, dir.path(), "child");
    println!("cgroup: {status}; {}", group.report());
    assert!(status.success(), "the child ended with {status}; {}", group.report());
    assert_eq!(group.kills(), 0, "{}", group.report());
    assert!(group.number("memory.max_usage_in_bytes") > LIMIT / 2, "memory use stayed far below the limit");

    let stored = read_list(&dir.path().join("stored"));
    assert!(stored.iter().map(|(_, len)| *len as u64).sum::<u64>() >= STORED);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let spool = TieredSpool::open(config(dir.path())).await.expect("open");
        for (id, len) in stored {
            let data = spool.load(id).await.unwrap_or_else(|err| panic!("{id}: {err:#}"));
            payload::assert_is(id, 1, len, &data);
        }
        spool.shutdown().await.expect("shutdown");
    });
}

/// The program around the spool takes more memory than the group allows, and the OOM killer ends
/// it. Recently acknowledged messages were lost, and removed ones came back.
#[test]
fn a_process_ended_by_the_oom_killer_loses_nothing() {
    let Some((group, dir)) = group_and_dir() else { return };
    let status = run_child(&group, dir.path(), "greedy_child");
    println!("cgroup: {status}; {}", group.report());
    assert!(!status.success() && group.kills() > 0, "the child ended with {status}; {}", group.report());
    let (stored, removed) = (read_list(&dir.path().join("stored")), read_list(&dir.path().join("removed")));
    assert_eq!((stored.len(), removed.len()), (GREEDY, GREEDY));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let spool = TieredSpool::open(greedy_config(dir.path())).await.expect("open");
        assert!(spool.recovery().replayed >= 2 * GREEDY as u64, "{:?}", spool.recovery());
        for (id, len) in stored {
            let data = spool.load(id).await.unwrap_or_else(|err| panic!("{id}: {err:#}"));
            payload::assert_is(id, 1, len, &data);
        }
        for (id, _) in removed {
            let error = spool.load(id).await.expect_err("it was removed");
            assert!(error.root_cause().is::<NotFound>(), "{id}: {error:#}");
        }
        spool.shutdown().await.expect("shutdown");
    });
}

/// Number of messages that are stored, and that are removed, before the program takes too much
/// memory.
const GREEDY: usize = 300;

fn greedy_config(dir: &Path) -> Config {
    // The journal receives synced changes only.
    config(dir).memory_budget(64 * MIB).dirty_limit(8 * MIB).dirty_expire(Duration::from_secs(3600))
}

/// Not a test itself: runs in the process that the OOM killer ends.
#[test]
fn greedy_child() {
    let (Some(group), Some(dir)) = (std::env::var_os(CHILD_GROUP), std::env::var_os(CHILD_DIR)) else {
        return;
    };
    let dir = PathBuf::from(dir);
    fs::write(Path::new(&group).join("cgroup.procs"), std::process::id().to_string())
        .expect("join the group");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // Without pressure relief, which would flush the dirty messages before the end.
        let config = greedy_config(&dir).pressure(PressureConfig::default().enabled(false));
        let spool = TieredSpool::open(config).await.expect("open");
        for (name, is_removed) in [("removed", true), ("stored", false)] {
            let mut list = fs::File::create(dir.join(name)).unwrap();
            for number in 0..GREEDY {
                let (id, len) = (SpoolId::new(), 100 + number * 97);
                spool.store(id, payload::shared(id, 1, len), is_removed, None).await.expect("store");
                if is_removed {
                    spool.remove(id).await.expect("remove");
                }
                writeln!(list, "{id} {len}").unwrap();
            }
        }
        let mut taken = Vec::new();
        loop {
            taken.push(vec![1u8; 8 << 20]);
            std::hint::black_box(&taken);
        }
    });
}

fn run_child(group: &Group, dir: &Path, name: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let child = command.env(CHILD_GROUP, &group.dir).env(CHILD_DIR, dir).spawn().unwrap();
    let mut child = Running(child);
    let started = Instant::now();
    loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            return status;
        }
        assert!(started.elapsed() < PATIENCE, "the child is not done after {PATIENCE:?}; {}", group.report());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Not a test itself: runs in the group.
#[test]
fn child() {
    let (Some(group), Some(dir)) = (std::env::var_os(CHILD_GROUP), std::env::var_os(CHILD_DIR)) else {
        return;
    };
    let dir = PathBuf::from(dir);
    fs::write(Path::new(&group).join("cgroup.procs"), std::process::id().to_string())
        .expect("join the group");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stored = runtime.block_on(work(&dir));
    let mut list = fs::File::create(dir.join("stored")).unwrap();
    for (id, len) in stored {
        writeln!(list, "{id} {len}").unwrap();
    }
}

/// Stores as fast as possible, with some loads. Returns the acknowledged messages.
async fn work(dir: &Path) -> Vec<(SpoolId, usize)> {
    let spool = Arc::new(TieredSpool::open(config(dir)).await.expect("open"));
    let (left, stored) = (Arc::new(AtomicU64::new(STORED)), Arc::new(Mutex::new(Vec::new())));
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (spool, left, stored) = (spool.clone(), left.clone(), stored.clone());
        callers.spawn(async move {
            let mut rng = SmallRng::seed_from_u64(caller);
            loop {
                let len = rng.random_range(16 * 1024..=64 * 1024);
                let had = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    (left > 0).then(|| left.saturating_sub(len))
                });
                if had.is_err() {
                    return;
                }
                let (id, len) = (SpoolId::new(), usize::try_from(len).unwrap());
                store(&spool, id, len).await;
                stored.lock().push((id, len));
                if rng.random_bool(0.06) {
                    let (id, len) = {
                        let stored = stored.lock();
                        stored[rng.random_range(0..stored.len())]
                    };
                    payload::assert_is(id, 1, len, &spool.load(id).await.expect("load"));
                }
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    let stats = spool.stats();
    println!(
        "cgroup: stored in {:.1?}; source {:?}, level {:?}, {} changes of the level, {} reliefs, {} MiB freed by them",
        started.elapsed(),
        stats.gauges.pressure_source,
        stats.gauges.pressure_level,
        stats.pressure_changes,
        stats.low_memory_calls,
        stats.low_memory_freed_bytes / MIB,
    );
    spool.shutdown().await.expect("shutdown");
    std::mem::take(&mut *stored.lock())
}

/// Stores like a server: retries if the gate is shut or the store times out, which is normal on a
/// slow machine. [`PATIENCE`] bounds the whole child.
async fn store(spool: &TieredSpool, id: SpoolId, len: usize) {
    while let Err(error) = spool.store(id, payload::shared(id, 1, len), false, None).await {
        let cause = error.root_cause();
        assert!(cause.is::<SpoolUnhealthyError>() || cause.is::<SpoolBackpressureTimeout>(), "{error:#}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn read_list(file: &Path) -> Vec<(SpoolId, usize)> {
    let text = fs::read_to_string(file).unwrap();
    let entry = |line: &str| {
        let (id, len) = line.split_once(' ').unwrap();
        (id.parse().unwrap(), len.parse().unwrap())
    };
    text.lines().map(entry).collect()
}

/// A process that is killed if the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A control group below the test's own group. Removed on drop.
struct Group {
    dir: PathBuf,
}

impl Group {
    fn make() -> Result<Self, String> {
        const MOUNT: &str = "/sys/fs/cgroup/memory";
        let groups =
            fs::read_to_string("/proc/self/cgroup").map_err(|err| format!("/proc/self/cgroup: {err}"))?;
        let mut memory = groups.lines().filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|controller| controller == "memory").then_some(path)
        });
        let own = memory.next().ok_or("no memory controller of version 1")?;
        let own = Path::new(MOUNT).join(own.trim_start_matches('/'));
        // In a container, the mount shows the group itself.
        let parent = if own.is_dir() { own } else { PathBuf::from(MOUNT) };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("tidespool-test-{}-{number}", std::process::id()));
        fs::create_dir(&dir).map_err(|err| format!("{}: {err}", dir.display()))?;
        let group = Self { dir };
        let limit = group.dir.join("memory.limit_in_bytes");
        fs::write(&limit, LIMIT.to_string()).map_err(|err| format!("{}: {err}", limit.display()))?;
        Ok(group)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join(file)).unwrap_or_default()
    }

    fn number(&self, file: &str) -> u64 {
        self.read(file).trim().parse().unwrap_or(0)
    }

    /// Number of processes that were killed at the limit.
    fn kills(&self) -> u64 {
        let control = self.read("memory.oom_control");
        let kills = control.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.map_or(0, |kills| kills.trim().parse().unwrap())
    }

    fn report(&self) -> String {
        format!(
            "limit {} MiB, at most {} MiB used (page cache included), limit hit {} times, {} kills",
            LIMIT / MIB,
            self.number("memory.max_usage_in_bytes") / MIB,
            self.number("memory.failcnt"),
            self.kills(),
        )
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was waited for may still be leaving the group.
        let started = Instant::now();
        while let Err(err) = fs::remove_dir(&self.dir) {
            if started.elapsed() > Duration::from_secs(10) {
                eprintln!("{} is left behind: {err}", self.dir.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
