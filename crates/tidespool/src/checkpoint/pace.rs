//! How long the checkpointer thread rests between two steps, to keep commits fast. Pure.

use std::time::Duration;

/// The longest rest. The thread must react to a stop and to a full journal.
const LONGEST: Duration = Duration::from_millis(100);

/// The bounds of [`Pace::share`], in eighths of the time worked.
const LEAST: u32 = 1;
const MOST: u32 = 32;

/// Compares the sync latency of the journal with its baseline between checkpoints. Rests longer
/// while the latency is more than a fifth above it.
#[derive(Debug)]
pub(crate) struct Pace {
    baseline: Option<Duration>,
    /// The rest after a step, in eighths of the time worked.
    share: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { baseline: None, share: LEAST }
    }
}

impl Pace {
    /// A checkpoint begins. `latency`: the recent duration of a sync. `None` if there was none.
    pub(crate) fn begin(&mut self, latency: Option<Duration>) {
        self.baseline = match (self.baseline, latency) {
            (Some(baseline), Some(latency)) => Some((baseline * 3 + latency) / 4),
            (baseline, latency) => baseline.or(latency),
        };
    }

    /// Returns how long to rest after a step that took `worked`. 0 if `is_urgent`, because a store
    /// waits for a segment.
    pub(crate) fn rest(&mut self, worked: Duration, latency: Option<Duration>, is_urgent: bool) -> Duration {
        let (Some(baseline), Some(latency), false) = (self.baseline, latency, is_urgent) else {
            self.share = LEAST;
            return Duration::ZERO;
        };
        self.share = match latency * 5 > baseline * 6 {
            true => (self.share * 2).min(MOST),
            false => (self.share / 2).max(LEAST),
        };
        (worked * self.share / 8).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn rests_are_longer_while_commits_are_slow() {
        let mut pace = Pace::default();
        pace.begin(Some(ms(10)));
        assert_eq!(pace.rest(ms(8), Some(ms(12)), false), ms(1), "a fifth is allowed");
        let slow: Vec<_> = (0..7).map(|_| pace.rest(ms(8), Some(ms(13)), false)).collect();
        assert_eq!(slow, [2, 4, 8, 16, 32, 32, 32].map(ms));
        assert_eq!(pace.rest(ms(8), Some(ms(11)), false), ms(16));
        assert_eq!(pace.rest(ms(8000), Some(ms(20)), false), LONGEST);
    }

    #[test]
    fn there_is_no_rest_without_commits_or_if_a_store_waits_for_a_segment() {
        let mut pace = Pace::default();
        assert_eq!(pace.rest(ms(8), Some(ms(10)), false), ms(0), "there is no baseline yet");
        pace.begin(None);
        pace.begin(Some(ms(10)));
        assert_eq!(pace.rest(ms(8), None, false), ms(0));
        assert_eq!(pace.rest(ms(8), Some(ms(100)), true), ms(0));
        assert_eq!(pace.rest(ms(8), Some(ms(100)), false), ms(2), "the share was reset");
    }

    #[test]
    fn the_baseline_follows_a_slower_machine() {
        let mut pace = Pace::default();
        pace.begin(Some(ms(10)));
        (0..20).for_each(|_| pace.begin(Some(ms(20))));
        assert_eq!(pace.rest(ms(8), Some(ms(22)), false), ms(1));
    }
}
