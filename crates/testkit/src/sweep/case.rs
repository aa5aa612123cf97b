use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use tidespool_core::{Locked, Spool, SpoolId};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::script::{End, MESSAGES, SESSIONS, config};
use super::{Kind, Point, Subject, panics};
use crate::faults::{Call, Fault, FaultyStorage, Strike};
use crate::oracle::Oracle;
use crate::two_spools::TwoSpools;

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Ran {
    /// `None` for a run without a fault.
    pub point: Option<Point>,
    /// The first call that the fault affected.
    pub struck: Option<Strike>,
    /// The course of the run.
    pub outcome: Outcome,
    /// Broken promises.
    pub violations: Vec<String>,
    /// Calls of every kind before the last opening.
    pub calls: u64,
    /// The writes among them.
    pub writes: u64,
    /// The reads among them.
    pub reads: u64,
    /// The duration of the run.
    pub took: Duration,
    /// All calls, in a run without a fault.
    pub trace: Vec<Strike>,
}

/// The course of a run, from the caller's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The run ended before that call.
    NotStruck,
    /// No call failed, and the gate stayed open.
    Unnoticed,
    /// A call failed or the gate was shut, and everything worked again without a restart.
    Recovered,
    /// A shutdown returned an error, or the power failed; the next opening worked.
    Reopened,
    /// An opening failed, and the next one succeeded.
    RefusedOpen,
}

impl Outcome {
    /// All outcomes, in the order of a table.
    pub const ALL: [Self; 5] =
        [Self::NotStruck, Self::Unnoticed, Self::Recovered, Self::Reopened, Self::RefusedOpen];

    /// The name in a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotStruck => "not struck",
            Self::Unnoticed => "unnoticed",
            Self::Recovered => "recovered",
            Self::Reopened => "reopened",
            Self::RefusedOpen => "open refused",
        }
    }
}

/// An open spool: with the wrapper that callers use, and without.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) spool: Arc<dyn Spool>,
    pub(super) tiered: Arc<TwoSpools>,
}

/// One run. If a method returns `Err`, it is a violation that ends the run.
pub(super) struct Case {
    pub(super) subject: Subject,
    pub(super) point: Option<Point>,
    dir: TempDir,
    pub(super) disk: FaultyStorage,
    pub(super) expected: Oracle,
    pub(super) ids: Vec<SpoolId>,
    pub(super) version: u64,
    pub(super) violations: Vec<String>,
    pub(super) outcome: Outcome,
    /// The disk works again permanently.
    pub(super) healed: bool,
    /// The number of strikes before this session.
    pub(super) strikes_before: usize,
    /// The number of strikes that `check_gate` has processed.
    pub(super) seen: usize,
    pub(super) gate_was_shut: bool,
    /// Upkeep that waits for the disk.
    pub(super) pending: Vec<(&'static str, JoinHandle<anyhow::Result<()>>)>,
    trace: Arc<Mutex<Vec<Strike>>>,
}

impl Case {
    pub(super) fn new(subject: &Subject, point: Option<Point>) -> Self {
        let disk = FaultyStorage::new();
        disk.remember_unsynced();
        // This fault never strikes. It prevents reads from the page cache, which would make the
        // number of calls depend on cached pages.
        disk.inject(Fault::on(Call::Read).nth(u64::MAX));
        let trace = Arc::<Mutex<Vec<Strike>>>::default();
        if let Some(point) = point {
            disk.inject(point.fault());
        } else {
            let seen = trace.clone();
            disk.watch(move |moment| seen.lock().push(Strike::of(moment)));
        }
        Self {
            subject: subject.clone(),
            point,
            dir: TempDir::new().expect("a directory"),
            disk,
            expected: Oracle::default(),
            ids: (0..MESSAGES).map(|_| SpoolId::new()).collect(),
            version: 0,
            violations: Vec::new(),
            outcome: Outcome::NotStruck,
            healed: false,
            strikes_before: 0,
            seen: 0,
            gate_was_shut: false,
            pending: Vec::new(),
            trace,
        }
    }

    pub(super) async fn run(mut self) -> Ran {
        let (began, panics) = (Instant::now(), panics::count());
        let mut counted = (0, 0, 0);
        if let Err(violation) = self.run_sessions(&mut counted).await {
            self.violations.push(violation);
        }
        let again = self.disk.trusted_again();
        if !again.is_empty() {
            self.violations.push(format!("synced again after a failed sync: {again:?}"));
        }
        if let Some(what) = panics::since(panics) {
            self.violations.push(format!("a thread panicked (of this run, or of a concurrent one): {what}"));
        }
        let struck = self.strikes().into_iter().next();
        if struck.is_some() {
            self.outcome = self.outcome.max(Outcome::Unnoticed);
        }
        let Self { point, outcome, violations, trace, .. } = self;
        let (calls, writes, reads) = counted;
        let trace = std::mem::take(&mut *trace.lock());
        Ran { point, struck, outcome, violations, calls, writes, reads, took: began.elapsed(), trace }
    }

    async fn run_sessions(&mut self, counted: &mut (u64, u64, u64)) -> Result<(), String> {
        for (number, (steps, end)) in SESSIONS.into_iter().enumerate() {
            // The gate of this session is not affected by strikes at the end of the last one.
            self.strikes_before = self.strikes().len();
            (self.seen, self.gate_was_shut) = (self.strikes_before, false);
            let open = self.open().await?;
            if number > 0 {
                self.check_after_restart(&open).await?;
            }
            self.check_gate(&open, None).await?;
            for step in steps {
                self.perform(&open, *step).await?;
                self.check_gate(&open, Some(*step)).await?;
            }
            self.end(open, end).await?;
        }
        *counted = (self.disk.total(), self.disk.count(Call::Write), self.disk.count(Call::Read));
        self.heal();
        self.strikes_before = self.strikes().len();
        let open = self.open().await?;
        self.check_after_restart(&open).await?;
        self.shut_down(open).await
    }

    /// The calls that the fault affected.
    pub(super) fn strikes(&self) -> Vec<Strike> {
        self.disk.strikes()
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        self.point.map(|point| point.kind)
    }

    pub(super) fn is_sticky(&self) -> bool {
        self.kind().is_some_and(Kind::is_sticky)
    }

    /// Returns whether the fault struck in this session: calls may fail.
    pub(super) fn is_struck(&self) -> bool {
        self.strikes().len() > self.strikes_before
    }

    /// Returns whether calls still fail.
    pub(super) fn is_broken(&self) -> bool {
        self.is_sticky() && !self.healed && !self.strikes().is_empty()
    }

    pub(super) fn heal(&mut self) {
        self.disk.heal();
        // As in `new`: no reads from the page cache.
        self.disk.inject(Fault::on(Call::Read).nth(u64::MAX));
        self.healed = true;
    }

    pub(super) fn record_outcome(&mut self, outcome: Outcome) {
        self.outcome = self.outcome.max(outcome);
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    async fn open(&mut self) -> Result<Open, String> {
        let (began, path) = (Instant::now(), self.path());
        let mut refused = 0;
        loop {
            let strikes = self.strikes().len();
            self.disk.restarted();
            let opening = TwoSpools::open_on(config(&path, self.kind()), (self.subject.disk)(&self.disk));
            let opened =
                timeout(self.subject.patience, opening).await.map_err(|_| "an opening hangs".to_owned())?;
            let error = match opened {
                Ok(tiered) => {
                    let tiered = Arc::new(tiered);
                    return Ok(Open { spool: (self.subject.spool)(tiered.clone()), tiered });
                }
                Err(error) => error,
            };
            // Threads of the session before may still be ending.
            if error.root_cause().is::<Locked>() && began.elapsed() < self.subject.patience {
                continue;
            }
            let text = format!("{error:#}");
            if !text.contains(&path.display().to_string()) {
                self.violations.push(format!("the error of an opening does not name the path: {text}"));
            }
            if self.strikes().len() == strikes {
                return Err(format!("an opening failed on a disk that works: {text}"));
            }
            refused += 1;
            if refused > 3 {
                return Err(format!("an opening fails repeatedly: {text}"));
            }
            self.record_outcome(Outcome::RefusedOpen);
            if self.is_sticky() {
                self.heal();
            }
        }
    }

    /// Checks the messages after a restart.
    async fn check_after_restart(&mut self, open: &Open) -> Result<(), String> {
        if self.is_broken() {
            self.heal();
        }
        let report = open.tiered.recovery();
        if !report.damage.is_empty() || report.lost > 0 {
            self.violations.push(format!("recovery reports damage: {report:?}"));
        }
        let found = self.contents(open).await?;
        self.violations.extend(
            self.expected.violations(&found).into_iter().map(|what| format!("after a restart: {what}")),
        );
        self.expected.adopt(&found);
        Ok(())
    }

    /// Ends a session. If the fault struck in it, everything must work again first, unless the
    /// power fails before that.
    async fn end(&mut self, open: Open, end: End) -> Result<(), String> {
        let number = self.point.map_or(0, |point| point.number);
        let mut end = end;
        if self.is_struck() {
            if self.is_broken() && self.kind() == Some(Kind::EioCut) {
                self.record_outcome(Outcome::Reopened);
                end = End::PowerCut;
            } else {
                self.recover(&open).await?;
                // Use both ends, whatever the script says.
                end = if number.is_multiple_of(2) { End::PowerCut } else { End::Shutdown };
            }
        }
        match end {
            End::Shutdown => self.shut_down(open).await?,
            End::PowerCut => self.cut(open).await?,
        }
        if self.is_broken() {
            self.heal();
        }
        Ok(())
    }

    async fn shut_down(&mut self, open: Open) -> Result<(), String> {
        let ended = timeout(self.subject.patience * 2, open.spool.shutdown()).await;
        match ended.map_err(|_| "a shutdown hangs".to_owned())? {
            // All visible versions are durable.
            Ok(()) => self.expected.mark_durable(),
            Err(error) if self.is_struck() && !format!("{error:#}").contains("panicked") => {
                self.record_outcome(Outcome::Reopened);
            }
            Err(error) => self.violations.push(format!("a shutdown failed: {error:#}")),
        }
        drop(open);
        self.wait_until_closed().await
    }

    /// Simulates a power cut: drops the spool without a shutdown, and reverts all or some pages of
    /// unsynced writes.
    async fn cut(&mut self, open: Open) -> Result<(), String> {
        for (_, upkeep) in self.pending.drain(..) {
            upkeep.abort();
            // The task holds the spool until then.
            let _ = upkeep.await;
        }
        drop(open);
        self.wait_until_closed().await?;
        let mut rng = SmallRng::seed_from_u64(self.point.map_or(0, |point| point.number));
        let kept = if rng.random_bool(0.5) { 0.5 } else { 0.0 };
        let dir = self.dir.path();
        self.disk
            .unsynced()
            .cut(dir, dir, || rng.random_bool(kept))
            .map_err(|error| format!("the power cut could not be simulated: {error}"))?;
        self.disk.remember_unsynced();
        Ok(())
    }

    async fn wait_until_closed(&self) -> Result<(), String> {
        let closed = self.until(|| self.disk.open_files() == 0).await;
        closed.then_some(()).ok_or_else(|| "files of a closed spool stay open".to_owned())
    }

    /// Waits until `condition` holds. Returns false after the patience of the subject.
    pub(super) async fn until(&self, mut condition: impl FnMut() -> bool) -> bool {
        let began = Instant::now();
        while !condition() {
            if began.elapsed() > self.subject.patience {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    }
}
