//! How much memory the spool may use now, and how it is divided. Pure.

use std::time::{Duration, Instant};

/// The minimum share of the cache, and of dirty bytes unless their limit is lower.
const MIN_SHARE: u64 = 1 << 20;

/// The minimum allowance: the smallest allowed budget.
const MIN_ALLOWANCE: u64 = 8 << 20;

/// The memory that the spool may use, in bytes: `memory_budget`, or less under memory pressure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    budget: u64,
    allowed: u64,
}

/// The memory available below a system limit, over time. It falls at once and rises slowly.
/// Otherwise the cache would follow every change in the use of other programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MemoryBound(Option<(u64, Instant)>);

/// The time in which the bound rises by the whole budget.
const RISE: Duration = Duration::from_secs(30);

impl MemoryBound {
    /// Applies a new value. `most`: bytes available now, `None` if there is no limit. Returns the
    /// bound in bytes.
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

/// Memory that cannot be dropped, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) index: u64,
    pub(crate) sled: u64,
    pub(crate) journal: u64,
    /// The part of the crash log's file that the process has used.
    pub(crate) crash_log: u64,
    /// The size of the crash log's file.
    pub(crate) crash_log_size: u64,
}

impl Held {
    pub(crate) fn all(self) -> u64 {
        self.index + self.sled + self.journal + self.crash_log
    }
}

/// What dirty bytes and clean copies may use, in bytes.
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

    /// Sets another budget. Memory pressure keeps its proportion of it.
    pub(crate) fn set_budget(&mut self, budget: u64) {
        self.allowed = part(budget, self.allowed, self.budget);
        self.budget = budget;
    }

    /// Reduces the allowance under pressure: `excess` of the `accounted` bytes must be freed.
    pub(crate) fn press(&mut self, accounted: u64, excess: u64) {
        let less = accounted.min(self.allowed).saturating_sub(excess);
        self.allowed = less.max(MIN_ALLOWANCE).min(self.allowed);
    }

    /// Raises the allowance by a step after pressure. True if it is still below the budget.
    pub(crate) fn release(&mut self) -> bool {
        let step = (self.allowed / 4).clamp(MIN_SHARE, (self.budget / 16).max(MIN_SHARE));
        self.allowed = (self.allowed + step).min(self.budget);
        self.allowed < self.budget
    }

    /// The allowance, reduced to `most` bytes, so that the spool stays clear of a system limit.
    pub(crate) fn within(self, most: u64) -> Self {
        Self { allowed: self.allowed.min(most.max(MIN_ALLOWANCE)), ..self }
    }

    /// The shares of dirty bytes and clean copies, given what is `held`. `dirty_limit` is the
    /// setting.
    pub(crate) fn shares(&self, dirty_limit: u64, held: Held) -> Shares {
        let Held { index, sled, journal, crash_log, crash_log_size } = held;
        let left = self.allowed.saturating_sub(held.all());
        // At most its part of the allowance: loads need room for clean copies of recent stores.
        let dirty =
            part(dirty_limit, self.allowed, self.budget).min(left / 4 * 3).max(MIN_SHARE.min(dirty_limit));
        // A margin: moka overshoots its capacity, and fragmented memory cannot be returned.
        let margin = self.allowed / 12;
        // Room for the index and the crash log is reserved from the start. If it were freed by
        // dropping young copies, the heap would be left with holes. The log needs room for all
        // dirty bytes, and a quarter more for the unused ends of its slots.
        let others = (index + sled + journal).max(self.allowed / 4)
            + crash_log.max((dirty + dirty / 4).min(crash_log_size));
        let cache = self.allowed.saturating_sub(others + dirty + margin).max(MIN_SHARE);
        Shares { dirty_limit: dirty, cache }
    }
}

/// `of` × `share` / `whole`.
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
    fn held_memory_reduces_the_cache_first_and_then_the_dirty_limit() {
        let allowance = Allowance::new(256 * MIB);
        let shares = |mib| {
            let Shares { dirty_limit, cache } =
                allowance.shares(64 * MIB, Held { index: mib * MIB, ..Held::default() });
            (dirty_limit / MIB, cache / MIB)
        };
        assert_eq!(shares(0), (64, 106));
        assert_eq!(shares(64), (64, 106), "a quarter is always reserved for it");
        assert_eq!(shares(100), (64, 70));
        assert_eq!(shares(192), (48, 1));
        assert_eq!(shares(300), (1, 1));
        let with_log = |crash_log, dirty| {
            let held = Held { crash_log: crash_log * MIB, crash_log_size: 60 * MIB, ..Held::default() };
            let Shares { dirty_limit, cache } = allowance.shares(dirty * MIB, held);
            (dirty_limit / MIB, cache / MIB)
        };
        assert_eq!(with_log(0, 32), (32, 98), "dirty bytes are in memory twice");
        assert_eq!(with_log(30, 32), (32, 98));
        assert_eq!(with_log(60, 32), (32, 78));
        assert_eq!(with_log(0, 64), (64, 46), "at most the size of the file");
    }

    #[test]
    fn pressure_reduces_it_by_the_excess_and_it_grows_back_in_steps() {
        let mut allowance = Allowance::new(160 * MIB);
        // Half of it is used. Unused memory cannot be freed.
        allowance.press(80 * MIB, 20 * MIB);
        assert_eq!(allowance.bytes(), 60 * MIB);
        assert_eq!(allowance.shares(40 * MIB, Held::default()).dirty_limit, 15 * MIB);
        allowance.press(300 * MIB, 300 * MIB);
        assert_eq!(allowance.bytes(), 8 * MIB);
        let mut steps = 1;
        while allowance.release() {
            steps += 1;
        }
        // Each step is a quarter of the allowance, at most a sixteenth of the budget.
        assert_eq!((allowance.bytes(), steps), (160 * MIB, 20));
        assert!(!allowance.release());
    }

    #[test]
    fn a_system_limit_below_the_budget_bounds_it() {
        let allowance = Allowance::new(1024 * MIB);
        let bounded = allowance.within(128 * MIB);
        assert_eq!(bounded.bytes(), 128 * MIB);
        assert_eq!(bounded.shares(256 * MIB, Held::default()).dirty_limit, 32 * MIB);
        assert_eq!(allowance.within(u64::MAX), allowance);
        assert_eq!(allowance.within(0).bytes(), MIN_ALLOWANCE);
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
            prop_assert!(allowance.bytes() <= budget && allowance.bytes() >= MIN_ALLOWANCE);
            let (held, limit) = (Held { index, ..Held::default() }, budget / 100 * dirty);
            let shares = allowance.shares(limit, held);
            prop_assert!(shares.dirty_limit <= limit.max(1));
            let sum = index + shares.dirty_limit + shares.cache;
            prop_assert!(sum <= allowance.bytes().max(index) + 2 * MIN_SHARE, "{sum}");
        }
    }
}
