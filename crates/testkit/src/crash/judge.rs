//! Compares what was said with what came back. No I/O, no clock.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tidespool_core::SpoolId;

use super::{Event, Found, Line, Stock};
use crate::payload::Seen;

/// What every acknowledged store survives, whatever its `force_sync`, and every removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floor {
    /// Nothing, while it is younger than `dirty_expire`.
    Memory,
    /// A kill. (A kill takes nothing from a spool whose floor is higher, either.)
    Kill,
}

/// What the spool is held to.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// The least that a store gives.
    pub floor: Floor,
    /// The age at which everything is durable, but for the time of one commit.
    pub dirty_expire: Duration,
    /// Time that a busy machine may add to that. The judge adds three times the slowest synced store in the log,
    /// so that a slow disk is not taken for a broken promise.
    pub slack: Duration,
}

impl Promise {
    /// Whether an acknowledged store survives a kill, however young it is.
    #[must_use]
    pub fn survives_at_once(self, forced: bool) -> bool {
        forced || self.floor == Floor::Kill
    }

    /// The age at which everything is durable, where a synced store took `slowest_sync` at most.
    #[must_use]
    pub fn young(self, slowest_sync: Duration) -> Duration {
        self.dirty_expire + self.slack + slowest_sync * 3
    }
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// I1: it was durable, and is not there, or only an earlier version of it is.
    DurableLost(SpoolId, String),
    /// I2: it was acknowledged without a sync, so long ago that it had to be durable.
    OldLost(SpoolId, String),
    /// I2: the first is lost, and the second, stored after the first was acknowledged, is not.
    Hole(SpoolId, SpoolId),
    /// I3: a durable removal was undone, or a message is there that nobody stored.
    Resurrected(SpoolId, String),
    /// I4: wrong bytes.
    WrongBytes(SpoolId, String),
    /// A store that was answered with an error left something behind.
    LeftBehind(SpoolId, String),
    /// The child saw it with its own eyes.
    SeenByTheChild(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DurableLost(id, how) => write!(f, "I1: durable message {id} is lost: {how}"),
            Self::OldLost(id, how) => write!(f, "I2: message {id} is lost, and was not young: {how}"),
            Self::Hole(lost, kept) => write!(f, "I2: {lost} is lost while the newer {kept} is kept"),
            Self::Resurrected(id, how) => write!(f, "I3: message {id} is back: {how}"),
            Self::WrongBytes(id, how) => write!(f, "I4: message {id}: {how}"),
            Self::LeftBehind(id, how) => write!(f, "a failed store of {id} left something behind: {how}"),
            Self::SeenByTheChild(what) => write!(f, "seen by the child: {what}"),
        }
    }
}

/// How much there was to judge: a test that judged nothing proves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Stores and removes acknowledged.
    pub acknowledged: u64,
    /// Of these, the ones that had to survive: synced, below the floor, or old enough.
    pub had_to_survive: u64,
    /// Of these, the unsynced ones that had to survive for their age alone.
    pub old_enough: u64,
    /// Operations without an answer at the kill, or in doubt by their answer.
    pub in_doubt: u64,
    /// Messages acknowledged, lost, and young enough to be.
    pub lost_young: u64,
    /// Messages that came back.
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

/// The judgement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Every broken promise.
    pub violations: Vec<Violation>,
    /// How much there was to judge.
    pub coverage: Coverage,
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    InDoubt,
    /// Acknowledged: the place of that line in the log, and its time.
    Done(usize, u64),
    /// Nothing is left behind.
    Failed,
    /// An error in doubt: the place of that line in the log. The message may be found after a
    /// crash, and was not visible before.
    FailedInDoubt(usize),
}

impl Answer {
    /// No call saw it done while the spool was open.
    fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::FailedInDoubt(_))
    }
}

/// One step in the life of an id: what there is after it.
#[derive(Debug, Clone)]
struct Step {
    /// `None` after a remove.
    holds: Option<Seen>,
    /// `None` for a remove, and for what was there before the child began.
    forced: Option<bool>,
    /// The place of the intent in the log.
    place: usize,
    answer: Answer,
    /// It has to survive.
    durable: bool,
    /// It has to survive for its age alone.
    old: bool,
}

/// Judges one child's life: `before` was there when it began, `after` when it was dead.
#[must_use]
pub fn judge(promise: Promise, before: &Stock, log: &[Line], after: &Stock) -> Verdict {
    let mut verdict = Verdict::default();
    let mut lives = lives(before, log);
    end_doubts(&mut lives, log);
    let end_us = log.last().map_or(0, |line| line.at_us);
    let young_us = micros(promise.young(Duration::from_micros(slowest_sync_us(log, end_us))));
    for life in lives.values_mut() {
        mark_durable(promise, life, end_us, young_us, &mut verdict.coverage);
    }
    for line in log {
        if let Event::Wrong { what } = &line.event {
            verdict.violations.push(Violation::SeenByTheChild(what.clone()));
        }
    }
    let mut losses = Losses::default();
    for (&id, life) in &lives {
        judge_life(id, life, after.get(&id), &mut verdict, &mut losses);
    }
    for (id, found) in after.iter().filter(|(id, _)| !lives.contains_key(id)) {
        verdict.violations.push(Violation::Resurrected(*id, format!("{found:?}, never stored")));
    }
    if promise.floor == Floor::Memory {
        verdict.violations.extend(losses.holes());
    }
    verdict.coverage.came_back = after.len() as u64;
    verdict
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The steps of each id, in order. The first is what was there before.
fn lives(before: &Stock, log: &[Line]) -> BTreeMap<SpoolId, Vec<Step>> {
    let first = |id: &SpoolId| {
        let holds = match before.get(id) {
            Some(Found::Whole(seen)) => Some(*seen),
            _ => None,
        };
        let answer = Answer::Done(0, 0);
        vec![Step { holds, forced: None, place: 0, answer, durable: true, old: false }]
    };
    let mut lives: BTreeMap<SpoolId, Vec<Step>> = before.keys().map(|id| (*id, first(id))).collect();
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
                    && let Some(step) = lives.get_mut(id).and_then(|life| life.get_mut(*step))
                {
                    step.answer = answer;
                }
                continue;
            }
            Event::Opened | Event::Wrong { .. } | Event::Tick => continue,
        };
        let life = lives.entry(id).or_insert_with(|| first(&id));
        begun.insert(op, (id, life.len()));
        life.push(Step { holds, forced, place, answer: Answer::InDoubt, durable: false, old: false });
    }
    lives
}

/// A store that failed in doubt is taken back before anything that came after its answer is
/// durable: an acknowledged synced store that began later ends the doubt, whatever its id.
fn end_doubts(lives: &mut BTreeMap<SpoolId, Vec<Step>>, log: &[Line]) {
    let mut begun: BTreeMap<u64, usize> = BTreeMap::new();
    let mut last_synced = None;
    for (place, line) in log.iter().enumerate() {
        match line.event {
            Event::Store { op, forced: true, .. } => drop(begun.insert(op, place)),
            Event::Done { op } => last_synced = last_synced.max(begun.remove(&op)),
            _ => {}
        }
    }
    for step in lives.values_mut().flatten() {
        if matches!(step.answer, Answer::FailedInDoubt(place) if last_synced.is_some_and(|begun| begun > place))
        {
            step.answer = Answer::Failed;
        }
    }
}

/// The longest that a synced store took, those not answered at the end included.
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

/// Marks the steps that have to survive.
fn mark_durable(promise: Promise, life: &mut [Step], end_us: u64, young_us: u64, coverage: &mut Coverage) {
    for step in life.iter_mut().skip(1) {
        let Answer::Done(_, at_us) = step.answer else {
            coverage.in_doubt += u64::from(step.answer != Answer::Failed);
            continue;
        };
        let at_once = match step.forced {
            Some(forced) => promise.survives_at_once(forced),
            // I10: a removal, too.
            None => promise.floor == Floor::Kill,
        };
        step.old = !at_once && end_us.saturating_sub(at_us) > young_us;
        step.durable = at_once || step.old;
        coverage.acknowledged += 1;
        coverage.had_to_survive += u64::from(step.durable);
        coverage.old_enough += u64::from(step.old);
    }
}

/// Judges one id. What is there must be what some step left, and no durable step may come after that one.
fn judge_life(id: SpoolId, life: &[Step], found: Option<&Found>, verdict: &mut Verdict, losses: &mut Losses) {
    let holds = match found {
        Some(Found::Wrong(how)) => {
            verdict.violations.push(Violation::WrongBytes(id, how.clone()));
            return;
        }
        Some(Found::Whole(seen)) => Some(*seen),
        None => None,
    };
    // The newest that fits: empty messages and removes look all the same.
    let Some(stands) = life.iter().rposition(|step| step.answer != Answer::Failed && step.holds == holds)
    else {
        let failed = life.iter().any(|step| step.holds == holds);
        verdict.violations.push(match holds {
            Some(seen) if failed => Violation::LeftBehind(id, format!("{seen:?}")),
            Some(seen) => Violation::Resurrected(id, format!("{seen:?}, never stored")),
            // Without a step that removes it, and with something there before.
            None => Violation::DurableLost(id, "it was there before".to_owned()),
        });
        return;
    };
    losses.note(id, life, stands);
    let lost = life[stands + 1..].iter().rev().find(|step| step.durable);
    if let Some(lost) = lost {
        let how = format!("found {holds:?}, acknowledged {:?}", lost.holds);
        verdict.violations.push(match (lost.forced, lost.old) {
            (None, _) => Violation::Resurrected(id, how),
            (Some(_), true) => Violation::OldLost(id, how),
            (Some(_), false) => Violation::DurableLost(id, how),
        });
    } else {
        let acknowledged = |step: &Step| step.holds.is_some() && matches!(step.answer, Answer::Done(..));
        let last = life.iter().rposition(|step| !step.answer.is_failure());
        verdict.coverage.lost_young +=
            u64::from(last.is_some_and(|last| last > stands && acknowledged(&life[last])));
    }
}

/// What is lost and what is kept of the unsynced stores, by their places in the log, or by any
/// other numbers that order intents and answers.
#[derive(Debug, Default)]
pub struct Losses {
    /// The newest unsynced store that is still there, by the place of its intent.
    newest_kept: Option<(usize, SpoolId)>,
    /// The unsynced stores that are lost, and were neither replaced nor removed, by the place of their answer.
    lost: Vec<(usize, SpoolId)>,
}

impl Losses {
    fn note(&mut self, id: SpoolId, life: &[Step], stands: usize) {
        let standing = &life[stands];
        if standing.forced == Some(false) && standing.holds.is_some_and(|seen| seen.version.is_some()) {
            self.keep(standing.place, id);
        }
        let last = life.iter().rposition(|step| !step.answer.is_failure()).unwrap_or(0);
        if last > stands
            && life[last].forced == Some(false)
            && let Answer::Done(place, _) = life[last].answer
        {
            self.lose(place, id);
        }
    }

    /// An unsynced store that began at `place` is still there.
    pub fn keep(&mut self, place: usize, id: SpoolId) {
        self.newest_kept = self.newest_kept.max(Some((place, id)));
    }

    /// An unsynced store that was acknowledged at `place` is lost, and was neither replaced nor
    /// removed.
    pub fn lose(&mut self, place: usize, id: SpoolId) {
        self.lost.push((place, id));
    }

    /// Each store that is lost while a newer one is kept.
    pub fn holes(&self) -> impl Iterator<Item = Violation> + '_ {
        let kept = self.newest_kept;
        self.lost.iter().filter_map(move |&(answered, lost)| {
            kept.filter(|(begun, _)| answered < *begun).map(|(_, kept)| Violation::Hole(lost, kept))
        })
    }
}
