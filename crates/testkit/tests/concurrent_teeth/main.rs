//! Tests of the concurrent model test. Each mutant breaks one promise of an otherwise correct
//! spool, often enough that a few rounds detect it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod mutants; // the spools that break a promise

use std::sync::Arc;

use mutants::{Mutant, MutantStorage};
use tidespool_testkit::concurrent::search;

/// Most mutants are detected in the first round; the dropped store once took more than 12.
const ROUNDS: u64 = 60;

/// Returns the report of the first round that detects the mutant.
fn detect(mutant: Mutant) -> String {
    let (round, why) = search(Arc::new(MutantStorage::new(mutant)), 7, ROUNDS)
        .expect_err(&format!("{mutant:?} was not detected in {ROUNDS} rounds"));
    println!("{mutant:?}, round {round}: {why}");
    why
}

#[test]
fn a_correct_spool_has_no_violation() {
    let coverage = search(Arc::new(MutantStorage::new(Mutant::None)), 7, ROUNDS);
    let coverage = coverage.unwrap_or_else(|(round, why)| panic!("round {round}: {why}"));
    println!("{coverage:?}");
    assert!(coverage.written > 1_000 && coverage.found > 1_000 && coverage.not_found > 100);
    assert!(coverage.dropped > 0 && coverage.shutdowns > 0 && coverage.drops > 0);
}

/// A load reads a message, a store replaces it, and then the load fills the cache with the old
/// version.
#[test]
fn a_cache_filled_with_a_replaced_version() {
    assert!(detect(Mutant::StaleCacheFill).contains("no order of its calls"));
}

/// Upkeep reads a message, the message is removed, and then upkeep writes it back.
#[test]
fn a_removed_message_brought_back_by_a_late_write_back() {
    assert!(detect(Mutant::LateWriteBack).contains("no order of its calls"));
}

/// The deadline passes after the message is written, and the message stays.
#[test]
fn a_failed_store_that_leaves_its_value() {
    assert!(detect(Mutant::FailedStoreStays).contains("no order of its calls"));
}

/// A store is queued, its future is dropped, the caller stores again, and then the queue is
/// written.
#[test]
fn a_dropped_store_that_happens_after_a_later_one() {
    assert!(detect(Mutant::DroppedStoreHappensLate).contains("no order of its calls"));
}

/// A load that looks in two places sometimes returns the older version.
#[test]
fn a_load_that_returns_an_earlier_version() {
    assert!(detect(Mutant::EarlierVersion).contains("no order of its calls"));
}

/// A load copies a message while it is replaced.
#[test]
fn a_load_that_mixes_two_versions() {
    assert!(detect(Mutant::Mixture).contains("wrong bytes"));
}

/// A remove returns before the message is removed.
#[test]
fn a_remove_that_takes_effect_late() {
    assert!(detect(Mutant::LateRemove).contains("no order of its calls"));
}

#[test]
fn an_enumeration_that_misses_messages() {
    assert!(detect(Mutant::EnumerationMisses).contains("enumeration"));
}

#[test]
fn an_enumeration_that_sends_messages_twice() {
    assert!(detect(Mutant::EnumerationRepeats).contains("enumerated twice"));
}

/// An orderly shutdown does not write the final version of a message.
#[test]
fn a_message_lost_by_an_orderly_restart() {
    assert!(detect(Mutant::ShutdownLoses).contains("after the shutdown"));
}

/// An orderly shutdown does not write a removal.
#[test]
fn a_removed_message_brought_back_by_an_orderly_restart() {
    assert!(detect(Mutant::ShutdownBringsBack).contains("after the shutdown"));
}

/// A drop loses a synced message.
#[test]
fn a_synced_message_lost_by_a_drop() {
    assert!(detect(Mutant::DropLosesTheSynced).contains("after the drop"));
}

/// Unsynced messages are written newest first.
#[test]
fn a_newer_message_kept_while_an_older_one_is_lost() {
    let why = detect(Mutant::DropLosesTheOlder);
    // Each single history is legal.
    assert!(why.contains("is lost while the newer") && !why.contains("no order of its calls"), "{why}");
}

/// A drop replaces a synced message by the version before it.
#[test]
fn a_replaced_version_brought_back_by_a_drop() {
    assert!(detect(Mutant::DropBringsBackTheReplaced).contains("after the drop"));
}
