//! Compares the log of the child with the recovered messages. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Event, Found, Line, Stock};
use crate::oracle::{Answer, DurabilityLevel, Losses, Oracle, Promise, Survival, Violation};
use crate::payload::Seen;

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

/// Checks one run of a child. `before`: the messages at its start. `after`: the messages after the
/// kill.
#[must_use]
pub fn judge(promise: Promise, before: &Stock, log: &[Line], after: &Stock) -> Verdict {
    let mut verdict = Verdict::default();
    let oracle = read_log(promise, before, log, &mut verdict);
    let mut losses = Losses::default();
    for id in oracle.ids().chain(after.keys().copied()).collect::<BTreeSet<_>>() {
        let found = after.get(&id);
        match found {
            Some(Found::Wrong(how)) => verdict.violations.push(Violation::WrongBytes(id, how.clone())),
            _ => match oracle.check(id, found.and_then(Found::whole), &mut losses) {
                Ok(is_lost) => verdict.coverage.lost_young += u64::from(is_lost),
                Err(violation) => verdict.violations.push(violation),
            },
        }
    }
    if promise.level == DurabilityLevel::Memory {
        verdict.violations.extend(losses.holes());
    }
    verdict.coverage.in_doubt = oracle.in_doubt();
    verdict.coverage.came_back = after.len() as u64;
    verdict
}

/// Feeds the log to an oracle. Counts the results, and reports what the child detected.
fn read_log(promise: Promise, before: &Stock, log: &[Line], verdict: &mut Verdict) -> Oracle {
    let end_us = log.last().map_or(0, |line| line.at_us);
    let slowest_sync = Duration::from_micros(slowest_sync_us(log, end_us));
    let young_us = u64::try_from(promise.young(slowest_sync).as_micros()).unwrap_or(u64::MAX);
    let mut oracle = Oracle::new(before.iter().map(|(id, found)| (*id, found.whole())));
    let mut begun = BTreeMap::new();
    for line in log {
        match line.event {
            Event::Store { op, id, version, len, forced } => {
                let value = Some(Seen::of(version, len));
                begun.insert(op, (oracle.begin(id, value, forced), forced));
            }
            // I10: a removal, too, survives at once at the level `Kill`.
            Event::Remove { op, id } => drop(begun.insert(op, (oracle.begin(id, None, false), false))),
            Event::Done { op } => {
                let Some((write, forced)) = begun.remove(&op) else { continue };
                let survival = if promise.survives_at_once(forced) {
                    Survival::Durable
                } else if end_us.saturating_sub(line.at_us) > young_us {
                    Survival::Old
                } else {
                    Survival::Volatile
                };
                verdict.coverage.acknowledged += 1;
                verdict.coverage.had_to_survive += u64::from(survival != Survival::Volatile);
                verdict.coverage.old_enough += u64::from(survival == Survival::Old);
                oracle.end(&write, Answer::Done(survival));
            }
            Event::Failed { op, in_doubt } => {
                let Some((write, _)) = begun.remove(&op) else { continue };
                oracle.end(&write, if in_doubt { Answer::InDoubt } else { Answer::Failed });
            }
            Event::Wrong { ref what } => {
                verdict.violations.push(Violation::SeenByTheChild(what.clone()));
            }
            Event::Opened | Event::Tick => {}
        }
    }
    oracle
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
