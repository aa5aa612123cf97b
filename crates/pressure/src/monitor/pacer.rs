//! What the monitor does about a sample. Pure: the clock is an argument.

use std::time::{Duration, Instant};

use super::growth::Growth;
use super::sample::Sample;
use super::thresholds::Thresholds;
use crate::{Level, PressureConfig};

/// The longest pause between two attempts that freed nothing, unless the interval is longer.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The same at [`Level::Critical`]: memory freed meanwhile may keep the process alive.
const MAX_CRITICAL_BACKOFF: Duration = Duration::from_secs(5);

/// An attempt succeeded if it freed this part (1/32) of the requested bytes. Otherwise a client
/// with little memory, on a machine that others fill, would empty its small cache at each sample.
const WORTH: u64 = 32;

/// The level, and the success of earlier relief.
#[derive(Debug)]
pub(super) struct Pacer {
    thresholds: Thresholds,
    interval: Duration,
    /// The level by use alone.
    use_level: Level,
    is_stalled: bool,
    backoff: Duration,
    not_before: Option<Instant>,
    /// The bytes of the last request.
    last_excess: u64,
    growth: Growth,
}

/// The actions to take now, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PacerStep {
    /// The level now.
    pub(super) level: Level,
    /// The level differs from the previous one.
    pub(super) has_changed: bool,
    /// Ask for memory, and report the result to [`Pacer::relieved`].
    pub(super) relieve: Option<ReliefRequest>,
    /// Let the clients grow by a step, and report the result to [`Pacer::grown`].
    pub(super) grow: bool,
}

/// How much memory to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReliefRequest {
    /// Bytes by which use exceeds the target. 0 if stalls are the only pressure.
    pub(super) excess: u64,
    /// Tasks wait for memory: request at least a part of the reclaimable memory.
    pub(super) is_stalled: bool,
}

impl Pacer {
    /// `interval`: the usual time between two samples.
    pub(super) fn new(config: &PressureConfig, interval: Duration) -> Self {
        Self {
            thresholds: Thresholds::new(config),
            interval,
            use_level: Level::Normal,
            is_stalled: false,
            backoff: interval,
            not_before: None,
            last_excess: 0,
            growth: Growth::new(interval),
        }
    }

    /// Applies other settings. The level stays until the next sample.
    pub(super) fn reconfigure(&mut self, config: &PressureConfig) {
        self.thresholds = Thresholds::new(config);
        self.growth.restart();
        // Failed attempts under other settings do not count for these.
        self.forget_backoff();
    }

    pub(super) fn observe(&mut self, now: Instant, sample: &Sample) -> PacerStep {
        let before = self.level();
        self.use_level = self.thresholds.next(self.use_level, sample.fraction());
        self.is_stalled = self.thresholds.stalled(self.is_stalled, sample.stall_ratio);
        let level = self.level();
        if level > before {
            // Failed attempts at a lower level do not count for this one.
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

    /// Records that relief freed `freed` of `asked` bytes. If it freed next to nothing, the next
    /// attempt waits, twice as long each time.
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

    /// Records a step of growth. `more`: some client is still below its full size.
    pub(super) fn grown(&mut self, now: Instant, more: bool) {
        self.growth.grown(now, more);
    }

    fn level(&self) -> Level {
        if self.is_stalled { self.use_level.max(Level::Low) } else { self.use_level }
    }

    /// True if the pause after a failed attempt is over, or if the excess has clearly risen.
    fn may_act(&self, now: Instant, excess: u64, limit: u64) -> bool {
        let has_risen = excess > self.last_excess.saturating_add(limit / WORTH);
        has_risen || self.not_before.is_none_or(|not_before| now >= not_before)
    }

    fn forget_backoff(&mut self) {
        self.backoff = self.interval;
        self.not_before = None;
    }

    /// Bytes by which use must fall for the level to become normal by use.
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
    use super::*;
    use crate::Source;

    const SECOND: Duration = Duration::from_secs(1);

    fn pacer() -> Pacer {
        Pacer::new(&PressureConfig::default().low(0.75).critical(0.9), SECOND)
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
    fn at_the_level_normal_there_is_no_action() {
        let step = pacer().observe(Instant::now(), &used(500));
        assert_eq!(step, PacerStep { level: Level::Normal, has_changed: false, relieve: None, grow: false });
    }

    #[test]
    fn relief_is_requested_in_proportion_while_it_succeeds() {
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
    fn failed_relief_is_retried_with_growing_pauses_without_end() {
        let (mut pacer, start) = (pacer(), Instant::now());
        let mut asked = Vec::new();
        for second in 0..200 {
            let now = start + second * SECOND;
            if pacer.observe(now, &used(850)).relieve.is_some() {
                asked.push(second);
                // Next to nothing counts as nothing.
                pacer.relieved(now, 150, if second % 2 == 0 { 3 } else { -5 });
            }
        }
        assert_eq!(asked, [0, 2, 6, 14, 30, 60, 90, 120, 150, 180]);
    }

    #[test]
    fn the_pause_is_shorter_at_the_level_critical() {
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
        // A fall to low does not reset the backoff.
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
        // A second failed attempt: the second pause applies.
        assert_eq!(pacer.observe(now + 3 * SECOND, &used(832)).relieve, None);
        assert_eq!(pacer.observe(now + 4 * SECOND, &used(832)).relieve, bytes(132));
    }

    #[test]
    fn the_backoff_bound_does_not_shorten_a_long_interval() {
        let minute = 60 * SECOND;
        let (mut pacer, now) = (Pacer::new(&PressureConfig::default(), minute), Instant::now());
        assert!(pacer.observe(now, &used(850)).relieve.is_some());
        pacer.relieved(now, 100, 0);
        assert_eq!(pacer.observe(now + 59 * SECOND, &used(850)).relieve, None);
        assert!(pacer.observe(now + minute, &used(850)).relieve.is_some());
    }

    #[test]
    fn stalls_raise_the_level_to_low_at_any_use() {
        let (mut pacer, now) = (pacer(), Instant::now());
        assert_eq!(pacer.observe(now, &stalled(100, 0.09)).level, Level::Normal);
        let step = pacer.observe(now, &stalled(100, 0.10));
        let ask = Some(ReliefRequest { excess: 0, is_stalled: true });
        assert_eq!((step.level, step.has_changed, step.relieve), (Level::Low, true, ask));
        assert_eq!(pacer.observe(now, &stalled(950, 0.06)).level, Level::Critical);
        assert_eq!(pacer.observe(now, &stalled(750, 0.06)).level, Level::Low);
        assert_eq!(pacer.observe(now, &stalled(100, 0.06)).level, Level::Low);
        assert_eq!(
            pacer.observe(now, &stalled(740, 0.04)).level,
            Level::Normal,
            "use alone was normal before"
        );
    }

    #[test]
    fn memory_grows_back_in_steps_while_use_is_below_the_target() {
        let (mut pacer, start) = (pacer(), Instant::now());
        pacer.observe(start, &used(850));
        pacer.relieved(start, 150, 150);
        let mut grown = Vec::new();
        for second in 1..40 {
            let now = start + second * SECOND;
            // From 20 to 29 use is below the threshold, but above the target.
            let step = pacer.observe(now, &used(if (20..30).contains(&second) { 740 } else { 690 }));
            assert_eq!(step.level, Level::Normal);
            if step.grow {
                grown.push(second);
                pacer.grown(now, second < 34);
            }
        }
        assert_eq!(grown, [5, 9, 13, 17, 34], "no step after the full size");
    }

    #[test]
    fn new_settings_apply_from_the_next_sample() {
        let (mut pacer, now) = (pacer(), Instant::now());
        assert_eq!(pacer.observe(now, &used(600)).level, Level::Normal);
        pacer.relieved(now, 100, 0);
        pacer.reconfigure(&PressureConfig::default().low(0.45).critical(0.9));
        let step = pacer.observe(now, &used(600));
        assert_eq!((step.level, step.relieve), (Level::Low, bytes(200)));
    }
}
