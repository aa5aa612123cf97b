//! The flush requests that wait.

use tokio::sync::oneshot;

/// A flush request: its caller waits until everything is durable that was dirty at the request.
#[derive(Debug)]
struct Flush {
    /// Everything that was dirty at the request has a ticket of this drain or an earlier one. A
    /// version or a time would not do: a store gets them in two steps, so that their orders may
    /// differ.
    requested: u64,
    /// The same drain, or a later one in which the replacements of such versions have tickets.
    drain: u64,
    /// The last record in the journal when all of these versions were appended. `None` until then.
    last: Option<u64>,
    done: oneshot::Sender<()>,
}

/// The progress of the drains.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drains {
    /// The number of drains so far.
    pub(super) count: u64,
    /// The drain of the first ticket in the backlog, `u64::MAX` if there is none. All tickets of
    /// earlier drains are taken.
    pub(super) reached: u64,
    /// The first drain of the versions that were replaced since the last drain.
    pub(super) first_replaced: Option<u64>,
}

impl Drains {
    /// True if all versions of `flush` are appended.
    fn have_reached(&self, flush: &Flush) -> bool {
        flush.drain < self.reached.min(self.count + 1)
    }
}

/// The flush requests that are not complete.
#[derive(Debug, Default)]
pub(super) struct Flushes(Vec<Flush>);

impl Flushes {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds requests. Everything that is dirty has a ticket of `drain` or an earlier one.
    pub(super) fn add(&mut self, requests: Vec<oneshot::Sender<()>>, drain: u64) {
        let flush = |done| Flush { requested: drain, drain, last: None, done };
        self.0.extend(requests.into_iter().map(flush));
    }

    /// Makes the flushes that wait for a replaced version wait for its replacement, which has a
    /// ticket by the next drain at the latest. Otherwise neither of the two would be durable.
    ///
    /// The wait is finite: the replacement is pledged, and is written whatever replaces it.
    pub(super) fn postpone(&mut self, drains: Drains) {
        let Some(first) = drains.first_replaced else { return };
        let open = self.0.iter_mut().filter(|flush| flush.last.is_none() && flush.requested >= first);
        open.for_each(|flush| flush.drain = drains.count + 1);
    }

    /// True if the versions of all flushes are appended.
    pub(super) fn are_all_reached(&self, drains: Drains) -> bool {
        self.0.iter().all(|flush| drains.have_reached(flush))
    }

    /// Notes `last` as the last record of the flushes whose versions are all appended. Later
    /// versions, which may always be under way, delay no flush.
    pub(super) fn reach(&mut self, drains: Drains, last: u64) {
        for flush in self.0.iter_mut().filter(|flush| drains.have_reached(flush)) {
            flush.last.get_or_insert(last);
        }
    }

    /// Removes and returns the flushes whose records are all durable.
    pub(super) fn take_durable(&mut self, durable: u64) -> Vec<oneshot::Sender<()>> {
        let completed = self.0.extract_if(.., |flush| flush.last.is_some_and(|last| last <= durable));
        completed.map(|flush| flush.done).collect()
    }
}
