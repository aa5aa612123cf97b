//! Settings, initial spools, and the check of an opening without faults.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tidespool::{Config, HealthConfig, MinFree, PressureConfig, TieredSpool};
use tidespool_core::{Locked, Spool as _, SpoolId};
use tidespool_testkit::crash::{Found as Came, take_stock_of};
use tidespool_testkit::env::{number_from_env, seed_from_env};
use tidespool_testkit::wait;

use crate::child::{End, run};
use crate::event::{Answer, answer};
use crate::oracle::{Found, Oracle};
use crate::tasks::{Ending, Task, What, names_path};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A spool so small that most messages are checkpointed and few stay in memory.
pub(crate) fn config(path: &Path) -> Config {
    Config::new(path)
        .memory_budget(8 * MIB)
        .dirty_expire(Duration::from_millis(50))
        .segment_size(128 * KIB)
        .journal_capacity(4 * MIB)
        .max_message_size(MIB)
        .checkpoint_after(Duration::ZERO)
        .ballast(0)
        .pressure(PressureConfig::default().enabled(false))
        .health(
            HealthConfig::default()
                .min_free(MinFree::Bytes(0))
                .backlog_latch_after(Duration::from_secs(3600))
                .hard_unlatch_after(Duration::from_millis(10))
                .sample_interval(Duration::from_millis(10)),
        )
}

/// Runs `body` on a runtime with two threads.
pub(crate) fn block_on<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(body)
}

/// The extent of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    All,
    Points(u64),
}

impl Extent {
    pub(crate) fn from_env(default: u64) -> Self {
        const NAME: &str = "TIDESPOOL_SLED_CALLS";
        match std::env::var(NAME).as_deref() {
            Ok("all") => Self::All,
            _ => Self::Points(number_from_env(NAME).unwrap_or(default)),
        }
    }
}

pub(crate) fn seed() -> u64 {
    seed_from_env("TIDESPOOL_SLED_CALLS_SEED")
}

/// An initial spool. Each trial works on a copy.
#[derive(Debug)]
pub(crate) struct Template {
    place: TempDir,
    pub(crate) oracle: Oracle,
}

impl Template {
    /// A spool of `messages` messages, some of them replaced or removed.
    pub(crate) fn make(messages: u64, ending: Ending, seed: u64) -> Self {
        let place = TempDir::with_prefix("tidespool-sled-calls-").unwrap();
        let mut oracle = Oracle::default();
        let task = Task { what: What::Make(messages), ending, seed };
        let log = place.path().join("log");
        let end = run(task, &place.path().join("spool"), None, &log, |event| oracle.enter(event));
        let expected = if ending == Ending::Killed { End::Killed } else { End::Done };
        assert_eq!(end, expected, "{}", std::fs::read_to_string(&log).unwrap());
        assert_eq!(oracle.take_violations(), Vec::<String>::new());
        Self { place, oracle }
    }

    /// A copy, with the ids that it may contain in a file beside it.
    pub(crate) fn copy(&self) -> Trial {
        let place = TempDir::with_prefix("tidespool-sled-calls-").unwrap();
        copy_dir(&self.place.path().join("spool"), &place.path().join("spool"));
        let mut names = String::new();
        let live = self.oracle.live();
        for id in self.oracle.ids() {
            let _ = match live.binary_search_by_key(&id, |(id, _)| *id) {
                Ok(at) => writeln!(names, "{id} {} {}", live[at].1.0, live[at].1.1),
                Err(_) => writeln!(names, "{id}"),
            };
        }
        std::fs::write(names_path(&place.path().join("spool")), names).unwrap();
        Trial { place, oracle: self.oracle.clone() }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The directory of one trial.
#[derive(Debug)]
pub(crate) struct Trial {
    place: TempDir,
    pub(crate) oracle: Oracle,
}

impl Trial {
    pub(crate) fn spool(&self) -> PathBuf {
        self.place.path().join("spool")
    }

    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Opens the spool of the child without faults, and checks that it holds exactly the expected
    /// messages. Returns all violations, including those in the child's events.
    pub(crate) fn judge(mut self, end: End) -> Vec<String> {
        if let End::Failed(status) = end {
            let log = std::fs::read_to_string(self.beside("log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(6).collect();
            self.oracle
                .enter(&crate::event::Event::Wrong(format!("the child ended with {status:?}: {last:?}")));
        }
        let mut wrong = self.oracle.take_violations();
        let ids: Vec<SpoolId> = self.oracle.ids().collect();
        match block_on(wait::bounded("a clean opening", clean(&self.spool(), &ids))) {
            Ok(found) => self.oracle.compare(&found),
            Err(err) => wrong.push(format!("clean opening: {err:#}")),
        }
        wrong.extend(self.oracle.take_violations());
        wrong
    }
}

/// All messages of a spool, by enumeration and by load. Both must agree.
async fn clean(path: &Path, ids: &[SpoolId]) -> Result<Found> {
    let spool = loop {
        // A killed child keeps its files for a moment longer.
        match TieredSpool::open(config(path)).await {
            Err(err) if err.root_cause().is::<Locked>() => {}
            opened => break opened.context("open")?,
        }
    };
    let found = everything(&spool, ids).await;
    // Shut down after an error as well: the threads would outlive the directory.
    spool.shutdown().await.context("shutdown")?;
    found
}

async fn everything(spool: &TieredSpool, ids: &[SpoolId]) -> Result<Found> {
    let damage = &spool.recovery().damage;
    anyhow::ensure!(damage.is_empty(), "reported as damage: {} of {damage:?}", damage.len());
    // Loads fail until the index is rebuilt.
    for id in ids {
        while let Answer::Io(_) = answer(*id, spool.load(*id).await) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let stock = take_stock_of(spool, ids.iter().copied()).await.context("reading the spool")?;
    let version = |(id, came)| match came {
        Came::Whole(seen) => Ok((id, (seen.version.unwrap_or(0), seen.len))),
        Came::Wrong(text) => Err(anyhow::anyhow!("{id}: {text}")),
    };
    stock.into_iter().map(version).collect()
}
