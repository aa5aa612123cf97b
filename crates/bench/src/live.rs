//! Messages with a lifetime: which are due for removal, and when another one may be stored.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use tidespool_core::SpoolId;

use crate::payload::Random;
use crate::plan::{Lifetime, Plan};

const SHORT: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(1);

/// The lifetime of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Short,
    Long,
    /// Until the end of the run, or until endless messages are half of the live bytes allowed.
    Endless,
}

impl Life {
    pub(crate) fn draw(lifetime: Lifetime, random: &mut Random) -> Self {
        match lifetime {
            Lifetime::TenMillis => Self::Short,
            Lifetime::OneSecond => Self::Long,
            Lifetime::HeavyTail => match random.random_range(0..100) {
                0..90 => Self::Short,
                90..99 => Self::Long,
                _ => Self::Endless,
            },
        }
    }
}

/// A live message.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: SpoolId,
    /// The id of its metadata, if it has any.
    pub(crate) metadata: Option<SpoolId>,
    pub(crate) len: usize,
    /// The total time of its calls so far.
    pub(crate) took: Duration,
    pub(crate) life: Life,
    since: Instant,
}

/// The live messages of one caller.
#[derive(Debug)]
pub(crate) struct LiveSet {
    short: VecDeque<Live>,
    long: VecDeque<Live>,
    endless: VecDeque<Live>,
    bytes: usize,
    endless_bytes: usize,
    peak_bytes: usize,
    bound: usize,
}

impl LiveSet {
    /// Each caller gets an equal share of the live bytes of the plan and needs no coordination. One
    /// message is always allowed.
    pub(crate) fn new(plan: &Plan) -> Self {
        let bound = usize::try_from(plan.live_bytes).unwrap_or(usize::MAX) / plan.concurrency.max(1);
        Self {
            short: VecDeque::new(),
            long: VecDeque::new(),
            endless: VecDeque::new(),
            bytes: 0,
            endless_bytes: 0,
            peak_bytes: 0,
            bound: bound.max(1),
        }
    }

    /// Adds a message that is live since `now`.
    pub(crate) fn add(
        &mut self,
        id: SpoolId,
        metadata: Option<SpoolId>,
        len: usize,
        took: Duration,
        life: Life,
        now: Instant,
    ) {
        self.bytes += len;
        self.peak_bytes = self.peak_bytes.max(self.bytes);
        let live = Live { id, metadata, len, took, life, since: now };
        match life {
            Life::Short => self.short.push_back(live),
            Life::Long => self.long.push_back(live),
            Life::Endless => {
                self.endless_bytes += len;
                self.endless.push_back(live);
            }
        }
    }

    /// Removes and returns a message whose lifetime has ended.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Live> {
        let ended = |queue: &mut VecDeque<Live>, life| {
            let is_over = queue.front().is_some_and(|live| now.duration_since(live.since) >= life);
            if is_over { queue.pop_front() } else { None }
        };
        let due = ended(&mut self.short, SHORT)
            .or_else(|| ended(&mut self.long, LONG))
            .or_else(|| if self.endless_bytes > self.bound / 2 { self.endless.pop_front() } else { None })?;
        Some(self.took_out(due))
    }

    /// Returns `None` if another message may be stored, otherwise when the next lifetime ends.
    pub(crate) fn full_until(&self) -> Option<Instant> {
        if self.bytes < self.bound {
            return None;
        }
        let short = self.short.front().map(|live| live.since + SHORT);
        let long = self.long.front().map(|live| live.since + LONG);
        [short, long].into_iter().flatten().min()
    }

    /// Removes and returns one of the messages left at the end of the run.
    pub(crate) fn rest(&mut self) -> Option<Live> {
        let left = self.short.pop_front().or_else(|| self.long.pop_front());
        let left = left.or_else(|| self.endless.pop_front())?;
        Some(self.took_out(left))
    }

    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak_bytes as u64
    }

    fn took_out(&mut self, live: Live) -> Live {
        self.bytes -= live.len;
        if live.life == Life::Endless {
            self.endless_bytes -= live.len;
        }
        live
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::plan::Workload;

    fn set(live_bytes: u64) -> LiveSet {
        LiveSet::new(&Plan { live_bytes, concurrency: 2, ..Plan::new(Workload::Lifecycle) })
    }

    fn add(set: &mut LiveSet, len: usize, life: Life, now: Instant) -> SpoolId {
        let id = SpoolId::new();
        set.add(id, None, len, Duration::ZERO, life, now);
        id
    }

    #[test]
    fn a_message_is_due_when_its_life_has_ended() {
        let mut set = set(1_000);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let long = add(&mut set, 1, Life::Long, at(0));
        let short = add(&mut set, 1, Life::Short, at(0));
        let second = add(&mut set, 1, Life::Short, at(5));
        assert!(set.due(at(9)).is_none());
        assert_eq!(set.due(at(10)).unwrap().id, short);
        assert!(set.due(at(10)).is_none());
        assert_eq!(set.due(at(1_000)).unwrap().id, second);
        assert_eq!(set.due(at(1_000)).unwrap().id, long);
        assert!(set.rest().is_none());
    }

    #[test]
    fn a_full_set_waits_for_the_next_removal() {
        let mut set = set(200);
        let start = Instant::now();
        add(&mut set, 60, Life::Long, start);
        assert_eq!(set.full_until(), None);
        add(&mut set, 60, Life::Short, start);
        assert_eq!(set.full_until(), Some(start + SHORT));
        set.due(start + SHORT).unwrap();
        assert_eq!(set.full_until(), None);
        assert_eq!(set.peak_bytes(), 120);
    }

    #[test]
    fn endless_messages_are_removed_above_half_of_the_bound() {
        let mut set = set(200);
        let start = Instant::now();
        let first = add(&mut set, 40, Life::Endless, start);
        assert!(set.due(start).is_none());
        add(&mut set, 1_000, Life::Endless, start);
        assert_eq!(set.due(start).unwrap().id, first);
        // A single message above the bound is removed too, so that the caller does not block.
        assert!(set.due(start).is_some() && set.full_until().is_none() && set.due(start).is_none());
    }

    #[test]
    fn the_tail_is_heavy() {
        let mut random = Random::seed_from_u64(1);
        let mut drawn = [0; 3];
        for _ in 0..10_000 {
            drawn[Life::draw(Lifetime::HeavyTail, &mut random) as usize] += 1;
        }
        assert!((8_800..9_200).contains(&drawn[0]) && (800..1_000).contains(&drawn[1]), "{drawn:?}");
        assert!((60..140).contains(&drawn[2]), "{drawn:?}");
    }
}
