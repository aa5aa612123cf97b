//! id → newest dirty version, for one shard. Pure.
//!
//! Dirty bytes live here and nowhere else until they are durable: moka may refuse an entry or evict it at any time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tidespool_core::SpoolId;

use super::budget::Permit;

/// A version that is not durable yet: a message's bytes, or a tombstone. It holds its room in the budget.
#[derive(Debug)]
pub(crate) struct Dirty {
    /// `None`: a tombstone.
    pub(crate) data: Option<Arc<Box<[u8]>>>,
    permit: Permit,
}

impl Dirty {
    pub(crate) fn put(data: Arc<Box<[u8]>>, permit: Permit) -> Self {
        Self { data: Some(data), permit }
    }

    pub(crate) fn tombstone(permit: Permit) -> Self {
        Self { data: None, permit }
    }

    /// What it counts as dirty, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.permit.bytes()
    }
}

/// A place in the order in which dirty versions are flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    pub(crate) version: u64,
    pub(crate) at: Instant,
    pub(crate) id: SpoolId,
}

/// What a load sees of an id here.
#[derive(Debug, Clone)]
pub(crate) enum Visible {
    Put(Arc<Box<[u8]>>),
    Removed,
}

#[derive(Debug)]
struct Entry {
    version: u64,
    dirty: Arc<Dirty>,
    /// A commit has it: a removal must be written, for the commit may succeed.
    in_flight: bool,
}

/// One shard of the pending table.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    entries: HashMap<SpoolId, Entry, foldhash::fast::RandomState>,
    tickets: VecDeque<Ticket>,
    /// Synced stores of an id that are on their way and not visible yet.
    arriving: HashMap<SpoolId, u32, foldhash::fast::RandomState>,
}

impl Pending {
    pub(crate) fn get(&self, id: &SpoolId) -> Option<Visible> {
        self.entries.get(id).map(|entry| match &entry.dirty.data {
            Some(data) => Visible::Put(data.clone()),
            None => Visible::Removed,
        })
    }

    /// Makes `dirty` the newest version of `id`, to be flushed in its turn. Returns the version that it replaces, if that one will now
    /// never be written.
    pub(crate) fn insert(&mut self, ticket: Ticket, dirty: Arc<Dirty>) -> Option<Arc<Dirty>> {
        self.tickets.push_back(ticket);
        self.drop_stale_tickets();
        self.show(ticket.id, ticket.version, dirty, false)
    }

    /// Makes a version visible that was written already and waits for its sync only.
    pub(crate) fn insert_written(&mut self, id: SpoolId, version: u64, dirty: Arc<Dirty>) -> Option<Arc<Dirty>> {
        if self.entries.get(&id).is_some_and(|entry| entry.version > version) {
            return None;
        }
        self.show(id, version, dirty, true)
    }

    fn show(&mut self, id: SpoolId, version: u64, dirty: Arc<Dirty>, in_flight: bool) -> Option<Arc<Dirty>> {
        let before = self.entries.insert(id, Entry { version, dirty, in_flight });
        before.filter(|before| !before.in_flight).map(|before| before.dirty)
    }

    /// Takes the newest version out, for a removal. True beside it where a commit has it.
    pub(crate) fn take(&mut self, id: &SpoolId) -> Option<(Arc<Dirty>, bool)> {
        self.entries.remove(id).map(|entry| (entry.dirty, entry.in_flight))
    }

    /// True if some version of `id` may become durable without having been asked about again.
    pub(crate) fn is_arriving(&self, id: &SpoolId) -> bool {
        self.arriving.contains_key(id)
    }

    pub(crate) fn note_arriving(&mut self, id: SpoolId) {
        *self.arriving.entry(id).or_default() += 1;
    }

    pub(crate) fn note_arrived(&mut self, id: &SpoolId) {
        if let Some(count) = self.arriving.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                self.arriving.remove(id);
            }
        }
    }

    /// The version that the ticket stands for, if it is still the newest one.
    pub(crate) fn peek(&self, ticket: &Ticket) -> Option<Arc<Dirty>> {
        let entry = self.entries.get(&ticket.id).filter(|entry| entry.version == ticket.version)?;
        Some(entry.dirty.clone())
    }

    /// Marks the version that the ticket stands for as being committed, if it is still the newest one.
    pub(crate) fn commit(&mut self, ticket: &Ticket) {
        if let Some(entry) = self.entries.get_mut(&ticket.id).filter(|entry| entry.version == ticket.version) {
            entry.in_flight = true;
        }
    }

    /// Lets go of everything up to `version` of `id`: it is durable, or something newer than it is. Returns what will now never be
    /// written.
    pub(crate) fn settle(&mut self, id: &SpoolId, version: u64) -> Option<Arc<Dirty>> {
        if self.entries.get(id).is_none_or(|entry| entry.version > version) {
            return None;
        }
        let entry = self.entries.remove(id)?;
        (entry.version < version && !entry.in_flight).then_some(entry.dirty)
    }

    /// Moves the tickets of everything stored up to `cutoff` out, in order.
    pub(crate) fn drain_tickets(&mut self, cutoff: Instant, into: &mut Vec<Ticket>) {
        while let Some(ticket) = self.tickets.pop_front_if(|ticket| ticket.at <= cutoff) {
            if self.is_current(&ticket) {
                into.push(ticket);
            }
        }
    }

    /// When the oldest version that waits for its flush was stored.
    pub(crate) fn oldest(&mut self) -> Option<Instant> {
        while let Some(ticket) = self.tickets.front() {
            if self.is_current(ticket) {
                return Some(ticket.at);
            }
            self.tickets.pop_front();
        }
        None
    }

    pub(crate) fn is_current(&self, ticket: &Ticket) -> bool {
        self.entries.get(&ticket.id).is_some_and(|entry| entry.version == ticket.version)
    }

    /// Messages that are visible here.
    pub(crate) fn ids(&self) -> impl Iterator<Item = (SpoolId, bool)> + '_ {
        self.entries.iter().map(|(id, entry)| (*id, entry.dirty.data.is_some()))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Replaced and removed versions leave their tickets behind. Here they are bounded by the versions that count.
    fn drop_stale_tickets(&mut self) {
        if self.tickets.len() > 64 + 2 * self.entries.len() {
            let entries = &self.entries;
            self.tickets
                .retain(|ticket| entries.get(&ticket.id).is_some_and(|entry| entry.version == ticket.version));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::*;

    struct Bench {
        budget: Arc<Budget>,
        pending: Pending,
        version: u64,
    }

    impl Bench {
        fn new() -> Self {
            Self { budget: Arc::new(Budget::new(1 << 20)), pending: Pending::default(), version: 0 }
        }

        fn store(&mut self, id: SpoolId, byte: u8) -> Ticket {
            self.version += 1;
            let ticket = Ticket { version: self.version, at: Instant::now(), id };
            let permit = self.budget.try_admit(1).unwrap();
            let dirty = Dirty::put(Arc::new(vec![byte].into_boxed_slice()), permit);
            self.pending.insert(ticket, Arc::new(dirty));
            ticket
        }

        fn seen(&self, id: &SpoolId) -> Option<u8> {
            match self.pending.get(id) {
                Some(Visible::Put(data)) => Some(data[0]),
                _ => None,
            }
        }
    }

    #[test]
    fn a_replaced_version_is_not_committed() {
        let (mut bench, id) = (Bench::new(), SpoolId::new());
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
    fn a_commit_of_an_older_version_does_not_take_the_newer_one_away() {
        let (mut bench, id) = (Bench::new(), SpoolId::new());
        let first = bench.store(id, 1);
        bench.pending.commit(&first);
        bench.store(id, 2);
        bench.pending.settle(&id, first.version);
        assert_eq!(bench.seen(&id), Some(2));
    }

    #[test]
    fn removing_tells_whether_a_commit_has_it() {
        let (mut bench, id) = (Bench::new(), SpoolId::new());
        bench.store(id, 1);
        assert!(!bench.pending.take(&id).unwrap().1);
        let again = bench.store(id, 2);
        bench.pending.commit(&again);
        assert!(bench.pending.take(&id).unwrap().1);
        assert!(bench.pending.take(&id).is_none());
    }

    #[test]
    fn a_newer_durable_version_elides_the_older_dirty_one() {
        let (mut bench, id) = (Bench::new(), SpoolId::new());
        let older = bench.store(id, 1);
        assert!(bench.pending.settle(&id, older.version + 1).is_some());
        assert_eq!((bench.seen(&id), bench.budget.dirty()), (None, 0));
    }

    #[test]
    fn stale_tickets_do_not_pile_up_and_do_not_count_as_age() {
        let (mut bench, id) = (Bench::new(), SpoolId::new());
        for _ in 0..10_000 {
            bench.store(id, 1);
        }
        assert!(bench.pending.tickets.len() <= 100);
        assert!(bench.pending.oldest().is_some());
        bench.pending.take(&id);
        assert_eq!(bench.pending.oldest(), None);
    }

    #[test]
    fn arrivals_are_counted() {
        let (mut pending, id) = (Pending::default(), SpoolId::new());
        pending.note_arriving(id);
        pending.note_arriving(id);
        pending.note_arrived(&id);
        assert!(pending.is_arriving(&id));
        pending.note_arrived(&id);
        assert!(!pending.is_arriving(&id));
        pending.note_arrived(&id);
    }
}
