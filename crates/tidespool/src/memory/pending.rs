//! id → newest dirty version, for one shard. Pure.
//!
//! Dirty messages are held only here until they are durable. moka may reject or evict any entry.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::budget::Permit;
use super::is_sparse;
use crate::message_id::MessageId;

#[cfg(debug_assertions)]
use super::order::Order;
use crate::crash_log::Slot;

/// A version that is not durable yet: a message's bytes, or a tombstone. It holds its room in the
/// budget.
#[derive(Debug)]
pub(crate) struct Dirty {
    /// `None` for a tombstone.
    pub(crate) data: Option<Arc<Box<[u8]>>>,
    /// The checksum of the bytes, if it was computed already.
    pub(crate) payload_crc: Option<u32>,
    permit: Permit,
}

impl Dirty {
    pub(crate) fn put(data: Arc<Box<[u8]>>, payload_crc: Option<u32>, permit: Permit) -> Self {
        Self { data: Some(data), payload_crc, permit }
    }

    pub(crate) fn tombstone(permit: Permit) -> Self {
        Self { data: None, payload_crc: None, permit }
    }

    /// Its dirty bytes, overhead included.
    pub(crate) fn bytes(&self) -> u64 {
        self.permit.bytes()
    }
}

/// A position in the order in which dirty versions are flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    pub(crate) version: u64,
    pub(crate) at: Instant,
    pub(crate) id: MessageId,
}

/// The state of an id in this table, as a load sees it.
#[derive(Debug, Clone)]
pub(crate) enum Visible {
    Put(Arc<Box<[u8]>>),
    Removed,
}

#[derive(Debug)]
struct PendingEntry {
    version: u64,
    at: Instant,
    /// The version of the ticket that stands for this entry. A version that replaces a dirty one
    /// inherits its position. Otherwise a message that is saved repeatedly would never be written.
    ticket: u64,
    /// The committer holds the ticket.
    is_due: bool,
    dirty: Arc<Dirty>,
    /// A commit has taken it, or it is pledged: it is written even if it is replaced.
    in_flight: bool,
    /// An earlier version was due after it had been replaced, by this version or one before it.
    was_put_off: bool,
    /// The entry in the crash log. Drop it under the shard's lock, after the entry that replaces it
    /// was written: dropping it revokes it.
    slot: Option<Slot>,
}

/// A version that is written in its turn even if it is replaced.
#[derive(Debug)]
struct Pledge {
    version: u64,
    dirty: Arc<Dirty>,
}

/// One shard of the pending table.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    entries: HashMap<MessageId, PendingEntry, foldhash::fast::RandomState>,
    tickets: VecDeque<Ticket>,
    /// Ids with versions on their way to the disk: synced stores that wait for their commit, and
    /// everything that a commit has taken. A removal of such an id must be written, whatever was
    /// stored or removed since.
    under_way: HashMap<MessageId, UnderWay, foldhash::fast::RandomState>,
    /// Versions that are due for the second time. Without the pledge, a message that is replaced
    /// more often than it is due would never be written. They count as under way.
    pledged: HashMap<MessageId, Pledge, foldhash::fast::RandomState>,
    risks: Risks,
}

/// What an event would lose.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Risk {
    /// Dirty bytes of messages.
    pub(crate) bytes: u64,
    pub(crate) removals: u64,
}

/// What each of two events would lose.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Risks {
    /// A power cut: every version in this table.
    pub(crate) power: Risk,
    /// The death of the process: the versions without an entry in the crash log.
    pub(crate) process: Risk,
}

#[derive(Debug, Default)]
struct UnderWay {
    count: u32,
    #[cfg(debug_assertions)]
    order: Order,
}

impl Pending {
    pub(crate) fn get(&self, id: &MessageId) -> Option<Visible> {
        self.entries.get(id).map(|entry| match &entry.dirty.data {
            Some(data) => Visible::Put(data.clone()),
            None => Visible::Removed,
        })
    }

    /// True if the newest version of `id` is dirty.
    pub(crate) fn has(&self, id: &MessageId) -> bool {
        self.entries.contains_key(id)
    }

    /// The ids whose newest version is a tombstone.
    pub(crate) fn removals(&self) -> impl Iterator<Item = &MessageId> {
        self.entries.iter().filter(|(_, entry)| entry.dirty.data.is_none()).map(|(id, _)| id)
    }

    /// Makes `dirty` the newest version of `id`, to be flushed in its turn. Returns the replaced
    /// version if it will not be written.
    ///
    /// `slot`: its entry in the crash log, which is valid already.
    pub(crate) fn insert(
        &mut self,
        ticket: Ticket,
        dirty: Arc<Dirty>,
        slot: Option<Slot>,
    ) -> Option<Arc<Dirty>> {
        let before = self.entries.get(&ticket.id).filter(|entry| !entry.in_flight);
        let was_put_off = before.is_some_and(|entry| entry.was_put_off);
        let stands_for = before.filter(|entry| !entry.is_due).map_or(ticket.version, |entry| entry.ticket);
        if stands_for == ticket.version {
            self.tickets.push_back(ticket);
        }
        let Ticket { version, at, id } = ticket;
        let (is_due, in_flight) = (false, false);
        let entry =
            PendingEntry { version, at, ticket: stands_for, is_due, dirty, in_flight, was_put_off, slot };
        self.risks.add(&entry);
        let replaced = self.entries.insert(id, entry);
        replaced.iter().for_each(|replaced| self.risks.subtract(replaced));
        self.drop_stale_tickets();
        replaced.filter(|replaced| !replaced.in_flight).map(|replaced| replaced.dirty)
    }

    /// Removes the newest version, for a removal. Returns it if it will not be written.
    pub(crate) fn take(&mut self, id: &MessageId) -> Option<Arc<Dirty>> {
        self.remove(id).filter(|entry| !entry.in_flight).map(|entry| entry.dirty)
    }

    fn remove(&mut self, id: &MessageId) -> Option<PendingEntry> {
        let removed = self.entries.remove(id)?;
        self.risks.subtract(&removed);
        Some(removed)
    }

    /// What a power cut and the death of the process would lose now.
    pub(crate) fn risks(&self) -> Risks {
        self.risks
    }

    /// True if a version of `id` may become durable without another check of this table.
    pub(crate) fn is_under_way(&self, id: &MessageId) -> bool {
        self.under_way.contains_key(id)
    }

    /// True if a version of the ticket's id is under way, other than the ticket's own.
    pub(crate) fn has_other_under_way(&self, ticket: &Ticket) -> bool {
        let own = u32::from(self.pledge_of(ticket).is_some());
        self.under_way.get(&ticket.id).is_some_and(|under_way| under_way.count > own)
    }

    /// Marks a version of `id` as under way to the disk.
    pub(crate) fn set_under_way(&mut self, id: MessageId) {
        self.under_way.entry(id).or_default().count += 1;
    }

    /// Checks the order of the versions of `id` that are under way, in debug builds: see [`Order`].
    #[cfg(debug_assertions)]
    pub(crate) fn check_order(&mut self, id: &MessageId, step: impl FnOnce(&mut Order)) {
        if let Some(under_way) = self.under_way.get_mut(id) {
            step(&mut under_way.order);
        }
    }

    /// Ends `set_under_way`: the version is durable and indexed, or was cancelled before it was
    /// written.
    pub(crate) fn clear_under_way(&mut self, id: &MessageId) {
        if let Some(under_way) = self.under_way.get_mut(id) {
            under_way.count -= 1;
            if under_way.count == 0 {
                self.under_way.remove(id);
            }
        }
    }

    fn pledge_of(&self, ticket: &Ticket) -> Option<&Pledge> {
        self.pledged.get(&ticket.id).filter(|pledge| pledge.version == ticket.version)
    }

    /// The version of the ticket, if no commit has taken it, and if it is pledged or still the
    /// newest.
    pub(crate) fn peek(&self, ticket: &Ticket) -> Option<Arc<Dirty>> {
        if let Some(pledge) = self.pledge_of(ticket) {
            return Some(pledge.dirty.clone());
        }
        let entry = self.entries.get(&ticket.id)?;
        (entry.version == ticket.version && !entry.in_flight).then(|| entry.dirty.clone())
    }

    /// Marks the version of the ticket as being committed, if it is pledged or still the newest.
    pub(crate) fn commit(&mut self, ticket: &Ticket) {
        if self.pledge_of(ticket).is_some() {
            // It is under way since the pledge.
            self.pledged.remove(&ticket.id);
        } else if let Some(entry) =
            self.entries.get_mut(&ticket.id).filter(|entry| entry.version == ticket.version)
        {
            entry.in_flight = true;
            self.set_under_way(ticket.id);
        }
    }

    /// Removes the newest version of `id` if it is not newer than `version`, which is durable.
    /// Returns it if it will not be written.
    pub(crate) fn settle(&mut self, id: &MessageId, version: u64) -> Option<Arc<Dirty>> {
        if self.entries.get(id).is_none_or(|entry| entry.version > version) {
            return None;
        }
        let entry = self.remove(id)?;
        (entry.version < version && !entry.in_flight).then_some(entry.dirty)
    }

    /// Ends the pledge of a version older than `version`, which is durable. Returns the pledged
    /// version, which will not be written.
    pub(crate) fn settle_pledge(&mut self, id: &MessageId, version: u64) -> Option<Arc<Dirty>> {
        if self.pledged.get(id)?.version >= version {
            return None;
        }
        self.end_pledge(id)
    }

    /// Ends the pledge of the ticket's version if its message is removed now. Returns the pledged
    /// version, which will not be written.
    pub(crate) fn end_pledge_of_removed(&mut self, ticket: &Ticket) -> Option<Arc<Dirty>> {
        let newest = self.entries.get(&ticket.id)?;
        if self.pledge_of(ticket).is_none() || newest.dirty.data.is_some() || newest.version == ticket.version
        {
            return None;
        }
        self.end_pledge(&ticket.id)
    }

    fn end_pledge(&mut self, id: &MessageId) -> Option<Arc<Dirty>> {
        let pledge = self.pledged.remove(id)?;
        self.clear_under_way(id);
        Some(pledge.dirty)
    }

    /// Removes the tickets of everything that has been dirty since `cutoff` or longer. Appends each
    /// with the newest version of its id.
    ///
    /// Returns the time up to which the other shards must be drained too: that of the newest
    /// version taken. Otherwise a crash could keep a newer message and lose an older one.
    pub(crate) fn drain_tickets(&mut self, cutoff: Instant, into: &mut Vec<Ticket>) -> Instant {
        let mut reach = cutoff;
        while let Some(ticket) = self.tickets.front().copied().filter(|ticket| ticket.at <= reach) {
            self.tickets.pop_front();
            let Some(entry) = self.entries.get_mut(&ticket.id).filter(|entry| entry.has_ticket(&ticket))
            else {
                continue;
            };
            entry.is_due = true;
            into.push(Ticket { version: entry.version, ..ticket });
            reach = reach.max(entry.at);
            if entry.was_put_off {
                self.pledge(&ticket.id);
            }
        }
        reach
    }

    /// Records that the ticket was due after its version had been replaced. The replacement is
    /// pledged now if it is due itself, else in its turn. Returns when it was stored.
    pub(crate) fn pledge_replacement(&mut self, ticket: &Ticket) -> Option<Instant> {
        let is_pledged = self.is_pledged(&ticket.id);
        let entry = self.entries.get_mut(&ticket.id).filter(|entry| entry.version > ticket.version)?;
        let at = entry.at;
        if entry.in_flight {
            return is_pledged.then_some(at);
        }
        entry.was_put_off = true;
        if entry.is_due {
            self.pledge(&ticket.id);
        }
        Some(at)
    }

    pub(crate) fn is_pledged(&self, id: &MessageId) -> bool {
        self.pledged.contains_key(id)
    }

    /// Pledges the newest version of `id`: it will be written. Does nothing if an earlier version
    /// is pledged.
    fn pledge(&mut self, id: &MessageId) {
        if let Some(entry) = self.entries.get_mut(id)
            && !self.pledged.contains_key(id)
        {
            entry.in_flight = true;
            let (version, dirty) = (entry.version, entry.dirty.clone());
            self.pledged.insert(*id, Pledge { version, dirty });
            self.set_under_way(*id);
        }
    }

    /// When the oldest version that waits for its flush was stored.
    pub(crate) fn oldest(&mut self) -> Option<Instant> {
        while let Some(ticket) = self.tickets.front() {
            if self.entries.get(&ticket.id).is_some_and(|entry| entry.has_ticket(ticket)) {
                return Some(ticket.at);
            }
            self.tickets.pop_front();
        }
        None
    }

    /// Shrinks sparse tables after a burst.
    pub(crate) fn trim(&mut self) {
        if is_sparse(self.entries.len(), self.entries.capacity()) {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        if is_sparse(self.under_way.len(), self.under_way.capacity()) {
            self.under_way.shrink_to(self.under_way.len() * 2);
        }
        if is_sparse(self.pledged.len(), self.pledged.capacity()) {
            self.pledged.shrink_to(self.pledged.len() * 2);
        }
        if is_sparse(self.tickets.len(), self.tickets.capacity()) {
            self.tickets.shrink_to(self.tickets.len() * 2);
        }
    }

    /// The ids in this table. True for a message, false for a tombstone.
    pub(crate) fn ids(&self) -> impl Iterator<Item = (MessageId, bool)> + '_ {
        self.entries.iter().map(|(id, entry)| (*id, entry.dirty.data.is_some()))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bounds the tickets that removed versions have left, by the number of entries.
    fn drop_stale_tickets(&mut self) {
        if self.tickets.len() > 64 + 2 * self.entries.len() {
            let entries = &self.entries;
            self.tickets
                .retain(|ticket| entries.get(&ticket.id).is_some_and(|entry| entry.has_ticket(ticket)));
        }
    }
}

impl Risk {
    fn of(entry: &PendingEntry) -> Self {
        match entry.dirty.data {
            Some(_) => Self { bytes: entry.dirty.bytes(), removals: 0 },
            None => Self { bytes: 0, removals: 1 },
        }
    }

    fn plus(self, more: Self) -> Self {
        Self { bytes: self.bytes + more.bytes, removals: self.removals + more.removals }
    }

    fn minus(self, less: Self) -> Self {
        Self { bytes: self.bytes - less.bytes, removals: self.removals - less.removals }
    }
}

impl Risks {
    pub(crate) fn plus(self, more: Self) -> Self {
        Self { power: self.power.plus(more.power), process: self.process.plus(more.process) }
    }

    fn of(entry: &PendingEntry) -> Self {
        let power = Risk::of(entry);
        Self { power, process: if entry.slot.is_none() { power } else { Risk::default() } }
    }

    fn add(&mut self, entry: &PendingEntry) {
        *self = self.plus(Self::of(entry));
    }

    fn subtract(&mut self, entry: &PendingEntry) {
        let Self { power, process } = Self::of(entry);
        *self = Self { power: self.power.minus(power), process: self.process.minus(process) };
    }
}

impl PendingEntry {
    fn has_ticket(&self, ticket: &Ticket) -> bool {
        self.ticket == ticket.version && !self.is_due
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::throttle::Lane;
    use super::*;

    struct PendingBench {
        budget: Arc<Budget>,
        pending: Pending,
        version: u64,
    }

    impl PendingBench {
        fn new() -> Self {
            Self { budget: Arc::new(Budget::new(4 << 20)), pending: Pending::default(), version: 0 }
        }

        fn store(&mut self, id: MessageId, byte: u8) -> Ticket {
            self.version += 1;
            let ticket = Ticket { version: self.version, at: Instant::now(), id };
            let permit = self.budget.try_admit(1, Lane::Memory).unwrap();
            let dirty = Dirty::put(Arc::new(vec![byte].into_boxed_slice()), None, permit);
            self.pending.insert(ticket, Arc::new(dirty), None);
            ticket
        }

        fn seen(&self, id: &MessageId) -> Option<u8> {
            match self.pending.get(id) {
                Some(Visible::Put(data)) => Some(data[0]),
                _ => None,
            }
        }
    }

    #[test]
    fn a_replaced_version_is_not_committed() {
        let (mut bench, id) = (PendingBench::new(), MessageId::random());
        let first = bench.store(id, 1);
        let second = bench.store(id, 2);
        assert!(bench.pending.peek(&first).is_none());
        assert_eq!(bench.pending.peek(&second).unwrap().data.as_ref().unwrap()[0], 2);
        bench.pending.commit(&second);
        assert_eq!(bench.seen(&id), Some(2), "visible while it is committed");
        bench.pending.settle(&id, second.version);
        assert_eq!(bench.pending.len(), 0);
        assert_eq!(bench.budget.dirty(), 0);
    }

    #[test]
    fn a_commit_of_an_older_version_does_not_remove_the_newer_one() {
        let (mut bench, id) = (PendingBench::new(), MessageId::random());
        let first = bench.store(id, 1);
        bench.pending.commit(&first);
        bench.store(id, 2);
        bench.pending.settle(&id, first.version);
        assert_eq!(bench.seen(&id), Some(2));
    }

    #[test]
    fn a_committed_version_is_under_way_until_it_is_published_even_if_replaced() {
        let (mut bench, id) = (PendingBench::new(), MessageId::random());
        let first = bench.store(id, 1);
        assert!(!bench.pending.is_under_way(&id));
        bench.pending.commit(&first);
        bench.store(id, 2);
        assert!(bench.pending.take(&id).is_some(), "the second version is never written");
        assert!(bench.pending.is_under_way(&id), "the first version may be written");
        bench.pending.clear_under_way(&id);
        assert!(!bench.pending.is_under_way(&id));
        let third = bench.store(id, 3);
        bench.pending.commit(&third);
        assert!(bench.pending.take(&id).is_none(), "a commit has taken it");
    }

    #[test]
    fn a_newer_durable_version_elides_the_older_dirty_one() {
        let (mut bench, id) = (PendingBench::new(), MessageId::random());
        let older = bench.store(id, 1);
        assert!(bench.pending.settle(&id, older.version + 1).is_some());
        assert_eq!((bench.seen(&id), bench.budget.dirty()), (None, 0));
    }

    #[test]
    fn a_message_saved_repeatedly_keeps_its_turn() {
        let (mut bench, id) = (PendingBench::new(), MessageId::random());
        let first = bench.store(id, 1);
        let other = bench.store(MessageId::random(), 2);
        let last = bench.store(id, 3);
        let mut due = Vec::new();
        assert_eq!(bench.pending.oldest(), Some(first.at));
        assert_eq!(bench.pending.drain_tickets(first.at, &mut due), last.at);
        assert_eq!(due[0].version, last.version, "the newest version is flushed");
        // Everything older than that version is flushed with it.
        assert_eq!(due[1].version, other.version);
    }

    #[test]
    fn a_version_stored_after_its_turn_is_put_off() {
        let (mut bench, id) = (PendingBench::new(), MessageId::random());
        let first = bench.store(id, 1);
        let mut due = Vec::new();
        bench.pending.drain_tickets(first.at, &mut due);
        assert_eq!(bench.pending.pledge_replacement(&due[0]), None);
        let second = bench.store(id, 2);
        assert!(bench.pending.peek(&due[0]).is_none());
        assert_eq!(bench.pending.pledge_replacement(&due[0]), Some(second.at));
        bench.pending.drain_tickets(second.at, &mut due);
        assert!(bench.pending.peek(&due[1]).is_some());
    }

    #[test]
    fn stale_tickets_are_bounded_and_do_not_count_as_age() {
        let (mut bench, id) = (PendingBench::new(), MessageId::random());
        for _ in 0..10_000 {
            bench.store(id, 1);
            bench.pending.take(&id);
        }
        assert!(bench.pending.tickets.len() <= 100);
        assert_eq!(bench.pending.oldest(), None);
        bench.store(id, 1);
        assert!(bench.pending.oldest().is_some());
    }

    #[test]
    fn versions_under_way_are_counted() {
        let (mut pending, id) = (Pending::default(), MessageId::random());
        pending.set_under_way(id);
        pending.set_under_way(id);
        pending.clear_under_way(&id);
        assert!(pending.is_under_way(&id));
        pending.clear_under_way(&id);
        assert!(!pending.is_under_way(&id));
        pending.clear_under_way(&id);
    }

    #[test]
    fn memory_of_a_burst_is_freed() {
        let mut bench = PendingBench::new();
        let ids: Vec<MessageId> = (0..2_000).map(|_| MessageId::random()).collect();
        let tickets: Vec<Ticket> = ids.iter().map(|id| bench.store(*id, 1)).collect();
        bench.pending.trim();
        let full = bench.pending.entries.capacity();
        assert!(full >= 2_000 && bench.pending.tickets.capacity() >= 2_000, "it is in use");
        let mut due = Vec::new();
        bench.pending.drain_tickets(Instant::now(), &mut due);
        for ticket in &tickets[10..] {
            bench.pending.commit(ticket);
            bench.pending.settle(&ticket.id, ticket.version);
            bench.pending.clear_under_way(&ticket.id);
        }
        bench.pending.trim();
        let Pending { entries, tickets, under_way, .. } = &bench.pending;
        let left = [entries.capacity(), tickets.capacity(), under_way.capacity()];
        assert!(left.iter().all(|capacity| *capacity < 100), "{left:?} of {full}");
        assert!(ids[..10].iter().all(|id| bench.seen(id) == Some(1)));
    }
}
