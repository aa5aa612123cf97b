//! The oracle: what the spool was asked for and answered.

use std::collections::{BTreeMap, BTreeSet};

use tidespool_core::SpoolId;

use crate::event::{Answer, Event, Version};

/// The version of each message that is there.
pub(crate) type Found = BTreeMap<SpoolId, Version>;

/// What one id may be.
#[derive(Debug, Clone)]
struct Fate {
    /// What a load may return. More than one only after a removal that failed.
    now: Vec<Option<Version>>,
    /// Stores that failed in doubt: not visible, but an opening may find them.
    doubted: Vec<Version>,
    /// The operation that has no answer.
    asked: Option<Option<Version>>,
}

impl Default for Fate {
    fn default() -> Self {
        Self { now: vec![None], doubted: Vec::new(), asked: None }
    }
}

/// The book of one directory. Each id has one caller, so its lines are in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Book {
    fates: BTreeMap<SpoolId, Fate>,
    /// The disk is good and the spool has recovered.
    settled: bool,
    listing: Option<BTreeSet<SpoolId>>,
    violations: Vec<String>,
}

impl Book {
    /// Every id that was ever named.
    pub(crate) fn ids(&self) -> impl Iterator<Item = SpoolId> + Send + '_ {
        self.fates.keys().copied()
    }

    /// Ids that live for certain.
    pub(crate) fn live(&self) -> Vec<(SpoolId, Version)> {
        let live = self.fates.iter().filter_map(|(id, fate)| match fate.now[..] {
            [Some(version)] => Some((*id, version)),
            _ => None,
        });
        live.collect()
    }

    /// What was wrong so far.
    pub(crate) fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    fn wrong(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Enters what the child reports, and judges its answers.
    pub(crate) fn enter(&mut self, event: &Event) {
        match event {
            Event::Store(id, version) => self.fate(*id).asked = Some(Some(*version)),
            Event::Remove(id) => self.fate(*id).asked = Some(None),
            Event::Done(id) => {
                let fate = self.fate(*id);
                if let Some(asked) = fate.asked.take() {
                    *fate = Fate { now: vec![asked], ..Fate::default() };
                }
            }
            Event::Failed(id, doubt, _) => {
                let fate = self.fate(*id);
                match fate.asked.take() {
                    Some(Some(version)) if *doubt => fate.doubted.push(version),
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
                self.wrong(format!("the opening calls it more than an I/O error: {text}"));
            }
            Event::Wrong(text) => self.wrong(format!("the child saw: {text}")),
            Event::Ended(Some(text)) if self.settled => self.wrong(format!("shutdown: {text}")),
            Event::Opened | Event::Refused(..) | Event::Ready | Event::Ended(_) => {}
        }
    }

    /// What an opening with a good disk found is right.
    pub(crate) fn compare(&mut self, found: &Found) {
        let mut wrong = Vec::new();
        for (id, fate) in &self.fates {
            let is = found.get(id).copied();
            let possible = fate.now.contains(&is)
                || fate.asked.is_some_and(|asked| asked == is)
                || is.is_some_and(|is| fate.doubted.contains(&is));
            if !possible {
                wrong.push(format!("after reopening: {}", describe(*id, is, &fate.now)));
            }
        }
        let unknown = found.keys().filter(|id| !self.fates.contains_key(id));
        wrong.extend(unknown.map(|id| format!("after reopening: from nowhere: {id}")));
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
            Answer::Io(text) => return self.wrong(format!("{how}: {id} fails on a good disk: {text}")),
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
        let mut book = Book::default();
        events.iter().for_each(|event| book.enter(event));
        book.take_violations()
    }

    fn stored(id: SpoolId, version: u64) -> [Event; 2] {
        [Event::Store(id, (version, 20)), Event::Done(id)]
    }

    #[test]
    fn wrong_answers_are_seen() {
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
        assert_eq!(with(&late).len(), 1, "nothing fails on a good disk");
    }

    #[test]
    fn what_an_opening_finds_is_compared() {
        let (id, gone) = (SpoolId::new(), SpoolId::new());
        let mut book = Book::default();
        let removed = [Event::Remove(gone), Event::Done(gone)];
        let events = [stored(id, 1), stored(gone, 2), removed].concat();
        events.iter().for_each(|event| book.enter(event));
        let cases = [
            (Found::from([(id, (1, 20))]), 0),
            (Found::new(), 1),
            (Found::from([(id, (7, 20))]), 1),
            (Found::from([(id, (1, 20)), (gone, (2, 20))]), 1),
            (Found::from([(id, (1, 20)), (SpoolId::new(), (1, 20))]), 1),
        ];
        for (found, count) in cases {
            book.compare(&found);
            assert_eq!(book.take_violations().len(), count, "{found:?}");
        }
    }

    #[test]
    fn what_failed_may_be_either() {
        let id = SpoolId::new();
        let mut book = Book::default();
        let [store, done] = stored(id, 1);
        let failed = |doubt| Event::Failed(id, doubt, String::new());
        for event in [store, done, Event::Store(id, (2, 20)), failed(true), Event::Remove(id), failed(false)]
        {
            book.enter(&event);
        }
        for found in [Found::new(), Found::from([(id, (1, 20))]), Found::from([(id, (2, 20))])] {
            book.compare(&found);
            assert_eq!(book.take_violations(), Vec::<String>::new(), "{found:?}");
        }
        book.enter(&Event::Loaded(id, Answer::Whole((2, 20))));
        assert_eq!(book.take_violations().len(), 1, "a store in doubt is not visible");
    }
}
