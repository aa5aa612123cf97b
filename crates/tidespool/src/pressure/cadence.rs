//! When to look again: pure, with the clock as an argument.

use std::time::{Duration, Instant};

/// The shortest pause, as a part of the interval.
const SHORTEST: u32 = 32;

/// A look costs a few file reads; more of them a second are of no use.
const NEVER_BELOW: Duration = Duration::from_millis(5);

/// At the rate at which use rises, so many looks are taken before it is at the limit.
const LOOKS_TO_LIMIT: f64 = 8.0;

/// Looks each interval, and more often while use rises so fast that it would soon be at the limit.
///
/// From a short pause it goes back to the interval by doubling. The first pause is the shortest: nothing is known
/// yet of how use moves.
#[derive(Debug)]
pub(super) struct Cadence {
    interval: Duration,
    pause: Duration,
    last: Option<(Instant, u64)>,
}

impl Cadence {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, pause: shortest(interval) / 2, last: None }
    }

    /// The pause after a look that found `used` of `limit` bytes.
    pub(super) fn next(&mut self, now: Instant, used: u64, limit: u64) -> Duration {
        let to_limit =
            self.last.replace((now, used)).and_then(|last| time_to_limit(last, (now, used), limit));
        let pause = self.interval.min(self.pause.saturating_mul(2));
        let hurried = to_limit.map_or(pause, |time| pause.min(time.div_f64(LOOKS_TO_LIMIT)));
        self.pause = hurried.max(shortest(self.interval));
        self.pause
    }

    /// The pause after a look that saw nothing.
    pub(super) fn blind(&mut self) -> Duration {
        self.last = None;
        self.interval
    }
}

fn shortest(interval: Duration) -> Duration {
    (interval / SHORTEST).max(NEVER_BELOW).min(interval)
}

/// `None` where use does not rise.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn time_to_limit(last: (Instant, u64), now: (Instant, u64), limit: u64) -> Option<Duration> {
    let risen = now.1.checked_sub(last.1).filter(|risen| *risen > 0)? as f64;
    let took = now.0.saturating_duration_since(last.0).as_secs_f64();
    let seconds = limit.saturating_sub(now.1) as f64 / risen * took;
    // Fails above 10^11 years, which is no hurry either.
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(320);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// The pauses while use is as `used` says at each look.
    fn pauses(cadence: &mut Cadence, now: &mut Instant, used: &[u64]) -> Vec<Duration> {
        let mut pause = |used: &u64| {
            let pause = cadence.next(*now, *used, 1_000);
            *now += pause;
            pause
        };
        used.iter().map(&mut pause).collect()
    }

    #[test]
    fn use_that_stands_still_is_looked_at_each_interval() {
        let (mut cadence, mut now) = (Cadence::new(INTERVAL), Instant::now());
        let slow_start = [10, 20, 40, 80, 160, 320, 320].map(ms);
        assert_eq!(pauses(&mut cadence, &mut now, &[500; 7]), slow_start);
        assert_eq!(pauses(&mut cadence, &mut now, &[500, 400, 300]), [INTERVAL; 3]);
    }

    #[test]
    fn use_that_rises_fast_is_looked_at_more_often() {
        let (mut cadence, mut now) = (Cadence::new(INTERVAL), Instant::now());
        pauses(&mut cadence, &mut now, &[100; 7]);
        // 100 in 320 ms: the 800 that are left would last 2.56 s, an eighth of which is the interval.
        assert_eq!(pauses(&mut cadence, &mut now, &[200]), [ms(320)]);
        // 400 in 320 ms: the 400 that are left would last 320 ms.
        assert_eq!(pauses(&mut cadence, &mut now, &[600]), [ms(40)]);
        assert_eq!(pauses(&mut cadence, &mut now, &[1_000, 1_000]), [ms(10), ms(20)]);
    }

    proptest! {
        #[test]
        fn a_pause_is_never_longer_than_the_interval_nor_shorter_than_its_bound(
            millis in 10..60_000_u64, used in prop::collection::vec(any::<u64>(), 1..20), limit in 1..u64::MAX,
        ) {
            let (interval, now) = (ms(millis), Instant::now());
            let mut cadence = Cadence::new(interval);
            for (second, used) in used.into_iter().enumerate() {
                let pause = cadence.next(now + Duration::from_secs(second as u64), used, limit);
                prop_assert!(pause <= interval && pause >= shortest(interval));
            }
        }
    }
}
