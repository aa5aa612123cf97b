//! When to take the next sample. Pure: the clock is an argument.

use std::time::{Duration, Instant};

/// The shortest pause, as a fraction of the interval.
const SHORTEST: u32 = 32;

/// A lower bound for every pause. A sample costs a few file reads, and more samples are useless.
const MIN_PAUSE: Duration = Duration::from_millis(5);

/// At the rate at which use rises, this many samples are taken before use reaches the limit.
const SAMPLES_TO_LIMIT: f64 = 8.0;

/// Samples once per interval, and more often while use rises so fast that it would soon reach the
/// limit.
///
/// A short pause doubles until it is the interval again. The first pause is the shortest, because
/// the trend of use is unknown.
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

    /// The pause after a sample of `used` out of `limit` bytes.
    pub(super) fn next(&mut self, now: Instant, used: u64, limit: u64) -> Duration {
        let to_limit =
            self.last.replace((now, used)).and_then(|last| time_to_limit(last, (now, used), limit));
        let pause = self.interval.min(self.pause.saturating_mul(2));
        let hurried = to_limit.map_or(pause, |time| pause.min(time.div_f64(SAMPLES_TO_LIMIT)));
        self.pause = hurried.max(shortest(self.interval));
        self.pause
    }

    /// The pause after a failed sample.
    pub(super) fn failed(&mut self) -> Duration {
        self.last = None;
        self.interval
    }
}

fn shortest(interval: Duration) -> Duration {
    (interval / SHORTEST).max(MIN_PAUSE).min(interval)
}

/// The time until use reaches the limit. `None` if use does not rise.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn time_to_limit(last: (Instant, u64), now: (Instant, u64), limit: u64) -> Option<Duration> {
    let risen = now.1.checked_sub(last.1).filter(|risen| *risen > 0)? as f64;
    let took = now.0.saturating_duration_since(last.0).as_secs_f64();
    let seconds = limit.saturating_sub(now.1) as f64 / risen * took;
    // Fails above 10^11 years, which needs no short pause.
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

    /// The pauses after samples of `used`.
    fn pauses(cadence: &mut Cadence, now: &mut Instant, used: &[u64]) -> Vec<Duration> {
        let mut pause = |used: &u64| {
            let pause = cadence.next(*now, *used, 1_000);
            *now += pause;
            pause
        };
        used.iter().map(&mut pause).collect()
    }

    #[test]
    fn constant_use_is_sampled_once_per_interval() {
        let (mut cadence, mut now) = (Cadence::new(INTERVAL), Instant::now());
        let slow_start = [10, 20, 40, 80, 160, 320, 320].map(ms);
        assert_eq!(pauses(&mut cadence, &mut now, &[500; 7]), slow_start);
        assert_eq!(pauses(&mut cadence, &mut now, &[500, 400, 300]), [INTERVAL; 3]);
    }

    #[test]
    fn fast_rising_use_is_sampled_more_often() {
        let (mut cadence, mut now) = (Cadence::new(INTERVAL), Instant::now());
        pauses(&mut cadence, &mut now, &[100; 7]);
        // 100 in 320 ms: the remaining 800 last 2.56 s. An eighth of that is the interval.
        assert_eq!(pauses(&mut cadence, &mut now, &[200]), [ms(320)]);
        // 400 in 320 ms: the remaining 400 last 320 ms.
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
