//! When the gate shuts and when it opens again: pure, with the clock as an argument.
//!
//! Each signal is *raised* while it is beyond its threshold, and *latched* once it has been for its latch time. The gate is shut while one is latched,
//! and tells of the worst. It opens when all has been quiet for the unlatch time of each of those, and a probe of the disk went well.

use std::time::{Duration, Instant};

use super::window::ErrorWindow;
use crate::{Config, HealthConfig, HealthSignal};

/// The signals at one moment. Errors are totals since the spool was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct HealthSample {
    /// Dirty bytes by `dirty_limit`. A message larger than that is more than 1.
    pub(crate) dirty_fraction: f64,
    pub(crate) oldest_dirty_age: Duration,
    pub(crate) no_free_segment: bool,
    /// The disk has no room for another one.
    pub(crate) no_room_for_segment: bool,
    /// For how long the checkpoint thread has been at work without progress.
    pub(crate) checkpoint_stall: Duration,
    /// Failed writes and failed syncs of the journal.
    pub(crate) journal_errors: u64,
    /// Of sled and its manifest.
    pub(crate) sled_errors: u64,
    /// sled broke, and is not opened again yet.
    pub(crate) sled_is_out: bool,
    pub(crate) read_errors: u64,
    pub(crate) damage: u64,
    /// Files that something else deleted, moved or changed.
    pub(crate) lost_files: u64,
    /// Some of them are not restored yet.
    pub(crate) files_are_lost: bool,
    /// Free space is below its minimum, or a write failed for want of room and there still is none.
    pub(crate) low_space: bool,
    pub(crate) dead_worker: bool,
    /// How the probe went that [`Latch::wants_probe`] asked for, if it has ended.
    pub(crate) probe: Option<bool>,
}

/// The gate has to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transition {
    /// It was open.
    Shut(HealthSignal),
    /// It was shut already, for something less bad.
    Worse(HealthSignal),
    Open,
}

/// Signals that are counted in a window, in the order of [`Latch::windows`].
const COUNTED: [HealthSignal; 5] = [
    HealthSignal::JournalErrors,
    HealthSignal::SledErrors,
    HealthSignal::ReadErrors,
    HealthSignal::Damage,
    HealthSignal::LostFiles,
];

/// A gate that shuts again within so many times the quiet time after it opened was opened too early.
const SOON: u32 = 4;

/// A shorter quiet time counts as this.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// The most by which the quiet time grows for that.
const MOST_PATIENCE: u32 = 16;

/// Remembers what it must of the samples so far.
#[derive(Debug)]
pub(crate) struct Latch {
    config: HealthConfig,
    dirty_age: Duration,
    dirty_expire: Duration,
    /// The totals of the sample before. They start at zero, so that what happened before the first sample counts.
    before: HealthSample,
    windows: [ErrorWindow; COUNTED.len()],
    watched: [WatchedSignal; HealthSignal::ALL.len()],
    /// Since when nothing at all has been wrong.
    quiet_since: Option<Instant>,
    /// What the gate tells of: `None` while it is open.
    told: Option<HealthSignal>,
    /// The quiet times are multiplied by it.
    patience: u32,
    /// When it was opened last, and after how long a quiet time.
    opened: Option<(Instant, Duration)>,
}

/// One signal, over time.
#[derive(Debug, Clone, Copy, Default)]
struct WatchedSignal {
    /// Since when it has been beyond its threshold without a break.
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
        let window = |signal| ErrorWindow::new(too_many(health, signal), health.error_window);
        Self {
            dirty_age: config.effective_dirty_age(),
            dirty_expire: config.dirty_expire,
            before: HealthSample::default(),
            windows: COUNTED.map(window),
            watched: [WatchedSignal::default(); HealthSignal::ALL.len()],
            quiet_since: None,
            told: None,
            patience: 1,
            opened: None,
            config: health.clone(),
        }
    }

    /// Goes on with other settings. What was seen so far counts by them.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        let health = &config.health;
        (self.dirty_age, self.dirty_expire) = (config.effective_dirty_age(), config.dirty_expire);
        for (window, signal) in self.windows.iter_mut().zip(COUNTED) {
            window.reconfigure(too_many(health, signal), health.error_window);
        }
        self.config = health.clone();
    }

    /// Takes in a sample. Says when the gate has to move, once for each move.
    pub(crate) fn observe(&mut self, now: Instant, sample: &HealthSample) -> Option<Transition> {
        let before = std::mem::replace(&mut self.before, *sample);
        let mut is_quiet = sample.probe != Some(false);
        for signal in HealthSignal::ALL {
            let (is_raised, is_noisy) = self.look(now, signal, &before, sample);
            self.watched[signal as usize].step(now, is_raised, self.config.latch_after_of(signal));
            is_quiet &= !is_noisy;
        }
        self.quiet_since = is_quiet.then(|| self.quiet_since.unwrap_or(now));
        let worst = self.worst(sample)?;
        match self.told.replace(worst) {
            None => {
                self.note_shut(now);
                Some(Transition::Shut(worst))
            }
            Some(told) if told != worst => Some(Transition::Worse(worst)),
            Some(_) => (sample.probe == Some(true) && self.wants_probe(now)).then(|| self.open(now)),
        }
    }

    /// Everything has been quiet for long enough: only a successful probe of the disk is missing for the gate to open.
    pub(crate) fn wants_probe(&self, now: Instant) -> bool {
        let (Some(_), Some(quiet_since)) = (self.told, self.quiet_since) else { return false };
        self.config.allow_unlatch && now.saturating_duration_since(quiet_since) >= self.quiet_time()
    }

    /// How long it has to be quiet. With no quiet time at all a gate would go on flapping, however patient.
    fn quiet_time(&self) -> Duration {
        let longest =
            self.latched().map(|signal| self.config.unlatch_after_of(signal)).max().unwrap_or_default();
        match self.patience {
            1 => longest,
            patience => longest.max(LEAST_WAIT / MOST_PATIENCE) * patience,
        }
    }

    /// The worst of what is latched. Without room on disk for another segment it is the disk that
    /// segments wait for, until the gate opens again.
    fn worst(&self, sample: &HealthSample) -> Option<HealthSignal> {
        let is_disk = || sample.no_room_for_segment || self.told == Some(HealthSignal::LowSpace);
        self.latched().next().map(|worst| match worst {
            HealthSignal::NoFreeSegment if is_disk() => HealthSignal::LowSpace,
            worst => worst,
        })
    }

    /// The worst first.
    fn latched(&self) -> impl Iterator<Item = HealthSignal> + '_ {
        HealthSignal::ALL.into_iter().filter(|signal| self.watched[*signal as usize].is_latched)
    }

    fn note_shut(&mut self, now: Instant) {
        let Some((opened_at, waited)) = self.opened else { return };
        let soon = waited.max(LEAST_WAIT) * SOON;
        self.patience = match now.saturating_duration_since(opened_at) < soon {
            true => (self.patience * 2).min(MOST_PATIENCE),
            false => 1,
        };
    }

    fn open(&mut self, now: Instant) -> Transition {
        self.opened = Some((now, self.quiet_time()));
        // The errors that shut the gate must not shut it again together with a single new one.
        self.windows.iter_mut().for_each(ErrorWindow::clear);
        self.watched = [WatchedSignal::default(); HealthSignal::ALL.len()];
        self.told = None;
        Transition::Open
    }

    /// Whether a signal is beyond its threshold, and whether it is anything but quiet.
    fn look(
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
            // Large messages, and callers that come as fast as the disk takes them, keep it full: it is a backlog if it is not written in time.
            HealthSignal::DirtyBytes => {
                sample.dirty_fraction >= self.config.dirty_fraction
                    && sample.oldest_dirty_age > self.dirty_expire
            }
            HealthSignal::DirtyAge => sample.oldest_dirty_age > self.dirty_age,
            // Counted above.
            _ => false,
        };
        (is_raised, is_raised)
    }
}

fn too_many(config: &HealthConfig, signal: HealthSignal) -> u32 {
    match signal {
        HealthSignal::JournalErrors => config.journal_errors,
        HealthSignal::SledErrors => config.sled_errors,
        HealthSignal::ReadErrors => config.read_errors,
        HealthSignal::LostFiles => 1,
        _ => config.damage,
    }
}
