//! Decides when things happen and which attempts fail. Pure: the same seed gives the same run, also
//! after a restart.

use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

/// Number of attempts after which the server sends a bounce.
pub(crate) const MAX_ATTEMPTS: u32 = 6;

/// Shortest delay before the first retry. Each further delay is twice the previous one.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// Longest delay before a retry. It lets all retries of a message fit in a short run.
const LONGEST_DELAY: Duration = Duration::from_millis(1_000);

/// Percentage of the failures that are permanent.
const PERMANENT_OF_FAILURES_PERCENT: u8 = 10;

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
    let mut random = random(seed, index, attempt, Purpose::Outcome);
    if random.random_range(0..100) >= failures_percent {
        return Outcome::Delivered;
    }
    if random.random_range(0..100) < PERMANENT_OF_FAILURES_PERCENT || attempt + 1 >= MAX_ATTEMPTS {
        Outcome::PermanentFailure
    } else {
        Outcome::TemporaryFailure
    }
}

/// The delay before retry number `retry` (from 1): it doubles, plus up to 50 % of jitter, so that
/// messages which failed together are not all retried together.
pub(crate) fn retry_delay(seed: u64, index: u64, retry: u32) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1 << retry.saturating_sub(1).min(10)).min(LONGEST_DELAY);
    let jitter_percent = random(seed, index, retry, Purpose::Delay).random_range(0..=50);
    (doubled + doubled * jitter_percent / 100).min(LONGEST_DELAY)
}

/// What random numbers are drawn for. Each purpose has numbers of its own.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Outcome,
    Delay,
}

/// A generator whose numbers follow from the arguments, on every machine.
fn random(seed: u64, index: u64, attempt: u32, purpose: Purpose) -> ChaCha8Rng {
    let words = [seed, index, u64::from(attempt), purpose as u64];
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
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
