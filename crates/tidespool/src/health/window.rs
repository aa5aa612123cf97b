//! Errors of one kind, counted in a sliding window.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Times of the newest errors. Holds at most `too_many` of them.
#[derive(Debug)]
pub(super) struct ErrorWindow {
    times: VecDeque<Instant>,
    too_many: usize,
    length: Duration,
}

impl ErrorWindow {
    pub(super) fn new(too_many: u32, length: Duration) -> Self {
        let mut window = Self { times: VecDeque::new(), too_many: 0, length };
        window.reconfigure(too_many, length);
        window
    }

    pub(super) fn reconfigure(&mut self, too_many: u32, length: Duration) {
        self.too_many = usize::try_from(too_many).unwrap_or(usize::MAX);
        self.length = length;
        self.keep_newest();
    }

    /// Adds `errors` at `now`. Returns whether the window holds too many errors now.
    pub(super) fn add(&mut self, now: Instant, errors: u64) -> bool {
        self.times.retain(|time| now.saturating_duration_since(*time) < self.length);
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
