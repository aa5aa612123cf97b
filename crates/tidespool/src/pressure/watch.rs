//! The thread that watches memory.

use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::cadence::Cadence;
use super::level::Level;
use super::monitor::{MonitorState, PressureReading, Wait};
use super::pacer::{Pacer, ReliefRequest};
use super::room::MemoryRoom;
use super::sample::{Sample, Sampler};
use crate::PressureConfig;

/// Where tasks wait for memory but use is low, this part of what the spools could give is asked for.
const STALL_PART: u64 = 8;

/// What the thread works with.
pub(super) struct MonitorThread {
    pacer: Pacer,
    cadence: Cadence,
    config: PressureConfig,
    sampler: Box<dyn Sampler>,
    state: Arc<MonitorState>,
    /// The last reading failed: told once.
    is_blind: bool,
}

impl MonitorThread {
    pub(super) fn new(config: PressureConfig, sampler: Box<dyn Sampler>, state: Arc<MonitorState>) -> Self {
        Self {
            pacer: Pacer::new(&config),
            cadence: Cadence::new(config.interval),
            config,
            sampler,
            state,
            is_blind: false,
        }
    }

    /// Takes a sample for those who ask for [`latest`](super::PressureMonitor::latest) before the thread has started.
    pub(super) fn peek(&mut self) {
        if self.config.enabled {
            let sample = self.sampler.sample();
            let room = sample.and_then(|sample| self.room(&sample));
            self.state.publish(sample.map(|sample| reading(&sample, Level::Normal)), room);
        }
    }

    /// Runs until it is told to end. No spool is left under pressure of which nobody would say when it is over.
    pub(super) fn run(mut self) {
        loop {
            let pause = self.config.enabled.then(|| self.look()).flatten();
            match self.state.wait(pause) {
                Wait::Elapsed => {}
                Wait::Reconfigured(config) => self.reconfigure(config),
                Wait::Stopped => break,
            }
        }
        self.state.publish(None, None);
        self.state.spools.release();
    }

    fn room(&self, sample: &Sample) -> Option<MemoryRoom> {
        MemoryRoom::of(sample, &self.config, self.state.spools.together())
    }

    fn reconfigure(&mut self, config: PressureConfig) {
        self.pacer.reconfigure(&config);
        self.cadence = Cadence::new(config.interval);
        self.sampler.set_memory_limit(config.memory_limit);
        self.config = config;
        if !self.config.enabled {
            self.pacer = Pacer::new(&self.config);
            self.state.publish(None, None);
            self.state.spools.release();
        }
    }

    /// Looks, does what is to be done about it, and says when to look again.
    fn look(&mut self) -> Option<std::time::Duration> {
        let Some(sample) = self.sampler.sample() else {
            if !self.is_blind {
                warn!("memory use cannot be read: the memory-pressure monitor does nothing until it can");
            }
            self.is_blind = true;
            self.state.publish(None, None);
            return Some(self.cadence.blind());
        };
        self.is_blind = false;
        let now = Instant::now();
        let step = self.pacer.observe(now, &sample);
        let room = self.room(&sample);
        self.state.publish(Some(reading(&sample, step.level)), room);
        if step.has_changed {
            let Sample { used, limit, source, stall_ratio, .. } = sample;
            info!(level = ?step.level, used, limit, ?source, ?stall_ratio, "memory pressure changed");
        }
        // Before anything is asked for: everybody stops growing at once.
        self.state.spools.tell(step.level);
        if let Some(ask) = step.relieve {
            self.relieve(step.level, ask);
        }
        if step.grow {
            let more = self.state.spools.grow();
            self.pacer.grown(now, more);
        }
        Some(self.cadence.next(now, sample.used, sample.limit))
    }

    fn relieve(&mut self, level: Level, ask: ReliefRequest) {
        let spools = &self.state.spools;
        let reclaimable = spools.reclaimable_bytes();
        let all: u64 = reclaimable.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let for_stalls = if ask.is_stalled { all / STALL_PART } else { 0 };
        let excess = ask.excess.max(for_stalls).max(1);
        let freed = spools.relieve(level, excess, &reclaimable);
        debug!(?level, excess, freed, "asked the spools for memory");
        self.pacer.relieved(Instant::now(), excess, freed);
    }
}

fn reading(sample: &Sample, level: Level) -> PressureReading {
    let &Sample { used, limit, source, resident, stall_ratio } = sample;
    PressureReading { used, limit, source, resident, stall_ratio, level }
}
