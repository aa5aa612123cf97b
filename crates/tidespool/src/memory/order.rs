//! Debug builds check: for one id, versions get their journal records in the order of versions.

/// The versions of one id that have a journal record, while any version of the id is under way.
///
/// Bounded: a version leaves when it is published or aborted, and the rest leave with the last
/// version under way. No older version can follow after that: a published version settles what was
/// dirty before it, and every arrival is under way.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// The newest version that was published.
    published: u64,
    /// Versions with a record that is not known to be durable, in the order of the journal.
    appended: Vec<u64>,
}

impl Order {
    /// A record of this version gets the next sequence number.
    pub(crate) fn append(&mut self, version: u64) {
        let newest = self.appended.last().copied().unwrap_or_default().max(self.published);
        debug_assert!(version > newest, "version {version} is written after version {newest} of its id");
        self.appended.push(version);
    }

    /// This version is durable, and is stored.
    pub(crate) fn publish(&mut self, version: u64) {
        debug_assert_eq!(
            self.appended.first(),
            Some(&version),
            "a version of an id is published out of turn"
        );
        self.abort(version);
        self.published = version;
    }

    /// The record of this version is durable, and an abort will take it back.
    pub(crate) fn abort(&mut self, version: u64) {
        self.appended.retain(|appended| *appended != version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aborted_version_is_in_nobodys_way_and_a_published_one_stays_in_it() {
        let mut order = Order::default();
        order.append(5);
        order.append(7);
        order.publish(5);
        order.abort(7);
        order.append(6);
        order.publish(6);
        assert_eq!((order.published, order.appended.len()), (6, 0));
    }

    #[test]
    #[should_panic(expected = "is written after version 7")]
    fn an_older_version_behind_a_newer_one_is_caught() {
        let mut order = Order::default();
        order.append(7);
        order.append(6);
    }

    #[test]
    #[should_panic(expected = "is written after version 7")]
    fn an_older_version_behind_a_published_one_is_caught() {
        let mut order = Order::default();
        order.append(7);
        order.publish(7);
        order.append(6);
    }

    #[test]
    #[should_panic(expected = "out of turn")]
    fn a_version_that_overtakes_another_one_is_caught_when_it_is_published() {
        let mut order = Order::default();
        order.append(6);
        order.append(7);
        order.publish(7);
    }
}
