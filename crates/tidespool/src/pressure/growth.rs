//! When what pressure took may grow back: pure, with the clock as an argument.

use std::time::{Duration, Instant};

/// Looks between two steps, at first.
const LOOKS: u32 = 4;

/// The longest pause between two steps, unless that of [`LOOKS`] is longer still.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// After this many pauses at full size the next recovery begins with a short pause again.
const REST: u32 = 16;

/// Lets growth happen in steps, each after a pause in which use stayed low.
///
/// Where growing brought the pressure back, the pause doubles: a machine on which there is simply no room must not
/// see a cache that grows and shrinks for ever.
#[derive(Debug)]
pub(super) struct Growth {
    first_pause: Duration,
    pause: Duration,
    /// Something may be smaller than it was.
    is_wanted: bool,
    /// A step was taken since the last pressure.
    has_grown: bool,
    quiet_since: Option<Instant>,
}

impl Growth {
    pub(super) fn new(interval: Duration) -> Self {
        let first_pause = interval * LOOKS;
        Self { first_pause, pause: first_pause, is_wanted: false, has_grown: false, quiet_since: None }
    }

    /// Another interval between looks. What is still to grow, grows.
    pub(super) fn set_interval(&mut self, interval: Duration) {
        *self = Self { is_wanted: self.is_wanted, ..Self::new(interval) };
    }

    /// There is pressure.
    pub(super) fn pressed(&mut self) {
        if self.has_grown {
            self.pause = self.pause.saturating_mul(2).min(MAX_PAUSE.max(self.first_pause));
        }
        (self.is_wanted, self.has_grown, self.quiet_since) = (true, false, None);
    }

    /// There is no pressure, but a step might bring it back.
    pub(super) fn unsettled(&mut self) {
        self.quiet_since = None;
    }

    /// There is room. True if it is time for a step: report it to [`grown`](Self::grown).
    pub(super) fn quiet(&mut self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(*self.quiet_since.get_or_insert(now));
        if !self.is_wanted && quiet >= self.pause.saturating_mul(REST) {
            (self.pause, self.has_grown) = (self.first_pause, false);
        }
        self.is_wanted && quiet >= self.pause
    }

    /// A step was taken; `more` where there is something left to grow.
    pub(super) fn grown(&mut self, now: Instant, more: bool) {
        (self.is_wanted, self.has_grown, self.quiet_since) = (more, true, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The seconds, of `range`, at which a step is due. Each finds more to do.
    fn steps(growth: &mut Growth, start: Instant, range: std::ops::Range<u32>) -> Vec<u32> {
        let due = |second: &u32| {
            let now = start + *second * SECOND;
            let due = growth.quiet(now);
            if due {
                growth.grown(now, true);
            }
            due
        };
        range.filter(due).collect()
    }

    #[test]
    fn nothing_grows_where_nothing_was_taken() {
        let mut growth = Growth::new(SECOND);
        assert_eq!(steps(&mut growth, Instant::now(), 0..100), Vec::<u32>::new());
    }

    #[test]
    fn steps_come_with_pauses_until_all_is_back() {
        let (mut growth, start) = (Growth::new(SECOND), Instant::now());
        growth.pressed();
        assert_eq!(steps(&mut growth, start, 0..14), [4, 8, 12]);
        growth.grown(start + 14 * SECOND, false);
        assert_eq!(steps(&mut growth, start, 15..100), Vec::<u32>::new());
    }

    #[test]
    fn use_near_the_threshold_puts_a_step_off() {
        let (mut growth, start) = (Growth::new(SECOND), Instant::now());
        growth.pressed();
        assert_eq!(steps(&mut growth, start, 0..4), Vec::<u32>::new());
        growth.unsettled();
        assert_eq!(steps(&mut growth, start, 4..9), [8]);
    }

    #[test]
    fn where_growing_brings_pressure_back_the_pause_doubles() {
        let (mut growth, start) = (Growth::new(SECOND), Instant::now());
        let mut pauses = Vec::new();
        let mut second = 0;
        for _ in 0..9 {
            growth.pressed();
            growth.pressed();
            let step = steps(&mut growth, start, second..second + 400)[0];
            pauses.push(step - second);
            second += 400;
        }
        assert_eq!(pauses, [4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn a_long_rest_at_full_size_makes_the_pause_short_again() {
        let (mut growth, start) = (Growth::new(SECOND), Instant::now());
        growth.pressed();
        growth.grown(start, true);
        growth.pressed();
        assert_eq!(growth.pause, 8 * SECOND);
        growth.grown(start, false);
        assert!(!growth.quiet(start + 127 * SECOND));
        assert_eq!(growth.pause, 8 * SECOND);
        assert!(!growth.quiet(start + 128 * SECOND));
        growth.pressed();
        assert_eq!(growth.pause, 4 * SECOND);
    }
}
