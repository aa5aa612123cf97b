//! Errors of one kind, counted in a sliding window.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The length of the window. Errors of a disk that fails come faster; one error an hour is a matter
/// for the log.
const LENGTH: Duration = Duration::from_secs(60);

/// Times of the newest errors. Holds at most `too_many` of them.
#[derive(Debug)]
pub(super) struct ErrorWindow {
    times: VecDeque<Instant>,
    too_many: usize,
}

impl ErrorWindow {
    pub(super) fn new(too_many: u32) -> Self {
        let mut window = Self { times: VecDeque::new(), too_many: 0 };
        window.reconfigure(too_many);
        window
    }

    pub(super) fn reconfigure(&mut self, too_many: u32) {
        self.too_many = usize::try_from(too_many).unwrap_or(usize::MAX);
        self.keep_newest();
    }

    /// Adds `errors` at `now`. Returns whether the window holds too many errors now.
    pub(super) fn add(&mut self, now: Instant, errors: u64) -> bool {
        self.times.retain(|time| now.saturating_duration_since(*time) < LENGTH);
        let errors = usize::try_from(errors).unwrap_or(usize::MAX).min(self.too_many);
        self.times.extend(std::iter::repeat_n(now, errors));
        self.keep_newest();
        self.times.len() >= self.too_many
    }

    fn keep_newest(&mut self) {
        let surplus = self.times.len().saturating_sub(self.too_many);
        self.times.drain(..surplus);
    }

    /// Forgets all errors.
    pub(super) fn clear(&mut self) {
        self.times.clear();
    }
}
