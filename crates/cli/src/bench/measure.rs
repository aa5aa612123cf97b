//! Latencies, and what the kernel says of this process.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

/// Digits kept of a latency: two keep a histogram near 10 KiB, so that a thousand callers don't show in the memory.
const LATENCY_DIGITS: u8 = 2;

/// Latencies in nanoseconds, to 1 %.
#[derive(Debug, Clone)]
pub(super) struct Latency {
    histogram: Histogram<u64>,
    /// Exact, unlike the histogram's.
    max_ns: u64,
}

impl Latency {
    pub(super) fn new() -> Result<Self> {
        let histogram = Histogram::new(LATENCY_DIGITS).context("making a histogram")?;
        Ok(Self { histogram, max_ns: 0 })
    }

    pub(super) fn record(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if self.histogram.record(ns).is_err() {
            // It could not grow: what it holds already is its limit.
            self.histogram.saturating_record(ns);
        }
        self.max_ns = self.max_ns.max(ns);
    }

    pub(super) fn add(&mut self, other: &Self) -> Result<()> {
        self.histogram.add(&other.histogram).context("merging histograms")?;
        self.max_ns = self.max_ns.max(other.max_ns);
        Ok(())
    }

    pub(super) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Microseconds, below which the share `quantile` (0 to 1) of all calls is. 0 where there were none.
    pub(super) fn quantile_us(&self, quantile: f64) -> f64 {
        to_us(self.histogram.value_at_quantile(quantile).min(self.max_ns))
    }

    pub(super) fn max_us(&self) -> f64 {
        to_us(self.max_ns)
    }
}

fn to_us(ns: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 104 days")]
    let ns = ns as f64;
    ns / 1_000.0
}

/// The p50, in microseconds, of measuring nothing: what the clock itself adds to each latency.
pub(super) fn clock_overhead_us() -> Result<f64> {
    let mut latency = Latency::new()?;
    for _ in 0..10_000 {
        let begun = Instant::now();
        latency.record(begun.elapsed());
    }
    Ok(latency.quantile_us(0.5))
}

/// Bytes that this process caused to be written to block devices since it started, from `/proc/self/io`.
///
/// The kernel counts a page when it becomes dirty in the page cache, not when it reaches the device: a page that is
/// changed again before it is written out counts once, and what is truncated or unlinked before is taken off again
/// (`cancelled_write_bytes`). tmpfs has no device and counts nothing. Where the file system keeps large folios in the
/// cache, a small change in a clean folio counts as the whole folio, though only the changed blocks are written: on
/// Linux 6.18 and ext4, 1 000 synced writes of 4 096 bytes into a file that had been written in steps of 1 MiB counted
/// as 1 048 576 000 bytes, where the device saw 4 096 000.
pub(super) fn disk_write_bytes() -> Result<u64> {
    let io = read_proc("/proc/self/io")?;
    let field = |name| field(&io, name).with_context(|| format!("no {name} in /proc/self/io"));
    Ok(field("write_bytes")?.saturating_sub(field("cancelled_write_bytes")?))
}

/// Lets the peak start again from what is resident now. Where the kernel refuses, the peak is the whole process's.
pub(super) fn reset_peak_rss() {
    drop(std::fs::write("/proc/self/clear_refs", "5"));
}

/// The most memory that was resident at a time, in bytes: `VmHWM` of `/proc/self/status`.
pub(super) fn peak_rss_bytes() -> Result<u64> {
    let status = read_proc("/proc/self/status")?;
    let kib = field(&status, "VmHWM").context("no VmHWM in /proc/self/status")?;
    Ok(kib * 1_024)
}

fn read_proc(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {path}: the bench needs Linux's /proc"))
}

/// The number after `name:` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.split_whitespace().next()?.parse().ok())
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
        assert!((latency.max_us() - 1_000.0).abs() < f64::EPSILON);
        assert!(latency.quantile_us(1.0) <= latency.max_us());
    }

    #[test]
    fn merged_is_as_if_recorded_in_one() {
        let (mut one, mut other) = (Latency::new().unwrap(), Latency::new().unwrap());
        one.record(Duration::from_micros(1));
        other.record(Duration::from_secs(100));
        one.add(&other).unwrap();
        assert_eq!(one.count(), 2);
        assert!((one.max_us() - 1e8).abs() < f64::EPSILON);
    }

    #[test]
    fn proc_fields_are_found_by_their_whole_name() {
        let io = "write_bytes: 10\ncancelled_write_bytes: 4\n";
        assert_eq!(field(io, "cancelled_write_bytes"), Some(4));
        assert_eq!(field(io, "write_bytes"), Some(10));
        assert_eq!(field("VmHWM:\t  12 kB\n", "VmHWM"), Some(12));
        assert_eq!(field(io, "bytes"), None);
    }

    #[test]
    fn the_kernel_answers() {
        assert!(peak_rss_bytes().unwrap() > 0);
        disk_write_bytes().unwrap();
    }
}
