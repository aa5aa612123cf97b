use std::collections::BTreeMap;

use tidespool_core::SpoolId;

/// The version of each message that is present.
pub(super) type Found = BTreeMap<SpoolId, u64>;

/// The expected messages, derived from the calls of one caller and their results.
#[derive(Debug, Clone, Default)]
pub(super) struct ExpectedMessages(BTreeMap<SpoolId, ExpectedMessage>);

/// The expected versions of one message; `None` means absent.
#[derive(Debug, Clone, Default)]
struct ExpectedMessage {
    /// The version that callers get.
    visible: Option<u64>,
    durable: Option<u64>,
    /// Other versions that may be present after a crash: written since, and not known to be
    /// durable.
    possible: Vec<Option<u64>>,
    /// Versions of stores that failed in doubt since.
    doubted: Vec<u64>,
}

impl ExpectedMessages {
    fn message(&mut self, id: SpoolId) -> &mut ExpectedMessage {
        self.0.entry(id).or_default()
    }

    /// Records a store that returned `Ok`.
    pub(super) fn stored(&mut self, id: SpoolId, version: u64, durably: bool) {
        let message = self.message(id);
        message.visible = Some(version);
        if durably {
            message.durable = message.visible;
            message.possible.clear();
            message.doubted.clear();
        } else {
            message.possible.push(message.visible);
        }
    }

    /// Records a store that failed in doubt. It is not visible, but a crash may bring it back until
    /// a synced store that began later is acknowledged.
    pub(super) fn doubted(&mut self, id: SpoolId, version: u64) {
        self.message(id).doubted.push(version);
    }

    /// Records an acknowledged synced store that began after all results so far. It proves that
    /// stores that failed in doubt before it are reverted.
    pub(super) fn resolve_doubts(&mut self) {
        self.0.values_mut().for_each(|message| message.doubted.clear());
    }

    pub(super) fn removed(&mut self, id: SpoolId) {
        let message = self.message(id);
        message.visible = None;
        message.possible.push(None);
    }

    /// Records that all visible versions are durable.
    pub(super) fn mark_durable(&mut self) {
        for message in self.0.values_mut() {
            message.durable = message.visible;
            message.possible.clear();
            message.doubted.clear();
        }
    }

    pub(super) fn visible(&self, id: SpoolId) -> Option<u64> {
        self.0.get(&id).and_then(|message| message.visible)
    }

    pub(super) fn ids(&self) -> Vec<SpoolId> {
        self.0.keys().copied().collect()
    }

    /// Returns the differences between `found` and the versions that callers get.
    pub(super) fn differences(&self, found: &Found) -> Vec<String> {
        self.compare(found, |message, is| is == message.visible)
    }

    /// Returns what in `found` is not allowed after a crash.
    pub(super) fn losses(&self, found: &Found) -> Vec<String> {
        self.compare(found, |message, is| {
            let in_doubt = is.is_some_and(|is| message.doubted.contains(&is));
            is == message.durable || message.possible.contains(&is) || in_doubt
        })
    }

    fn compare(
        &self,
        found: &Found,
        is_right: impl Fn(&ExpectedMessage, Option<u64>) -> bool,
    ) -> Vec<String> {
        let wrong = self.0.iter().filter_map(|(id, message)| {
            let is = found.get(id).copied();
            (!is_right(message, is)).then(|| {
                let ExpectedMessage { visible, durable, possible, doubted } = message;
                format!(
                    "{id} is {is:?}: visible {visible:?}, durable {durable:?}, possible {possible:?}, in doubt {doubted:?}"
                )
            })
        });
        let unknown =
            found.keys().filter(|id| !self.0.contains_key(id)).map(|id| format!("{id} was never stored"));
        wrong.chain(unknown).collect()
    }

    /// After a restart: the messages in `found` are the expected ones, and they are durable.
    pub(super) fn adopt(&mut self, found: &Found) {
        for (id, message) in &mut self.0 {
            let is = found.get(id).copied();
            *message = ExpectedMessage { visible: is, durable: is, ..ExpectedMessage::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> (ExpectedMessages, SpoolId) {
        (ExpectedMessages::default(), SpoolId::new())
    }

    #[test]
    fn a_durable_message_is_present_and_a_durably_removed_one_is_absent() {
        let (mut expected, id) = expected();
        expected.stored(id, 1, true);
        assert!(expected.losses(&Found::from([(id, 1)])).is_empty());
        assert_eq!(expected.losses(&Found::new()).len(), 1);
        expected.stored(id, 2, false);
        for is in [1, 2] {
            assert!(expected.losses(&Found::from([(id, is)])).is_empty());
        }
        assert_eq!(expected.losses(&Found::from([(id, 3)])).len(), 1);
        expected.removed(id);
        assert!(expected.losses(&Found::new()).is_empty());
        expected.mark_durable();
        assert_eq!(expected.losses(&Found::from([(id, 2)])).len(), 1);
        assert_eq!(expected.differences(&Found::from([(id, 2)])).len(), 1);
    }

    #[test]
    fn a_store_in_doubt_is_invisible_and_may_reappear_until_it_is_resolved() {
        let ends: [fn(&mut ExpectedMessages, SpoolId); 3] = [
            |expected, _| expected.mark_durable(),
            |expected, _| expected.resolve_doubts(),
            // A later store of the same message.
            |expected, id| expected.stored(id, 3, true),
        ];
        for end in ends {
            let (mut expected, id) = expected();
            expected.stored(id, 1, true);
            expected.doubted(id, 2);
            assert_eq!(expected.differences(&Found::from([(id, 2)])).len(), 1);
            for is in [1, 2] {
                assert!(expected.losses(&Found::from([(id, is)])).is_empty());
            }
            assert_eq!(expected.losses(&Found::new()).len(), 1, "a doubt excuses no loss");
            end(&mut expected, id);
            assert_eq!(expected.losses(&Found::from([(id, 2)])).len(), 1);
        }
    }

    #[test]
    fn messages_that_were_never_stored_are_reported() {
        let (mut expected, id) = expected();
        expected.stored(id, 1, true);
        let found = Found::from([(id, 1), (SpoolId::new(), 1)]);
        assert_eq!(expected.losses(&found).len(), 1);
        expected.adopt(&Found::new());
        assert_eq!((expected.visible(id), expected.losses(&Found::new()).len()), (None, 0));
    }
}
