//! Durations in microseconds, counted in buckets without a lock.
//!
//! The buckets are log-linear: each power of two is divided into eight buckets of equal width. A
//! quantile is at most 12.5 % above the true value, from 1 µs to 19 hours. One histogram takes
//! 2.3 KB.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Buckets per power of two, as a power of two.
const SUB_BITS: u32 = 3;
const SUB: usize = 1 << SUB_BITS;
/// Longer times are counted as this time: 2^36 µs, 19 hours.
const MAX_US: u64 = (1 << 36) - 1;
const BUCKETS: usize = bucket(MAX_US) + 1;

/// The counters of one kind of duration.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
    max_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_us: AtomicU64::new(0),
            max_us: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub(crate) fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(MAX_US);
        if let Some(bucket) = self.buckets.get(bucket(us)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        // Read first: the maximum rarely changes, and a cache line that is only read stays shared.
        if us > self.max_us.load(Ordering::Relaxed) {
            self.max_us.fetch_max(us, Ordering::Relaxed);
        }
    }

    /// Number of recorded times, and their sum in microseconds.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let count = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum();
        (count, self.sum_us.load(Ordering::Relaxed))
    }

    pub(crate) fn get(&self) -> Latency {
        let buckets: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let mut latency = Latency {
            count: buckets.iter().sum(),
            sum_us: self.sum_us.load(Ordering::Relaxed),
            max_us: self.max_us.load(Ordering::Relaxed),
            buckets,
            ..Latency::default()
        };
        latency.find_quantiles();
        latency
    }
}

/// Count and quantiles of a duration, in microseconds.
///
/// A quantile is the upper end of its bucket: at most 12.5 % too high, and never above the maximum.
/// All values are 0 if nothing was recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Latency {
    /// Number of recorded times.
    pub count: u64,
    /// Sum of all times.
    pub sum_us: u64,
    /// The median.
    pub p50_us: u64,
    /// 99 % of the times were not longer.
    pub p99_us: u64,
    /// 99.9 % of the times were not longer.
    pub p999_us: u64,
    /// The longest time.
    pub max_us: u64,
    #[serde(skip)]
    buckets: Vec<u64>,
}

impl Latency {
    /// The quantile `q` (0 to 1): a fraction `q` of the times was not longer. 0 if nothing was
    /// recorded.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank: rounded, clamped, and exact enough for any realistic count"
    )]
    pub fn quantile_us(&self, q: f64) -> u64 {
        let rank = ((self.count as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_us(index).min(self.max_us);
            }
        }
        0
    }

    fn find_quantiles(&mut self) {
        self.p50_us = self.quantile_us(0.5);
        self.p99_us = self.quantile_us(0.99);
        self.p999_us = self.quantile_us(0.999);
    }

    /// Number of times below 2^`power` microseconds. This count is exact.
    #[must_use]
    pub fn below_power_us(&self, power: u32) -> u64 {
        let end = 1_u64.checked_shl(power).map_or(BUCKETS, bucket);
        self.buckets.iter().take(end).sum()
    }
}

impl AddAssign for Latency {
    fn add_assign(&mut self, more: Self) {
        *self += &more;
    }
}

impl AddAssign<&Self> for Latency {
    fn add_assign(&mut self, more: &Self) {
        self.count += more.count;
        self.sum_us += more.sum_us;
        self.max_us = self.max_us.max(more.max_us);
        self.buckets.resize(BUCKETS, 0);
        self.buckets.iter_mut().zip(&more.buckets).for_each(|(sum, bucket)| *sum += bucket);
        self.find_quantiles();
    }
}

/// The bucket of a time: one for each time below 8 µs, then eight for each power of two.
const fn bucket(us: u64) -> usize {
    if us < SUB as u64 {
        return to_index(us);
    }
    let shift = us.ilog2() - SUB_BITS;
    (shift as usize) * SUB + to_index(us >> shift)
}

/// The longest time in a bucket.
const fn upper_us(index: usize) -> u64 {
    if index < SUB {
        return index as u64;
    }
    let shift = index / SUB - 1;
    let lower = ((index % SUB + SUB) as u64) << shift;
    lower + (1 << shift) - 1
}

#[expect(clippy::cast_possible_truncation, reason = "called with at most four significant bits")]
const fn to_index(us: u64) -> usize {
    us as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_have_no_gap_and_no_overlap() {
        let mut next = 0;
        for index in 0..BUCKETS {
            assert_eq!(bucket(next), index, "the first time of bucket {index}");
            assert_eq!(bucket(upper_us(index)), index, "the last time of bucket {index}");
            next = upper_us(index) + 1;
        }
        assert_eq!(next, MAX_US + 1);
    }

    #[test]
    fn an_empty_histogram_has_zero_quantiles() {
        let latency = Histogram::default().get();
        assert_eq!((latency.count, latency.p50_us, latency.p999_us, latency.max_us), (0, 0, 0, 0));
    }

    #[test]
    fn one_value_is_every_quantile() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(1_001));
        let latency = histogram.get();
        assert_eq!((latency.count, latency.sum_us, latency.max_us), (1, 1_001, 1_001));
        assert_eq!((latency.p50_us, latency.p99_us, latency.quantile_us(0.0)), (1_001, 1_001, 1_001));
    }

    #[test]
    fn times_above_the_maximum_count_as_the_maximum() {
        let histogram = Histogram::default();
        histogram.record(Duration::MAX);
        histogram.record(Duration::ZERO);
        let latency = histogram.get();
        assert_eq!((latency.count, latency.max_us), (2, MAX_US));
        assert_eq!(latency.below_power_us(0), 1);
        assert_eq!((latency.below_power_us(36), latency.below_power_us(99)), (2, 2));
    }

    #[test]
    fn concurrent_records_are_all_counted() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|us| histogram.record(Duration::from_micros(us))));
            }
        });
        let latency = histogram.get();
        assert_eq!((latency.count, latency.sum_us), (40_000, 4 * 9_999 * 10_000 / 2));
    }

    proptest! {
        #[test]
        fn a_quantile_is_never_too_low_and_at_most_an_eighth_too_high(
            mut times in prop::collection::vec(0..1_u64 << 30, 1..200),
            q in 0.0..=1.0_f64,
        ) {
            let histogram = Histogram::default();
            for &us in &times {
                histogram.record(Duration::from_micros(us));
            }
            times.sort_unstable();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let rank = ((times.len() as f64 * q).ceil() as usize).max(1);
            let exact = times[rank - 1];
            let estimate = histogram.get().quantile_us(q);
            prop_assert!(exact <= estimate && estimate <= exact + exact / 8, "{estimate} for {exact}");
        }
    }
}
