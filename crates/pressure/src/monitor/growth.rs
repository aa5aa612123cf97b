//! When memory taken by pressure may grow back. Pure: the clock is an argument.

use std::time::{Duration, Instant};

/// The initial pause between two steps, in sampling intervals.
const FIRST_PAUSE: u32 = 4;

/// The longest pause between two steps, unless [`FIRST_PAUSE`] intervals are longer.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// After this many pauses at full size, the pause is reset.
const REST: u32 = 16;

/// Allows growth in steps. Before each step, use must stay low for a pause.
///
/// If growth brought the pressure back, the pause doubles. Otherwise, on a machine without room,
/// the cache would grow and shrink forever.
#[derive(Debug)]
pub(super) struct Growth {
    first_pause: Duration,
    pause: Duration,
    /// Some client may be below its full size.
    is_wanted: bool,
    /// A step was taken since the last pressure.
    has_grown: bool,
    quiet_since: Option<Instant>,
}

impl Growth {
    pub(super) fn new(interval: Duration) -> Self {
        let first_pause = interval * FIRST_PAUSE;
        Self { first_pause, pause: first_pause, is_wanted: false, has_grown: false, quiet_since: None }
    }

    /// Returns to the first pause. Pending growth is kept.
    pub(super) fn restart(&mut self) {
        (self.pause, self.has_grown, self.quiet_since) = (self.first_pause, false, None);
    }

    /// Call while there is pressure.
    pub(super) fn pressed(&mut self) {
        if self.has_grown {
            self.pause = self.pause.saturating_mul(2).min(MAX_PAUSE.max(self.first_pause));
        }
        (self.is_wanted, self.has_grown, self.quiet_since) = (true, false, None);
    }

    /// Call while there is no pressure, but a step might bring it back.
    pub(super) fn unsettled(&mut self) {
        self.quiet_since = None;
    }

    /// Call while there is room. True if a step is due: report it to [`grown`](Self::grown).
    pub(super) fn quiet(&mut self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(*self.quiet_since.get_or_insert(now));
        if !self.is_wanted && quiet >= self.pause.saturating_mul(REST) {
            (self.pause, self.has_grown) = (self.first_pause, false);
        }
        self.is_wanted && quiet >= self.pause
    }

    /// Records a step of growth. `more`: some client is still below its full size.
    pub(super) fn grown(&mut self, now: Instant, more: bool) {
        (self.is_wanted, self.has_grown, self.quiet_since) = (more, true, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The seconds of `range` at which a step is due. Each step reports that more is left.
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
    fn without_pressure_nothing_grows() {
        let mut growth = Growth::new(SECOND);
        assert_eq!(steps(&mut growth, Instant::now(), 0..100), Vec::<u32>::new());
    }

    #[test]
    fn steps_have_pauses_until_the_full_size_is_reached() {
        let (mut growth, start) = (Growth::new(SECOND), Instant::now());
        growth.pressed();
        assert_eq!(steps(&mut growth, start, 0..14), [4, 8, 12]);
        growth.grown(start + 14 * SECOND, false);
        assert_eq!(steps(&mut growth, start, 15..100), Vec::<u32>::new());
    }

    #[test]
    fn use_near_the_threshold_delays_a_step() {
        let (mut growth, start) = (Growth::new(SECOND), Instant::now());
        growth.pressed();
        assert_eq!(steps(&mut growth, start, 0..4), Vec::<u32>::new());
        growth.unsettled();
        assert_eq!(steps(&mut growth, start, 4..9), [8]);
    }

    #[test]
    fn growth_that_brings_pressure_back_doubles_the_pause() {
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
    fn a_long_time_at_full_size_resets_the_pause() {
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
