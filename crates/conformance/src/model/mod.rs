//! The model test: random operations, restarts and losses of the index, on a spool and on the
//! reference spool, compared step by step.
//!
//! [`run`] tries many random histories. A history that fails is shrunk, and printed in a form that
//! [`replay`] takes: paste it into a test to keep it.
//!
//! Environment: `TIDESPOOL_MODEL_CASES`, the total number of histories (default [`DEFAULT_CASES`]),
//! shared between all spools; `TIDESPOOL_MODEL_SEED`, the seed of a failed run.

mod lost_index;
mod operation;
mod player;

use std::fmt::Write as _;

use proptest::collection::vec;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::Factory;
use crate::env::{number_from_env, seed_from_env};

pub use operation::{Loss, Operation, SLOTS, Size};

/// The default of `TIDESPOOL_MODEL_CASES`.
pub const DEFAULT_CASES: u64 = 300;

/// The maximum length of a history, in operations.
const LONGEST: usize = 60;

/// Runs one `shares`-th of the random histories on this spool. `make` returns a factory with an
/// empty storage each time.
///
/// # Panics
///
/// If the spool and the reference differ. The message contains the shortest failing history, and
/// the seed.
pub fn run<F: Factory + 'static>(shares: u64, make: impl Fn() -> F) {
    let cases = number_from_env("TIDESPOOL_MODEL_CASES").unwrap_or(DEFAULT_CASES).div_ceil(shares.max(1));
    let seed = seed_from_env("TIDESPOOL_MODEL_SEED");
    println!("model: {cases} histories, TIDESPOOL_MODEL_SEED={seed}");
    if let Err((why, history)) = search(cases, seed, &make) {
        panic!(
            "{why}\nTIDESPOOL_MODEL_SEED={seed}; the shortest history that shows it:\n{}",
            as_code(&history)
        );
    }
}

/// Replays one history: for histories that failed in the past.
///
/// # Panics
///
/// If the spool and the reference differ.
pub fn replay<F: Factory + 'static>(factory: F, history: &[Operation]) {
    if let Err(why) = player::play(Box::new(factory), history) {
        panic!("{why}\n{}", as_code(history));
    }
}

/// Searches for a history that fails, and shrinks it.
///
/// # Errors
///
/// The difference, and the history.
///
/// # Panics
///
/// If proptest gives up.
pub fn search<F: Factory + 'static>(
    cases: u64,
    seed: u64,
    make: &impl Fn() -> F,
) -> Result<(), (String, Vec<Operation>)> {
    let config = Config {
        cases: u32::try_from(cases).unwrap_or(u32::MAX),
        max_shrink_iters: 400,
        // The seed and the history are printed instead.
        failure_persistence: None,
        ..Config::default()
    };
    let seed: [u8; 32] = SmallRng::seed_from_u64(seed).random();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&vec(operation::any(), 1..LONGEST), |history| {
        player::play(Box::new(make()), &history).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, history)) => Err((why.message().to_owned(), history)),
        Err(TestError::Abort(why)) => panic!("the search was aborted: {why}"),
    }
}

fn as_code(history: &[Operation]) -> String {
    let mut code = String::from("&[\n");
    for operation in history {
        writeln!(code, "    {operation:?},").expect("writing to a string");
    }
    code + "]"
}
