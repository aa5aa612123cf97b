//! The stores that wait for room, and their order. Pure: clock and dirty bytes are arguments.

use std::collections::BTreeMap;

use super::throttle::{Lane, Timeline, drain_time, slot};

/// The maximum delay behind later messages that a message's size causes, in nanoseconds.
const LONGEST_COST: u64 = 5_000_000_000;

/// The dirty bytes, their limit and the drain rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Bytes of messages.
    pub(super) puts: u64,
    /// Bytes of tombstones. They never wait and use no room of messages, but must be written too.
    pub(super) removals: u64,
    pub(super) limit: u64,
    /// Bytes per second. 0: not measured yet.
    pub(super) rate: u64,
}

impl Load {
    pub(super) fn dirty(&self) -> u64 {
        self.puts + self.removals
    }

    /// A message larger than the limit is admitted alone.
    fn has_room(&self, bytes: u64) -> bool {
        self.puts == 0 || self.puts.saturating_add(bytes) <= self.limit
    }
}

/// A place in the queue; the lowest is served first. It is the arrival time plus the drain time of
/// the message. So small messages overtake a huge one that came shortly before, and later messages
/// do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueuePlace {
    at: u64,
    nth: u64,
}

/// The store that is admitted next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// No store waits.
    Empty,
    /// This store is admitted now.
    Of(Lane, QueuePlace),
    /// The first store is due and has no room. No other store passes it.
    Full,
    /// No store is due before this time.
    Later(u64),
}

/// All waiting stores, in the order of their admission. `T` notifies the waiter.
#[derive(Debug)]
pub(super) struct Queue<T> {
    lanes: [LaneQueue<T>; 2],
    arrivals: u64,
}

#[derive(Debug)]
struct LaneQueue<T> {
    lane: Lane,
    stores: BTreeMap<QueuePlace, WaitingStore<T>>,
    bytes: u64,
    timeline: Timeline,
}

#[derive(Debug)]
struct WaitingStore<T> {
    bytes: u64,
    waiter: T,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        let lane =
            |lane| LaneQueue { lane, stores: BTreeMap::new(), bytes: 0, timeline: Timeline::default() };
        Self { lanes: Lane::ALL.map(lane), arrivals: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.stores.is_empty())
    }

    /// Bytes of all waiting stores.
    pub(super) fn bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.bytes).sum()
    }

    /// The place of a message that arrives now.
    pub(super) fn place(&mut self, now: u64, bytes: u64, rate: u64) -> QueuePlace {
        self.arrivals += 1;
        QueuePlace { at: now.saturating_add(drain_time(bytes, rate).min(LONGEST_COST)), nth: self.arrivals }
    }

    pub(super) fn join(&mut self, lane: Lane, place: QueuePlace, bytes: u64, waiter: T) {
        let lane = self.lane(lane);
        lane.bytes += bytes;
        lane.stores.insert(place, WaitingStore { bytes, waiter });
    }

    /// Removes a store from the queue. `None` if it was admitted already.
    pub(super) fn leave(&mut self, lane: Lane, place: QueuePlace) -> Option<(u64, T)> {
        let lane = self.lane(lane);
        let store = lane.stores.remove(&place)?;
        lane.bytes -= store.bytes;
        Some((store.bytes, store.waiter))
    }

    /// The store that is admitted next, and its bytes.
    pub(super) fn turn(&self, now: u64, load: &Load) -> (Turn, u64) {
        self.turn_beside(now, load, None)
    }

    /// Like [`turn`](Self::turn), as if `newcomer` were in the queue too.
    pub(super) fn turn_beside(
        &self,
        now: u64,
        load: &Load,
        newcomer: Option<(Lane, QueuePlace, u64)>,
    ) -> (Turn, u64) {
        let mut heads = self.lanes.each_ref().map(|waiting| {
            let newcomer = newcomer.filter(|(lane, ..)| *lane == waiting.lane);
            let first = waiting.stores.first_key_value().map(|(place, store)| (*place, store.bytes));
            let head = [first, newcomer.map(|(_, place, bytes)| (place, bytes))].into_iter().flatten().min();
            head.map(|(place, bytes)| (place, bytes, waiting))
        });
        heads.sort_unstable_by_key(|head| head.as_ref().map(|(place, ..)| *place));
        let mut soonest = Turn::Empty;
        for (place, bytes, waiting) in heads.into_iter().flatten() {
            let due = waiting.due_at(load);
            if due <= now {
                let turn = if load.has_room(bytes) { Turn::Of(waiting.lane, place) } else { Turn::Full };
                return (turn, bytes);
            }
            soonest = match soonest {
                Turn::Later(at) => Turn::Later(at.min(due)),
                _ => Turn::Later(due),
            };
        }
        (soonest, 0)
    }

    /// Records an admission in this lane. `load` is the state before it.
    pub(super) fn let_in(&mut self, now: u64, lane: Lane, bytes: u64, load: &Load) {
        let slowdown = lane.slowdown(load.dirty(), load.limit);
        self.lane(lane).timeline.let_in(now, slot(bytes, load.rate, slowdown));
    }

    /// Nanoseconds until the next store of a lane is due.
    pub(super) fn until_due(&self, now: u64, lane: Lane, load: &Load) -> u64 {
        let lane = self.lanes.iter().find(|waiting| waiting.lane == lane);
        lane.map_or(0, |waiting| waiting.due_at(load).saturating_sub(now))
    }

    /// Bytes of all stores before a place.
    pub(super) fn ahead_of(&self, place: QueuePlace) -> u64 {
        let ahead = self.lanes.iter().flat_map(|waiting| waiting.stores.range(..place));
        ahead.map(|(_, store)| store.bytes).sum()
    }

    fn lane(&mut self, lane: Lane) -> &mut LaneQueue<T> {
        let [memory, disk] = &mut self.lanes;
        match lane {
            Lane::Memory => memory,
            Lane::Disk => disk,
        }
    }
}

impl<T> LaneQueue<T> {
    fn due_at(&self, load: &Load) -> u64 {
        if load.dirty() <= self.lane.free_below(load.limit) { 0 } else { self.timeline.due_at() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 1_000_000;
    /// One byte takes one microsecond.
    const RATE: u64 = 1_000_000;
    const MS: u64 = 1_000_000;

    fn load(puts: u64) -> Load {
        Load { puts, removals: 0, limit: LIMIT, rate: RATE }
    }

    /// A store arrives at `ms` milliseconds.
    fn come(
        queue: &mut Queue<&'static str>,
        ms: u64,
        lane: Lane,
        bytes: u64,
        name: &'static str,
    ) -> QueuePlace {
        let place = queue.place(ms * MS, bytes, RATE);
        queue.join(lane, place, bytes, name);
        place
    }

    /// Admits all stores without a limit, and returns their order.
    fn served(queue: &mut Queue<&'static str>) -> Vec<&'static str> {
        let mut names = Vec::new();
        while let (Turn::Of(lane, place), _) = queue.turn(u64::MAX, &load(0)) {
            names.extend(queue.leave(lane, place).map(|(_, name)| name));
        }
        assert!(queue.is_empty() && queue.bytes() == 0);
        names
    }

    #[test]
    fn small_messages_overtake_a_huge_one_only_within_its_drain_time() {
        let mut queue = Queue::new();
        come(&mut queue, 0, Lane::Memory, 500_000, "huge");
        come(&mut queue, 1, Lane::Memory, 1_000, "small");
        come(&mut queue, 400, Lane::Disk, 1_000, "small and synced");
        come(&mut queue, 500, Lane::Memory, 1_000, "too late");
        come(&mut queue, 501, Lane::Memory, 0, "later");
        assert_eq!(served(&mut queue), ["small", "small and synced", "huge", "too late", "later"]);
    }

    #[test]
    fn messages_of_one_size_are_served_in_order_of_arrival() {
        let mut queue = Queue::new();
        for name in ["a", "b", "c"] {
            come(&mut queue, 7, Lane::Memory, 10, name);
        }
        assert_eq!(served(&mut queue), ["a", "b", "c"]);
    }

    #[test]
    fn a_very_slow_disk_does_not_delay_a_huge_message_forever() {
        let mut queue: Queue<()> = Queue::new();
        let huge = queue.place(0, 1 << 30, 1);
        assert!(huge < queue.place(LONGEST_COST, 0, 1));
    }

    #[test]
    fn no_store_passes_the_first_one_that_lacks_room() {
        let mut queue = Queue::new();
        let first = come(&mut queue, 0, Lane::Memory, 600_000, "large");
        come(&mut queue, 700, Lane::Memory, 1, "small");
        come(&mut queue, 700, Lane::Disk, 1, "small and synced");
        assert_eq!(queue.turn(800 * MS, &load(500_000)).0, Turn::Full);
        assert_eq!(queue.turn(800 * MS, &load(400_000)), (Turn::Of(Lane::Memory, first), 600_000));
    }

    #[test]
    fn a_message_over_the_limit_is_alone_despite_removals() {
        let mut queue = Queue::new();
        let place = come(&mut queue, 0, Lane::Disk, 3 * LIMIT, "vast");
        assert_eq!(queue.turn(0, &load(1)).0, Turn::Full);
        let removals = Load { removals: 5 * LIMIT, ..load(0) };
        assert_eq!(queue.turn(0, &removals).0, Turn::Of(Lane::Disk, place));
    }

    #[test]
    fn above_the_threshold_stores_wait_for_their_slots_and_synced_stores_do_not() {
        let mut queue = Queue::new();
        let busy = load(875_000);
        queue.let_in(100 * MS, Lane::Memory, 20_000, &busy);
        let memory = come(&mut queue, 100, Lane::Memory, 10, "memory");
        // g = 1: 20 000 bytes take 20 ms, minus 5 ms of credit and 1 ms of timer resolution.
        let due = 114 * MS;
        assert_eq!(queue.turn(101 * MS, &busy).0, Turn::Later(due));
        assert_eq!(queue.until_due(101 * MS, Lane::Memory, &busy), 13 * MS);
        let synced = come(&mut queue, 101, Lane::Disk, 10, "synced");
        assert_eq!(queue.turn(102 * MS, &busy).0, Turn::Of(Lane::Disk, synced));
        queue.leave(Lane::Disk, synced);
        assert_eq!(queue.turn(due, &busy).0, Turn::Of(Lane::Memory, memory));
        // Below the threshold no store waits for a slot.
        assert_eq!(queue.turn(102 * MS, &load(750_000)).0, Turn::Of(Lane::Memory, memory));
        let removals = Load { removals: 1, ..load(750_000) };
        assert_eq!(queue.turn(102 * MS, &removals).0, Turn::Later(due));
    }

    #[test]
    fn a_newcomer_waits_behind_earlier_stores() {
        let mut queue = Queue::new();
        come(&mut queue, 0, Lane::Memory, 600_000, "large");
        let small = queue.place(700 * MS, 10, RATE);
        let turn = |queue: &Queue<_>, puts| {
            queue.turn_beside(700 * MS, &load(puts), Some((Lane::Memory, small, 10))).0
        };
        assert_eq!(turn(&queue, 500_000), Turn::Full);
        let small = queue.place(MS, 10, RATE);
        let turn = queue.turn_beside(700 * MS, &load(500_000), Some((Lane::Disk, small, 10)));
        assert_eq!(turn, (Turn::Of(Lane::Disk, small), 10));
        assert_eq!(queue.ahead_of(small), 0);
        assert_eq!(queue.ahead_of(QueuePlace { at: u64::MAX, nth: 0 }), 600_000);
    }

    proptest! {
        /// A large message waits while others arrive without end. It is served after those that
        /// arrived within its drain time.
        #[test]
        fn no_store_starves(bytes in 1_u64..3 * LIMIT, others in prop::collection::vec((1_u64..20, 1_u64..100_000, any::<bool>()), 100)) {
            let mut queue = Queue::new();
            let huge = come(&mut queue, 0, Lane::Memory, bytes, "huge");
            let (mut now, mut nth) = (0, 0);
            let end = (bytes * 1_000).min(LONGEST_COST);
            while now <= end {
                let (pause, bytes, synced) = others[nth % others.len()];
                let lane = if synced { Lane::Disk } else { Lane::Memory };
                come(&mut queue, now / MS, lane, bytes, "other");
                (now, nth) = (now + pause * 10 * MS, nth + 1);
            }
            let before = queue.ahead_of(huge);
            // Later arrivals get places after it.
            for (_, bytes, synced) in others {
                let lane = if synced { Lane::Disk } else { Lane::Memory };
                let place = queue.place(now, bytes, RATE);
                queue.join(lane, place, bytes, "later");
            }
            prop_assert_eq!(queue.ahead_of(huge), before);
            let names = served(&mut queue);
            let place = names.iter().position(|name| *name == "huge");
            let later = names.iter().position(|name| *name == "later");
            prop_assert!(place < later);
        }
    }
}
