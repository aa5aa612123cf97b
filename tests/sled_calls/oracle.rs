//! The oracle: requests to the spool, its results, and the states that they allow.

use std::collections::{BTreeMap, BTreeSet};

use tidespool_core::SpoolId;

use crate::event::{Answer, Event, Version};

/// The version of each message that was found.
pub(crate) type Found = BTreeMap<SpoolId, Version>;

/// The possible states of one id.
#[derive(Debug, Clone)]
struct Fate {
    /// Possible results of a load. More than one only after a failed removal.
    now: Vec<Option<Version>>,
    /// Stores that failed in doubt: not visible, but an opening may find them.
    in_doubt: Vec<Version>,
    /// The operation in progress.
    requested: Option<Option<Version>>,
}

impl Default for Fate {
    fn default() -> Self {
        Self { now: vec![None], in_doubt: Vec::new(), requested: None }
    }
}

/// The oracle of one directory. Each id has one caller, so its events are ordered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Oracle {
    fates: BTreeMap<SpoolId, Fate>,
    /// The disk works and the spool has recovered.
    settled: bool,
    listing: Option<BTreeSet<SpoolId>>,
    violations: Vec<String>,
}

impl Oracle {
    /// All ids that were ever used.
    pub(crate) fn ids(&self) -> impl Iterator<Item = SpoolId> + Send + '_ {
        self.fates.keys().copied()
    }

    /// The ids that certainly have a message.
    pub(crate) fn live(&self) -> Vec<(SpoolId, Version)> {
        let live = self.fates.iter().filter_map(|(id, fate)| match fate.now[..] {
            [Some(version)] => Some((*id, version)),
            _ => None,
        });
        live.collect()
    }

    /// Returns and clears the violations.
    pub(crate) fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    fn wrong(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Records an event of the child, and checks its results.
    pub(crate) fn enter(&mut self, event: &Event) {
        match event {
            Event::Store(id, version) => self.fate(*id).requested = Some(Some(*version)),
            Event::Remove(id) => self.fate(*id).requested = Some(None),
            Event::Done(id) => {
                let fate = self.fate(*id);
                if let Some(requested) = fate.requested.take() {
                    *fate = Fate { now: vec![requested], ..Fate::default() };
                }
            }
            Event::Failed(id, doubt, _) => {
                let fate = self.fate(*id);
                match fate.requested.take() {
                    Some(Some(version)) if *doubt => fate.in_doubt.push(version),
                    Some(None) => fate.now.push(None),
                    _ => {}
                }
            }
            Event::Loaded(id, answer) => self.judge("loaded", *id, answer),
            Event::Listed(id, answer) => {
                if !self.listing.get_or_insert_default().insert(*id) {
                    self.wrong(format!("listed twice: {id}"));
                }
                self.judge("listed", *id, answer);
            }
            Event::ListEnd => {
                let listed = self.listing.take().unwrap_or_default();
                for (id, version) in self.live() {
                    if !listed.contains(&id) {
                        self.wrong(format!("not listed: {id} {version:?}"));
                    }
                }
            }
            Event::Settled => self.settled = true,
            Event::Burst(_) => self.settled = false,
            Event::Damage(text) => self.wrong(format!("reported as damage: {text}")),
            Event::Refused(false, text) => {
                self.wrong(format!("the opening fails with more than an I/O error: {text}"));
            }
            Event::Wrong(text) => self.wrong(format!("the child reported: {text}")),
            Event::Ended(Some(text)) if self.settled => self.wrong(format!("shutdown: {text}")),
            Event::Opened | Event::Refused(..) | Event::Ready | Event::Ended(_) => {}
        }
    }

    /// Checks the result of an opening on a working disk.
    pub(crate) fn compare(&mut self, found: &Found) {
        let mut wrong = Vec::new();
        for (id, fate) in &self.fates {
            let is = found.get(id).copied();
            let possible = fate.now.contains(&is)
                || fate.requested.is_some_and(|requested| requested == is)
                || is.is_some_and(|is| fate.in_doubt.contains(&is));
            if !possible {
                wrong.push(format!("after reopening: {}", describe(*id, is, &fate.now)));
            }
        }
        let unknown = found.keys().filter(|id| !self.fates.contains_key(id));
        wrong.extend(unknown.map(|id| format!("after reopening: never stored: {id}")));
        self.violations.extend(wrong);
    }

    fn fate(&mut self, id: SpoolId) -> &mut Fate {
        self.fates.entry(id).or_default()
    }

    fn judge(&mut self, how: &str, id: SpoolId, answer: &Answer) {
        let is = match answer {
            Answer::Whole(version) => Some(*version),
            Answer::Absent => None,
            Answer::Io(_) if !self.settled => return,
            Answer::Io(text) => return self.wrong(format!("{how}: {id} fails on a working disk: {text}")),
            Answer::Wrong(text) => return self.wrong(format!("{how}: {id}: {text}")),
        };
        let now = self.fate(id).now.clone();
        if !now.contains(&is) {
            self.wrong(format!("{how}: {}", describe(id, is, &now)));
        }
    }
}

fn describe(id: SpoolId, is: Option<Version>, now: &[Option<Version>]) -> String {
    let kind = match (is, now) {
        (None, _) => "lost",
        (Some(_), [None]) => "removed message is back",
        (Some(_), _) => "another version",
    };
    format!("{kind}: {id} is {is:?}, expected {now:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(events: &[Event]) -> Vec<String> {
        let mut oracle = Oracle::default();
        events.iter().for_each(|event| oracle.enter(event));
        oracle.take_violations()
    }

    fn stored(id: SpoolId, version: u64) -> [Event; 2] {
        [Event::Store(id, (version, 20)), Event::Done(id)]
    }

    #[test]
    fn wrong_results_are_detected() {
        let id = SpoolId::new();
        let [store, done] = stored(id, 1);
        let [again, done_again] = stored(id, 2);
        let cases = [
            (Event::Loaded(id, Answer::Whole((2, 20))), 0),
            (Event::Loaded(id, Answer::Whole((1, 20))), 1),
            (Event::Loaded(id, Answer::Absent), 1),
            (Event::Loaded(id, Answer::Io(String::new())), 0),
            (Event::Loaded(id, Answer::Wrong(String::new())), 1),
            (Event::Loaded(SpoolId::new(), Answer::Whole((1, 20))), 1),
            (Event::ListEnd, 1),
        ];
        for (event, count) in cases {
            let events = [store.clone(), done.clone(), again.clone(), done_again.clone(), event.clone()];
            assert_eq!(with(&events).len(), count, "{event:?}");
        }
        let late = [Event::Settled, Event::Loaded(id, Answer::Io(String::new()))];
        assert_eq!(with(&late).len(), 1, "nothing fails on a working disk");
    }

    #[test]
    fn the_result_of_an_opening_is_compared() {
        let (id, gone) = (SpoolId::new(), SpoolId::new());
        let mut oracle = Oracle::default();
        let removed = [Event::Remove(gone), Event::Done(gone)];
        let events = [stored(id, 1), stored(gone, 2), removed].concat();
        events.iter().for_each(|event| oracle.enter(event));
        let cases = [
            (Found::from([(id, (1, 20))]), 0),
            (Found::new(), 1),
            (Found::from([(id, (7, 20))]), 1),
            (Found::from([(id, (1, 20)), (gone, (2, 20))]), 1),
            (Found::from([(id, (1, 20)), (SpoolId::new(), (1, 20))]), 1),
        ];
        for (found, count) in cases {
            oracle.compare(&found);
            assert_eq!(oracle.take_violations().len(), count, "{found:?}");
        }
    }

    #[test]
    fn a_failed_operation_allows_both_states() {
        let id = SpoolId::new();
        let mut oracle = Oracle::default();
        let [store, done] = stored(id, 1);
        let failed = |doubt| Event::Failed(id, doubt, String::new());
        for event in [store, done, Event::Store(id, (2, 20)), failed(true), Event::Remove(id), failed(false)]
        {
            oracle.enter(&event);
        }
        for found in [Found::new(), Found::from([(id, (1, 20))]), Found::from([(id, (2, 20))])] {
            oracle.compare(&found);
            assert_eq!(oracle.take_violations(), Vec::<String>::new(), "{found:?}");
        }
        oracle.enter(&Event::Loaded(id, Answer::Whole((2, 20))));
        assert_eq!(oracle.take_violations().len(), 1, "a store in doubt is not visible");
    }
}
