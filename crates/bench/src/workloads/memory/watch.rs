//! Samples resident memory and the gauges of the spool.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use tidespool::TieredSpool;

use crate::proc;

/// The interval between samples. The peak itself comes from the kernel, which misses nothing.
const EVERY: Duration = Duration::from_millis(25);

/// Resident memory and the gauges at one moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    /// `VmRSS`, less the base.
    pub(super) resident: u64,
    /// `dirty_bytes`.
    pub(super) dirty: u64,
    /// `cache_bytes`.
    pub(super) cache: u64,
    /// `index_bytes`.
    pub(super) index: u64,
    /// `sled_bytes`.
    pub(super) sled: u64,
    /// `accounted_bytes`.
    pub(super) accounted: u64,
}

impl Part {
    pub(super) fn of(spool: &TieredSpool, base: u64) -> Result<Self> {
        let resident = proc::rss_bytes()?.saturating_sub(base);
        let gauges = spool.stats().gauges;
        Ok(Self {
            resident,
            dirty: gauges.dirty_bytes,
            cache: gauges.cache_bytes,
            index: gauges.index_bytes,
            sled: gauges.sled_bytes,
            accounted: gauges.accounted_bytes,
        })
    }

    /// Returns the maximum of each value.
    fn max(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            dirty: self.dirty.max(other.dirty),
            cache: self.cache.max(other.cache),
            index: self.index.max(other.index),
            sled: self.sled.max(other.sled),
            accounted: self.accounted.max(other.accounted),
        }
    }
}

/// The base, and what the samples found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub(super) base: u64,
    pub(super) peak: u64,
    pub(super) at_peak: Part,
    pub(super) largest: Part,
}

impl Seen {
    pub(super) fn note(&mut self, part: Part) {
        if part.resident > self.at_peak.resident {
            self.at_peak = part;
        }
        self.largest = self.largest.max(part);
    }
}

/// The thread that takes the samples.
#[derive(Debug)]
pub(super) struct Watch {
    end: Sender<()>,
    thread: JoinHandle<Result<Seen>>,
}

impl Watch {
    pub(super) fn start(spool: Arc<TieredSpool>, base: u64) -> Result<Self> {
        let (end, ended) = mpsc::channel();
        let look = move || {
            let mut seen = Seen { base, ..Seen::default() };
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                seen.note(Part::of(&spool, base)?);
            }
            Ok(seen)
        };
        let thread = std::thread::Builder::new().name("bench-memory".to_owned()).spawn(look);
        Ok(Self { end, thread: thread.context("starting a thread")? })
    }

    /// Ends the thread. Reads the peak up to now from the kernel.
    pub(super) fn end(self) -> Result<Seen> {
        drop(self.end);
        let seen = self.thread.join().map_err(|_| anyhow!("the thread that samples memory panicked"))??;
        Ok(Seen { peak: proc::peak_rss_bytes()?, ..seen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_of_the_peak_and_the_maximum_of_each_are_kept() {
        let at = |resident, cache, index| Part { resident, cache, index, ..Part::default() };
        let mut seen = Seen::default();
        for part in [at(5, 1, 9), at(7, 2, 3), at(6, 8, 1)] {
            seen.note(part);
        }
        assert_eq!(seen.at_peak, at(7, 2, 3));
        assert_eq!(seen.largest, at(7, 8, 9));
    }
}
