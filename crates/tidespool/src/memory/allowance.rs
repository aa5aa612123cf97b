//! How much memory the spool may take now, and which part may take what. Pure.

use std::time::{Duration, Instant};

/// No part gets less.
const LEAST: u64 = 1 << 20;

/// The allowance never falls below this: the smallest budget there is.
const FLOOR: u64 = 8 << 20;

/// All of `memory_budget`, or less while memory is short. In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    budget: u64,
    allowed: u64,
}

/// What a limit of the system leaves, over time: it falls at once and rises slowly, or the cache would follow every move of the neighbours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MemoryBound(Option<(u64, Instant)>);

/// The whole budget comes back in this time.
const RISE: Duration = Duration::from_secs(30);

impl MemoryBound {
    /// `most`: what may be had now, in bytes; `None` where there is no bound. Returns what counts.
    pub(crate) fn follow(&mut self, now: Instant, most: Option<u64>, budget: u64) -> u64 {
        let Some(most) = most else {
            self.0 = None;
            return u64::MAX;
        };
        let most = most.min(budget);
        let bytes = self.0.map_or(most, |(bytes, at)| {
            let elapsed = now.saturating_duration_since(at).as_millis();
            let step = u128::from(budget) * elapsed / RISE.as_millis();
            most.min(bytes.saturating_add(u64::try_from(step).unwrap_or(u64::MAX)))
        });
        self.0 = Some((bytes, now));
        bytes
    }
}

/// What can't be dropped, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) index: u64,
    pub(crate) sled: u64,
    pub(crate) journal: u64,
    /// What the process has used of the crash log's file.
    pub(crate) crash_log: u64,
    /// The size of that file.
    pub(crate) crash_log_size: u64,
}

impl Held {
    pub(crate) fn all(self) -> u64 {
        self.index + self.sled + self.journal + self.crash_log
    }
}

/// What the other parts may take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) dirty_limit: u64,
    pub(crate) cache: u64,
}

impl Allowance {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, allowed: budget }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.allowed
    }

    /// The setting changed. What was taken away because memory is short stays taken away, in proportion.
    pub(crate) fn set_budget(&mut self, budget: u64) {
        self.allowed = part(budget, self.allowed, self.budget);
        self.budget = budget;
    }

    /// Memory is short: of the `accounted` bytes, `excess` have to go.
    pub(crate) fn press(&mut self, accounted: u64, excess: u64) {
        let less = accounted.min(self.allowed).saturating_sub(excess);
        self.allowed = less.max(FLOOR).min(self.allowed);
    }

    /// Memory has returned. A step up; true if there is more to come.
    pub(crate) fn release(&mut self) -> bool {
        let step = (self.allowed / 4).clamp(LEAST, (self.budget / 16).max(LEAST));
        self.allowed = (self.allowed + step).min(self.budget);
        self.allowed < self.budget
    }

    /// The same where no more than `most` bytes can be had without coming near to a limit of the system: it is better not to begin.
    pub(crate) fn within(self, most: u64) -> Self {
        Self { allowed: self.allowed.min(most.max(FLOOR)), ..self }
    }

    /// What is left for dirty bytes and clean copies beside what is `held`. `dirty_limit` is the setting.
    pub(crate) fn shares(&self, dirty_limit: u64, held: Held) -> Shares {
        let Held { index, sled, journal, crash_log, crash_log_size } = held;
        let left = self.allowed.saturating_sub(held.all());
        // Its part of the allowance, and not all that is left: a clean copy of what was just stored is what loads want.
        let dirty =
            part(dirty_limit, self.allowed, self.budget).min(left / 4 * 3).max(LEAST.min(dirty_limit));
        // moka overshoots, and what is freed between pieces in use can't be given back.
        let margin = self.allowed / 12;
        // Copies that are dropped soon after they came, for the index or for the crash log, leave
        // holes that nothing else fits into. So both have their part from the start: the log has
        // all that is dirty, and a quarter for what its slots leave unused.
        let others = (index + sled + journal).max(self.allowed / 4)
            + crash_log.max((dirty + dirty / 4).min(crash_log_size));
        Shares { dirty_limit: dirty, cache: self.allowed.saturating_sub(others + dirty + margin).max(LEAST) }
    }
}

/// `of`, times `share` by `whole`.
fn part(of: u64, share: u64, whole: u64) -> u64 {
    let product = u128::from(of) * u128::from(share) / u128::from(whole.max(1));
    u64::try_from(product).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_held_leaves_less_for_clean_copies_and_then_for_dirty_bytes() {
        let allowance = Allowance::new(256 * MIB);
        let shares = |mib| {
            let Shares { dirty_limit, cache } =
                allowance.shares(64 * MIB, Held { index: mib * MIB, ..Held::default() });
            (dirty_limit / MIB, cache / MIB)
        };
        assert_eq!(shares(0), (64, 106));
        assert_eq!(shares(64), (64, 106), "that much is always kept free for it");
        assert_eq!(shares(100), (64, 70));
        assert_eq!(shares(192), (48, 1));
        assert_eq!(shares(300), (1, 1));
        let with_log = |crash_log, dirty| {
            let held = Held { crash_log: crash_log * MIB, crash_log_size: 60 * MIB, ..Held::default() };
            let Shares { dirty_limit, cache } = allowance.shares(dirty * MIB, held);
            (dirty_limit / MIB, cache / MIB)
        };
        assert_eq!(with_log(0, 32), (32, 98), "what may be dirty is in memory twice");
        assert_eq!(with_log(30, 32), (32, 98));
        assert_eq!(with_log(60, 32), (32, 78));
        assert_eq!(with_log(0, 64), (64, 46), "the file is no larger");
    }

    #[test]
    fn it_falls_by_what_is_too_much_and_grows_back_in_steps() {
        let mut allowance = Allowance::new(160 * MIB);
        // Half of it is used: what is not used can't be given back.
        allowance.press(80 * MIB, 20 * MIB);
        assert_eq!(allowance.bytes(), 60 * MIB);
        assert_eq!(allowance.shares(40 * MIB, Held::default()).dirty_limit, 15 * MIB);
        allowance.press(300 * MIB, 300 * MIB);
        assert_eq!(allowance.bytes(), 8 * MIB);
        let mut steps = 1;
        while allowance.release() {
            steps += 1;
        }
        // A quarter more each time, then a sixteenth of the budget.
        assert_eq!((allowance.bytes(), steps), (160 * MIB, 20));
        assert!(!allowance.release());
    }

    #[test]
    fn a_limit_below_the_budget_bounds_it_from_the_start() {
        let allowance = Allowance::new(1024 * MIB);
        let bounded = allowance.within(128 * MIB);
        assert_eq!(bounded.bytes(), 128 * MIB);
        assert_eq!(bounded.shares(256 * MIB, Held::default()).dirty_limit, 32 * MIB);
        assert_eq!(allowance.within(u64::MAX), allowance);
        assert_eq!(allowance.within(0).bytes(), FLOOR);
    }

    #[test]
    fn a_bound_falls_at_once_and_rises_slowly() {
        let (mut bound, start) = (MemoryBound::default(), Instant::now());
        let mut at = |seconds, most| {
            let most = bound.follow(start + Duration::from_secs(seconds), most, 300 * MIB);
            if most == u64::MAX { most } else { most / MIB }
        };
        assert_eq!(at(0, Some(250 * MIB)), 250);
        assert_eq!(at(1, Some(50 * MIB)), 50);
        assert_eq!(
            [at(2, Some(400 * MIB)), at(12, Some(400 * MIB)), at(100, Some(400 * MIB))],
            [60, 160, 300]
        );
        assert_eq!(at(101, None), u64::MAX);
        assert_eq!(at(102, Some(9 * MIB)), 9);
    }

    #[test]
    fn another_budget_keeps_the_proportion() {
        let mut allowance = Allowance::new(100 * MIB);
        allowance.set_budget(200 * MIB);
        assert_eq!(allowance.bytes(), 200 * MIB);
        allowance.press(200 * MIB, 100 * MIB);
        allowance.set_budget(50 * MIB);
        assert_eq!(allowance.bytes(), 25 * MIB);
    }

    proptest! {
        #[test]
        fn pressing_never_raises_it_and_all_fits(
            budget in 8 * MIB..1 << 40, accounted in 0..1_u64 << 41, excess in 0..1_u64 << 41,
            dirty in 1..50_u64, index in 0..1_u64 << 38,
        ) {
            let mut allowance = Allowance::new(budget);
            allowance.press(accounted, excess);
            prop_assert!(allowance.bytes() <= budget && allowance.bytes() >= FLOOR);
            let (held, limit) = (Held { index, ..Held::default() }, budget / 100 * dirty);
            let shares = allowance.shares(limit, held);
            prop_assert!(shares.dirty_limit <= limit.max(1));
            let sum = index + shares.dirty_limit + shares.cache;
            prop_assert!(sum <= allowance.bytes().max(index) + 2 * LEAST, "{sum}");
        }
    }
}
