use std::collections::BTreeMap;

use tidespool_core::SpoolId;

/// The version of each message that is there.
pub(super) type Found = BTreeMap<SpoolId, u64>;

/// What was asked for and answered, in the order of one caller.
#[derive(Debug, Clone, Default)]
pub(super) struct Book(BTreeMap<SpoolId, Fate>);

/// A version, or `None` for not there.
#[derive(Debug, Clone, Default)]
struct Fate {
    /// What callers see.
    now: Option<u64>,
    durable: Option<u64>,
    /// What a crash may find instead: what was asked for since, and is not known to be durable.
    maybe: Vec<Option<u64>>,
}

impl Book {
    fn fate(&mut self, id: SpoolId) -> &mut Fate {
        self.0.entry(id).or_default()
    }

    /// A store was answered with `Ok`.
    pub(super) fn stored(&mut self, id: SpoolId, version: u64, durably: bool) {
        let fate = self.fate(id);
        fate.now = Some(version);
        if durably {
            fate.durable = fate.now;
            fate.maybe.clear();
        } else {
            fate.maybe.push(fate.now);
        }
    }

    /// A store gave up at its deadline: nobody sees it, but until what takes it back is durable a crash may bring it back.
    pub(super) fn gave_up(&mut self, id: SpoolId, version: u64) {
        self.fate(id).maybe.push(Some(version));
    }

    pub(super) fn removed(&mut self, id: SpoolId) {
        let fate = self.fate(id);
        fate.now = None;
        fate.maybe.push(None);
    }

    /// All that callers see is durable.
    pub(super) fn settle(&mut self) {
        for fate in self.0.values_mut() {
            fate.durable = fate.now;
            fate.maybe.clear();
        }
    }

    pub(super) fn now(&self, id: SpoolId) -> Option<u64> {
        self.0.get(&id).and_then(|fate| fate.now)
    }

    pub(super) fn ids(&self) -> Vec<SpoolId> {
        self.0.keys().copied().collect()
    }

    /// What of `found` is not what callers were told.
    pub(super) fn differences(&self, found: &Found) -> Vec<String> {
        self.compare(found, |fate, is| is == fate.now)
    }

    /// What of `found`, after a crash, was not to be.
    pub(super) fn losses(&self, found: &Found) -> Vec<String> {
        self.compare(found, |fate, is| is == fate.durable || fate.maybe.contains(&is))
    }

    fn compare(&self, found: &Found, is_right: impl Fn(&Fate, Option<u64>) -> bool) -> Vec<String> {
        let wrong = self.0.iter().filter_map(|(id, fate)| {
            let is = found.get(id).copied();
            (!is_right(fate, is)).then(|| {
                let Fate { now, durable, maybe } = fate;
                format!("{id} is {is:?}: callers were told {now:?}, durable is {durable:?}, and possible {maybe:?}")
            })
        });
        let unknown =
            found.keys().filter(|id| !self.0.contains_key(id)).map(|id| format!("{id} from nowhere"));
        wrong.chain(unknown).collect()
    }

    /// After a restart it is known what there is, and that it is durable.
    pub(super) fn adopt(&mut self, found: &Found) {
        for (id, fate) in &mut self.0 {
            let is = found.get(id).copied();
            *fate = Fate { now: is, durable: is, maybe: Vec::new() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> (Book, SpoolId) {
        (Book::default(), SpoolId::new())
    }

    #[test]
    fn what_is_durable_has_to_be_there_and_what_was_removed_must_not() {
        let (mut book, id) = book();
        book.stored(id, 1, true);
        assert!(book.losses(&Found::from([(id, 1)])).is_empty());
        assert_eq!(book.losses(&Found::new()).len(), 1);
        book.stored(id, 2, false);
        for is in [1, 2] {
            assert!(book.losses(&Found::from([(id, is)])).is_empty());
        }
        assert_eq!(book.losses(&Found::from([(id, 3)])).len(), 1);
        book.removed(id);
        assert!(book.losses(&Found::new()).is_empty());
        book.settle();
        assert_eq!(book.losses(&Found::from([(id, 2)])).len(), 1);
        assert_eq!(book.differences(&Found::from([(id, 2)])).len(), 1);
    }

    #[test]
    fn what_gave_up_is_never_seen_and_may_come_back_until_it_is_settled() {
        let (mut book, id) = book();
        book.stored(id, 1, true);
        book.gave_up(id, 2);
        assert_eq!(book.differences(&Found::from([(id, 2)])).len(), 1);
        assert!(book.losses(&Found::from([(id, 2)])).is_empty());
        book.settle();
        assert_eq!(book.losses(&Found::from([(id, 2)])).len(), 1);
    }

    #[test]
    fn messages_from_nowhere_are_told() {
        let (mut book, id) = book();
        book.stored(id, 1, true);
        let found = Found::from([(id, 1), (SpoolId::new(), 1)]);
        assert_eq!(book.losses(&found).len(), 1);
        book.adopt(&Found::new());
        assert_eq!((book.now(id), book.losses(&Found::new()).len()), (None, 0));
    }
}
