//! Which value of a message may be present, and which must be. No I/O, no clock.
//!
//! An [`Oracle`] keeps the writes of each message and their results. [`crash`](crate::crash) feeds
//! it from the log of a killed child, [`sweep`](crate::sweep) from its own calls.
//! [`concurrent`](crate::concurrent) shares the [`Promise`] and the [`Losses`]. Its calls on one id
//! overlap, so a search for an order of the calls takes the place of the oracle.
//!
//! The value after a crash is the result of a write, and no later write must survive:
//!
//! * I1: a message acknowledged as durable is present, unless a later write replaced it.
//! * I2: other lost messages are young, and there is no hole: no newer message is kept while an
//!   older one is lost.
//! * I3: a durable removal is not undone.
//! * A store that returned an error left nothing behind. A store that failed in doubt may be
//!   present, unless a synced store that began after the error was acknowledged.
//! * A write without a result may have happened or not.

mod losses;
mod promise;
#[cfg(test)]
mod tests;
mod violation;

use std::collections::{BTreeMap, BTreeSet};

use tidespool_core::SpoolId;

use crate::payload::Seen;

pub use losses::Losses;
pub use promise::{DurabilityLevel, Promise};
pub use violation::Violation;

/// The value of an id: `None` is no message.
pub type Value = Option<Seen>;

/// Formats a value.
#[must_use]
pub fn shown(value: Value) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Seen { version: Some(version), len }) => format!("version {version} ({len} bytes)"),
        Some(Seen { version: None, len }) => format!("{len} bytes"),
    }
}

/// The messages that are present.
pub type Present = BTreeMap<SpoolId, Seen>;

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Acknowledged.
    Done(Survival),
    /// Failed, and left nothing behind.
    Failed,
    /// Failed in doubt: not visible before a crash, and may be present after it.
    InDoubt,
}

/// Whether an acknowledged write survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// It may be lost.
    Volatile,
    /// It was acknowledged as durable.
    Durable,
    /// It must be durable by now, only because of its age.
    Old,
}

/// A write in progress.
#[derive(Debug)]
pub struct Begun {
    id: SpoolId,
    place: usize,
}

/// One write of an id.
#[derive(Debug, Clone, Copy)]
struct Write {
    value: Value,
    /// A store with `force_sync`.
    synced: bool,
    began: u64,
    /// When it ended and how. `None`: in progress.
    ended: Option<(u64, Answer)>,
}

impl Write {
    /// The state before the first write.
    const fn first(value: Value) -> Self {
        Self { value, synced: true, began: 0, ended: Some((0, Answer::Done(Survival::Durable))) }
    }

    /// When the write was acknowledged.
    fn acknowledged(&self) -> Option<(u64, Survival)> {
        match self.ended {
            Some((at, Answer::Done(survival))) => Some((at, survival)),
            _ => None,
        }
    }

    /// The write had no visible effect before a crash.
    fn is_failure(&self) -> bool {
        matches!(self.ended, Some((_, Answer::Failed | Answer::InDoubt)))
    }

    /// The write has no effect after a crash, either.
    fn is_undone(&self) -> bool {
        matches!(self.ended, Some((_, Answer::Failed)))
    }
}

/// The writes of each message in the order of their beginnings. Writes of one id do not overlap,
/// except the last.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    messages: BTreeMap<SpoolId, Vec<Write>>,
    /// Counts beginnings and ends.
    clock: u64,
}

impl Oracle {
    /// Starts with these values, which are durable.
    pub fn new(values: impl IntoIterator<Item = (SpoolId, Value)>) -> Self {
        let messages = values.into_iter().map(|(id, value)| (id, vec![Write::first(value)]));
        Self { messages: messages.collect(), clock: 0 }
    }

    /// Records the beginning of a write: a store, with or without `force_sync`, or a remove.
    pub fn begin(&mut self, id: SpoolId, value: Value, synced: bool) -> Begun {
        self.clock += 1;
        let writes = self.messages.entry(id).or_insert_with(|| vec![Write::first(None)]);
        writes.push(Write { value, synced, began: self.clock, ended: None });
        Begun { id, place: writes.len() - 1 }
    }

    /// Records the end of a write.
    ///
    /// The spool reverts a store that failed in doubt before anything later is durable. So an
    /// acknowledged synced store of any id resolves the doubts that arose before it began.
    pub fn end(&mut self, begun: &Begun, answer: Answer) {
        self.clock += 1;
        let Some(write) = self.messages.get_mut(&begun.id).and_then(|writes| writes.get_mut(begun.place))
        else {
            return;
        };
        write.ended = Some((self.clock, answer));
        if write.synced && write.acknowledged().is_some() {
            let began = write.began;
            self.resolve_doubts(began);
        }
    }

    fn resolve_doubts(&mut self, before: u64) {
        for write in self.messages.values_mut().flatten() {
            if let Some((ended, answer @ Answer::InDoubt)) = &mut write.ended
                && *ended < before
            {
                *answer = Answer::Failed;
            }
        }
    }

    /// Records that all visible values are durable. No write may be in progress.
    pub fn mark_durable(&mut self) {
        self.resolve_doubts(u64::MAX);
        for writes in self.messages.values_mut() {
            if let Some(Write { ended: Some((_, answer)), .. }) =
                writes.iter_mut().rfind(|write| !write.is_failure())
            {
                *answer = Answer::Done(Survival::Durable);
            }
        }
    }

    /// Returns every known id.
    pub fn ids(&self) -> impl Iterator<Item = SpoolId> + '_ {
        self.messages.keys().copied()
    }

    /// Returns the number of writes that may have happened or not.
    #[must_use]
    pub fn in_doubt(&self) -> u64 {
        let is_open = |write: &&Write| matches!(write.ended, None | Some((_, Answer::InDoubt)));
        self.messages.values().flatten().filter(is_open).count() as u64
    }

    /// Returns the value that callers get while no write of the id is in progress.
    #[must_use]
    pub fn visible(&self, id: SpoolId) -> Value {
        self.writes(id).iter().rfind(|write| !write.is_failure()).and_then(|write| write.value)
    }

    fn writes(&self, id: SpoolId) -> &[Write] {
        const NEVER: &[Write] = &[Write::first(None)];
        self.messages.get(&id).map_or(NEVER, Vec::as_slice)
    }

    /// Compares the value of an id after a crash with its writes. Adds what is lost and kept to
    /// `losses`. Returns whether the newest acknowledged store is lost, as it may be.
    ///
    /// # Errors
    ///
    /// The broken promise.
    pub fn check(&self, id: SpoolId, found: Value, losses: &mut Losses) -> Result<bool, Violation> {
        let writes = self.writes(id);
        // The newest match: empty messages have no version, and all removals look the same.
        let Some(place) = writes.iter().rposition(|write| !write.is_undone() && write.value == found) else {
            return Err(match found {
                Some(_) if writes.iter().any(|write| write.value == found) => {
                    Violation::LeftBehind(id, shown(found))
                }
                Some(_) => Violation::Resurrected(id, format!("{}, never stored", shown(found))),
                // No write removed it, but it was present before.
                None => Violation::DurableLost(id, "it was present before".to_owned()),
            });
        };
        let (kept, later) = (&writes[place], &writes[place + 1..]);
        if !kept.synced && kept.value.is_some_and(|seen| seen.version.is_some()) {
            losses.keep(kept.began, id);
        }
        let latest = later.iter().rfind(|write| !write.is_failure()).filter(|latest| latest.value.is_some());
        let lost = latest.and_then(|latest| latest.acknowledged().map(|(at, _)| (latest, at)));
        if let Some((Write { synced: false, .. }, at)) = lost {
            losses.lose(at, id);
        }
        for write in later.iter().rev() {
            let how = || format!("found {}, acknowledged {}", shown(found), shown(write.value));
            match write.acknowledged() {
                None | Some((_, Survival::Volatile)) => {}
                Some(_) if write.value.is_none() => return Err(Violation::Resurrected(id, how())),
                Some((_, Survival::Old)) => return Err(Violation::OldLost(id, how())),
                Some((_, Survival::Durable)) => return Err(Violation::DurableLost(id, how())),
            }
        }
        Ok(lost.is_some())
    }

    /// Checks every id after a crash. Holes are not checked.
    #[must_use]
    pub fn violations(&self, found: &Present) -> Vec<Violation> {
        let mut losses = Losses::default();
        let check = |id: SpoolId| self.check(id, found.get(&id).copied(), &mut losses).err();
        self.ids_and(found).into_iter().filter_map(check).collect()
    }

    /// Returns the differences between `found` and the values that callers get.
    #[must_use]
    pub fn differences(&self, found: &Present) -> Vec<String> {
        let difference = |id: SpoolId| {
            let (is, visible) = (found.get(&id).copied(), self.visible(id));
            (is != visible).then(|| format!("{id} is {}: callers should get {}", shown(is), shown(visible)))
        };
        self.ids_and(found).into_iter().filter_map(difference).collect()
    }

    fn ids_and(&self, found: &Present) -> BTreeSet<SpoolId> {
        self.ids().chain(found.keys().copied()).collect()
    }

    /// After a restart: `found` is present and durable, and nothing else is.
    pub fn adopt(&mut self, found: &Present) {
        *self = Self::new(self.ids().map(|id| (id, found.get(&id).copied())));
    }
}
