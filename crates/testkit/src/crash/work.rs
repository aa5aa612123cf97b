//! The child: a random mix of calls, each reported.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::IteratorRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tidespool_core::{
    InDoubt, NotFound, Spool, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId,
    SpoolUnhealthyError,
};
use tokio::task::JoinSet;

use super::{Event, Report};
use crate::{ids, payload};

/// The number of tasks that store, replace, load and remove. Each task has its own ids, so the
/// calls for one id are sequential.
const WORKERS: u64 = 8;

/// The maximum number of messages of a worker.
const HELD: usize = 24;

/// The number of ids per worker that every child of a directory uses again.
const LASTING_IDS: u64 = 6;

/// Works until the process is killed. `cycle` makes the versions of one child differ from those of
/// the next.
///
/// If a task ends or panics, the parent gets a report and this function returns.
pub async fn work(spool: Arc<dyn Spool>, seed: u64, cycle: u64, report: Arc<Report>) {
    report.say(Event::Opened);
    let mut tasks = JoinSet::new();
    let mut rng = SmallRng::seed_from_u64(seed);
    for number in 0..WORKERS {
        let worker = Worker {
            spool: spool.clone(),
            report: report.clone(),
            rng: rng.fork(),
            number,
            first_version: cycle << 32,
            held: BTreeMap::new(),
        };
        tasks.spawn(worker.run());
    }
    tasks.spawn(probe(spool.clone(), report.clone(), cycle));
    tasks.spawn(upkeep(spool, report.clone(), rng));
    tasks.spawn(tick(report.clone()));
    if let Some(ended) = tasks.join_next().await {
        report.say(Event::Wrong { what: format!("a task of the child ended: {ended:?}") });
    }
}

/// One of the tasks.
struct Worker {
    spool: Arc<dyn Spool>,
    report: Arc<Report>,
    rng: SmallRng,
    number: u64,
    first_version: u64,
    /// The messages that must be present: id → (version, length).
    held: BTreeMap<SpoolId, (u64, usize)>,
}

impl Worker {
    async fn run(mut self) {
        loop {
            let full = self.held.len() >= HELD;
            match self.rng.random_range(0..100) {
                0..45 if !full => self.store_new().await,
                0..60 => self.resave().await,
                60..80 => self.remove().await,
                _ => self.load().await,
            }
            // A pace that a disk can sustain, so that most stores are not throttled.
            tokio::time::sleep(Duration::from_micros(self.rng.random_range(0..1500))).await;
        }
    }

    async fn store_new(&mut self) {
        let id = if self.rng.random_bool(0.8) { SpoolId::new() } else { self.lasting_id() };
        let len = match self.rng.random_range(0..10) {
            0..5 => self.rng.random_range(0..2_000),
            5..9 => self.rng.random_range(0..64_000),
            _ => self.rng.random_range(0..200_000),
        };
        let forced = self.rng.random_bool(0.25);
        self.store(id, len, forced).await;
    }

    /// Replaces a message, as a server does to update its metadata.
    async fn resave(&mut self) {
        let Some(id) = self.pick() else { return };
        let len = self.rng.random_range(500..2000);
        let forced = self.rng.random_bool(0.15);
        self.store(id, len, forced).await;
    }

    async fn store(&mut self, id: SpoolId, len: usize, forced: bool) {
        // Lengths from 1 to the header's length are not used: such messages do not contain their
        // version.
        let len = if (1..payload::HEADER_BYTES).contains(&len) { 0 } else { len };
        let op = self.report.next_op();
        let version = self.first_version + op;
        let data = payload::shared(id, version, len);
        let hurried = self.rng.random_bool(0.03);
        let deadline =
            hurried.then(|| Instant::now() + Duration::from_micros(self.rng.random_range(0..3000)));
        self.report.say(Event::Store { op, id, version, len, forced });
        match self.spool.store(id, data, forced, deadline).await {
            Ok(()) => {
                self.held.insert(id, (version, len));
                self.report.say(Event::Done { op });
            }
            Err(err) if is_expected_failure(&err) => self.report.say(failed(op, &err)),
            Err(err) => self.wrong(format!("store of {id}: {err:#}")),
        }
    }

    async fn remove(&mut self) {
        let Some(id) = self.pick() else { return };
        let op = self.report.next_op();
        self.report.say(Event::Remove { op, id });
        match self.spool.remove(id).await {
            Ok(()) => {
                self.held.remove(&id);
                self.report.say(Event::Done { op });
            }
            Err(err) => self.wrong(format!("remove of {id}: {err:#}")),
        }
    }

    async fn load(&mut self) {
        let Some(id) = self.pick() else { return };
        let Some(&(version, len)) = self.held.get(&id) else { return };
        match self.spool.load(id).await {
            Ok(data) => match payload::read(id, &data) {
                Ok(seen) if seen.len == len && seen.version.is_none_or(|found| found == version) => {}
                Ok(seen) => self.wrong(format!("load of {id}: {seen:?}, stored {version}, {len} bytes")),
                Err(err) => self.wrong(err.to_string()),
            },
            Err(err) if err.root_cause().is::<NotFound>() => {
                self.wrong(format!("{id} is lost while running"));
            }
            Err(err) => self.wrong(format!("load of {id}: {err:#}")),
        }
    }

    fn pick(&mut self) -> Option<SpoolId> {
        self.held.keys().copied().choose(&mut self.rng)
    }

    /// An id without a time, or with a fixed past time. It is the same in every child.
    fn lasting_id(&mut self) -> SpoolId {
        let n = self.number * LASTING_IDS + self.rng.random_range(0..LASTING_IDS);
        ids::assorted(chrono::DateTime::UNIX_EPOCH + chrono::TimeDelta::days(20_000), n + 1)
            .last()
            .copied()
            .unwrap_or_default()
    }

    fn wrong(&self, what: String) {
        self.report.say(Event::Wrong { what });
    }
}

fn failed(op: u64, err: &anyhow::Error) -> Event {
    Event::Failed { op, in_doubt: err.is::<InDoubt>() }
}

/// Returns whether a store may fail with this error: for lack of time or space. It leaves nothing
/// behind, unless the error has the context `InDoubt`.
fn is_expected_failure(err: &anyhow::Error) -> bool {
    let root = err.root_cause();
    root.is::<SpoolCallerDeadlineExceeded>()
        || root.is::<SpoolBackpressureTimeout>()
        || root.is::<SpoolUnhealthyError>()
}

/// Makes synced stores one after the other. The check derives from them how long a commit takes.
async fn probe(spool: Arc<dyn Spool>, report: Arc<Report>, cycle: u64) {
    let id = ids::v4(u64::MAX);
    loop {
        let op = report.next_op();
        let version = (cycle << 32) + op;
        report.say(Event::Store { op, id, version, len: 64, forced: true });
        match spool.store(id, payload::shared(id, version, 64), true, None).await {
            Ok(()) => report.say(Event::Done { op }),
            Err(err) if is_expected_failure(&err) => report.say(failed(op, &err)),
            Err(err) => report.say(Event::Wrong { what: format!("store of the probe: {err:#}") }),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn upkeep(spool: Arc<dyn Spool>, report: Arc<Report>, mut rng: SmallRng) {
    loop {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..150))).await;
        let done = match rng.random_range(0..10) {
            0..5 => spool.cleanup().await,
            5..8 => spool.advise_low_memory().await.map(drop),
            _ => spool.compact().await,
        };
        if let Err(err) = done {
            report.say(Event::Wrong { what: format!("upkeep: {err:#}") });
        }
    }
}

async fn tick(report: Arc<Report>) {
    loop {
        report.say(Event::Tick);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
