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
    /// And what failed in doubt since.
    doubted: Vec<u64>,
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
            fate.doubted.clear();
        } else {
            fate.maybe.push(fate.now);
        }
    }

    /// A store failed in doubt. It is not visible, but a crash may bring it back until a synced
    /// store that began later is acknowledged.
    pub(super) fn doubted(&mut self, id: SpoolId, version: u64) {
        self.fate(id).doubted.push(version);
    }

    /// A synced store that began when all answers so far had been given was acknowledged: what
    /// failed in doubt before it is taken back.
    pub(super) fn end_doubts(&mut self) {
        self.0.values_mut().for_each(|fate| fate.doubted.clear());
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
            fate.doubted.clear();
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
        self.compare(found, |fate, is| {
            let in_doubt = is.is_some_and(|is| fate.doubted.contains(&is));
            is == fate.durable || fate.maybe.contains(&is) || in_doubt
        })
    }

    fn compare(&self, found: &Found, is_right: impl Fn(&Fate, Option<u64>) -> bool) -> Vec<String> {
        let wrong = self.0.iter().filter_map(|(id, fate)| {
            let is = found.get(id).copied();
            (!is_right(fate, is)).then(|| {
                let Fate { now, durable, maybe, doubted } = fate;
                format!(
                    "{id} is {is:?}: callers got {now:?}, durable is {durable:?}, possible {maybe:?}, in doubt {doubted:?}"
                )
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
            *fate = Fate { now: is, durable: is, ..Fate::default() };
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
    fn what_failed_in_doubt_is_never_seen_and_may_come_back_until_the_doubt_has_ended() {
        let ends: [fn(&mut Book, SpoolId); 3] = [
            |book, _| book.settle(),
            |book, _| book.end_doubts(),
            // A later store of the same message comes after it.
            |book, id| book.stored(id, 3, true),
        ];
        for end in ends {
            let (mut book, id) = book();
            book.stored(id, 1, true);
            book.doubted(id, 2);
            assert_eq!(book.differences(&Found::from([(id, 2)])).len(), 1);
            for is in [1, 2] {
                assert!(book.losses(&Found::from([(id, is)])).is_empty());
            }
            assert_eq!(book.losses(&Found::new()).len(), 1, "a doubt excuses no loss");
            end(&mut book, id);
            assert_eq!(book.losses(&Found::from([(id, 2)])).len(), 1);
        }
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
