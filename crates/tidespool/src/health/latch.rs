//! When the gate shuts and when it opens again. Pure: the clock is an argument.
//!
//! A signal is *raised* while it is beyond its threshold. It is *latched* once it has been raised
//! for its latch time. The gate is shut while a signal is latched, and reports the worst one. It
//! opens after all signals were quiet for the longest unlatch time of the latched signals, and
//! after a probe of the disk succeeded.

use std::time::{Duration, Instant};

use super::window::ErrorWindow;
use crate::{Config, HealthConfig, HealthSignal};

/// The signals at one moment. Errors are totals since the spool was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct HealthSample {
    /// Dirty bytes divided by `dirty_limit`. Above 1 for a message larger than the limit.
    pub(crate) dirty_fraction: f64,
    pub(crate) oldest_dirty_age: Duration,
    pub(crate) no_free_segment: bool,
    /// The disk has no room for another segment.
    pub(crate) no_room_for_segment: bool,
    /// Time since the checkpointer last made progress, while it has work.
    pub(crate) checkpoint_stall: Duration,
    /// Failed writes and failed syncs of the journal.
    pub(crate) journal_errors: u64,
    /// Errors of sled and its manifest.
    pub(crate) sled_errors: u64,
    /// sled broke, and the index is not rebuilt yet.
    pub(crate) sled_is_out: bool,
    pub(crate) read_errors: u64,
    pub(crate) damage: u64,
    /// Files that another program deleted, moved or changed.
    pub(crate) lost_files: u64,
    /// Some of these files are not restored yet.
    pub(crate) files_are_lost: bool,
    /// Free space is below its minimum, or a write failed for lack of room and still would.
    pub(crate) low_space: bool,
    pub(crate) dead_worker: bool,
    /// The result of the probe that [`Latch::wants_probe`] requested, if it has ended.
    pub(crate) probe: Option<bool>,
}

/// A change of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transition {
    /// The gate was open.
    Shut(HealthSignal),
    /// The gate was shut already, by a less severe signal.
    Worse(HealthSignal),
    Open,
}

/// The signals that are counted in a window, in the order of [`Latch::windows`].
const COUNTED: [HealthSignal; 5] = [
    HealthSignal::JournalErrors,
    HealthSignal::SledErrors,
    HealthSignal::ReadErrors,
    HealthSignal::Damage,
    HealthSignal::LostFiles,
];

/// The dirty bytes at which that signal is raised, as a fraction of `dirty_limit`. Below 1, because
/// the next message may be too large for what is left of the limit.
const DIRTY_FRACTION: f64 = 0.98;

/// The gate opened too early if it shuts again within this many times its last quiet time.
const EARLY_FACTOR: u32 = 4;

/// A shorter quiet time counts as this.
const MIN_QUIET: Duration = Duration::from_secs(1);

/// The maximum by which early openings multiply the quiet time.
const MAX_BACKOFF: u32 = 16;

/// The state that the samples so far have left.
#[derive(Debug)]
pub(crate) struct Latch {
    config: HealthConfig,
    dirty_age: Duration,
    dirty_expire: Duration,
    /// The previous sample. Its totals start at zero, so that earlier events count.
    before: HealthSample,
    windows: [ErrorWindow; COUNTED.len()],
    watched: [WatchedSignal; HealthSignal::ALL.len()],
    /// Since when no signal has been raised and no error has occurred.
    quiet_since: Option<Instant>,
    /// The signal that shut the gate. `None` while it is open.
    shut_by: Option<HealthSignal>,
    /// Multiplies the quiet time. Doubles when the gate opened too early.
    backoff: u32,
    /// When the gate last opened, and the quiet time before that.
    opened: Option<(Instant, Duration)>,
}

/// The state of one signal.
#[derive(Debug, Clone, Copy, Default)]
struct WatchedSignal {
    /// Since when it has been beyond its threshold without interruption.
    raised_since: Option<Instant>,
    is_latched: bool,
}

impl WatchedSignal {
    fn step(&mut self, now: Instant, is_raised: bool, latch_after: Duration) {
        self.raised_since = is_raised.then(|| self.raised_since.unwrap_or(now));
        self.is_latched |=
            self.raised_since.is_some_and(|since| now.saturating_duration_since(since) >= latch_after);
    }
}

impl Latch {
    pub(crate) fn new(config: &Config) -> Self {
        let health = &config.health;
        let window = |signal| ErrorWindow::new(too_many(health, signal));
        Self {
            dirty_age: config.effective_dirty_age(),
            dirty_expire: config.dirty_expire,
            before: HealthSample::default(),
            windows: COUNTED.map(window),
            watched: [WatchedSignal::default(); HealthSignal::ALL.len()],
            quiet_since: None,
            shut_by: None,
            backoff: 1,
            opened: None,
            config: health.clone(),
        }
    }

    /// Applies other settings. Earlier errors and times are kept, and count by the new settings.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        let health = &config.health;
        (self.dirty_age, self.dirty_expire) = (config.effective_dirty_age(), config.dirty_expire);
        for (window, signal) in self.windows.iter_mut().zip(COUNTED) {
            window.reconfigure(too_many(health, signal));
        }
        self.config = health.clone();
    }

    /// Evaluates a sample. Returns each change of the gate once.
    pub(crate) fn observe(&mut self, now: Instant, sample: &HealthSample) -> Option<Transition> {
        let before = std::mem::replace(&mut self.before, *sample);
        let mut is_quiet = sample.probe != Some(false);
        for signal in HealthSignal::ALL {
            let (is_raised, is_noisy) = self.evaluate(now, signal, &before, sample);
            self.watched[signal as usize].step(now, is_raised, self.config.latch_after(signal));
            is_quiet &= !is_noisy;
        }
        self.quiet_since = is_quiet.then(|| self.quiet_since.unwrap_or(now));
        let worst = self.worst(sample)?;
        match self.shut_by.replace(worst) {
            None => {
                self.note_shut(now);
                Some(Transition::Shut(worst))
            }
            Some(shut_by) if shut_by != worst => Some(Transition::Worse(worst)),
            Some(_) => (sample.probe == Some(true) && self.wants_probe(now)).then(|| self.open(now)),
        }
    }

    /// True if the quiet time is over. The gate opens once a probe of the disk succeeds.
    pub(crate) fn wants_probe(&self, now: Instant) -> bool {
        let (Some(_), Some(quiet_since)) = (self.shut_by, self.quiet_since) else { return false };
        now.saturating_duration_since(quiet_since) >= self.quiet_time()
    }

    /// The quiet time before the gate may open. The backoff needs a minimum: a quiet time of zero
    /// would stay zero, and the gate would flap.
    fn quiet_time(&self) -> Duration {
        let longest =
            self.latched().map(|signal| self.config.unlatch_after(signal)).max().unwrap_or_default();
        match self.backoff {
            1 => longest,
            backoff => longest.max(MIN_QUIET / MAX_BACKOFF) * backoff,
        }
    }

    /// The worst latched signal. If the disk has no room for a segment, a lack of segments is
    /// reported as a lack of space, until the gate opens again.
    fn worst(&self, sample: &HealthSample) -> Option<HealthSignal> {
        let is_disk = || sample.no_room_for_segment || self.shut_by == Some(HealthSignal::LowSpace);
        self.latched().next().map(|worst| match worst {
            HealthSignal::NoFreeSegment if is_disk() => HealthSignal::LowSpace,
            worst => worst,
        })
    }

    /// The latched signals, the worst first.
    fn latched(&self) -> impl Iterator<Item = HealthSignal> + '_ {
        HealthSignal::ALL.into_iter().filter(|signal| self.watched[*signal as usize].is_latched)
    }

    fn note_shut(&mut self, now: Instant) {
        let Some((opened_at, waited)) = self.opened else { return };
        let early = waited.max(MIN_QUIET) * EARLY_FACTOR;
        self.backoff = match now.saturating_duration_since(opened_at) < early {
            true => (self.backoff * 2).min(MAX_BACKOFF),
            false => 1,
        };
    }

    fn open(&mut self, now: Instant) -> Transition {
        self.opened = Some((now, self.quiet_time()));
        // One more error must not shut the gate together with errors from before the opening.
        self.windows.iter_mut().for_each(ErrorWindow::clear);
        self.watched = [WatchedSignal::default(); HealthSignal::ALL.len()];
        self.shut_by = None;
        Transition::Open
    }

    /// Returns whether a signal is beyond its threshold, and whether it is not quiet.
    fn evaluate(
        &mut self,
        now: Instant,
        signal: HealthSignal,
        before: &HealthSample,
        sample: &HealthSample,
    ) -> (bool, bool) {
        let counted = |sample: &HealthSample| match signal {
            HealthSignal::JournalErrors => Some(sample.journal_errors),
            HealthSignal::SledErrors => Some(sample.sled_errors),
            HealthSignal::ReadErrors => Some(sample.read_errors),
            HealthSignal::Damage => Some(sample.damage),
            HealthSignal::LostFiles => Some(sample.lost_files),
            _ => None,
        };
        let window = COUNTED.iter().position(|counted| *counted == signal);
        if let (Some(window), Some(total), Some(earlier)) = (window, counted(sample), counted(before)) {
            let new = total.saturating_sub(earlier);
            let is_out = match signal {
                HealthSignal::SledErrors => sample.sled_is_out,
                HealthSignal::LostFiles => sample.files_are_lost,
                _ => false,
            };
            return (self.windows[window].add(now, new), new > 0 || is_out);
        }
        let is_raised = match signal {
            HealthSignal::DeadWorker => sample.dead_worker,
            HealthSignal::LowSpace => sample.low_space,
            HealthSignal::StalledCheckpoint => sample.checkpoint_stall >= self.config.checkpoint_stall,
            HealthSignal::NoFreeSegment => sample.no_free_segment,
            // Large messages and fast callers keep the dirty bytes at their limit. They are a
            // backlog only if they are not written in time.
            HealthSignal::DirtyBytes => {
                sample.dirty_fraction >= DIRTY_FRACTION && sample.oldest_dirty_age > self.dirty_expire
            }
            HealthSignal::DirtyAge => sample.oldest_dirty_age > self.dirty_age,
            // The counted signals are handled above.
            _ => false,
        };
        (is_raised, is_raised)
    }
}

fn too_many(config: &HealthConfig, signal: HealthSignal) -> u32 {
    match signal {
        HealthSignal::SledErrors | HealthSignal::ReadErrors => config.disk_errors,
        // A journal that was not written, or a file that is missing, is never an accident of one
        // message.
        HealthSignal::JournalErrors | HealthSignal::LostFiles => 1,
        _ => config.damage,
    }
}
