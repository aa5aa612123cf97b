//! What a restart must find: each id's history, and the order between ids.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tidespool_core::SpoolId;

use super::checker::{Call, Ending, Refuted, Value, check};
use super::history::{Asked, Entry, Outcome, shown};
use crate::crash::{Floor, Losses, Promise};

/// What is expected of the spool, beside linearizability.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// What a crash may lose. (The drop of a spool is a crash.)
    pub promise: Promise,
    /// A message of more bytes is larger than a segment. Every such store survives a kill. One of
    /// three quarters of it fits into a segment, and no message has a length between the two.
    pub large: usize,
}

/// One round, from its opening to the next opening.
pub struct Life<'a> {
    /// What each id held at the beginning.
    pub before: &'a BTreeMap<SpoolId, Value>,
    /// Every call.
    pub entries: &'a [Entry],
    /// The beginnings of the calls that made everything durable which was acknowledged before them.
    pub barriers: &'a [u64],
    /// The spool was dropped at this time. `None`: it was shut down.
    pub dropped_at: Option<Instant>,
    /// What each id held when the spool was open again. `None`: that could not be read.
    pub after: Option<&'a BTreeMap<SpoolId, Value>>,
}

/// What a legal life lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Ids that hold an earlier value than before the crash.
    pub ids: u64,
}

impl Life<'_> {
    /// Checks every id and the order between them.
    ///
    /// # Errors
    ///
    /// The history of the id with the fewest calls that no order explains, as lines.
    pub fn judge(&self, expected: Expected) -> Result<Lost, String> {
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
            let told = self.tell(id, &history, &is_durable, &refuted);
            broken.push(format!("{count} messages have a history that is not legal; the shortest:\n{told}"));
        }
        if expected.promise.floor == Floor::Memory {
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

    /// The longest that a synced store took, so that a slow disk is not taken for a broken promise.
    fn slowest_sync(&self) -> Duration {
        let synced = |entry: &&Entry| matches!(entry.asked, Asked::Store { forced: true, .. });
        let took = self.entries.iter().filter(synced).map(|entry| entry.ended_at - entry.began_at);
        took.max().unwrap_or_default()
    }

    /// True if a crash at the end does not lose this write.
    fn is_durable(&self, expected: Expected, young: Duration, entry: &Entry) -> bool {
        if entry.outcome != Outcome::Done {
            return false;
        }
        let at_once = match entry.asked {
            Asked::Store { seen, forced } => {
                seen.len > expected.large || expected.promise.survives_at_once(forced)
            }
            Asked::Remove | Asked::Load => false,
        };
        let is_old = self.dropped_at.is_some_and(|at| at.saturating_duration_since(entry.ended_at) > young);
        at_once || is_old || self.barriers.iter().any(|barrier| entry.ended < *barrier)
    }

    /// Notes the unsynced stores that are certainly kept, and those that are certainly lost. True
    /// if one is lost.
    fn note_losses(&self, expected: Expected, id: SpoolId, history: &[Entry], losses: &mut Losses) -> bool {
        let found = self.after(id);
        let is_plain = |entry: &&Entry| {
            matches!(entry.asked, Asked::Store { seen, forced: false }
                if seen.version.is_some() && seen.len <= expected.large)
                && entry.outcome == Outcome::Done
        };
        let place = |moment: u64| usize::try_from(moment).unwrap_or(usize::MAX);
        let kept = history.iter().filter(is_plain).find(|entry| entry.writes() == Some(found));
        kept.inspect(|kept| losses.keep(place(kept.began), id));
        let writes = || history.iter().filter(|entry| entry.writes().is_some());
        let last = writes().max_by_key(|entry| entry.began).filter(is_plain).filter(|last| {
            last.writes() != Some(found)
                && writes().all(|other| other.began == last.began || other.ended < last.began)
        });
        last.inspect(|last| losses.lose(place(last.ended), id));
        last.is_some()
    }

    /// Without what the refutation does not need: the calls after it, and most loads.
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
            if entry.asked == Asked::Load {
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

    fn tell(
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

/// What a stock holds of each id.
///
/// # Errors
///
/// Where a message is damaged.
pub fn values(stock: &crate::crash::Stock) -> Result<BTreeMap<SpoolId, Value>, String> {
    let value = |(id, found): (&SpoolId, &crate::crash::Found)| match found {
        crate::crash::Found::Whole(seen) => Ok((*id, Some(*seen))),
        crate::crash::Found::Wrong(how) => Err(format!("message {id} after the restart: {how}")),
    };
    stock.iter().map(value).collect()
}
