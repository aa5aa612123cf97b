//! Rounds of calls on one spool, with a restart after each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use chrono::{DateTime, TimeDelta};
use parking_lot::Mutex;
use tidespool_core::{Locked, Spool, SpoolId};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::caller::{Caller, Stage};
use super::checker::Value;
use super::history::{Clock, Entry, Outcome, Who};
use super::plan::{IDS, Round};
use super::restart::{Expected, Life, values};
use super::upkeep::{Kept, flood, look, upkeep};
use super::{Coverage, Subject};
use crate::crash::take_stock_of;
use crate::rng::Rng;
use crate::{ids, wait};

/// One spool, from its first opening to its last.
pub(super) struct Run {
    subject: Arc<dyn Subject>,
    expected: Expected,
    ids: Vec<SpoolId>,
    versions: Arc<AtomicU64>,
    /// What each id holds.
    held: BTreeMap<SpoolId, Value>,
    pub(super) coverage: Coverage,
}

/// What the tasks of a round recorded.
#[derive(Default)]
struct Recorded {
    entries: Vec<Entry>,
    barriers: Vec<u64>,
    enumerations: u64,
}

impl Recorded {
    fn add(&mut self, kept: Kept) {
        self.entries.extend(kept.entries);
        self.barriers.extend(kept.barriers);
        self.enumerations += kept.enumerations;
    }
}

impl Run {
    pub(super) fn new(subject: Arc<dyn Subject>) -> Self {
        let expected = subject.expected();
        let from = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        let ids = ids::assorted(from, IDS as u64);
        let versions = Arc::new(AtomicU64::new(1));
        Self { subject, expected, ids, versions, held: BTreeMap::new(), coverage: Coverage::default() }
    }

    /// One round, and the opening after it. `Err` says which promise was broken.
    pub(super) async fn round(&mut self, round: Round) -> Result<()> {
        let spool = self.open().await?;
        let stage = Arc::new(Stage {
            ids: self.ids.clone(),
            clock: Clock::default(),
            versions: self.versions.clone(),
            calls: AtomicU64::new(0),
            is_closing: AtomicBool::new(false),
            broken: Mutex::default(),
            stop: watch::channel(false).0,
        });
        let end = round.end;
        let recorded = self.work(&stage, &spool, round).await?;
        let dropped_at = (!end.orderly).then(Instant::now);
        // The last one: nothing else may keep it open.
        drop(spool);
        let spool = self.open().await.context("opening the spool again")?;
        let found = self.take_stock(spool).await;
        self.note(&recorded, end.orderly);
        // Broken promises are reported in the order in which they were seen.
        let broken = std::mem::take(&mut *stage.broken.lock());
        ensure!(broken.is_empty(), "{}", broken.join("\n"));
        let life = Life {
            before: &self.held,
            entries: &recorded.entries,
            barriers: &recorded.barriers,
            dropped_at,
            after: found.as_ref().ok(),
        };
        let lost = life.judge(self.expected).map_err(|how| anyhow!(how))?;
        self.coverage.lost += lost.ids;
        self.held = found?;
        Ok(())
    }

    /// What each id holds after the restart.
    async fn take_stock(&self, spool: Arc<dyn Spool>) -> Result<BTreeMap<SpoolId, Value>> {
        let named = self.ids.iter().copied();
        let stock = take_stock_of(spool.as_ref(), named).await.context("after the restart")?;
        let held = values(&stock).map_err(|how| anyhow!(how))?;
        spool.shutdown().await.context("shutdown after the restart")?;
        Ok(held)
    }

    /// Everything from the opening to the end, the shutdown included.
    async fn work(&self, stage: &Arc<Stage>, spool: &Arc<dyn Spool>, round: Round) -> Result<Recorded> {
        let Round { callers, flood: flooding, has_upkeep, upkeep: rng, end } = round;
        let calls: u64 = callers.iter().map(|steps| steps.len() as u64).sum();
        let (mut working, mut keeping) = (JoinSet::new(), JoinSet::new());
        for (number, steps) in callers.into_iter().enumerate() {
            working.spawn(Caller::new(stage, spool, Who::Caller(number)).run(steps));
        }
        for task in 0..flooding.tasks {
            working.spawn(flood(stage.clone(), spool.clone(), task, flooding, calls));
        }
        if has_upkeep {
            keeping.spawn(upkeep(self.subject.clone(), stage.clone(), spool.clone(), rng.fork(1)));
        }
        let mut recorded = Recorded::default();
        if let Some(beside) = end.beside {
            let so_far = || stage.calls.load(Ordering::SeqCst);
            wait::until("the callers work", || so_far() >= beside || working_is_over(stage, calls)).await;
            stage.is_closing.store(true, Ordering::SeqCst);
            if end.orderly {
                spool.shutdown().await.context("shutdown beside calls")?;
            }
            stage.stop.send_replace(true);
        }
        while let Some(entries) = wait::bounded("the callers end", working.join_next()).await {
            recorded.entries.extend(entries.context("a caller")?);
        }
        // Before the stop, which ends the upkeep with an error.
        stage.is_closing.store(true, Ordering::SeqCst);
        stage.stop.send_replace(true);
        while let Some(kept) = wait::bounded("the upkeep ends", keeping.join_next()).await {
            recorded.add(kept.context("the upkeep")?);
        }
        if end.beside.is_none() {
            if end.look {
                stage.is_closing.store(false, Ordering::SeqCst);
                stage.stop.send_replace(false);
                let looking = look(stage.clone(), spool.clone(), rng.fork(2));
                recorded.add(wait::bounded("a look at everything", looking).await);
            }
            if end.orderly {
                spool.shutdown().await.context("shutdown")?;
            }
        }
        Ok(recorded)
    }

    /// Opens the spool. After a drop its threads may hold the lock for a moment.
    async fn open(&self) -> Result<Arc<dyn Spool>> {
        let started = Instant::now();
        loop {
            match self.subject.open().await {
                Err(err) if err.root_cause().is::<Locked>() && started.elapsed() < wait::PATIENCE => {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                result => return result.context("open"),
            }
        }
    }

    fn note(&mut self, recorded: &Recorded, orderly: bool) {
        let count = |is_so: &dyn Fn(&Entry) -> bool| {
            recorded.entries.iter().filter(|entry| is_so(entry)).count() as u64
        };
        let loads = |none: bool| {
            count(&|entry| matches!(entry.outcome, Outcome::Saw(value) if value.is_none() == none))
        };
        self.coverage += Coverage {
            written: count(&|entry| entry.outcome == Outcome::Done),
            failed: count(&|entry| entry.outcome == Outcome::Failed),
            dropped: count(&|entry| entry.outcome == Outcome::Dropped),
            found: loads(false),
            not_found: loads(true),
            enumerations: recorded.enumerations,
            flushes: recorded.barriers.len() as u64,
            shutdowns: u64::from(orderly),
            drops: u64::from(!orderly),
            lost: 0,
        };
    }
}

/// Rounds on a fresh spool: `Err` is the first broken promise.
pub(super) async fn rounds(
    subject: Arc<dyn Subject>,
    seed: u64,
    rounds: u64,
) -> Result<Coverage, (u64, String)> {
    let mut run = Run::new(subject);
    for number in 0..rounds {
        let round = Round::new(Rng::new(seed).fork(number), run.subject.shape(), run.expected.large);
        if let Err(err) = run.round(round).await {
            return Err((number, format!("{err:#}")));
        }
    }
    Ok(run.coverage)
}

/// A caller may end early, at an error that is reported.
fn working_is_over(stage: &Stage, calls: u64) -> bool {
    stage.calls.load(Ordering::SeqCst) >= calls || !stage.broken.lock().is_empty()
}
