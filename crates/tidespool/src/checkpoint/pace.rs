//! How long the checkpoint thread rests between two steps, so that commits hardly feel it. Pure.

use std::time::Duration;

/// The longest rest: the thread has to hear of its end, and of a journal that runs full.
const LONGEST: Duration = Duration::from_millis(100);

/// Of the time worked, in eighths.
const LEAST: u32 = 1;
const MOST: u32 = 32;

/// Learns what a sync of the journal takes while nothing is filed, and rests more as long as it takes a fifth more than that.
#[derive(Debug)]
pub(crate) struct Pace {
    calm: Option<Duration>,
    /// The share of the time worked that is rested after it, in eighths.
    share: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { calm: None, share: LEAST }
    }
}

impl Pace {
    /// A checkpoint begins. `latency`: what a sync took lately; `None` where there was none.
    pub(crate) fn begin(&mut self, latency: Option<Duration>) {
        self.calm = match (self.calm, latency) {
            (Some(calm), Some(latency)) => Some((calm * 3 + latency) / 4),
            (calm, latency) => calm.or(latency),
        };
    }

    /// How long to rest after having worked for so long. Nobody who waits for a segment waits for a rest: then `is_urgent`.
    pub(crate) fn rest(&mut self, worked: Duration, latency: Option<Duration>, is_urgent: bool) -> Duration {
        let (Some(calm), Some(latency), false) = (self.calm, latency, is_urgent) else {
            self.share = LEAST;
            return Duration::ZERO;
        };
        self.share = match latency * 5 > calm * 6 {
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
    fn it_rests_longer_while_commits_suffer_and_less_when_they_do_not() {
        let mut pace = Pace::default();
        pace.begin(Some(ms(10)));
        assert_eq!(pace.rest(ms(8), Some(ms(12)), false), ms(1), "a fifth is allowed");
        let suffering: Vec<_> = (0..7).map(|_| pace.rest(ms(8), Some(ms(13)), false)).collect();
        assert_eq!(suffering, [2, 4, 8, 16, 32, 32, 32].map(ms));
        assert_eq!(pace.rest(ms(8), Some(ms(11)), false), ms(16));
        assert_eq!(pace.rest(ms(8000), Some(ms(20)), false), LONGEST);
    }

    #[test]
    fn it_does_not_rest_where_nobody_commits_or_somebody_waits_for_a_segment() {
        let mut pace = Pace::default();
        assert_eq!(pace.rest(ms(8), Some(ms(10)), false), ms(0), "nothing is known yet");
        pace.begin(None);
        pace.begin(Some(ms(10)));
        assert_eq!(pace.rest(ms(8), None, false), ms(0));
        assert_eq!(pace.rest(ms(8), Some(ms(100)), true), ms(0));
        assert_eq!(pace.rest(ms(8), Some(ms(100)), false), ms(2), "it begins anew");
    }

    #[test]
    fn a_machine_that_gets_slower_is_learned() {
        let mut pace = Pace::default();
        pace.begin(Some(ms(10)));
        (0..20).for_each(|_| pace.begin(Some(ms(20))));
        assert_eq!(pace.rest(ms(8), Some(ms(22)), false), ms(1));
    }
}
