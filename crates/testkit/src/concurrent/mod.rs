//! The concurrent form of the model test: many callers on a few ids, and every load explained.
//!
//! Several callers store, replace, remove and load a small set of hot ids and some cold ones.
//! Beside them cleanup, compact, `advise_low_memory`, reconfigure and enumerate run all the time.
//! Some futures are dropped, some stores have deadlines that pass. After a round the spool is shut
//! down, or dropped, often beside the calls, and opened again. Then each id's calls are checked:
//!
//! * **Linearizability**: one order of the stores and removes of an id explains every load of it
//!   ([`checker`]). Store values are unique. An enumeration is a load of every id, from its
//!   beginning to the moment at which the entry was received, or to its end where there was none.
//!   No entry comes twice.
//! * **Orderly restart**: each id holds its final value.
//! * **Drop without shutdown**: as a crash. What was acknowledged as durable is there; of the rest
//!   no newer message is kept while an older one is lost ([`restart`]). The rules are those of
//!   [`crash::judge`](crate::crash::judge).
//! * A store that returned an error is never seen while the process lives. Neither is it seen after
//!   an orderly shutdown. After a drop it may be.
//! * A dropped store may take effect at any later moment of the same life, but never after a store
//!   or remove that began after the drop.
//!
//! # Layout
//!
//! * `plan` – what a round does, from a seed.
//! * `history` – the calls as they were made, in logical time.
//! * `checker` – is there an order that explains a history? Pure.
//! * `restart` – what must be there after a restart; the report.
//! * `caller`, `upkeep`, `run` – the tasks, and the rounds.
//!
//! # Environment
//!
//! `TIDESPOOL_CONCURRENT_ROUNDS`: the number of rounds (default [`DEFAULT_ROUNDS`] in all, whatever
//! the number of spools they are shared between). `TIDESPOOL_CONCURRENT_SEED`: the seed of a run
//! that failed. It repeats the plan, not the race: threads still run as they like. Raise the rounds
//! with it.

mod caller;
pub mod checker;
#[cfg(test)]
mod checker_tests;
pub mod history;
pub mod plan;
pub mod restart;
mod run;
mod upkeep;

use std::sync::Arc;

use anyhow::Result;

pub use plan::Shape;
pub use restart::Expected;

use crate::conformance::Factory;
use crate::rng::{number_from_env, seed_from_env};

/// Rounds, unless `TIDESPOOL_CONCURRENT_ROUNDS` gives another number.
pub const DEFAULT_ROUNDS: u64 = 50;

/// The spool under test.
pub trait Subject: Factory {
    /// What is expected of it.
    fn expected(&self) -> Expected;

    /// What the rounds are made of. Default = [`Shape::Mixed`].
    fn shape(&self) -> Shape {
        Shape::default()
    }

    /// Changes settings of the open spool, chosen by `number`. Default: nothing.
    ///
    /// # Errors
    ///
    /// Where the spool refuses settings that it must take.
    fn reconfigure(&self, number: u64) -> Result<()> {
        let _ = number;
        Ok(())
    }
}

/// How much there was to check: a test that checked nothing proves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Stores and removes acknowledged.
    pub written: u64,
    /// Stores that returned an error.
    pub failed: u64,
    /// Stores and removes whose futures were dropped.
    pub dropped: u64,
    /// Loads, and entries of enumerations.
    pub found: u64,
    /// Loads of nothing, and ids that an enumeration did not send.
    pub not_found: u64,
    /// Enumerations that ran to their end.
    pub enumerations: u64,
    /// Calls that made everything durable.
    pub flushes: u64,
    /// Orderly ends.
    pub shutdowns: u64,
    /// Drops without a shutdown.
    pub drops: u64,
    /// Messages of which a drop lost the newest version, as it may.
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

/// Drives this spool's share of the rounds: one `shares`-th of them.
///
/// # Panics
///
/// Where a promise is broken: with the history of one id, and the seed.
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

/// Drives `rounds` rounds on an empty spool.
///
/// # Errors
///
/// The number of the first round that broke a promise, and how.
pub fn search(subject: Arc<dyn Subject>, seed: u64, rounds: u64) -> Result<Coverage, (u64, String)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let result = runtime.block_on(run::rounds(subject, seed, rounds));
    runtime.shutdown_background();
    result
}
