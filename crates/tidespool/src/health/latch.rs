//! When the gate shuts and when it opens again: pure, with the clock as an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::cause::Cause;
use crate::{Config, HealthConfig};

/// The signals at one moment. Errors are totals since the spool was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sample {
    /// Dirty bytes by `dirty_limit`.
    pub(crate) dirty_fraction: f64,
    pub(crate) oldest_dirty_age: Duration,
    pub(crate) no_free_segment: bool,
    /// Failed writes and failed syncs of the journal.
    pub(crate) journal_write_errors: u64,
    pub(crate) sled_errors: u64,
    pub(crate) read_errors: u64,
    pub(crate) corruption: u64,
    /// See [`Space::is_short`](super::Space::is_short).
    pub(crate) space_short: bool,
    pub(crate) worker_dead: bool,
    /// The newest probe write succeeded. Only looked at while [`Latch::wants_probe`].
    pub(crate) probe_ok: bool,
}

/// The gate has to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transition {
    Shut(Cause),
    Open,
}

/// Remembers what it must of the samples so far.
#[derive(Debug)]
pub(crate) struct Latch {
    config: HealthConfig,
    dirty_age: Duration,
    /// The totals of the sample before. They start at zero, so that what happened before the first sample counts.
    before: Sample,
    /// Since when there has been a backlog without a break.
    backlog_since: Option<Instant>,
    sled_errors: Window,
    read_errors: Window,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Shut {
        /// Since when nothing has been wrong.
        quiet_since: Option<Instant>,
    },
}

impl Latch {
    pub(crate) fn new(config: &Config) -> Self {
        let health = &config.health;
        Self {
            dirty_age: config.effective_dirty_age(),
            before: Sample::default(),
            backlog_since: None,
            sled_errors: Window::new(health),
            read_errors: Window::new(health),
            state: State::Open,
            config: health.clone(),
        }
    }

    /// Goes on with other settings. What was seen so far counts by them.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        self.dirty_age = config.effective_dirty_age();
        self.sled_errors.reconfigure(&config.health);
        self.read_errors.reconfigure(&config.health);
        self.config = config.health.clone();
    }

    /// Takes in a sample. Says when the gate has to move, once for each move.
    pub(crate) fn observe(&mut self, now: Instant, sample: &Sample) -> Option<Transition> {
        let at_once = self.hard_fault(sample);
        let too_often = self.counted_fault(now, sample);
        let backlog = self.backlog(sample);
        let is_noisy = at_once.is_some() || backlog.is_some() || self.has_new_errors(sample);
        self.before = *sample;
        let lasting_backlog = self.lasting(now, backlog);

        match self.state {
            State::Open => {
                let cause = at_once.or(too_often).or(lasting_backlog)?;
                self.state = State::Shut { quiet_since: None };
                Some(Transition::Shut(cause))
            }
            State::Shut { .. } if is_noisy => {
                self.state = State::Shut { quiet_since: None };
                None
            }
            State::Shut { quiet_since } => {
                self.state = State::Shut { quiet_since: Some(quiet_since.unwrap_or(now)) };
                (self.wants_probe(now) && sample.probe_ok).then(|| self.open())
            }
        }
    }

    /// Everything has been quiet for long enough: only a successful probe write is missing for the gate to open.
    pub(crate) fn wants_probe(&self, now: Instant) -> bool {
        let State::Shut { quiet_since: Some(quiet_since) } = self.state else { return false };
        self.config.allow_unlatch && now.saturating_duration_since(quiet_since) >= self.config.unlatch_after
    }

    fn open(&mut self) -> Transition {
        // The errors that shut the gate must not shut it again together with a single new one.
        self.sled_errors.clear();
        self.read_errors.clear();
        self.state = State::Open;
        Transition::Open
    }

    /// What shuts the gate the first time it is seen.
    fn hard_fault(&self, sample: &Sample) -> Option<Cause> {
        if sample.worker_dead {
            Some(Cause::WorkerDead)
        } else if sample.journal_write_errors > self.before.journal_write_errors {
            Some(Cause::JournalWrite)
        } else if sample.corruption > self.before.corruption {
            Some(Cause::Corruption)
        } else if sample.space_short {
            Some(Cause::NoSpace)
        } else {
            None
        }
    }

    /// What shuts it when it happens too often.
    fn counted_fault(&mut self, now: Instant, sample: &Sample) -> Option<Cause> {
        let sled = self.sled_errors.add(now, sample.sled_errors.saturating_sub(self.before.sled_errors));
        let read = self.read_errors.add(now, sample.read_errors.saturating_sub(self.before.read_errors));
        if sled {
            Some(Cause::SledErrors)
        } else if read {
            Some(Cause::ReadErrors)
        } else {
            None
        }
    }

    /// What shuts it when it lasts.
    fn backlog(&self, sample: &Sample) -> Option<Cause> {
        if sample.no_free_segment {
            Some(Cause::NoFreeSegment)
        } else if sample.dirty_fraction >= self.config.dirty_fraction {
            Some(Cause::DirtyBytes)
        } else if sample.oldest_dirty_age > self.dirty_age {
            Some(Cause::DirtyAge)
        } else {
            None
        }
    }

    fn lasting(&mut self, now: Instant, backlog: Option<Cause>) -> Option<Cause> {
        let Some(cause) = backlog else {
            self.backlog_since = None;
            return None;
        };
        let since = *self.backlog_since.get_or_insert(now);
        (now.saturating_duration_since(since) >= self.config.backlog_latch_after).then_some(cause)
    }

    fn has_new_errors(&self, sample: &Sample) -> bool {
        sample.sled_errors > self.before.sled_errors || sample.read_errors > self.before.read_errors
    }
}

/// The newest errors of one kind, never more than it takes to be too many.
#[derive(Debug)]
struct Window {
    times: VecDeque<Instant>,
    too_many: usize,
    length: Duration,
}

impl Window {
    fn new(config: &HealthConfig) -> Self {
        let mut window = Self { times: VecDeque::new(), too_many: 0, length: Duration::ZERO };
        window.reconfigure(config);
        window
    }

    fn reconfigure(&mut self, config: &HealthConfig) {
        self.too_many = usize::try_from(config.disk_errors).unwrap_or(usize::MAX);
        self.length = config.disk_error_window;
        self.times.truncate(self.too_many);
    }

    /// Adds `errors` of this moment. Returns whether they are too many now, together with those in the window.
    fn add(&mut self, now: Instant, errors: u64) -> bool {
        self.times.retain(|time| now.saturating_duration_since(*time) < self.length);
        let errors = usize::try_from(errors).unwrap_or(usize::MAX).min(self.too_many - self.times.len());
        self.times.extend(std::iter::repeat_n(now, errors));
        errors > 0 && self.times.len() >= self.too_many
    }

    fn clear(&mut self) {
        self.times.clear();
    }
}
