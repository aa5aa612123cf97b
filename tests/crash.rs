//! `kill -9` at random moments under load. The surviving messages must satisfy the guarantees
//! (I1–I4).
//!
//! The test starts itself as a child, which works on a spool and reports its calls. The parent
//! kills it, opens the spool and checks it. Each durability uses one directory for all its cycles,
//! so that recovery also works on the results of recovery.
//!
//! Environment:
//!
//! * `TIDESPOOL_CRASH_CYCLES` – kills, shared by the three durabilities. Default = 42.
//! * `TIDESPOOL_CRASH_SEED` – chooses the moments and the work of the children. Every run prints
//!   it. The timing of threads is not reproduced.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool::{Config, Durability, HealthConfig, MinFree, PressureConfig, TieredSpool};
use tidespool_core::Spool;
use tidespool_testkit::crash::{
    Coverage, Event, Line, Moment, Report, Stock, Victim, judge, remove_surplus, take_stock, work,
};
use tidespool_testkit::env::{number_from_env, seed_from_env};
use tidespool_testkit::oracle::{DurabilityLevel, Promise};

const CYCLES: u64 = 42;

const DIRTY_EXPIRE: Duration = Duration::from_millis(60);

/// Environment variables of the child: directory, durability, and the seed and cycle of its work,
/// if any.
const CHILD_DIR: &str = "TIDESPOOL_CRASH_DIR";
const CHILD_DURABILITY: &str = "TIDESPOOL_CRASH_DURABILITY";
const CHILD_WORK: &str = "TIDESPOOL_CRASH_WORK";

/// Messages that remain in the spool from one cycle to the next.
const KEEP: usize = 250;

/// A spool so small that a second of work fills, checkpoints and recycles segments many times.
fn config(dir: &Path, durability: Durability) -> Config {
    Config::new(dir)
        .memory_budget(48 << 20)
        .dirty_limit(8 << 20)
        .dirty_expire(DIRTY_EXPIRE)
        .durability(durability)
        .segment_size(1 << 20)
        .journal_capacity(24 << 20)
        .checkpoint_after(Duration::from_millis(150))
        .ballast(1 << 20)
        .pressure(PressureConfig::default().enabled(false))
        .health(HealthConfig::default().min_free(MinFree::Bytes(0)))
}

fn name(durability: Durability) -> &'static str {
    match durability {
        Durability::Memory => "memory",
        Durability::Process => "process",
        Durability::Synced => "synced",
    }
}

#[test]
fn killed_with_durability_memory() {
    kill_repeatedly(Durability::Memory, DurabilityLevel::Memory);
}

#[test]
fn killed_with_durability_process() {
    kill_repeatedly(Durability::Process, DurabilityLevel::Kill);
}

#[test]
fn killed_with_durability_synced() {
    kill_repeatedly(Durability::Synced, DurabilityLevel::Kill);
}

/// The work of a child until it is killed.
#[derive(Debug, Clone, Copy)]
enum Task {
    /// Opens the spool and works.
    Work { seed: u64, cycle: u64 },
    /// Only opens the spool.
    Open,
}

/// Not a test itself: runs in the process that is killed.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let durability = std::env::var(CHILD_DURABILITY).expect("a durability");
    let all = [Durability::Memory, Durability::Process, Durability::Synced];
    let durability = all.into_iter().find(|known| name(*known) == durability).expect("a durability");
    let report = Arc::new(Report::on_stdout().expect("an output"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let spool = match TieredSpool::open(config(Path::new(&dir), durability)).await {
            Ok(spool) => Arc::new(spool),
            Err(err) => return report.say(Event::Wrong { what: format!("open: {err:#}") }),
        };
        let Ok(task) = std::env::var(CHILD_WORK) else { return std::future::pending().await };
        let (seed, cycle) = task.split_once(' ').expect("a seed and a cycle");
        let (seed, cycle) = (seed.parse().expect("a seed"), cycle.parse().expect("a cycle"));
        work(spool, seed, cycle, report).await;
    });
}

fn kill_repeatedly(durability: Durability, level: DurabilityLevel) {
    let seed = seed_from_env("TIDESPOOL_CRASH_SEED");
    let cycles = number_from_env("TIDESPOOL_CRASH_CYCLES").unwrap_or(CYCLES).div_ceil(3);
    println!("crash, {}: {cycles} cycles, TIDESPOOL_CRASH_SEED={seed}", name(durability));
    let dir = tempfile::Builder::new().prefix("tidespool-crash-").tempdir().unwrap();
    let path = dir.path().join("spool");
    let mut run =
        Run { durability, level, path: &path, seed, stock: Stock::new(), covered: Coverage::default() };
    for cycle in 0..cycles {
        if let Err(err) = run.cycle(cycle) {
            let kept = dir.keep();
            panic!(
                "durability {}, cycle {cycle}, TIDESPOOL_CRASH_SEED={seed}: {err:#}\nThe spool is kept in {}",
                name(durability),
                kept.display()
            );
        }
    }
    println!("crash, {}: {:?}", name(durability), run.covered);
    assert!(run.covered.had_to_survive > 0 && run.covered.came_back > 0, "no message was checked");
}

/// The cycles on one directory.
struct Run<'a> {
    durability: Durability,
    level: DurabilityLevel,
    path: &'a Path,
    seed: u64,
    /// The messages that are in the spool now.
    stock: Stock,
    covered: Coverage,
}

impl Run<'_> {
    fn cycle(&mut self, cycle: u64) -> Result<()> {
        let part = cycle * 3 + self.durability as u64;
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_add(part));
        let log = self.kill_one(Task::Work { seed: rng.random(), cycle }, moment(&mut rng))?;
        // Sometimes a second child dies during the recovery.
        if rng.random_bool(0.3) {
            let delay = Duration::from_micros(rng.random_range(0..40_000));
            let recovering = self.kill_one(Task::Open, Moment::AfterStart(delay))?;
            let wrong = recovering.into_iter().find(|line| matches!(line.event, Event::Wrong { .. }));
            anyhow::ensure!(wrong.is_none(), "{wrong:?}");
        }
        self.settle(&log)
    }

    fn kill_one(&self, task: Task, moment: Moment) -> Result<Vec<Line>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
        command.env(CHILD_DIR, self.path).env(CHILD_DURABILITY, name(self.durability));
        if let Task::Work { seed, cycle } = task {
            command.env(CHILD_WORK, format!("{seed} {cycle}"));
        }
        Victim::start(command)?.kill_at(moment).with_context(|| format!("killing {task:?} {moment:?}"))
    }

    /// Opens the spool after the kill and checks it. The next cycle starts from the result.
    fn settle(&mut self, log: &[Line]) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut after = runtime.block_on(async {
            let spool =
                TieredSpool::open(config(self.path, self.durability)).await.context("open after the kill")?;
            let stock = take_stock(&spool, log).await.context("reading the spool")?;
            spool.shutdown().await.context("shutdown")?;
            anyhow::Ok(stock)
        })?;
        let promise = Promise {
            level: self.level,
            dirty_expire: DIRTY_EXPIRE,
            // Two busy cores, three children.
            slack: Duration::from_millis(300),
        };
        let verdict = judge(promise, &self.stock, log, &after);
        self.covered += verdict.coverage;
        let violations: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
        anyhow::ensure!(violations.is_empty(), "{}", violations.join("\n"));
        // A second restart must find the same messages. It also removes surplus messages.
        runtime.block_on(async {
            let spool = TieredSpool::open(config(self.path, self.durability)).await.context("second open")?;
            let again = take_stock(&spool, log).await.context("reading the spool again")?;
            anyhow::ensure!(again == after, "a second restart changed the messages");
            remove_surplus(&spool, &mut after, KEEP).await?;
            spool.shutdown().await.context("second shutdown")
        })?;
        self.stock = after;
        Ok(())
    }
}

/// Mostly under load, sometimes while the spool is being opened.
fn moment(rng: &mut SmallRng) -> Moment {
    match rng.random_range(0..10) {
        0 => Moment::AfterStart(Duration::from_micros(rng.random_range(0..40_000))),
        1..4 => Moment::AfterOpened(Duration::from_micros(rng.random_range(0..50_000))),
        _ => Moment::AfterOpened(Duration::from_micros(rng.random_range(50_000..950_000))),
    }
}
