//! Findings of damage, each counted once: repeated loads of a damaged message add nothing.

use std::collections::HashSet;
use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;
use parking_lot::Mutex;

use crate::message_id::MessageId;

/// Above this number the set is cleared. A finding may then count twice, but none is missed.
const MAX_FINDINGS: usize = 4_096;

/// The findings so far, as hashes of message and finding.
#[derive(Debug, Default)]
pub(super) struct DamageFindings(Mutex<HashSet<u64>>);

impl DamageFindings {
    /// Records a finding. Returns true if it is new.
    pub(super) fn is_new(&self, id: &MessageId, what: &str) -> bool {
        let digest = FixedState::default().hash_one((id, what));
        let mut known = self.0.lock();
        let is_new = known.insert(digest);
        if known.len() > MAX_FINDINGS {
            *known = HashSet::from([digest]);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_new_once_and_the_set_is_bounded() {
        let findings = DamageFindings::default();
        let id = MessageId::random();
        assert!(findings.is_new(&id, "bad bytes at 7"));
        assert!(!findings.is_new(&id, "bad bytes at 7"));
        assert!(findings.is_new(&id, "bad bytes at 9"), "another place of the same message");
        let many = 0..2 * MAX_FINDINGS;
        let new = many.filter(|n| findings.is_new(&MessageId::random(), &n.to_string())).count();
        assert_eq!(new, 2 * MAX_FINDINGS, "no finding is missed");
        assert!(findings.0.lock().len() <= MAX_FINDINGS);
    }
}
