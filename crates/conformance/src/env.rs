//! The environment variables that choose the seed and the size of a random test.

use std::time::{SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Returns the seed in the environment variable `name`, or one from the clock if it is not set. The
/// caller prints the seed.
///
/// # Panics
///
/// If the variable is set and is not a number.
#[must_use]
pub fn seed_from_env(name: &str) -> u64 {
    number_from_env(name).unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = u64::from(since.subsec_nanos()) ^ since.as_secs().rotate_left(32);
        SmallRng::seed_from_u64(clock).random_range(0..1_000_000_000)
    })
}

/// Returns the number in the environment variable `name`, or `None` if it is not set.
///
/// # Panics
///
/// If the variable is set and is not a number.
#[must_use]
pub fn number_from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.trim().parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is {text:?}: expected a whole number")))
}
