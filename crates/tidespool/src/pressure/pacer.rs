//! What the monitor does with a sample: pure, with the clock as an argument.

use std::time::{Duration, Instant};

use super::growth::Growth;
use super::level::{Level, Thresholds};
use super::sample::Sample;
use crate::PressureConfig;

/// The longest pause between two attempts that freed nothing, unless the interval is longer still.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The same at [`Level::Critical`], where what has become free in the meantime may be what keeps the process alive.
const MAX_CRITICAL_BACKOFF: Duration = Duration::from_secs(5);

/// An attempt was worth it if it freed this part of what was asked for. Otherwise a spool that has next to nothing to
/// give, on a machine that is full for reasons of its own, would empty its small cache at each look.
const WORTH: u64 = 32;

/// Remembers the level and how well relief worked.
#[derive(Debug)]
pub(super) struct Pacer {
    thresholds: Thresholds,
    interval: Duration,
    /// By use alone.
    use_level: Level,
    is_stalled: bool,
    backoff: Duration,
    not_before: Option<Instant>,
    /// What was asked for last.
    last_excess: u64,
    growth: Growth,
}

/// What to do now, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PacerStep {
    /// The level now.
    pub(super) level: Level,
    /// It is another one than before.
    pub(super) has_changed: bool,
    /// Ask for memory, and report the outcome to [`Pacer::relieved`].
    pub(super) relieve: Option<ReliefRequest>,
    /// Let what was taken grow by a step, and report the outcome to [`Pacer::grown`].
    pub(super) grow: bool,
}

/// How much is to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReliefRequest {
    /// The bytes by which use is above what is aimed at; 0 where there are only stalls.
    pub(super) excess: u64,
    /// Tasks wait for memory: at least a part of what there is to give should go.
    pub(super) is_stalled: bool,
}

impl Pacer {
    pub(super) fn new(config: &PressureConfig) -> Self {
        Self {
            thresholds: Thresholds::new(config),
            interval: config.interval,
            use_level: Level::Normal,
            is_stalled: false,
            backoff: config.interval,
            not_before: None,
            last_excess: 0,
            growth: Growth::new(config.interval),
        }
    }

    /// Goes on with other settings. The level stays, and changes with the next sample.
    pub(super) fn reconfigure(&mut self, config: &PressureConfig) {
        self.thresholds = Thresholds::new(config);
        self.interval = config.interval;
        self.growth.set_interval(config.interval);
        // What was tried in vain under other settings says nothing about these.
        self.forget_backoff();
    }

    pub(super) fn observe(&mut self, now: Instant, sample: &Sample) -> PacerStep {
        let before = self.level();
        self.use_level = self.thresholds.next(self.use_level, sample.fraction());
        self.is_stalled = self.thresholds.stalled(self.is_stalled, sample.stall_ratio);
        let level = self.level();
        if level > before {
            // What was tried in vain at a lower level says nothing about this one.
            self.forget_backoff();
        }
        let excess = self.excess(sample);
        if level != Level::Normal {
            self.growth.pressed();
        } else if excess > 0 {
            self.growth.unsettled();
        }
        let is_pressed = level != Level::Normal;
        let ask = ReliefRequest { excess, is_stalled: self.is_stalled };
        PacerStep {
            level,
            has_changed: level != before,
            relieve: (is_pressed && self.may_act(now, excess, sample.limit)).then_some(ask),
            grow: !is_pressed && excess == 0 && self.growth.quiet(now),
        }
    }

    /// Asked for `asked` bytes, relief gave back `freed`. Where that was next to nothing the next attempt waits, twice
    /// as long each time.
    pub(super) fn relieved(&mut self, now: Instant, asked: u64, freed: isize) {
        self.last_excess = asked;
        if u64::try_from(freed).is_ok_and(|freed| freed >= (asked / WORTH).max(1)) {
            self.forget_backoff();
        } else {
            let longest = match self.level() {
                Level::Critical => MAX_CRITICAL_BACKOFF,
                Level::Normal | Level::Low => MAX_BACKOFF,
            };
            self.backoff = self.backoff.saturating_mul(2).min(longest.max(self.interval));
            self.not_before = now.checked_add(self.backoff);
        }
    }

    /// A step of growth was taken; `more` where there is something left to grow.
    pub(super) fn grown(&mut self, now: Instant, more: bool) {
        self.growth.grown(now, more);
    }

    fn level(&self) -> Level {
        if self.is_stalled { self.use_level.max(Level::Low) } else { self.use_level }
    }

    /// The pause after an attempt in vain is over, or there is clearly more to ask for than then.
    fn may_act(&self, now: Instant, excess: u64, limit: u64) -> bool {
        let has_risen = excess > self.last_excess.saturating_add(limit / WORTH);
        has_risen || self.not_before.is_none_or(|not_before| now >= not_before)
    }

    fn forget_backoff(&mut self) {
        self.backoff = self.interval;
        self.not_before = None;
    }

    /// The bytes by which use has to fall for the level to become normal by use.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a part of the limit, between 0 and the limit"
    )]
    fn excess(&self, sample: &Sample) -> u64 {
        let target = (sample.limit as f64 * self.thresholds.target()) as u64;
        sample.used.saturating_sub(target)
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

    fn stalled(used: u64, ratio: f64) -> Sample {
        Sample { stall_ratio: Some(ratio), ..self::used(used) }
    }

    fn bytes(excess: u64) -> Option<ReliefRequest> {
        Some(ReliefRequest { excess, is_stalled: false })
    }

    #[test]
    fn nothing_to_do_while_normal() {
        let step = pacer().observe(Instant::now(), &used(500));
        assert_eq!(step, PacerStep { level: Level::Normal, has_changed: false, relieve: None, grow: false });
    }

    #[test]
    fn relief_is_asked_for_again_and_again_in_proportion_while_it_helps() {
        let (mut pacer, now) = (pacer(), Instant::now());
        let first = pacer.observe(now, &used(850));
        let wanted = PacerStep { level: Level::Low, has_changed: true, relieve: bytes(150), grow: false };
        assert_eq!(first, wanted);
        pacer.relieved(now, 150, 100);
        let second = pacer.observe(now + SECOND, &used(750));
        assert_eq!((second.has_changed, second.relieve), (false, bytes(50)));
        pacer.relieved(now + SECOND, 50, 60);
        let third = pacer.observe(now + 2 * SECOND, &used(690));
        let normal = PacerStep { level: Level::Normal, has_changed: true, relieve: None, grow: false };
        assert_eq!(third, normal);
    }

    #[test]
    fn relief_that_frees_nothing_is_asked_for_less_and_less_often_but_never_given_up() {
        let (mut pacer, start) = (pacer(), Instant::now());
        let mut asked = Vec::new();
        for second in 0..200 {
            let now = start + second * SECOND;
            if pacer.observe(now, &used(850)).relieve.is_some() {
                asked.push(second);
                // Next to nothing is nothing.
                pacer.relieved(now, 150, if second % 2 == 0 { 3 } else { -5 });
            }
        }
        assert_eq!(asked, [0, 2, 6, 14, 30, 60, 90, 120, 150, 180]);
    }

    #[test]
    fn the_pause_is_shorter_where_it_is_critical() {
        let (mut pacer, start) = (pacer(), Instant::now());
        let mut asked = Vec::new();
        for second in 0..20 {
            let now = start + second * SECOND;
            if pacer.observe(now, &used(950)).relieve.is_some() {
                asked.push(second);
                pacer.relieved(now, 250, 0);
            }
        }
        assert_eq!(asked, [0, 2, 6, 11, 16]);
    }

    #[test]
    fn success_ends_the_backoff() {
        let (mut pacer, now) = (pacer(), Instant::now());
        assert!(pacer.observe(now, &used(850)).relieve.is_some());
        pacer.relieved(now, 150, 0);
        assert_eq!(pacer.observe(now + SECOND, &used(850)).relieve, None);
        assert!(pacer.observe(now + 2 * SECOND, &used(850)).relieve.is_some());
        pacer.relieved(now + 2 * SECOND, 150, 5);
        assert!(pacer.observe(now + 3 * SECOND, &used(850)).relieve.is_some());
    }

    #[test]
    fn a_higher_level_does_not_wait_for_the_backoff() {
        let (mut pacer, now) = (pacer(), Instant::now());
        assert!(pacer.observe(now, &used(850)).relieve.is_some());
        pacer.relieved(now, 150, 0);
        let step = pacer.observe(now, &used(900));
        assert_eq!((step.level, step.has_changed, step.relieve), (Level::Critical, true, bytes(200)));
        pacer.relieved(now, 200, 0);
        // Falling back to low is no reason to hurry.
        assert_eq!(pacer.observe(now + SECOND, &used(750)).relieve, None);
    }

    #[test]
    fn clearly_more_use_does_not_wait_for_the_backoff() {
        let (mut pacer, now) = (pacer(), Instant::now());
        assert!(pacer.observe(now, &used(800)).relieve.is_some());
        pacer.relieved(now, 100, 0);
        assert_eq!(pacer.observe(now, &used(831)).relieve, None, "within the noise");
        assert_eq!(pacer.observe(now, &used(832)).relieve, bytes(132));
        pacer.relieved(now, 132, 0);
        // It was in vain once more: the pause is the second one.
        assert_eq!(pacer.observe(now + 3 * SECOND, &used(832)).relieve, None);
        assert_eq!(pacer.observe(now + 4 * SECOND, &used(832)).relieve, bytes(132));
    }

    #[test]
    fn a_long_interval_is_not_shortened_by_the_backoffs_bound() {
        let minute = 60 * SECOND;
        let (mut pacer, now) = (Pacer::new(&PressureConfig::default().interval(minute)), Instant::now());
        assert!(pacer.observe(now, &used(850)).relieve.is_some());
        pacer.relieved(now, 100, 0);
        assert_eq!(pacer.observe(now + 59 * SECOND, &used(850)).relieve, None);
        assert!(pacer.observe(now + minute, &used(850)).relieve.is_some());
    }

    #[test]
    fn stalls_make_it_low_whatever_is_in_use() {
        let (mut pacer, now) = (pacer(), Instant::now());
        assert_eq!(pacer.observe(now, &stalled(100, 0.09)).level, Level::Normal);
        let step = pacer.observe(now, &stalled(100, 0.10));
        let ask = Some(ReliefRequest { excess: 0, is_stalled: true });
        assert_eq!((step.level, step.has_changed, step.relieve), (Level::Low, true, ask));
        assert_eq!(pacer.observe(now, &stalled(950, 0.06)).level, Level::Critical);
        assert_eq!(pacer.observe(now, &stalled(750, 0.06)).level, Level::Low);
        assert_eq!(pacer.observe(now, &stalled(100, 0.06)).level, Level::Low);
        assert_eq!(
            pacer.observe(now, &stalled(750, 0.04)).level,
            Level::Normal,
            "750 was not too much before"
        );
    }

    #[test]
    fn what_was_taken_grows_back_in_steps_while_use_is_below_what_was_aimed_at() {
        let (mut pacer, start) = (pacer(), Instant::now());
        pacer.observe(start, &used(850));
        pacer.relieved(start, 150, 150);
        let mut grown = Vec::new();
        for second in 1..40 {
            let now = start + second * SECOND;
            // From 20 to 29 use is below the threshold, but above what is aimed at.
            let step = pacer.observe(now, &used(if (20..30).contains(&second) { 790 } else { 690 }));
            assert_eq!(step.level, Level::Normal);
            if step.grow {
                grown.push(second);
                pacer.grown(now, second < 34);
            }
        }
        assert_eq!(grown, [5, 9, 13, 17, 34], "and nothing more once it is whole");
    }

    #[test]
    fn other_settings_hold_from_the_next_sample_on() {
        let (mut pacer, now) = (pacer(), Instant::now());
        assert_eq!(pacer.observe(now, &used(600)).level, Level::Normal);
        pacer.relieved(now, 100, 0);
        pacer.reconfigure(&PressureConfig::default().low(0.5).critical(0.9).hysteresis(0.1));
        let step = pacer.observe(now, &used(600));
        assert_eq!((step.level, step.relieve), (Level::Low, bytes(200)));
    }
}
