//! Tests of the conformance suite. Each fault breaks one promise of an otherwise correct spool, and
//! the cases that guard this promise must detect it. At least one fault proves that a case can
//! fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod broken; // the spool that breaks a promise
mod faults; // the faults, and the cases that must detect each

use std::collections::BTreeSet;

use broken::BrokenStorage;
use faults::{FAULTS, Fault};
use tidespool_conformance::{CASES, NamedCase, Outcome, check, model};

fn case(name: &str) -> &'static NamedCase {
    CASES.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("there is no case {name}"))
}

#[test]
fn every_fault_is_detected_by_its_cases() {
    let mut missed = Vec::new();
    for (fault, cases) in FAULTS {
        for name in *cases {
            let outcome = check(Box::new(BrokenStorage::new(*fault)), case(name).run);
            println!("{fault:?}: {name}: {outcome:?}");
            if outcome == Outcome::Kept {
                missed.push((fault, name));
            }
        }
    }
    assert!(missed.is_empty(), "not detected: {missed:#?}");
}

#[test]
fn every_case_is_proven_by_a_fault() {
    let proven: BTreeSet<&str> = FAULTS.iter().flat_map(|(_, cases)| cases.iter().copied()).collect();
    let unproven: Vec<&str> =
        CASES.iter().map(|case| case.name).filter(|name| !proven.contains(name)).collect();
    assert!(unproven.is_empty(), "no fault shows that these can fail: {unproven:?}");
}

#[test]
fn a_correct_spool_passes_every_case() {
    for case in CASES {
        let outcome = check(Box::new(BrokenStorage::new(Fault::None)), case.run);
        assert_eq!(outcome, Outcome::Kept, "{}", case.name);
    }
}

#[test]
fn the_model_finds_and_shrinks_failing_histories() {
    // Two or three operations show each of these faults; shrinking may stop at a few more.
    const SHORT: usize = 6;
    let faults = [
        Fault::LoadsComeFromAStaleCopy,
        Fault::CompactBringsBackTheRemoved,
        Fault::RestartBringsBackTheRemoved,
        Fault::RestartLosesTheUnsynced,
        Fault::RestartBringsBackTheReplaced,
        Fault::APastDeadlineStoresAnyway,
        Fault::AnEmptyMessageIsNotStored,
        Fault::UpkeepLosesLargeMessages,
        Fault::StartTimeIsInclusive,
        Fault::LosingTheIndexLosesMessages,
        Fault::LosingTheIndexBringsBackTheRemoved,
    ];
    for fault in faults {
        let found = model::search(300, 1, &|| BrokenStorage::new(fault));
        let (why, history) = found.expect_err("a history that shows the fault");
        println!("{fault:?}: {why}: {history:?}");
        assert!(history.len() <= SHORT, "{fault:?} was not shrunk: {history:?}");
    }
}
