//! What the monitor does with a sample: pure, with the clock as an argument.

use std::time::{Duration, Instant};

use super::level::{Level, Thresholds};
use super::sample::Sample;
use crate::PressureConfig;

/// The longest pause between two attempts that freed nothing, unless the interval is longer still.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Remembers the level and how well relief worked.
#[derive(Debug)]
pub(super) struct Pacer {
    thresholds: Thresholds,
    interval: Duration,
    level: Level,
    /// There was pressure at some time, so that there may be something to grow back.
    was_pressed: bool,
    backoff: Duration,
    not_before: Option<Instant>,
}

/// What to do now, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// Tell of the new level.
    pub(super) level_changed: Option<Level>,
    /// Ask for this many bytes, at this level, and report the outcome to [`Pacer::relieved`].
    pub(super) relieve: Option<(Level, u64)>,
    /// Tell that memory has returned.
    pub(super) memory_returned: bool,
}

impl Pacer {
    pub(super) fn new(config: &PressureConfig) -> Self {
        Self {
            thresholds: Thresholds::new(config),
            interval: config.interval,
            level: Level::Normal,
            was_pressed: false,
            backoff: config.interval,
            not_before: None,
        }
    }

    pub(super) fn observe(&mut self, now: Instant, sample: &Sample) -> Step {
        let before = self.level;
        self.level = self.thresholds.next(before, sample.fraction());
        if self.level > before {
            // What was tried in vain at a lower level says nothing about this one.
            self.forget_backoff();
        }
        let pressed = self.level != Level::Normal;
        self.was_pressed |= pressed;
        let may_act = self.not_before.is_none_or(|not_before| now >= not_before);
        Step {
            level_changed: (self.level != before).then_some(self.level),
            relieve: (pressed && may_act).then(|| (self.level, self.excess(sample))),
            memory_returned: !pressed && self.was_pressed,
        }
    }

    /// Relief gave back `freed` bytes. Where it gave none, the next attempt waits, twice as long each time.
    pub(super) fn relieved(&mut self, now: Instant, freed: isize) {
        if freed > 0 {
            self.forget_backoff();
        } else {
            self.backoff = self.backoff.saturating_mul(2).min(MAX_BACKOFF.max(self.interval));
            self.not_before = now.checked_add(self.backoff);
        }
    }

    fn forget_backoff(&mut self) {
        self.backoff = self.interval;
        self.not_before = None;
    }

    /// The bytes by which use has to fall for the level to become normal; at least 1.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a part of the limit, between 0 and the limit"
    )]
    fn excess(&self, sample: &Sample) -> u64 {
        let target = (sample.limit as f64 * self.thresholds.target()) as u64;
        sample.used.saturating_sub(target).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Source;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pacer() -> Pacer {
        Pacer::new(&PressureConfig::default().interval(SECOND).low(0.8).critical(0.9).hysteresis(0.1))
    }

    fn used(used: u64) -> Sample {
        Sample { used, limit: 1_000, source: Source::Process, resident: None, stall_ratio: None }
    }

    #[test]
    fn nothing_to_do_while_normal() {
        let mut pacer = pacer();
        let step = pacer.observe(Instant::now(), &used(500));
        assert_eq!(step, Step { level_changed: None, relieve: None, memory_returned: false });
    }

    #[test]
    fn relief_is_asked_for_again_and_again_in_proportion_while_it_helps() {
        let (mut pacer, now) = (pacer(), Instant::now());
        let first = pacer.observe(now, &used(850));
        assert_eq!((first.level_changed, first.relieve), (Some(Level::Low), Some((Level::Low, 150))));
        pacer.relieved(now, 100);
        let second = pacer.observe(now + SECOND, &used(750));
        assert_eq!((second.level_changed, second.relieve), (None, Some((Level::Low, 50))));
        pacer.relieved(now + SECOND, 60);
        let third = pacer.observe(now + 2 * SECOND, &used(690));
        let normal = Step { level_changed: Some(Level::Normal), relieve: None, memory_returned: true };
        assert_eq!(third, normal);
        assert!(pacer.observe(now + 3 * SECOND, &used(690)).memory_returned, "it goes on growing back");
    }

    #[test]
    fn relief_that_frees_nothing_is_asked_for_less_and_less_often_but_never_given_up() {
        let (mut pacer, start) = (pacer(), Instant::now());
        let mut asked = Vec::new();
        for second in 0..200 {
            let now = start + second * SECOND;
            if pacer.observe(now, &used(850)).relieve.is_some() {
                asked.push(second);
                pacer.relieved(now, if second % 2 == 0 { 0 } else { -5 });
            }
        }
        assert_eq!(asked, [0, 2, 6, 14, 30, 60, 90, 120, 150, 180]);
    }

    #[test]
    fn success_ends_the_backoff() {
        let (mut pacer, now) = (pacer(), Instant::now());
        assert!(pacer.observe(now, &used(850)).relieve.is_some());
        pacer.relieved(now, 0);
        assert_eq!(pacer.observe(now + SECOND, &used(850)).relieve, None);
        assert!(pacer.observe(now + 2 * SECOND, &used(850)).relieve.is_some());
        pacer.relieved(now + 2 * SECOND, 1);
        assert!(pacer.observe(now + 3 * SECOND, &used(850)).relieve.is_some());
    }

    #[test]
    fn a_higher_level_does_not_wait_for_the_backoff() {
        let (mut pacer, now) = (pacer(), Instant::now());
        assert!(pacer.observe(now, &used(850)).relieve.is_some());
        pacer.relieved(now, 0);
        let step = pacer.observe(now, &used(950));
        assert_eq!((step.level_changed, step.relieve), (Some(Level::Critical), Some((Level::Critical, 250))));
        pacer.relieved(now, 0);
        // Falling back to low is no reason to hurry.
        assert_eq!(pacer.observe(now + SECOND, &used(750)).relieve, None);
    }

    #[test]
    fn a_long_interval_is_not_shortened_by_the_backoffs_bound() {
        let minute = 60 * SECOND;
        let (mut pacer, now) = (Pacer::new(&PressureConfig::default().interval(minute)), Instant::now());
        assert!(pacer.observe(now, &used(850)).relieve.is_some());
        pacer.relieved(now, 0);
        assert_eq!(pacer.observe(now + 59 * SECOND, &used(850)).relieve, None);
        assert!(pacer.observe(now + minute, &used(850)).relieve.is_some());
    }
}
