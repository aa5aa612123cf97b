//! Compares the log of the child with the recovered messages. No I/O, no clock.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tidespool_core::SpoolId;

use super::{Event, Found, Line, Stock};
use crate::payload::Seen;

/// What every acknowledged store and removal survives, without `force_sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurabilityLevel {
    /// Nothing, while it is younger than `dirty_expire`.
    Memory,
    /// A kill. Use it also for spools that promise more: these tests only kill the process.
    Kill,
}

/// The promise that the spool is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// The minimum durability of a store.
    pub level: DurabilityLevel,
    /// The age from which everything is durable, apart from the time of one commit.
    pub dirty_expire: Duration,
    /// Time that a busy machine may add. The check adds three times the duration of the slowest
    /// synced store in the log, so that a slow disk does not count as a broken promise.
    pub slack: Duration,
}

impl Promise {
    /// Returns whether an acknowledged store survives a kill at any age.
    #[must_use]
    pub fn survives_at_once(self, forced: bool) -> bool {
        forced || self.level == DurabilityLevel::Kill
    }

    /// Returns the age from which everything is durable, if the slowest synced store took
    /// `slowest_sync`.
    #[must_use]
    pub fn young(self, slowest_sync: Duration) -> Duration {
        self.dirty_expire + self.slack + slowest_sync * 3
    }
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// I1: a durable message is absent, or only an earlier version is present.
    DurableLost(SpoolId, String),
    /// I2: a message was acknowledged without a sync, but so long ago that it had to be durable.
    OldLost(SpoolId, String),
    /// I2: the first message is lost, but the second, stored after the first was acknowledged, is
    /// present.
    Hole(SpoolId, SpoolId),
    /// I3: a durable removal was undone, or a message is present that was never stored.
    Resurrected(SpoolId, String),
    /// I4: wrong bytes.
    WrongBytes(SpoolId, String),
    /// A store that returned an error left something behind.
    LeftBehind(SpoolId, String),
    /// The child detected it.
    SeenByTheChild(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DurableLost(id, how) => write!(f, "I1: durable message {id} is lost: {how}"),
            Self::OldLost(id, how) => write!(f, "I2: message {id} is lost, but was not young: {how}"),
            Self::Hole(lost, kept) => write!(f, "I2: {lost} is lost while the newer {kept} is kept"),
            Self::Resurrected(id, how) => write!(f, "I3: message {id} reappeared: {how}"),
            Self::WrongBytes(id, how) => write!(f, "I4: message {id}: {how}"),
            Self::LeftBehind(id, how) => write!(f, "a failed store of {id} left something behind: {how}"),
            Self::SeenByTheChild(what) => write!(f, "detected by the child: {what}"),
        }
    }
}

/// What was checked: a test that checked nothing proves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Acknowledged stores and removes.
    pub acknowledged: u64,
    /// Acknowledged operations that had to survive, because of a sync, the durability level or
    /// their age.
    pub had_to_survive: u64,
    /// Unsynced operations that had to survive only because of their age.
    pub old_enough: u64,
    /// Operations without a result at the kill, or that failed in doubt.
    pub in_doubt: u64,
    /// Acknowledged messages that are lost and young enough to be.
    pub lost_young: u64,
    /// Recovered messages.
    pub came_back: u64,
}

impl std::ops::AddAssign for Coverage {
    fn add_assign(&mut self, more: Self) {
        self.acknowledged += more.acknowledged;
        self.had_to_survive += more.had_to_survive;
        self.old_enough += more.old_enough;
        self.in_doubt += more.in_doubt;
        self.lost_young += more.lost_young;
        self.came_back += more.came_back;
    }
}

/// The result of the check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Every broken promise.
    pub violations: Vec<Violation>,
    /// What was checked.
    pub coverage: Coverage,
}

/// The result of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    InDoubt,
    /// Acknowledged: the index of that line in the log, and its time.
    Done(usize, u64),
    /// Failed, and left nothing behind.
    Failed,
    /// Failed in doubt: the index of that line in the log. The message was not visible before the
    /// crash, and may be present after it.
    FailedInDoubt(usize),
}

impl Answer {
    /// The operation had no visible effect while the spool was open.
    fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::FailedInDoubt(_))
    }
}

/// One operation on an id, and the state that it leaves.
#[derive(Debug, Clone)]
struct Step {
    /// `None` after a remove.
    holds: Option<Seen>,
    /// `None` for a remove, and for the state before the child started.
    forced: Option<bool>,
    /// The index of the intent in the log.
    place: usize,
    answer: Answer,
    /// It must survive.
    durable: bool,
    /// It must survive only because of its age.
    old: bool,
}

/// Checks one run of a child. `before`: the messages at its start. `after`: the messages after the
/// kill.
#[must_use]
pub fn judge(promise: Promise, before: &Stock, log: &[Line], after: &Stock) -> Verdict {
    let mut verdict = Verdict::default();
    let mut histories = histories(before, log);
    resolve_doubts(&mut histories, log);
    let end_us = log.last().map_or(0, |line| line.at_us);
    let young_us = micros(promise.young(Duration::from_micros(slowest_sync_us(log, end_us))));
    for history in histories.values_mut() {
        mark_durable(promise, history, end_us, young_us, &mut verdict.coverage);
    }
    for line in log {
        if let Event::Wrong { what } = &line.event {
            verdict.violations.push(Violation::SeenByTheChild(what.clone()));
        }
    }
    let mut losses = Losses::default();
    for (&id, history) in &histories {
        check_id(id, history, after.get(&id), &mut verdict, &mut losses);
    }
    for (id, found) in after.iter().filter(|(id, _)| !histories.contains_key(id)) {
        verdict.violations.push(Violation::Resurrected(*id, format!("{found:?}, never stored")));
    }
    if promise.level == DurabilityLevel::Memory {
        verdict.violations.extend(losses.holes());
    }
    verdict.coverage.came_back = after.len() as u64;
    verdict
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Returns the steps of each id in order. The first step is the state before the run.
fn histories(before: &Stock, log: &[Line]) -> BTreeMap<SpoolId, Vec<Step>> {
    let first = |id: &SpoolId| {
        let holds = match before.get(id) {
            Some(Found::Whole(seen)) => Some(*seen),
            _ => None,
        };
        let answer = Answer::Done(0, 0);
        vec![Step { holds, forced: None, place: 0, answer, durable: true, old: false }]
    };
    let mut histories: BTreeMap<SpoolId, Vec<Step>> = before.keys().map(|id| (*id, first(id))).collect();
    let mut begun: BTreeMap<u64, (SpoolId, usize)> = BTreeMap::new();
    for (place, line) in log.iter().enumerate() {
        let (op, id, holds, forced) = match line.event {
            Event::Store { op, id, version, len, forced } => {
                let version = (len >= crate::payload::HEADER_BYTES).then_some(version);
                (op, id, Some(Seen { version, len }), Some(forced))
            }
            Event::Remove { op, id } => (op, id, None, None),
            Event::Done { op } | Event::Failed { op, .. } => {
                let answer = match line.event {
                    Event::Failed { in_doubt: true, .. } => Answer::FailedInDoubt(place),
                    Event::Failed { .. } => Answer::Failed,
                    _ => Answer::Done(place, line.at_us),
                };
                if let Some((id, step)) = begun.get(&op)
                    && let Some(step) = histories.get_mut(id).and_then(|history| history.get_mut(*step))
                {
                    step.answer = answer;
                }
                continue;
            }
            Event::Opened | Event::Wrong { .. } | Event::Tick => continue,
        };
        let history = histories.entry(id).or_insert_with(|| first(&id));
        begun.insert(op, (id, history.len()));
        history.push(Step { holds, forced, place, answer: Answer::InDoubt, durable: false, old: false });
    }
    histories
}

/// Resolves stores that failed in doubt. The spool reverts such a store before anything later is
/// durable: an acknowledged synced store of any id that began after the error proves that it is
/// reverted.
fn resolve_doubts(histories: &mut BTreeMap<SpoolId, Vec<Step>>, log: &[Line]) {
    let mut begun: BTreeMap<u64, usize> = BTreeMap::new();
    let mut last_synced = None;
    for (place, line) in log.iter().enumerate() {
        match line.event {
            Event::Store { op, forced: true, .. } => drop(begun.insert(op, place)),
            Event::Done { op } => last_synced = last_synced.max(begun.remove(&op)),
            _ => {}
        }
    }
    for step in histories.values_mut().flatten() {
        if matches!(step.answer, Answer::FailedInDoubt(place) if last_synced.is_some_and(|begun| begun > place))
        {
            step.answer = Answer::Failed;
        }
    }
}

/// Returns the duration of the slowest synced store. Stores without a result count until the end of
/// the log.
fn slowest_sync_us(log: &[Line], end_us: u64) -> u64 {
    let mut begun: BTreeMap<u64, u64> = BTreeMap::new();
    let mut slowest = 0;
    for line in log {
        match line.event {
            Event::Store { op, forced: true, .. } => drop(begun.insert(op, line.at_us)),
            Event::Done { op } | Event::Failed { op, .. } => {
                if let Some(began) = begun.remove(&op) {
                    slowest = slowest.max(line.at_us.saturating_sub(began));
                }
            }
            _ => {}
        }
    }
    begun.values().fold(slowest, |slowest, began| slowest.max(end_us.saturating_sub(*began)))
}

/// Marks the steps that must survive.
fn mark_durable(promise: Promise, history: &mut [Step], end_us: u64, young_us: u64, coverage: &mut Coverage) {
    for step in history.iter_mut().skip(1) {
        let Answer::Done(_, at_us) = step.answer else {
            coverage.in_doubt += u64::from(step.answer != Answer::Failed);
            continue;
        };
        let at_once = match step.forced {
            Some(forced) => promise.survives_at_once(forced),
            // I10: a removal, too.
            None => promise.level == DurabilityLevel::Kill,
        };
        step.old = !at_once && end_us.saturating_sub(at_us) > young_us;
        step.durable = at_once || step.old;
        coverage.acknowledged += 1;
        coverage.had_to_survive += u64::from(step.durable);
        coverage.old_enough += u64::from(step.old);
    }
}

/// Checks one id. The recovered state must be the result of some step, and no later step may be
/// durable.
fn check_id(
    id: SpoolId,
    history: &[Step],
    found: Option<&Found>,
    verdict: &mut Verdict,
    losses: &mut Losses,
) {
    let holds = match found {
        Some(Found::Wrong(how)) => {
            verdict.violations.push(Violation::WrongBytes(id, how.clone()));
            return;
        }
        Some(Found::Whole(seen)) => Some(*seen),
        None => None,
    };
    // The newest match: empty messages have no version, and all removals look the same.
    let Some(stands) = history.iter().rposition(|step| step.answer != Answer::Failed && step.holds == holds)
    else {
        let failed = history.iter().any(|step| step.holds == holds);
        verdict.violations.push(match holds {
            Some(seen) if failed => Violation::LeftBehind(id, format!("{seen:?}")),
            Some(seen) => Violation::Resurrected(id, format!("{seen:?}, never stored")),
            // No step removed it, but it was present before.
            None => Violation::DurableLost(id, "it was present before".to_owned()),
        });
        return;
    };
    losses.note(id, history, stands);
    let lost = history[stands + 1..].iter().rev().find(|step| step.durable);
    if let Some(lost) = lost {
        let how = format!("found {holds:?}, acknowledged {:?}", lost.holds);
        verdict.violations.push(match (lost.forced, lost.old) {
            (None, _) => Violation::Resurrected(id, how),
            (Some(_), true) => Violation::OldLost(id, how),
            (Some(_), false) => Violation::DurableLost(id, how),
        });
    } else {
        let acknowledged = |step: &Step| step.holds.is_some() && matches!(step.answer, Answer::Done(..));
        let last = history.iter().rposition(|step| !step.answer.is_failure());
        verdict.coverage.lost_young +=
            u64::from(last.is_some_and(|last| last > stands && acknowledged(&history[last])));
    }
}

/// The lost and the kept unsynced stores, by their indices in the log, or by any other numbers that
/// order intents and results.
#[derive(Debug, Default)]
pub struct Losses {
    /// The newest unsynced store that is still present, by the index of its intent.
    newest_kept: Option<(usize, SpoolId)>,
    /// The lost unsynced stores that were neither replaced nor removed, by the index of their
    /// result.
    lost: Vec<(usize, SpoolId)>,
}

impl Losses {
    fn note(&mut self, id: SpoolId, history: &[Step], stands: usize) {
        let standing = &history[stands];
        if standing.forced == Some(false) && standing.holds.is_some_and(|seen| seen.version.is_some()) {
            self.keep(standing.place, id);
        }
        let last = history.iter().rposition(|step| !step.answer.is_failure()).unwrap_or(0);
        if last > stands
            && history[last].forced == Some(false)
            && let Answer::Done(place, _) = history[last].answer
        {
            self.lose(place, id);
        }
    }

    /// Records that an unsynced store that began at `place` is present.
    pub fn keep(&mut self, place: usize, id: SpoolId) {
        self.newest_kept = self.newest_kept.max(Some((place, id)));
    }

    /// Records that an unsynced store acknowledged at `place` is lost, and was neither replaced nor
    /// removed.
    pub fn lose(&mut self, place: usize, id: SpoolId) {
        self.lost.push((place, id));
    }

    /// Returns each store that is lost while a newer one is kept.
    pub fn holes(&self) -> impl Iterator<Item = Violation> + '_ {
        let kept = self.newest_kept;
        self.lost.iter().filter_map(move |&(answered, lost)| {
            kept.filter(|(begun, _)| answered < *begun).map(|(_, kept)| Violation::Hole(lost, kept))
        })
    }
}
