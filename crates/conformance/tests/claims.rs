//! A spool that claims less is tested for less, and the skipped cases are reported by name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use tidespool_conformance::reference::{ReferenceSpool, ReferenceStorage};
use tidespool_conformance::{CASES, Claim, Factory, Outcome, check, run};
use tidespool_core::Spool;

/// A spool that keeps every promise, and claims some of them.
struct Modest {
    storage: ReferenceStorage,
    unclaimed: Vec<Claim>,
}

impl Modest {
    fn new(unclaimed: &[Claim]) -> Self {
        Self { storage: ReferenceStorage::default(), unclaimed: unclaimed.to_vec() }
    }
}

#[async_trait]
impl Factory for Modest {
    async fn open(&self) -> anyhow::Result<Arc<dyn Spool>> {
        Ok(Arc::new(ReferenceSpool::open_with_limit(&self.storage, self.max_message_size())))
    }

    fn unclaimed(&self) -> Vec<Claim> {
        self.unclaimed.clone()
    }
}

/// Returns the cases that need an unclaimed feature, and that feature. All other cases must pass.
fn not_claimed(unclaimed: &[Claim]) -> Vec<(&'static str, Claim)> {
    let mut left_out = Vec::new();
    for case in CASES {
        match check(Box::new(Modest::new(unclaimed)), case.run) {
            Outcome::Kept => {}
            Outcome::NotClaimed(claim) => left_out.push((case.name, claim)),
            outcome => panic!("{}: {outcome:?}", case.name),
        }
    }
    left_out
}

fn reopening() -> BTreeSet<&'static str> {
    let after = CASES.iter().position(|case| case.name == "stored_messages_survive_a_restart").unwrap();
    CASES[after..].iter().map(|case| case.name).chain(["stores_beside_a_shutdown_are_answered"]).collect()
}

#[test]
fn without_persistence_exactly_the_cases_that_reopen_are_skipped() {
    let left_out = not_claimed(&[Claim::Persists]);
    assert!(left_out.iter().all(|(_, claim)| *claim == Claim::Persists), "{left_out:?}");
    assert_eq!(left_out.into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>(), reopening());
}

#[test]
fn a_case_that_needs_no_claims_runs_without_claims() {
    let left_out = not_claimed(&[Claim::Syncs, Claim::Enumerates, Claim::Persists, Claim::OrdersDropped]);
    let left_out: BTreeSet<&str> = left_out.into_iter().map(|(name, _)| name).collect();
    assert!(!left_out.contains("an_absent_message_is_not_found"));
    for name in ["every_message_is_enumerated_once", "synced_messages_survive_a_drop"] {
        assert!(left_out.contains(name), "{name}");
    }
}

#[test]
#[should_panic(expected = "synced_messages_survive_a_drop: not claimed: messages that outlive the spool")]
fn a_case_that_needs_an_unclaimed_feature_does_not_pass() {
    let case = CASES.iter().find(|case| case.name == "synced_messages_survive_a_drop").unwrap();
    run(case.name, Modest::new(&[Claim::Persists]), case.run);
}
