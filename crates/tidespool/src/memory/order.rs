//! Debug builds check that the versions of an id get their journal records in order.

/// The versions of one id that have a journal record, while any version of the id is under way.
///
/// Bounded: a version is removed when it is published or aborted. The rest is removed with the last
/// version under way. No older version can follow: a published version settles all older dirty
/// versions, and every arrival counts as under way.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// The newest published version.
    published: u64,
    /// Versions whose record is not known to be durable, in journal order.
    appended: Vec<u64>,
}

impl Order {
    /// Checks a version that gets the next sequence number.
    pub(crate) fn append(&mut self, version: u64) {
        let newest = self.appended.last().copied().unwrap_or_default().max(self.published);
        debug_assert!(version > newest, "version {version} is written after version {newest} of its id");
        self.appended.push(version);
    }

    /// Records that this version is durable and stored.
    pub(crate) fn publish(&mut self, version: u64) {
        debug_assert_eq!(
            self.appended.first(),
            Some(&version),
            "a version of an id is published out of turn"
        );
        self.abort(version);
        self.published = version;
    }

    /// Records that this version is durable, and will be cancelled by an abort record.
    pub(crate) fn abort(&mut self, version: u64) {
        self.appended.retain(|appended| *appended != version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aborted_version_allows_older_ones_and_a_published_one_does_not() {
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
    fn an_older_version_after_a_newer_one_is_detected() {
        let mut order = Order::default();
        order.append(7);
        order.append(6);
    }

    #[test]
    #[should_panic(expected = "is written after version 7")]
    fn an_older_version_after_a_published_one_is_detected() {
        let mut order = Order::default();
        order.append(7);
        order.publish(7);
        order.append(6);
    }

    #[test]
    #[should_panic(expected = "out of turn")]
    fn a_publication_out_of_order_is_detected() {
        let mut order = Order::default();
        order.append(6);
        order.append(7);
        order.publish(7);
    }
}
