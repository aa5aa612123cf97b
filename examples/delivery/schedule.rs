//! Decides when things happen and which attempts fail. Pure: the same seed gives the same run, also
//! after a restart.

use std::time::Duration;

/// Number of attempts after which the server sends a bounce.
pub(crate) const MAX_ATTEMPTS: u32 = 6;

/// Shortest delay before the first retry. Each further delay is twice the previous one.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// Longest delay before a retry. It lets all retries of a message fit in a short run.
const LONGEST_DELAY: Duration = Duration::from_millis(1_000);

/// Percentage of the failures that are permanent.
const PERMANENT_OF_FAILURES_PERCENT: u64 = 10;

/// How an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered,
    /// As an SMTP 4xx reply: the server tries again later.
    TemporaryFailure,
    /// As an SMTP 5xx reply, or the last allowed attempt failed: the server sends a bounce.
    PermanentFailure,
}

/// Time from the start until the `nth` message (from 0) is due. With a rate of 0, all are due at
/// once.
pub(crate) fn due(nth: u64, messages_per_s: u32) -> Duration {
    if messages_per_s == 0 {
        return Duration::ZERO;
    }
    let micros = u128::from(nth) * 1_000_000 / u128::from(messages_per_s);
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// The outcome of attempt number `attempt` (from 0) of the message at `index`. It depends only on
/// the arguments, so a message that is delivered again after a crash has the same outcome.
pub(crate) fn outcome(seed: u64, index: u64, attempt: u32, failures_percent: u8) -> Outcome {
    let roll = mix(seed, index, attempt, 0);
    if roll % 100 >= u64::from(failures_percent) {
        return Outcome::Delivered;
    }
    let permanent = mix(seed, index, attempt, 1) % 100 < PERMANENT_OF_FAILURES_PERCENT;
    if permanent || attempt + 1 >= MAX_ATTEMPTS {
        Outcome::PermanentFailure
    } else {
        Outcome::TemporaryFailure
    }
}

/// The delay before retry number `retry` (from 1): it doubles, plus up to 50 % of jitter, so that
/// messages which failed together are not all retried together.
pub(crate) fn retry_delay(seed: u64, index: u64, retry: u32) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1 << retry.saturating_sub(1).min(10)).min(LONGEST_DELAY);
    let jitter_percent = u32::try_from(mix(seed, index, retry, 2) % 51).unwrap_or(0);
    (doubled + doubled * jitter_percent / 100).min(LONGEST_DELAY)
}

/// Hashes the arguments with SplitMix64. The result is well spread and the same on every machine.
fn mix(seed: u64, index: u64, attempt: u32, purpose: u64) -> u64 {
    let mut state = seed;
    for word in [index, u64::from(attempt), purpose] {
        state = splitmix(state ^ splitmix(word));
    }
    state
}

fn splitmix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(outcome_wanted: Outcome, percent: u8) -> usize {
        (0..10_000).filter(|index| outcome(7, *index, 0, percent) == outcome_wanted).count()
    }

    #[test]
    fn due_times_follow_the_rate() {
        assert_eq!(due(0, 300), Duration::ZERO);
        assert_eq!(due(300, 300), Duration::from_secs(1));
        assert_eq!(due(450, 300), Duration::from_millis(1_500));
        assert_eq!(due(1_000_000, 0), Duration::ZERO);
        assert!(due(u64::MAX, 1) > Duration::from_secs(1 << 40));
    }

    #[test]
    fn the_share_of_failures_matches_the_option() {
        assert_eq!(count(Outcome::Delivered, 0), 10_000);
        assert_eq!(count(Outcome::Delivered, 100), 0);
        let delivered = count(Outcome::Delivered, 15);
        assert!((8_300..8_700).contains(&delivered), "{delivered}");
        let permanent = count(Outcome::PermanentFailure, 15);
        assert!((100..200).contains(&permanent), "{permanent}");
    }

    #[test]
    fn the_last_attempt_never_fails_temporarily() {
        for index in 0..1_000 {
            assert_ne!(outcome(1, index, MAX_ATTEMPTS - 1, 100), Outcome::TemporaryFailure);
        }
    }

    #[test]
    fn the_seed_decides_the_outcomes() {
        let run = |seed| (0..200).map(|index| outcome(seed, index, 0, 50)).collect::<Vec<_>>();
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn delays_double_within_their_bounds() {
        for index in 0..100 {
            assert!((50..=75).contains(&retry_delay(1, index, 1).as_millis()));
            assert!((200..=300).contains(&retry_delay(1, index, 3).as_millis()));
            assert_eq!(retry_delay(1, index, 200), LONGEST_DELAY);
        }
        assert!((0..100).any(|index| retry_delay(1, index, 1) != retry_delay(1, 0, 1)));
    }
}
