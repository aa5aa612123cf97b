//! Checks the state after a restart: the history of each id, and the order between ids.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tidespool_core::SpoolId;

use super::checker::{Call, Ending, Refuted, check};
use super::history::{Entry, Outcome, Request};
use crate::oracle::{DurabilityLevel, Losses, Promise, Value, shown};

/// The guarantees of the spool, beyond linearizability.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// What a crash may lose. The drop of a spool counts as a crash.
    pub promise: Promise,
    /// A message of more bytes is larger than a segment, and its store always survives a kill. A
    /// message of three quarters of this size fits into a segment. No message has a length in
    /// between.
    pub large: usize,
}

/// One session: a round, from its opening to the next opening.
pub(super) struct Session<'a> {
    /// The value of each id at the beginning.
    pub(super) before: &'a BTreeMap<SpoolId, Value>,
    pub(super) entries: &'a [Entry],
    /// The beginnings of the calls that made all data durable that was acknowledged before them.
    pub(super) barriers: &'a [u64],
    /// When the spool was dropped. `None`: it was shut down.
    pub(super) dropped_at: Option<Instant>,
    /// The value of each id after the next opening. `None`: they could not be read.
    pub(super) after: Option<&'a BTreeMap<SpoolId, Value>>,
}

/// The losses of a legal session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// The number of ids that have an earlier value than before the crash.
    pub(super) ids: u64,
}

impl Session<'_> {
    /// Checks every id and the order between ids.
    ///
    /// # Errors
    ///
    /// A text with the shortest history that no order explains.
    pub(super) fn judge(&self, expected: Expected) -> Result<Lost, String> {
        let young = expected.promise.young(self.slowest_sync());
        let mut histories: BTreeMap<SpoolId, Vec<Entry>> = BTreeMap::new();
        for entry in self.entries {
            histories.entry(entry.id).or_default().push(*entry);
        }
        let (mut losses, mut lost) = (Losses::default(), Lost::default());
        let mut failing: Vec<(Vec<Entry>, SpoolId, Refuted)> = Vec::new();
        let known = self.before.keys().chain(self.after.into_iter().flat_map(BTreeMap::keys));
        let ids: BTreeSet<SpoolId> = known.chain(histories.keys()).copied().collect();
        for id in ids {
            let mut history = histories.remove(&id).unwrap_or_default();
            history.sort_unstable_by_key(|entry| entry.began);
            let is_durable = |entry: &Entry| self.is_durable(expected, young, entry);
            if let Err(refuted) = self.check(id, &history, &is_durable, self.ending(id)) {
                failing.push((history, id, refuted));
            } else if self.dropped_at.is_some() && self.after.is_some() {
                lost.ids += u64::from(self.note_losses(expected, id, &history, &mut losses));
            }
        }
        let mut broken = Vec::new();
        let count = failing.len();
        if let Some((history, id, refuted)) = failing.into_iter().min_by_key(|(history, ..)| history.len()) {
            let is_durable = |entry: &Entry| self.is_durable(expected, young, entry);
            let (history, refuted) = self.shorten(id, history, &is_durable, refuted);
            let description = self.describe(id, &history, &is_durable, &refuted);
            broken.push(format!(
                "{count} messages have a history that is not legal; the shortest:\n{description}"
            ));
        }
        if expected.promise.level == DurabilityLevel::Memory {
            broken.extend(losses.holes().map(|hole| format!("after the spool was dropped: {hole}")));
        }
        if !broken.is_empty() {
            return Err(broken.join("\n"));
        }
        Ok(lost)
    }

    fn check(
        &self,
        id: SpoolId,
        history: &[Entry],
        is_durable: &dyn Fn(&Entry) -> bool,
        ending: Option<Ending>,
    ) -> Result<(), Refuted> {
        let calls: Vec<Call> = history.iter().map(|entry| entry.call(is_durable(entry))).collect();
        check(self.before(id), &calls, ending)
    }

    fn before(&self, id: SpoolId) -> Value {
        self.before.get(&id).copied().flatten()
    }

    fn after(&self, id: SpoolId) -> Value {
        self.after.and_then(|after| after.get(&id)).copied().flatten()
    }

    fn ending(&self, id: SpoolId) -> Option<Ending> {
        let found = self.after(id);
        let ending = if self.dropped_at.is_some() { Ending::Crash(found) } else { Ending::Orderly(found) };
        self.after.map(|_| ending)
    }

    /// Returns the duration of the slowest synced store, so that a slow disk does not count as a
    /// broken promise.
    fn slowest_sync(&self) -> Duration {
        let synced = |entry: &&Entry| matches!(entry.request, Request::Store { forced: true, .. });
        let took = self.entries.iter().filter(synced).map(|entry| entry.ended_at - entry.began_at);
        took.max().unwrap_or_default()
    }

    /// Returns true if a crash at the end does not lose this write.
    fn is_durable(&self, expected: Expected, young: Duration, entry: &Entry) -> bool {
        if entry.outcome != Outcome::Done {
            return false;
        }
        let at_once = match entry.request {
            Request::Store { seen, forced } => {
                seen.len > expected.large || expected.promise.survives_at_once(forced)
            }
            Request::Remove | Request::Load => false,
        };
        let is_old = self.dropped_at.is_some_and(|at| at.saturating_duration_since(entry.ended_at) > young);
        at_once || is_old || self.barriers.iter().any(|barrier| entry.ended < *barrier)
    }

    /// Records the unsynced stores that are certainly kept, and those that are certainly lost.
    /// Returns true if one is lost.
    fn note_losses(&self, expected: Expected, id: SpoolId, history: &[Entry], losses: &mut Losses) -> bool {
        let found = self.after(id);
        let is_plain = |entry: &&Entry| {
            matches!(entry.request, Request::Store { seen, forced: false }
                if seen.version.is_some() && seen.len <= expected.large)
                && entry.outcome == Outcome::Done
        };
        let kept = history.iter().filter(is_plain).find(|entry| entry.writes() == Some(found));
        kept.inspect(|kept| losses.keep(kept.began, id));
        let writes = || history.iter().filter(|entry| entry.writes().is_some());
        let last = writes().max_by_key(|entry| entry.began).filter(is_plain).filter(|last| {
            last.writes() != Some(found)
                && writes().all(|other| other.began == last.began || other.ended < last.began)
        });
        last.inspect(|last| losses.lose(last.ended, id));
        last.is_some()
    }

    /// Removes the calls that the refutation does not need: those after it, and most loads.
    fn shorten(
        &self,
        id: SpoolId,
        mut history: Vec<Entry>,
        is_durable: &dyn Fn(&Entry) -> bool,
        mut refuted: Refuted,
    ) -> (Vec<Entry>, Refuted) {
        let mut ending = self.ending(id);
        if let Refuted::Call { place, .. } = refuted {
            let end = history[place].ended;
            history.retain(|entry| entry.began <= end);
            ending = None;
        }
        let mut place = 0;
        while let Some(entry) = history.get(place).copied() {
            if entry.request == Request::Load {
                history.remove(place);
                if self.check(id, &history, is_durable, ending).is_err() {
                    continue;
                }
                history.insert(place, entry);
            }
            place += 1;
        }
        if let Err(shorter) = self.check(id, &history, is_durable, ending) {
            refuted = shorter;
        }
        (history, refuted)
    }

    fn describe(
        &self,
        id: SpoolId,
        history: &[Entry],
        is_durable: &dyn Fn(&Entry) -> bool,
        refuted: &Refuted,
    ) -> String {
        const LINES: usize = 60;
        let values =
            |possible: &[Value]| possible.iter().map(|value| shown(*value)).collect::<Vec<_>>().join(", ");
        let why = match refuted {
            Refuted::TooWide => "too many calls at the same time: nothing is proven".to_owned(),
            Refuted::Ending { possible } => format!(
                "no order of its calls explains what was found after {}; before that it may have held: {}",
                if self.dropped_at.is_some() { "the drop" } else { "the shutdown" },
                values(possible)
            ),
            Refuted::Call { place, possible } => format!(
                "no order of its calls explains this one:\n{}\nit may have held: {}",
                history[*place],
                values(possible)
            ),
        };
        let mut text = format!("message {id}: {why}\nits history, without loads that change nothing:\n");
        let _ = writeln!(text, "    before: {}", shown(self.before(id)));
        let skipped = history.len().saturating_sub(LINES);
        if skipped > 0 {
            let _ = writeln!(text, "    ({skipped} earlier calls)");
        }
        for entry in &history[skipped..] {
            let durable = if self.dropped_at.is_some() && is_durable(entry) { "  durable" } else { "" };
            let _ = writeln!(text, "{entry}{durable}");
        }
        let end = if self.dropped_at.is_some() { "the drop" } else { "the shutdown" };
        if self.after.is_some() {
            let _ = writeln!(text, "    after {end}: {}", shown(self.after(id)));
        }
        text
    }
}

/// Converts a stock to the value of each id.
///
/// # Errors
///
/// If a message is damaged.
pub(super) fn values(stock: &crate::crash::Stock) -> Result<BTreeMap<SpoolId, Value>, String> {
    let value = |(id, found): (&SpoolId, &crate::crash::Found)| match found {
        crate::crash::Found::Whole(seen) => Ok((*id, Some(*seen))),
        crate::crash::Found::Wrong(how) => Err(format!("message {id} after the restart: {how}")),
    };
    stock.iter().map(value).collect()
}
