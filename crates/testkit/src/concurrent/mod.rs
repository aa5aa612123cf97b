//! The concurrent model test: many callers on a few ids, with an explanation for every load.
//!
//! Several callers store, replace, remove and load a small set of hot ids and some cold ids.
//! Meanwhile `cleanup`, `compact`, `advise_low_memory`, reconfigure and `enumerate` run
//! continuously. Some futures are dropped, and some stores have deadlines that pass. After a round
//! the spool is shut down or dropped, often during calls, and opened again. Then the calls of each
//! id are checked:
//!
//! * **Linearizability**: one order of the stores and removes of an id explains every load of it
//!   (`checker`). Store values are unique. An enumeration is a load of every id, from its
//!   beginning until the entry is received, or until its end if there is no entry. No entry comes
//!   twice.
//! * **Orderly restart**: each id has its final value.
//! * **Drop without shutdown**: like a crash. Messages acknowledged as durable are present. Of the
//!   others, no newer message is kept while an older one is lost (`restart`). The rules are those
//!   of [`oracle`](crate::oracle).
//! * A store that returned an error is never seen while the spool is open, nor after an orderly
//!   shutdown. After a drop it may be seen.
//! * A dropped store may take effect at any later time of the same session, but never after a store
//!   or remove that began after the drop.
//!
//! # Layout
//!
//! * `plan` – the calls of a round, generated from a seed.
//! * `history` – the recorded calls, in logical time.
//! * `checker` – decides whether an order explains a history. Pure.
//! * `restart` – checks the state after a restart; the report.
//! * `caller`, `upkeep`, `run` – the tasks and the rounds.
//!
//! # Environment
//!
//! `TIDESPOOL_CONCURRENT_ROUNDS`: the total number of rounds (default [`DEFAULT_ROUNDS`]), shared
//! between all spools. `TIDESPOOL_CONCURRENT_SEED`: the seed of a failed run. It repeats the plan
//! but not the race between threads, so increase the rounds with it.

mod caller;
mod checker;
#[cfg(test)]
mod checker_tests;
mod history;
mod plan;
mod restart;
mod run;
mod upkeep;

use std::sync::Arc;

use anyhow::Result;

pub use plan::Shape;
pub use restart::Expected;

use crate::env::{number_from_env, seed_from_env};
use tidespool_conformance::Factory;

/// The default of `TIDESPOOL_CONCURRENT_ROUNDS`.
pub const DEFAULT_ROUNDS: u64 = 50;

/// The spool under test.
pub trait Subject: Factory {
    /// The guarantees to check.
    fn expected(&self) -> Expected;

    /// The kind of rounds. Default = [`Shape::Mixed`].
    fn shape(&self) -> Shape {
        Shape::default()
    }

    /// Changes settings of the open spool, chosen by `number`. The default does nothing.
    ///
    /// # Errors
    ///
    /// If the spool rejects settings that it must accept.
    fn reconfigure(&self, number: u64) -> Result<()> {
        let _ = number;
        Ok(())
    }
}

/// What was checked: a test that checked nothing proves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Acknowledged stores and removes.
    pub written: u64,
    /// Stores that returned an error.
    pub failed: u64,
    /// Stores and removes whose futures were dropped.
    pub dropped: u64,
    /// Loads, and entries of enumerations.
    pub found: u64,
    /// Loads that found nothing, and ids that an enumeration did not send.
    pub not_found: u64,
    /// Enumerations that ran to their end.
    pub enumerations: u64,
    /// Calls that made all data durable.
    pub flushes: u64,
    /// Orderly shutdowns.
    pub shutdowns: u64,
    /// Drops without a shutdown.
    pub drops: u64,
    /// Messages whose newest version was lost by a drop, as allowed.
    pub lost: u64,
}

impl std::ops::AddAssign for Coverage {
    fn add_assign(&mut self, more: Self) {
        self.written += more.written;
        self.failed += more.failed;
        self.dropped += more.dropped;
        self.found += more.found;
        self.not_found += more.not_found;
        self.enumerations += more.enumerations;
        self.flushes += more.flushes;
        self.shutdowns += more.shutdowns;
        self.drops += more.drops;
        self.lost += more.lost;
    }
}

/// Runs one `shares`-th of the rounds on this spool.
///
/// # Panics
///
/// If a promise is broken. The message contains the history of one id, and the seed.
pub fn run<S: Subject + 'static>(name: &str, shares: u64, subject: S) -> Coverage {
    let rounds =
        number_from_env("TIDESPOOL_CONCURRENT_ROUNDS").unwrap_or(DEFAULT_ROUNDS).div_ceil(shares.max(1));
    let seed = seed_from_env("TIDESPOOL_CONCURRENT_SEED");
    println!("concurrent, {name}: {rounds} rounds, TIDESPOOL_CONCURRENT_SEED={seed}");
    match search(Arc::new(subject), seed, rounds) {
        Ok(coverage) => {
            println!("concurrent, {name}: {coverage:?}");
            coverage
        }
        Err((round, why)) => panic!("{name}, round {round}, TIDESPOOL_CONCURRENT_SEED={seed}:\n{why}"),
    }
}

/// Runs `rounds` rounds on an empty spool.
///
/// # Errors
///
/// The number of the first round that broke a promise, and the violation.
pub fn search(subject: Arc<dyn Subject>, seed: u64, rounds: u64) -> Result<Coverage, (u64, String)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let result = runtime.block_on(run::rounds(subject, seed, rounds));
    runtime.shutdown_background();
    result
}
