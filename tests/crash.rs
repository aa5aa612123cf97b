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

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool::{Config, Durability, HealthConfig, MinFree, PressureConfig, Tidespool};
use tidespool_core::{NotFound, Spool, SpoolId};
use tidespool_testkit::crash::{
    Coverage, Event, Line, Moment, Report, Stock, Victim, judge, remove_surplus, take_stock, work,
};
use tidespool_testkit::env::{number_from_env, seed_from_env};
use tidespool_testkit::oracle::{DurabilityLevel, Promise};
use tidespool_testkit::{TwoSpools, payload};

const CYCLES: u64 = 42;

const DIRTY_EXPIRE: Duration = Duration::from_millis(60);

/// Environment variables of the child: directory, durability, and the seed and cycle of its work,
/// if any.
const CHILD_DIR: &str = "TIDESPOOL_CRASH_DIR";
const CHILD_DURABILITY: &str = "TIDESPOOL_CRASH_DURABILITY";
const CHILD_WORK: &str = "TIDESPOOL_CRASH_WORK";

/// Set for a child that accepts pairs of messages instead.
const CHILD_ACCEPTS: &str = "TIDESPOOL_CRASH_ACCEPTS";

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
        let spool = match TwoSpools::open(config(Path::new(&dir), durability)).await {
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
                TwoSpools::open(config(self.path, self.durability)).await.context("open after the kill")?;
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
            let spool = TwoSpools::open(config(self.path, self.durability)).await.context("second open")?;
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

/// Kills while callers accept an envelope and a body at once, often for an id that has older ones.
/// After each kill both have the same version, and no acknowledged one is missing. So no body is
/// without its envelope.
#[test]
fn killed_while_accepting() {
    let seed = seed_from_env("TIDESPOOL_CRASH_SEED");
    let cycles = number_from_env("TIDESPOOL_CRASH_CYCLES").unwrap_or(CYCLES).div_ceil(4);
    println!("crash, accept: {cycles} cycles, TIDESPOOL_CRASH_SEED={seed}");
    let dir = tempfile::Builder::new().prefix("tidespool-crash-").tempdir().unwrap();
    let path = dir.path().join("spool");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut acknowledged = 0;
    for cycle in 0..cycles {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "accepting_child", "--nocapture", "--test-threads=1"]);
        command.env(CHILD_DIR, &path).env(CHILD_ACCEPTS, "1");
        let moment = Moment::AfterOpened(Duration::from_micros(rng.random_range(10_000..400_000)));
        let log = Victim::start(command).and_then(|child| child.kill_at(moment)).unwrap();
        match check_pairs(&path, &log) {
            Ok(pairs) => acknowledged += pairs,
            Err(wrong) => {
                let kept = dir.keep();
                panic!("cycle {cycle}, TIDESPOOL_CRASH_SEED={seed}: {wrong:#}\nKept in {}", kept.display());
            }
        }
    }
    assert!(acknowledged > cycles, "{acknowledged} pairs were acknowledged");
}

/// Not a test itself: runs in the process that is killed.
#[test]
fn accepting_child() {
    if std::env::var_os(CHILD_ACCEPTS).is_none() {
        return;
    }
    let path = std::env::var_os(CHILD_DIR).expect("a directory");
    let report = Arc::new(Report::on_stdout().expect("an output"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Tidespool::open(config(Path::new(&path), Durability::Process)).await.expect("open");
        let store = Arc::new(store);
        report.say(Event::Opened);
        let callers = (0..8).map(|_| tokio::spawn(accept_forever(store.clone(), report.clone())));
        for caller in callers.collect::<Vec<_>>() {
            caller.await.expect("a caller");
        }
    });
}

async fn accept_forever(store: Arc<Tidespool>, report: Arc<Report>) {
    let (meta, data) = (store.spool("meta").expect("meta"), store.spool("data").expect("data"));
    let ids: Vec<SpoolId> = (0..4).map(|_| SpoolId::new()).collect();
    for version in 1.. {
        let id = ids[usize::try_from(version).unwrap_or(0) % ids.len()];
        let len = [300, 5_000, 60_000, 2_000_000][usize::try_from(version % 37 / 12).unwrap_or(0)];
        let op = report.next_op();
        report.say(Event::Store { op, id, version, len, forced: true });
        let (body, envelope) = (payload::shared(id, version, len), payload::shared(id, version, 200));
        store.accept([(&data, id, body), (&meta, id, envelope)], None).await.expect("accept");
        report.say(Event::Done { op });
        // The next accept of this id finds versions that only the crash log has.
        if version % 3 == 0 {
            for spool in [&meta, &data] {
                spool.store(id, payload::shared(id, version, 100), false, None).await.expect("store");
            }
        }
    }
}

/// Returns the number of pairs that the child knew to be stored.
fn check_pairs(path: &Path, log: &[Line]) -> Result<u64> {
    let mut intents = BTreeMap::<u64, (SpoolId, u64)>::new();
    // By id: the last version that was acknowledged, and the last that was begun.
    let mut last = BTreeMap::<SpoolId, (u64, u64)>::new();
    let mut acknowledged = 0;
    for line in log {
        match line.event {
            Event::Store { op, id, version, .. } => {
                intents.insert(op, (id, version));
                last.entry(id).or_default().1 = version;
            }
            Event::Done { op } => {
                let (id, version) = intents[&op];
                last.entry(id).or_default().0 = version;
                acknowledged += 1;
            }
            _ => {}
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let store =
            Tidespool::open(config(path, Durability::Process)).await.context("open after the kill")?;
        let spools = [store.spool("meta")?, store.spool("data")?];
        for (id, (done, intended)) in last {
            let mut versions = [0; 2];
            for (version, spool) in versions.iter_mut().zip(&spools) {
                match spool.load(id).await {
                    Ok(data) => *version = payload::read(id, &data)?.version.unwrap_or(0),
                    Err(error) if error.root_cause().is::<NotFound>() => {}
                    Err(error) => return Err(error),
                }
            }
            let [meta, data] = versions;
            anyhow::ensure!(meta == data, "{id} is seen in half: {versions:?}");
            let is_possible = (done..=intended).contains(&meta);
            anyhow::ensure!(is_possible, "{id} is {meta}; acknowledged {done}, begun {intended}");
        }
        store.shutdown().await.context("shutdown")?;
        Ok(acknowledged)
    })
}
