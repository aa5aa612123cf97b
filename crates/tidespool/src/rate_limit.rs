//! Rate limit for warnings that a lasting fault repeats: one a minute.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The least time between two logged warnings.
const PAUSE: Duration = Duration::from_secs(60);

/// The rate limit of one kind of warning.
#[derive(Debug, Default)]
pub(crate) struct RateLimit(Mutex<RateLimitState>);

#[derive(Debug, Default)]
struct RateLimitState {
    logged: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// Returns `Some` if the warning may be logged now, with the number of warnings suppressed
    /// since the last one.
    pub(crate) fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if state.logged.is_some_and(|logged| now.saturating_duration_since(logged) < PAUSE) {
            state.suppressed += 1;
            return None;
        }
        state.logged = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_warning_is_logged_and_then_one_a_minute() {
        let (limit, start) = (RateLimit::default(), Instant::now());
        let logged = [0, 1, 59, 60, 61, 200].map(|s| limit.allow_at(start + Duration::from_secs(s)));
        assert_eq!(logged, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
