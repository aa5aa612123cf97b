//! Rounds of calls on one spool, with a restart after each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use chrono::{DateTime, TimeDelta};
use parking_lot::Mutex;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tidespool_core::{Locked, Spool, SpoolId};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::caller::{Caller, RoundState};
use super::history::{Clock, Entry, Outcome, Source};
use super::plan::{IDS, Round};
use super::restart::{Expected, Session, values};
use super::upkeep::{UpkeepLog, final_check, flood, upkeep};
use super::{Coverage, Subject};
use crate::crash::take_stock_of;
use crate::oracle::Value;
use crate::{ids, wait};

/// One spool, from its first opening to its last.
pub(super) struct Run {
    subject: Arc<dyn Subject>,
    expected: Expected,
    ids: Vec<SpoolId>,
    versions: Arc<AtomicU64>,
    /// The current value of each id.
    held: BTreeMap<SpoolId, Value>,
    pub(super) coverage: Coverage,
}

/// The records of the tasks of a round.
#[derive(Default)]
struct Recorded {
    entries: Vec<Entry>,
    barriers: Vec<u64>,
    enumerations: u64,
}

impl Recorded {
    fn add(&mut self, kept: UpkeepLog) {
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

    /// Runs one round and opens the spool again. `Err` describes the broken promise.
    pub(super) async fn round(&mut self, round: Round) -> Result<()> {
        let spool = self.open().await?;
        let state = Arc::new(RoundState {
            ids: self.ids.clone(),
            clock: Clock::default(),
            versions: self.versions.clone(),
            calls: AtomicU64::new(0),
            is_closing: AtomicBool::new(false),
            broken: Mutex::default(),
            stop: watch::channel(false).0,
        });
        let end = round.end;
        let recorded = self.work(&state, &spool, round).await?;
        let dropped_at = (!end.orderly).then(Instant::now);
        // This must be the last reference: the spool closes.
        drop(spool);
        let spool = self.open().await.context("opening the spool again")?;
        let found = self.read_held(spool).await;
        self.note(&recorded, end.orderly);
        // Report broken promises in the order in which they were detected.
        let broken = std::mem::take(&mut *state.broken.lock());
        ensure!(broken.is_empty(), "{}", broken.join("\n"));
        let life = Session {
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

    /// Returns the value of each id after the restart.
    async fn read_held(&self, spool: Arc<dyn Spool>) -> Result<BTreeMap<SpoolId, Value>> {
        let named = self.ids.iter().copied();
        let stock = take_stock_of(spool.as_ref(), named).await.context("after the restart")?;
        let held = values(&stock).map_err(|how| anyhow!(how))?;
        spool.shutdown().await.context("shutdown after the restart")?;
        Ok(held)
    }

    /// Runs the tasks, from the opening to the end of the session, including the shutdown.
    async fn work(&self, state: &Arc<RoundState>, spool: &Arc<dyn Spool>, round: Round) -> Result<Recorded> {
        let Round { callers, flood: flooding, has_upkeep, upkeep: mut rng, end } = round;
        let calls: u64 = callers.iter().map(|steps| steps.len() as u64).sum();
        let (mut working, mut keeping) = (JoinSet::new(), JoinSet::new());
        for (number, steps) in callers.into_iter().enumerate() {
            working.spawn(Caller::new(state, spool, Source::Caller(number)).run(steps));
        }
        for task in 0..flooding.tasks {
            working.spawn(flood(state.clone(), spool.clone(), task, flooding, calls));
        }
        if has_upkeep {
            keeping.spawn(upkeep(self.subject.clone(), state.clone(), spool.clone(), rng.fork()));
        }
        let mut recorded = Recorded::default();
        if let Some(beside) = end.beside {
            let so_far = || state.calls.load(Ordering::SeqCst);
            wait::until("the callers work", || so_far() >= beside || callers_have_ended(state, calls)).await;
            state.is_closing.store(true, Ordering::SeqCst);
            if end.orderly {
                spool.shutdown().await.context("shutdown beside calls")?;
            }
            state.stop.send_replace(true);
        }
        while let Some(entries) = wait::bounded("the callers end", working.join_next()).await {
            recorded.entries.extend(entries.context("a caller")?);
        }
        // Set before the stop, which ends the upkeep with an error.
        state.is_closing.store(true, Ordering::SeqCst);
        state.stop.send_replace(true);
        while let Some(kept) = wait::bounded("the upkeep ends", keeping.join_next()).await {
            recorded.add(kept.context("the upkeep")?);
        }
        if end.beside.is_none() {
            if end.final_check {
                state.is_closing.store(false, Ordering::SeqCst);
                state.stop.send_replace(false);
                let checking = final_check(state.clone(), spool.clone(), rng.fork());
                recorded.add(wait::bounded("the final check", checking).await);
            }
            if end.orderly {
                spool.shutdown().await.context("shutdown")?;
            }
        }
        Ok(recorded)
    }

    /// Opens the spool. After a drop its threads may hold the lock for a short time.
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

/// Runs rounds on a fresh spool. `Err` is the first broken promise.
pub(super) async fn rounds(
    subject: Arc<dyn Subject>,
    seed: u64,
    rounds: u64,
) -> Result<Coverage, (u64, String)> {
    let mut run = Run::new(subject);
    let mut rng = SmallRng::seed_from_u64(seed);
    for number in 0..rounds {
        let round = Round::new(rng.fork(), run.subject.shape(), run.expected.large);
        if let Err(err) = run.round(round).await {
            return Err((number, format!("{err:#}")));
        }
    }
    Ok(run.coverage)
}

/// Returns whether the callers have ended. A caller may end early, with an error that is reported.
fn callers_have_ended(state: &RoundState, calls: u64) -> bool {
    state.calls.load(Ordering::SeqCst) >= calls || !state.broken.lock().is_empty()
}
