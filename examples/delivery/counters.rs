//! Counters of this process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Number of problems whose text is kept. Further problems are only counted.
const PROBLEMS_KEPT: usize = 10;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters of a run. They restart at zero with the process.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) accepted: Counter,
    pub(crate) accepted_bytes: Counter,
    /// Stores that the spool rejected temporarily, as an SMTP 4xx reply. The client sent them
    /// again.
    pub(crate) refused: Counter,
    pub(crate) delivered: Counter,
    pub(crate) delivered_bytes: Counter,
    pub(crate) retried: Counter,
    pub(crate) bounced: Counter,
    /// Deliveries that replaced an earlier copy of the same message.
    pub(crate) duplicates: Counter,
    /// Time from the start of the store until the acknowledgement.
    pub(crate) accept_time: Latency,
    /// Time from the acknowledgement until the message is in the sink.
    pub(crate) delivery_time: Latency,
    pub(crate) problems: Problems,
}

impl Counters {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            accepted: Counter::default(),
            accepted_bytes: Counter::default(),
            refused: Counter::default(),
            delivered: Counter::default(),
            delivered_bytes: Counter::default(),
            retried: Counter::default(),
            bounced: Counter::default(),
            duplicates: Counter::default(),
            accept_time: Latency::new()?,
            delivery_time: Latency::new()?,
            problems: Problems::default(),
        })
    }
}

/// A histogram of durations in microseconds. Its memory does not grow with the run.
#[derive(Debug)]
pub(crate) struct Latency(Mutex<Histogram<u64>>);

impl Latency {
    const LONGEST_US: u64 = 3_600_000_000;

    fn new() -> anyhow::Result<Self> {
        Ok(Self(Mutex::new(Histogram::new_with_bounds(1, Self::LONGEST_US, 3)?)))
    }

    pub(crate) fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros);
    }

    /// A percentile in microseconds; `None` if nothing is recorded.
    pub(crate) fn percentile(&self, percent: f64) -> Option<u64> {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!histogram.is_empty()).then(|| histogram.value_at_quantile(percent / 100.0))
    }
}

/// Events that must not happen. A run with problems ends with exit code 1.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    count: Counter,
    first: Mutex<Vec<String>>,
}

impl Problems {
    pub(crate) fn add(&self, text: String) {
        self.count.add(1);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.len() < PROBLEMS_KEPT {
            first.push(text);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }

    /// The texts of the first problems.
    pub(crate) fn first(&self) -> Vec<String> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_recorded_durations() {
        let latency = Latency::new().unwrap();
        assert_eq!(latency.percentile(50.0), None);
        for millis in 1..=100 {
            latency.record(Duration::from_millis(millis));
        }
        latency.record(Duration::MAX);
        assert!(latency.percentile(50.0).unwrap().abs_diff(51_000) < 100);
        assert!(latency.percentile(100.0).unwrap() >= Latency::LONGEST_US);
    }

    #[test]
    fn problems_are_counted_beyond_the_kept_texts() {
        let problems = Problems::default();
        (0..25).for_each(|number| problems.add(number.to_string()));
        assert_eq!((problems.count(), problems.first().len()), (25, PROBLEMS_KEPT));
    }
}
