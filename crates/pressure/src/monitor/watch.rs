//! The monitor's thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::cadence::Cadence;
use super::pacer::{Pacer, ReliefRequest};
use super::room::MemoryRoom;
use super::sample::{Sample, Sampler};
use super::state::{MonitorState, Wait};
use crate::{Level, PressureConfig, Reading};

/// How often memory is checked. A sample costs a few file reads. While use rises fast, `Cadence`
/// takes more of them.
pub(super) const INTERVAL: Duration = Duration::from_millis(500);

/// The part (1/8) of the reclaimable memory that is requested if tasks stall while use is low.
const STALL_PART: u64 = 8;

/// The state of the thread.
pub(super) struct MonitorThread {
    pacer: Pacer,
    cadence: Cadence,
    interval: Duration,
    config: PressureConfig,
    sampler: Box<dyn Sampler>,
    state: Arc<MonitorState>,
    /// The last sample failed. Logged once.
    has_failed: bool,
}

impl MonitorThread {
    pub(super) fn new(
        config: PressureConfig,
        interval: Duration,
        sampler: Box<dyn Sampler>,
        state: Arc<MonitorState>,
    ) -> Self {
        Self {
            pacer: Pacer::new(&config, interval),
            cadence: Cadence::new(interval),
            interval,
            config,
            sampler,
            state,
            has_failed: false,
        }
    }

    /// Takes a sample for [`latest`](super::PressureMonitor::latest) before the thread starts.
    pub(super) fn peek(&mut self) {
        if self.config.enabled {
            let sample = self.sampler.sample();
            let room = sample.and_then(|sample| self.room(&sample));
            self.state.publish(sample.map(|sample| reading(&sample, Level::Normal)), room);
        }
    }

    /// Runs until it is stopped. At the end it sets the level of all clients to normal.
    pub(super) fn run(mut self) {
        loop {
            let pause = self.config.enabled.then(|| self.step()).flatten();
            match self.state.wait(pause) {
                Wait::Elapsed => {}
                Wait::Reconfigured(config) => self.reconfigure(config),
                Wait::Stopped => break,
            }
        }
        self.state.publish(None, None);
        self.state.clients.release();
    }

    fn room(&self, sample: &Sample) -> Option<MemoryRoom> {
        MemoryRoom::of(sample, &self.config, self.state.clients.totals())
    }

    fn reconfigure(&mut self, config: PressureConfig) {
        self.pacer.reconfigure(&config);
        self.cadence = Cadence::new(self.interval);
        self.sampler.set_memory_limit(config.memory_limit);
        self.config = config;
        if !self.config.enabled {
            self.pacer = Pacer::new(&self.config, self.interval);
            self.state.publish(None, None);
            self.state.clients.release();
        }
    }

    /// Takes a sample and acts on it. Returns the pause until the next sample.
    fn step(&mut self) -> Option<Duration> {
        let Some(sample) = self.sampler.sample() else {
            if !self.has_failed {
                warn!("memory use cannot be read: the memory-pressure monitor does nothing until it can");
            }
            self.has_failed = true;
            self.state.publish(None, None);
            return Some(self.cadence.failed());
        };
        self.has_failed = false;
        let now = Instant::now();
        let step = self.pacer.observe(now, &sample);
        let room = self.room(&sample);
        self.state.publish(Some(reading(&sample, step.level)), room);
        if step.has_changed {
            let Sample { used, limit, source, stall_ratio, .. } = sample;
            info!(level = ?step.level, used, limit, ?source, ?stall_ratio, "memory pressure changed");
        }
        // Before memory is requested, so that all clients stop growing at once.
        self.state.clients.notify(step.level);
        if let Some(ask) = step.relieve {
            self.relieve(step.level, ask);
        }
        if step.grow {
            let more = self.state.clients.grow();
            self.pacer.grown(now, more);
        }
        Some(self.cadence.next(now, sample.used, sample.limit))
    }

    fn relieve(&mut self, level: Level, ask: ReliefRequest) {
        let clients = &self.state.clients;
        let reclaimable = clients.reclaimable_bytes();
        let all: u64 = reclaimable.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let for_stalls = if ask.is_stalled { all / STALL_PART } else { 0 };
        let excess = ask.excess.max(for_stalls).max(1);
        let freed = clients.relieve(level, excess, &reclaimable);
        debug!(?level, excess, freed, "asked the clients for memory");
        self.pacer.relieved(Instant::now(), excess, freed);
    }
}

fn reading(sample: &Sample, level: Level) -> Reading {
    let &Sample { used, limit, source, resident, stall_ratio } = sample;
    Reading { used, limit, source, resident, stall_ratio, level }
}
