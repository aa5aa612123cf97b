//! How stores are slowed as dirty bytes near their limit. Pure.

use std::time::Duration;

/// Below this share of the limit nobody waits.
const THRESHOLD: f64 = 0.75;

/// The delay at the limit itself.
const MAX_DELAY: Duration = Duration::from_millis(20);

/// How long a store is held back, for the share of `dirty_limit` that is dirty beside it: nothing below three quarters, then growing
/// with the square of what is above, to 20 ms at the limit. Whole milliseconds, as timers go.
pub(crate) fn hold_back(dirty: u64, limit: u64) -> Duration {
    if limit == 0 {
        return Duration::ZERO;
    }
    let share = dirty as f64 / limit as f64;
    let above = ((share - THRESHOLD) / (1.0 - THRESHOLD)).clamp(0.0, 1.0);
    let delay = MAX_DELAY.mul_f64(above * above);
    Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(0))
}

/// True where a store can't get its room in time: `ahead` bytes must drain first, at the measured `bytes_per_second`.
/// Nothing measured yet (0) is no reason to refuse.
pub(crate) fn cannot_meet(ahead: u64, bytes_per_second: u64, left: Duration) -> bool {
    // Twice the time is granted: a rate measured just now is a guess about the next seconds.
    bytes_per_second > 0 && ahead as f64 / bytes_per_second as f64 > 2.0 * left.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_is_zero_below_the_threshold_and_grows_without_a_step() {
        let limit = 1_000_000;
        assert_eq!(hold_back(0, limit), Duration::ZERO);
        assert_eq!(hold_back(750_000, limit), Duration::ZERO);
        assert_eq!(hold_back(limit, limit), MAX_DELAY);
        assert_eq!(hold_back(3 * limit, limit), MAX_DELAY);
        assert_eq!(hold_back(5, 0), Duration::ZERO);
        let delays: Vec<Duration> = (0..=1000).map(|share| hold_back(share * 1000, limit)).collect();
        assert!(
            delays.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] - pair[0] <= Duration::from_millis(1))
        );
    }

    #[test]
    fn a_deadline_is_refused_only_where_the_rate_is_known_and_far_too_low() {
        let second = Duration::from_secs(1);
        assert!(!cannot_meet(1 << 30, 0, second), "nothing measured");
        assert!(!cannot_meet(1_900, 1_000, second));
        assert!(cannot_meet(2_100, 1_000, second));
        assert!(cannot_meet(1, 1_000, Duration::ZERO));
        assert!(!cannot_meet(0, 1_000, Duration::ZERO));
    }
}
