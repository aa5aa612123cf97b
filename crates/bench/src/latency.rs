//! Latencies: their distribution, and their course over time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::figures::rounded;
use crate::report::Second;

/// Significant digits of a latency. Two digits keep a histogram near 10 KiB, so that the histograms
/// of a thousand callers do not dominate the memory of the process.
const LATENCY_DIGITS: u8 = 2;

/// The most points of a [`Timeline`]. Beyond it, points are merged in pairs.
const MAX_POINTS: usize = 300;

/// A distribution of latencies in nanoseconds, with a relative error of 1 %.
#[derive(Debug, Clone)]
pub(crate) struct Latency {
    histogram: Histogram<u64>,
    /// Exact, unlike the maximum of the histogram.
    max_ns: u64,
}

impl Latency {
    pub(crate) fn new() -> Result<Self> {
        let histogram = Histogram::new(LATENCY_DIGITS).context("making a histogram")?;
        Ok(Self { histogram, max_ns: 0 })
    }

    pub(crate) fn record(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if self.histogram.record(ns).is_err() {
            // The histogram could not grow: record its largest value.
            self.histogram.saturating_record(ns);
        }
        self.max_ns = self.max_ns.max(ns);
    }

    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.histogram.add(&other.histogram).context("merging histograms")?;
        self.max_ns = self.max_ns.max(other.max_ns);
        Ok(())
    }

    fn clear(&mut self) {
        self.histogram.reset();
        self.max_ns = 0;
    }

    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Returns the latency in microseconds that the share `quantile` (0 to 1) of all calls does not
    /// exceed, or 0 without calls.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        to_us(self.histogram.value_at_quantile(quantile).min(self.max_ns))
    }

    pub(crate) fn mean_us(&self) -> f64 {
        self.histogram.mean() / 1_000.0
    }

    pub(crate) fn max_us(&self) -> f64 {
        to_us(self.max_ns)
    }

    /// Returns `[quantile, µs]` points: steps of 4 % up to 96 %, then ever smaller steps up to
    /// 99.999 %.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let even = (0..25).map(|step| f64::from(step) / 25.0);
        let tail = [0.97, 0.98, 0.985, 0.99, 0.992, 0.995, 0.997, 0.998, 0.999];
        let far = [0.9992, 0.9995, 0.9998, 0.9999, 0.99995, 0.99999];
        even.chain(tail).chain(far).map(|quantile| (quantile, rounded(self.quantile_us(quantile)))).collect()
    }
}

fn to_us(ns: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 104 days")]
    let ns = ns as f64;
    ns / 1_000.0
}

/// Returns the p50, in microseconds, of an empty measurement: what the clock adds to each latency.
pub(crate) fn clock_overhead_us() -> Result<f64> {
    let mut latency = Latency::new()?;
    for _ in 0..10_000 {
        let begun = Instant::now();
        latency.record(begun.elapsed());
    }
    Ok(latency.quantile_us(0.5))
}

/// The latencies of all callers, by the second in which they ended.
#[derive(Debug)]
pub(crate) struct Timeline {
    origin: Instant,
    points: Mutex<Points>,
}

#[derive(Debug)]
struct Points {
    /// The length of a point, in seconds.
    step: u64,
    points: Vec<Latency>,
}

impl Timeline {
    /// Counts seconds from `origin`.
    pub(crate) fn new(origin: Instant) -> Arc<Self> {
        Arc::new(Self { origin, points: Mutex::new(Points { step: 1, points: Vec::new() }) })
    }

    /// Returns the distribution of all latencies together.
    pub(crate) fn total(&self) -> Result<Latency> {
        let mut total = Latency::new()?;
        for point in &self.points.lock().unwrap_or_else(PoisonError::into_inner).points {
            total.add(point)?;
        }
        Ok(total)
    }

    pub(crate) fn series(&self) -> Vec<Second> {
        let points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        let point = |(nth, latency): (usize, &Latency)| Second {
            second: nth as u64 * points.step,
            p50_us: rounded(latency.quantile_us(0.5)),
            p99_us: rounded(latency.quantile_us(0.99)),
            p999_us: rounded(latency.quantile_us(0.999)),
            ops: latency.count(),
        };
        points.points.iter().enumerate().map(point).collect()
    }

    fn add(&self, second: u64, latency: &Latency) -> Result<()> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).add(second, latency)
    }
}

impl Points {
    fn add(&mut self, second: u64, latency: &Latency) -> Result<()> {
        let mut place = self.place(second);
        while place >= MAX_POINTS {
            self.halve()?;
            place = self.place(second);
        }
        while self.points.len() <= place {
            self.points.push(Latency::new()?);
        }
        self.points.get_mut(place).map_or(Ok(()), |point| point.add(latency))
    }

    fn place(&self, second: u64) -> usize {
        usize::try_from(second / self.step).unwrap_or(usize::MAX)
    }

    /// Merges points in pairs.
    fn halve(&mut self) -> Result<()> {
        let old = std::mem::take(&mut self.points);
        let mut old = old.into_iter();
        while let Some(mut point) = old.next() {
            if let Some(second) = old.next() {
                point.add(&second)?;
            }
            self.points.push(point);
        }
        self.step *= 2;
        Ok(())
    }
}

/// The latencies of one caller. They are added to the timeline once a second, to keep contention
/// low.
#[derive(Debug)]
pub(crate) struct Recorder {
    timeline: Arc<Timeline>,
    current: Latency,
    second: u64,
    second_ends: Instant,
}

impl Recorder {
    pub(crate) fn new(timeline: Arc<Timeline>) -> Result<Self> {
        let second_ends = timeline.origin + Duration::from_secs(1);
        Ok(Self { timeline, current: Latency::new()?, second: 0, second_ends })
    }

    /// Records an operation that ended at `now`.
    pub(crate) fn record(&mut self, now: Instant, took: Duration) -> Result<()> {
        if now >= self.second_ends {
            self.hand_over()?;
            self.second = now.duration_since(self.timeline.origin).as_secs();
            self.second_ends = self.timeline.origin + Duration::from_secs(self.second + 1);
        }
        self.current.record(took);
        Ok(())
    }

    /// Adds the latencies since the last call to the timeline.
    pub(crate) fn hand_over(&mut self) -> Result<()> {
        if self.current.count() > 0 {
            self.timeline.add(self.second, &self.current)?;
            self.current.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_microseconds() {
        let mut latency = Latency::new().unwrap();
        assert_eq!((latency.quantile_us(0.5), latency.max_us()), (0.0, 0.0));
        for us in 1..=1_000 {
            latency.record(Duration::from_micros(us));
        }
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.02;
        assert!(near(latency.quantile_us(0.5), 500.0), "{}", latency.quantile_us(0.5));
        assert!(near(latency.quantile_us(0.99), 990.0), "{}", latency.quantile_us(0.99));
        assert!(near(latency.mean_us(), 500.5), "{}", latency.mean_us());
        assert!((latency.max_us() - 1_000.0).abs() < f64::EPSILON);
        assert!(latency.quantile_us(1.0) <= latency.max_us());
    }

    #[test]
    fn merging_equals_recording_in_one() {
        let (mut one, mut other) = (Latency::new().unwrap(), Latency::new().unwrap());
        one.record(Duration::from_micros(1));
        other.record(Duration::from_secs(100));
        one.add(&other).unwrap();
        assert_eq!(one.count(), 2);
        assert!((one.max_us() - 1e8).abs() < f64::EPSILON);
    }

    #[test]
    fn the_curve_rises_from_the_least_to_the_tail() {
        let mut latency = Latency::new().unwrap();
        (1..=100_000).for_each(|us| latency.record(Duration::from_micros(us)));
        let curve = latency.curve();
        assert_eq!(curve.len(), 40);
        assert!(curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{curve:?}");
        assert_eq!((curve[0].0, curve[39].0), (0.0, 0.99999));
        assert!((curve[0].1 - 1.0).abs() < 0.02 && (curve[39].1 / 99_999.0 - 1.0).abs() < 0.02, "{curve:?}");
    }

    #[test]
    fn each_latency_is_in_its_second_and_all_are_in_the_total() {
        let origin = Instant::now();
        let timeline = Timeline::new(origin);
        let mut recorder = Recorder::new(Arc::clone(&timeline)).unwrap();
        for (at_ms, took_us) in [(0, 10), (999, 10), (1_000, 20), (3_500, 30)] {
            let at = origin + Duration::from_millis(at_ms);
            recorder.record(at, Duration::from_micros(took_us)).unwrap();
        }
        recorder.hand_over().unwrap();
        recorder.hand_over().unwrap();
        let ops: Vec<(u64, u64)> = timeline.series().iter().map(|at| (at.second, at.ops)).collect();
        assert_eq!(ops, [(0, 2), (1, 1), (2, 0), (3, 1)]);
        assert_eq!(timeline.total().unwrap().count(), 4);
        assert!((timeline.series()[3].p999_us / 30.0 - 1.0).abs() < 0.02);
    }

    #[test]
    fn a_long_run_has_fewer_longer_points() {
        let timeline = Timeline::new(Instant::now());
        let mut one = Latency::new().unwrap();
        one.record(Duration::from_micros(1));
        for second in 0..1_000 {
            timeline.add(second, &one).unwrap();
        }
        let series = timeline.series();
        assert_eq!((series.len(), series[1].second, series[1].ops), (250, 4, 4));
        assert_eq!(timeline.total().unwrap().count(), 1_000);
    }
}
