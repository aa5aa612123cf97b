//! From use to level, with hysteresis. Pure.

use crate::config::HYSTERESIS;
use crate::{Level, PressureConfig};

/// The share of the last 10 s in which some task waited for memory, from which on the level is at
/// least low. A machine with enough memory stays below 1 %.
const STALL_RATIO: f64 = 0.10;

/// Where the levels begin and end, as fractions of the limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thresholds {
    low: f64,
    critical: f64,
    hysteresis: f64,
    stall_ratio: f64,
}

impl Thresholds {
    pub(crate) fn new(config: &PressureConfig) -> Self {
        let &PressureConfig { low, critical, .. } = config;
        Self { low, critical, hysteresis: HYSTERESIS, stall_ratio: STALL_RATIO }
    }

    /// The level that follows `current` when `fraction` of the limit is in use.
    ///
    /// A level begins at its threshold. It ends when use is below the threshold by the hysteresis.
    pub(crate) fn next(&self, current: Level, fraction: f64) -> Level {
        let begun = Self::level_at(fraction, self.low, self.critical);
        let not_ended = Self::level_at(fraction, self.low - self.hysteresis, self.critical - self.hysteresis);
        begun.max(not_ended.min(current))
    }

    /// Whether stalls count as pressure. `ratio` is the share of time lost to stalls, `before` is
    /// the previous result.
    ///
    /// Stalls begin to count at `stall_ratio` and stop below half of it. The kernel's figure is a
    /// slowly falling mean, so a smaller gap would be crossed by chance. `None` is no pressure.
    pub(crate) fn stalled(&self, before: bool, ratio: Option<f64>) -> bool {
        let threshold = if before { self.stall_ratio / 2.0 } else { self.stall_ratio };
        self.stall_ratio > 0.0 && ratio.is_some_and(|ratio| ratio >= threshold)
    }

    /// The fraction below which the level is normal again. Relief aims at it.
    pub(crate) fn target(&self) -> f64 {
        self.low - self.hysteresis
    }

    fn level_at(fraction: f64, low: f64, critical: f64) -> Level {
        if fraction >= critical {
            Level::Critical
        } else if fraction >= low {
            Level::Low
        } else {
            Level::Normal
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Level::{Critical, Low, Normal};
    use super::*;

    fn thresholds(hysteresis: f64) -> Thresholds {
        Thresholds { low: 0.80, critical: 0.92, hysteresis, stall_ratio: 0.10 }
    }

    #[test]
    fn levels_begin_at_their_thresholds() {
        let thresholds = thresholds(0.05);
        for (fraction, level) in
            [(0.0, Normal), (0.79, Normal), (0.80, Low), (0.91, Low), (0.92, Critical), (1.7, Critical)]
        {
            assert_eq!(thresholds.next(Normal, fraction), level, "{fraction}");
        }
    }

    #[test]
    fn levels_end_below_their_thresholds_by_the_hysteresis() {
        let thresholds = thresholds(0.05);
        for (current, fraction, level) in [
            (Low, 0.76, Low),
            (Low, 0.74, Normal),
            (Critical, 0.88, Critical),
            (Critical, 0.86, Low),
            (Critical, 0.76, Low),
            (Critical, 0.74, Normal),
            (Low, 0.88, Low),
        ] {
            assert_eq!(thresholds.next(current, fraction), level, "{current:?} at {fraction}");
        }
    }

    #[test]
    fn use_around_a_threshold_changes_the_level_once() {
        let thresholds = thresholds(0.05);
        let mut level = Normal;
        let mut changes = 0;
        for fraction in [0.79, 0.81, 0.79, 0.80, 0.78, 0.82, 0.77, 0.80] {
            let next = thresholds.next(level, fraction);
            changes += usize::from(next != level);
            level = next;
        }
        assert_eq!((level, changes), (Low, 1));
    }

    #[test]
    fn an_unknown_fraction_is_no_pressure() {
        assert_eq!(thresholds(0.05).next(Critical, f64::NAN), Normal);
    }

    #[test]
    fn stalls_begin_at_their_threshold_and_end_below_half_of_it() {
        let thresholds = thresholds(0.05);
        for (before, ratio, stalled) in [
            (false, Some(0.09), false),
            (false, Some(0.10), true),
            (true, Some(0.06), true),
            (true, Some(0.049), false),
            (true, None, false),
            (false, Some(f64::NAN), false),
        ] {
            assert_eq!(thresholds.stalled(before, ratio), stalled, "{ratio:?} after {before}");
        }
        let off = Thresholds { stall_ratio: 0.0, ..thresholds };
        assert!(!off.stalled(true, Some(1.0)), "0 turns them off");
    }

    proptest! {
        #[test]
        fn more_stalls_never_mean_less_pressure(
            a in 0.0..1.0_f64, b in 0.0..1.0_f64, threshold in 0.0..1.0_f64, before in any::<bool>(),
        ) {
            let thresholds = Thresholds { stall_ratio: threshold, ..thresholds(0.05) };
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(thresholds.stalled(before, Some(less)) <= thresholds.stalled(before, Some(more)));
            let once = thresholds.stalled(before, Some(a));
            prop_assert_eq!(thresholds.stalled(once, Some(a)), once);
        }

        #[test]
        fn more_use_never_means_a_lower_level(
            a in 0.0..1.2_f64, b in 0.0..1.2_f64, hysteresis in 0.0..0.79_f64, current in 0..3_usize,
        ) {
            let thresholds = thresholds(hysteresis);
            let current = [Normal, Low, Critical][current];
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(thresholds.next(current, less) <= thresholds.next(current, more));
        }

        #[test]
        fn the_same_use_twice_changes_nothing(
            fraction in 0.0..1.2_f64, hysteresis in 0.0..0.79_f64, current in 0..3_usize,
        ) {
            let thresholds = thresholds(hysteresis);
            let once = thresholds.next([Normal, Low, Critical][current], fraction);
            prop_assert_eq!(thresholds.next(once, fraction), once);
        }
    }
}
