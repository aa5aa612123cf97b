//! What happened in this process so far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Problems beyond this many are counted, not kept.
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

/// All counters of a run. They start at zero again after a restart.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) accepted: Counter,
    pub(crate) accepted_bytes: Counter,
    /// Stores that the spool refused for a while, as an SMTP 4xx reply. The client came again.
    pub(crate) refused: Counter,
    pub(crate) delivered: Counter,
    pub(crate) delivered_bytes: Counter,
    pub(crate) retried: Counter,
    pub(crate) bounced: Counter,
    /// Deliveries that replaced an earlier copy of the same message.
    pub(crate) duplicates: Counter,
    /// From the first byte to the spool until the acknowledgement.
    pub(crate) accept_time: Latency,
    /// From the acknowledgement until the message is in the sink.
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

/// How long something took, as a histogram of microseconds: the memory does not grow with the run.
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

    /// In microseconds; `None` before the first.
    pub(crate) fn percentile(&self, percent: f64) -> Option<u64> {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!histogram.is_empty()).then(|| histogram.value_at_quantile(percent / 100.0))
    }
}

/// What should never happen. A run with problems ends with exit code 1.
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

    /// The first of them.
    pub(crate) fn first(&self) -> Vec<String> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_what_was_recorded() {
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
    fn problems_are_counted_beyond_those_kept() {
        let problems = Problems::default();
        (0..25).for_each(|number| problems.add(number.to_string()));
        assert_eq!((problems.count(), problems.first().len()), (25, PROBLEMS_KEPT));
    }
}
