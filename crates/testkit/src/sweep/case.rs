use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;
use tidespool::TieredSpool;
use tidespool_core::{Locked, Spool, SpoolId};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::book::Book;
use super::script::{End, LIVES, MESSAGES, config};
use super::{Kind, Point, Subject, panics};
use crate::faults::{Call, Fault, FaultyStorage, Strike};
use crate::rng::Rng;

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Ran {
    /// `None`: without a fault.
    pub point: Option<Point>,
    /// The first call that was struck.
    pub struck: Option<Strike>,
    /// How it went.
    pub outcome: Outcome,
    /// Promises that were broken.
    pub violations: Vec<String>,
    /// Calls until the last opening, of every kind.
    pub calls: u64,
    /// Of these, the writes.
    pub writes: u64,
    /// And the reads.
    pub reads: u64,
    /// How long it took.
    pub took: Duration,
    /// Each call, in a run without a fault.
    pub trace: Vec<Strike>,
}

/// How a run went, from the caller's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The run was over before that call.
    NotStruck,
    /// No call failed, and the gate stayed open.
    Unnoticed,
    /// A call failed or the gate was shut, and all was well again without a restart.
    Recovered,
    /// A shutdown said that it was not complete, or the power went: well again with the next opening.
    Reopened,
    /// An opening failed, and the next one did not.
    RefusedOpen,
}

impl Outcome {
    /// All of them, in the order of a table.
    pub const ALL: [Self; 5] =
        [Self::NotStruck, Self::Unnoticed, Self::Recovered, Self::Reopened, Self::RefusedOpen];

    /// In a table.
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

/// A spool that is open, as its callers see it and as it is.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) spool: Arc<dyn Spool>,
    pub(super) tiered: Arc<TieredSpool>,
}

/// One run. An `Err` of its methods is a violation after which there is no going on.
pub(super) struct Case {
    pub(super) subject: Subject,
    pub(super) point: Option<Point>,
    dir: TempDir,
    pub(super) disk: FaultyStorage,
    pub(super) book: Book,
    pub(super) ids: Vec<SpoolId>,
    pub(super) version: u64,
    pub(super) violations: Vec<String>,
    pub(super) outcome: Outcome,
    /// The disk works again for good.
    pub(super) healed: bool,
    /// Strikes before this life.
    pub(super) strikes_before: usize,
    /// Strikes that were looked at.
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
        // Strikes never. While it is there, no read is answered from memory: whether a page is there would change the count of calls.
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
            book: Book::default(),
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

    pub(super) async fn live(mut self) -> Ran {
        let (began, panics) = (Instant::now(), panics::count());
        let mut counted = (0, 0, 0);
        if let Err(violation) = self.lives(&mut counted).await {
            self.violations.push(violation);
        }
        let again = self.disk.trusted_again();
        if !again.is_empty() {
            self.violations.push(format!("synced again after a failed sync: {again:?}"));
        }
        if let Some(what) = panics::since(panics) {
            self.violations.push(format!("a thread panicked (of this run, or of one beside it): {what}"));
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

    async fn lives(&mut self, counted: &mut (u64, u64, u64)) -> Result<(), String> {
        for (number, (steps, end)) in LIVES.into_iter().enumerate() {
            // What was struck while the last life ended is no matter of this one's gate.
            self.strikes_before = self.strikes().len();
            (self.seen, self.gate_was_shut) = (self.strikes_before, false);
            let open = self.open().await?;
            if number > 0 {
                self.look_after_restart(&open).await?;
            }
            self.look_at_the_gate(&open, None).await?;
            for step in steps {
                self.perform(&open, *step).await?;
                self.look_at_the_gate(&open, Some(*step)).await?;
            }
            self.end(open, end).await?;
        }
        *counted = (self.disk.total(), self.disk.count(Call::Write), self.disk.count(Call::Read));
        self.heal();
        self.strikes_before = self.strikes().len();
        let open = self.open().await?;
        self.look_after_restart(&open).await?;
        self.shut_down(open).await
    }

    /// The calls that were struck.
    pub(super) fn strikes(&self) -> Vec<Strike> {
        self.disk.strikes()
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        self.point.map(|point| point.kind)
    }

    pub(super) fn is_sticky(&self) -> bool {
        self.kind().is_some_and(Kind::is_sticky)
    }

    /// Something was struck in this life: calls may fail.
    pub(super) fn is_struck(&self) -> bool {
        self.strikes().len() > self.strikes_before
    }

    /// And goes on to fail.
    pub(super) fn is_broken(&self) -> bool {
        self.is_sticky() && !self.healed && !self.strikes().is_empty()
    }

    pub(super) fn heal(&mut self) {
        self.disk.heal();
        // As in `new`.
        self.disk.inject(Fault::on(Call::Read).nth(u64::MAX));
        self.healed = true;
    }

    pub(super) fn noticed(&mut self, outcome: Outcome) {
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
            let opening = TieredSpool::open_on(config(&path, self.kind()), (self.subject.disk)(&self.disk));
            let opened =
                timeout(self.subject.patience, opening).await.map_err(|_| "an opening hangs".to_owned())?;
            let error = match opened {
                Ok(tiered) => {
                    let tiered = Arc::new(tiered);
                    return Ok(Open { spool: (self.subject.spool)(tiered.clone()), tiered });
                }
                Err(error) => error,
            };
            // Threads of the life before may be at their last.
            if error.root_cause().is::<Locked>() && began.elapsed() < self.subject.patience {
                continue;
            }
            let text = format!("{error:#}");
            if !text.contains(&path.display().to_string()) {
                self.violations.push(format!("the error of an opening names no path: {text}"));
            }
            if self.strikes().len() == strikes {
                return Err(format!("an opening failed on a disk that works: {text}"));
            }
            refused += 1;
            if refused > 3 {
                return Err(format!("an opening fails again and again: {text}"));
            }
            self.noticed(Outcome::RefusedOpen);
            if self.is_sticky() {
                self.heal();
            }
        }
    }

    /// What a restart has to find.
    async fn look_after_restart(&mut self, open: &Open) -> Result<(), String> {
        if self.is_broken() {
            self.heal();
        }
        let report = open.tiered.recovery();
        if !report.damage.is_empty() || report.lost > 0 {
            self.violations.push(format!("recovery reports damage: {report:?}"));
        }
        let found = self.look(open).await?;
        self.violations
            .extend(self.book.losses(&found).into_iter().map(|what| format!("after a restart: {what}")));
        self.book.adopt(&found);
        Ok(())
    }

    /// Ends a life. After a strike in it, all has to be well again first; but not where the power goes before.
    async fn end(&mut self, open: Open, end: End) -> Result<(), String> {
        let number = self.point.map_or(0, |point| point.number);
        let mut end = end;
        if self.is_struck() {
            if self.is_broken() && self.kind() == Some(Kind::EioCut) {
                self.noticed(Outcome::Reopened);
                end = End::PowerCut;
            } else {
                self.recover(&open).await?;
                // Both ends, after whatever fault.
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
            // What every caller saw last is durable.
            Ok(()) => self.book.settle(),
            Err(error) if self.is_struck() && !format!("{error:#}").contains("panicked") => {
                self.noticed(Outcome::Reopened);
            }
            Err(error) => self.violations.push(format!("a shutdown failed: {error:#}")),
        }
        drop(open);
        self.wait_until_closed().await
    }

    /// The power goes: threads end as they do when nobody waits for them, and what was not synced is gone, or some pages of it.
    async fn cut(&mut self, open: Open) -> Result<(), String> {
        for (_, upkeep) in self.pending.drain(..) {
            upkeep.abort();
            // It holds the spool until then.
            let _ = upkeep.await;
        }
        drop(open);
        self.wait_until_closed().await?;
        let mut rng = Rng::new(self.point.map_or(0, |point| point.number));
        let kept = if rng.chance(50) { 50 } else { 0 };
        let dir = self.dir.path();
        self.disk
            .unsynced()
            .cut(dir, dir, || rng.chance(kept))
            .map_err(|error| format!("the power cut could not be simulated: {error}"))?;
        self.disk.remember_unsynced();
        Ok(())
    }

    async fn wait_until_closed(&self) -> Result<(), String> {
        let closed = self.until(|| self.disk.open_files() == 0).await;
        closed.then_some(()).ok_or_else(|| "files of a spool that has ended stay open".to_owned())
    }

    /// Whether `condition` comes to hold.
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
