//! Warnings that a lasting fault repeats, at most once a minute.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Between two of them.
const PAUSE: Duration = Duration::from_secs(60);

/// When one kind of warning was logged last.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<SeldomState>);

#[derive(Debug, Default)]
struct SeldomState {
    logged: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// `Some` if it may be logged now, with the number of those that were left out since the last.
    pub(crate) fn is_time(&self) -> Option<u64> {
        self.is_time_at(Instant::now())
    }

    fn is_time_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if state.logged.is_some_and(|logged| now.saturating_duration_since(logged) < PAUSE) {
            state.left_out += 1;
            return None;
        }
        state.logged = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_and_one_a_minute_after_it() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let logged = [0, 1, 59, 60, 61, 200].map(|s| seldom.is_time_at(start + Duration::from_secs(s)));
        assert_eq!(logged, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
