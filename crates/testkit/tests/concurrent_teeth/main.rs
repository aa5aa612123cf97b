//! The concurrent model test must be able to fail: each mutant here breaks one promise of an
//! otherwise correct spool, often enough that a few rounds show it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod mutants; // the spools that break a promise

use std::sync::Arc;

use mutants::{Mutant, MutantStorage};
use tidespool_testkit::concurrent::search;

/// Most mutants are caught in the first round; the dropped store took more than 12 once.
const ROUNDS: u64 = 60;

/// Returns the report of the first round that showed it.
fn caught(mutant: Mutant) -> String {
    let (round, why) = search(Arc::new(MutantStorage::new(mutant)), 7, ROUNDS)
        .expect_err(&format!("{mutant:?} was not caught in {ROUNDS} rounds"));
    println!("{mutant:?}, round {round}: {why}");
    why
}

#[test]
fn without_a_fault_all_is_well() {
    let coverage = search(Arc::new(MutantStorage::new(Mutant::None)), 7, ROUNDS);
    let coverage = coverage.unwrap_or_else(|(round, why)| panic!("round {round}: {why}"));
    println!("{coverage:?}");
    assert!(coverage.written > 1_000 && coverage.found > 1_000 && coverage.not_found > 100);
    assert!(coverage.dropped > 0 && coverage.shutdowns > 0 && coverage.drops > 0);
}

/// A load reads a message, a store replaces it, and then the load fills the cache with what it
/// read.
#[test]
fn a_cache_filled_with_a_replaced_version() {
    assert!(caught(Mutant::StaleCacheFill).contains("no order of its calls"));
}

/// A message was read to be written elsewhere, it is removed, and then it is written there.
#[test]
fn a_removed_message_brought_back_by_a_late_write_back() {
    assert!(caught(Mutant::LateWriteBack).contains("no order of its calls"));
}

/// The deadline passes after the message is in its place, and it stays there.
#[test]
fn a_failed_store_that_leaves_its_value() {
    assert!(caught(Mutant::FailedStoreStays).contains("no order of its calls"));
}

/// A store is queued, its future is dropped, the caller stores again, and then the queue is
/// written.
#[test]
fn a_dropped_store_that_happens_after_a_later_one() {
    assert!(caught(Mutant::DroppedStoreHappensLate).contains("no order of its calls"));
}

/// A load that looks in two places returns the older version now and then.
#[test]
fn a_load_that_returns_an_earlier_version() {
    assert!(caught(Mutant::EarlierVersion).contains("no order of its calls"));
}

/// A load copies a message while it is replaced.
#[test]
fn a_load_that_mixes_two_versions() {
    assert!(caught(Mutant::Mixture).contains("wrong bytes"));
}

/// A remove returns before it has removed anything.
#[test]
fn a_remove_that_is_not_effective_at_once() {
    assert!(caught(Mutant::LateRemove).contains("no order of its calls"));
}

#[test]
fn an_enumeration_that_misses_messages() {
    assert!(caught(Mutant::EnumerationMisses).contains("enumeration"));
}

#[test]
fn an_enumeration_that_sends_messages_twice() {
    assert!(caught(Mutant::EnumerationRepeats).contains("enumerated twice"));
}

/// The final version of a message is not written by an orderly shutdown.
#[test]
fn a_message_lost_by_an_orderly_restart() {
    assert!(caught(Mutant::ShutdownLoses).contains("after the shutdown"));
}

/// A removal is forgotten by an orderly shutdown.
#[test]
fn a_removed_message_brought_back_by_an_orderly_restart() {
    assert!(caught(Mutant::ShutdownBringsBack).contains("after the shutdown"));
}

/// What was synced is lost when the spool is dropped.
#[test]
fn a_synced_message_lost_by_a_drop() {
    assert!(caught(Mutant::DropLosesTheSynced).contains("after the drop"));
}

/// Unsynced messages are written newest first.
#[test]
fn a_newer_message_kept_while_an_older_one_is_lost() {
    let why = caught(Mutant::DropLosesTheOlder);
    // Each history by itself is legal.
    assert!(why.contains("is lost while the newer") && !why.contains("no order of its calls"), "{why}");
}

/// Synced messages have a version that was flushed before an older one of the same id.
#[test]
fn a_replaced_version_brought_back_by_a_drop() {
    assert!(caught(Mutant::DropBringsBackTheReplaced).contains("after the drop"));
}
