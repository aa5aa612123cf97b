//! How stores are slowed as dirty bytes near their limit. Pure: times and rates are arguments.
//!
//! The method is that of ZFS's write throttle and Linux's `balance_dirty_pages`. Below a threshold
//! stores are not slowed. Above it they are admitted at `drain rate / g`, where g grows from 0
//! without a step. At g = 1 the inflow equals the drain rate, so dirty bytes settle there for any
//! number of callers: at 87.5 % of the limit, which leaves an eighth of it for a disk that pauses.

use std::time::Duration;

/// The drain rate before the first measurement, in bytes per second.
const ASSUMED_RATE: u64 = 64 << 20;

/// The maximum of g. It is so high that the last room outlasts a pause of the disk. A store without
/// room waits until there is some.
const MAX_G: f64 = 1_000.0;

/// Timers have a resolution of a millisecond: a store is admitted at once instead of a shorter
/// wait. In nanoseconds.
const TIMER: u64 = 1_000_000;

/// The maximum time that stores may catch up after a late timer, in nanoseconds.
const CREDIT: u64 = 5_000_000;

/// The maximum delay that one message adds for the next ones, in nanoseconds: a huge message must
/// not stall small ones.
const LONGEST_SLOT: u64 = 50_000_000;

/// The stores that are slowed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Stores that are acknowledged from memory. They are slowed above 3/4 of the limit.
    Memory,
    /// Stores that wait for the disk. They are slowed above 9/10 of the limit: only if they
    /// alone exceed the disk's rate.
    Disk,
}

impl Lane {
    pub(crate) const ALL: [Self; 2] = [Self::Memory, Self::Disk];

    /// Stores are not slowed up to this number of dirty bytes.
    pub(crate) fn free_below(self, limit: u64) -> u64 {
        match self {
            Self::Memory => limit - limit / 4,
            Self::Disk => limit - limit / 10,
        }
    }

    /// The factor g: a store waits g times the drain time of its bytes.
    ///
    /// g = 2 x² / (1 − x), where x is 0 at the threshold and 1 at the limit. So g is 0 at the
    /// threshold, 1 midway, and at most 1000. If the disk stops, the remaining room shrinks by the
    /// same share again and again, so the inflow fades out.
    pub(crate) fn slowdown(self, dirty: u64, limit: u64) -> f64 {
        let free = self.free_below(limit);
        if dirty <= free {
            return 0.0;
        }
        let x = (dirty - free) as f64 / (limit - free).max(1) as f64;
        if x >= 1.0 { MAX_G } else { (2.0 * x * x / (1.0 - x)).min(MAX_G) }
    }
}

/// When the next store of a lane is admitted, in nanoseconds of the budget's clock. Each store
/// moves it on, so the number of callers makes no difference.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    next: u64,
}

impl Timeline {
    /// The earliest time at which the next store is admitted.
    pub(crate) fn due_at(&self) -> u64 {
        self.next.saturating_sub(TIMER)
    }

    /// Records an admission at `now`. The next store is due `cost` nanoseconds later.
    pub(crate) fn let_in(&mut self, now: u64, cost: u64) {
        self.next = self.next.max(now.saturating_sub(CREDIT)) + cost.min(LONGEST_SLOT);
    }
}

/// The time in nanoseconds in which `bytes` drain at `bytes_per_second`. 0: not measured yet.
pub(crate) fn drain_time(bytes: u64, bytes_per_second: u64) -> u64 {
    let rate = if bytes_per_second == 0 { ASSUMED_RATE } else { bytes_per_second };
    u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX)
}

/// The drain time multiplied by `slowdown`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
pub(crate) fn slot(bytes: u64, bytes_per_second: u64, slowdown: f64) -> u64 {
    (drain_time(bytes, bytes_per_second) as f64 * slowdown) as u64
}

/// True if a store cannot get room within `left`: `ahead` bytes must drain first, at the measured
/// `bytes_per_second`. Returns false if the rate is not measured yet (0).
pub(crate) fn cannot_meet(ahead: u64, bytes_per_second: u64, left: Duration) -> bool {
    // Allow twice the time: a recent rate is only an estimate for the next seconds.
    bytes_per_second > 0 && ahead as f64 / bytes_per_second as f64 > 2.0 * left.as_secs_f64()
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares of small numbers")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 64 << 20;
    const RATE: u64 = 100_000_000;

    #[test]
    fn g_is_zero_at_the_threshold_one_midway_and_maximal_at_the_limit() {
        for (lane, free, midway) in [(Lane::Memory, 750, 875), (Lane::Disk, 900, 950)] {
            for dirty in [0, free - 1, free] {
                assert_eq!(lane.slowdown(dirty, 1_000), 0.0);
            }
            assert!((lane.slowdown(midway, 1_000) - 1.0).abs() < 1e-9, "{}", lane.slowdown(midway, 1_000));
            for dirty in [1_000, 1_001, u64::MAX] {
                assert_eq!(lane.slowdown(dirty, 1_000), MAX_G);
            }
        }
        assert_eq!(Lane::Memory.slowdown(0, 0), 0.0);
        assert_eq!(Lane::Memory.slowdown(5, 0), MAX_G);
    }

    #[test]
    fn a_deadline_is_refused_only_if_the_measured_rate_is_far_too_low() {
        let second = Duration::from_secs(1);
        assert!(!cannot_meet(1 << 30, 0, second), "nothing measured");
        assert!(!cannot_meet(1_900, 1_000, second));
        assert!(cannot_meet(2_100, 1_000, second));
        assert!(cannot_meet(1, 1_000, Duration::ZERO));
        assert!(!cannot_meet(0, 1_000, Duration::ZERO));
    }

    #[test]
    fn a_huge_message_delays_the_next_one_by_at_most_one_slot() {
        let mut timeline = Timeline::default();
        let now = 1_000_000_000;
        timeline.let_in(now, slot(1 << 30, RATE, MAX_G));
        assert!(timeline.due_at() <= now + LONGEST_SLOT);
        assert!(timeline.due_at() > now + LONGEST_SLOT / 2);
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut timeline = Timeline::default();
        timeline.let_in(3_600_000_000_000, 10_000_000);
        assert!(timeline.due_at() > 3_600_000_000_000);
    }

    /// Callers push without pause, and the disk completes `RATE` in batches. The inflow must equal
    /// the drain rate, and dirty bytes must mostly stay below the health gate's threshold.
    #[test]
    fn under_overload_the_inflow_is_the_drain_rate_and_the_equilibrium_is_midway() {
        const STEP: u64 = 100_000;
        const BATCH: u64 = 4 << 20;
        for (lane, guessed) in
            [(Lane::Memory, RATE), (Lane::Memory, RATE / 2), (Lane::Memory, RATE * 4), (Lane::Disk, RATE)]
        {
            let (mut timeline, mut dirty, mut drained, mut stored) = (Timeline::default(), 0, 0_u64, 0_u64);
            let (mut shares, mut late) = (Vec::new(), 0_u64);
            for now in (0..20_000_000_000).step_by(STEP as usize) {
                let share = dirty as f64 / LIMIT as f64;
                if now > 2_000_000_000 {
                    shares.push(share);
                    late += u64::from(share >= 0.98);
                }
                drained += RATE / (1_000_000_000 / STEP);
                if drained >= BATCH && dirty >= BATCH {
                    (drained, dirty) = (drained - BATCH, dirty - BATCH);
                }
                while timeline.due_at() <= now && dirty + 16_384 <= LIMIT {
                    timeline.let_in(now, slot(16_384, guessed, lane.slowdown(dirty, LIMIT)));
                    dirty += 16_384;
                    stored += 16_384;
                }
            }
            let inflow = stored as f64 / 20.0 / RATE as f64;
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            assert!((0.95..1.05).contains(&inflow), "{lane:?} {guessed}: inflow {inflow}");
            assert!((0.75..0.97).contains(&mean), "{lane:?} {guessed}: mean {mean}");
            assert!(
                late * 5 < shares.len() as u64,
                "{lane:?} {guessed}: {late} of {} near the limit",
                shares.len()
            );
        }
    }

    /// The disk stops for a third of a second. The inflow must fade out, with no gap of 100 ms
    /// between stores.
    #[test]
    fn a_pause_of_the_disk_is_bridged() {
        let (mut timeline, mut dirty, mut last) = (Timeline::default(), LIMIT / 8 * 7, 0);
        for now in (0..350_000_000_u64).step_by(1_000_000) {
            while timeline.due_at() <= now && dirty + 16_384 <= LIMIT {
                timeline.let_in(now, slot(16_384, 4 * RATE, Lane::Memory.slowdown(dirty, LIMIT)));
                dirty += 16_384;
                last = now;
            }
            assert!(now - last < 100_000_000, "nothing since {last} at {now}, {dirty} dirty");
        }
        assert!(dirty > LIMIT / 100 * 98);
    }

    proptest! {
        #[test]
        fn g_is_monotonic_and_has_no_step(limit in 1_u64 << 20..1 << 40, share in 0.0_f64..1.2) {
            for lane in Lane::ALL {
                let dirty = (limit as f64 * share) as u64;
                let here = lane.slowdown(dirty, limit);
                let there = lane.slowdown(dirty + limit / 100_000, limit);
                prop_assert!((0.0..=MAX_G).contains(&here));
                prop_assert!(here <= there, "{here} {there}");
                // Below g = 1 the wait must have no step; above it the inflow, 1/g.
                let step = if here < 1.0 { there - here } else { 1.0 / here - 1.0 / there };
                prop_assert!(step < 0.001, "{lane:?} at {share}: {here} then {there}");
            }
        }

        #[test]
        fn the_next_store_is_never_further_away_than_a_slot(costs in prop::collection::vec((0_u64..1 << 40, 0_u64..1 << 34), 1..50)) {
            let (mut timeline, mut now) = (Timeline::default(), 0);
            for (cost, pause) in costs {
                now = (now + pause).max(timeline.due_at());
                timeline.let_in(now, cost);
                prop_assert!(timeline.due_at() <= now + LONGEST_SLOT);
            }
        }

        #[test]
        fn slots_never_overflow(bytes: u64, rate: u64, share in 0.0_f64..2.0) {
            let slowdown = Lane::Memory.slowdown((1e9 * share) as u64, 1_000_000_000);
            let mut timeline = Timeline::default();
            timeline.let_in(u64::MAX / 2, slot(bytes, rate, slowdown));
        }
    }
}
