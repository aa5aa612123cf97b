//! Random operations, restarts and losses of the index, on a spool and on the reference spool,
//! compared step by step.
//!
//! [`run`] tries many random histories; one that fails is shrunk to a short one, which is printed in a form that
//! [`replay`] takes: paste it into a test, so that it stays.
//!
//! Environment: `TIDESPOOL_MODEL_CASES`, the number of histories (default [`DEFAULT_CASES`] in all, whatever the number
//! of spools they are shared between); `TIDESPOOL_MODEL_SEED`, the seed of a run that failed.

mod lost_index;
mod operation;
mod player;

use std::fmt::Write as _;

use proptest::collection::vec;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::conformance::Factory;
use crate::rng::{Rng, number_from_env, seed_from_env};

pub use operation::{Loss, Operation, SLOTS, Size};

/// Histories, where `TIDESPOOL_MODEL_CASES` says nothing else.
pub const DEFAULT_CASES: u64 = 300;

/// The longest history, in operations.
const LONGEST: usize = 60;

/// Tries this spool's share of the random histories: one `shares`-th of them. `make` gives a factory with an empty
/// storage each time.
///
/// # Panics
///
/// Where the spool and the reference differ: with the shortest history found that shows it, and the seed.
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

/// Plays one history: for those that once failed.
///
/// # Panics
///
/// Where the spool and the reference differ.
pub fn replay<F: Factory + 'static>(factory: F, history: &[Operation]) {
    if let Err(why) = player::play(Box::new(factory), history) {
        panic!("{why}\n{}", as_code(history));
    }
}

/// Looks for a history that fails; returns why and the shortest one.
///
/// # Errors
///
/// What differs, and the history.
pub fn search<F: Factory + 'static>(
    cases: u64,
    seed: u64,
    make: &impl Fn() -> F,
) -> Result<(), (String, Vec<Operation>)> {
    let config = Config {
        cases: u32::try_from(cases).unwrap_or(u32::MAX),
        max_shrink_iters: 400,
        // The seed is printed instead, and the history.
        failure_persistence: None,
        ..Config::default()
    };
    let mut rng = Rng::new(seed);
    let seed_bytes: Vec<u8> = (0..4).flat_map(|_| rng.number().to_le_bytes()).collect();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&vec(operation::any(), 1..LONGEST), |history| {
        player::play(Box::new(make()), &history).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, history)) => Err((why.message().to_owned(), history)),
        Err(TestError::Abort(why)) => panic!("the search was given up: {why}"),
    }
}

fn as_code(history: &[Operation]) -> String {
    let mut code = String::from("&[\n");
    for operation in history {
        writeln!(code, "    {operation:?},").expect("writing to a string");
    }
    code + "]"
}
