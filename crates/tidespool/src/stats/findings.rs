//! Damage, each piece of it counted once: a message that is asked for again and again is damaged no more than before.

use std::collections::HashSet;
use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;
use parking_lot::Mutex;
use tidespool_core::SpoolId;

/// With more than this it begins anew: a finding may then count twice, but none is missed.
const MOST: usize = 4_096;

/// What was found so far, as digests of message and finding.
#[derive(Debug, Default)]
pub(super) struct DamageFindings(Mutex<HashSet<u64>>);

impl DamageFindings {
    /// True the first time.
    pub(super) fn is_new(&self, id: &SpoolId, what: &str) -> bool {
        let digest = FixedState::default().hash_one((id, what));
        let mut known = self.0.lock();
        let is_new = known.insert(digest);
        if known.len() > MOST {
            *known = HashSet::from([digest]);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_new_once_and_not_too_many_are_remembered() {
        let findings = DamageFindings::default();
        let id = SpoolId::new();
        assert!(findings.is_new(&id, "bad bytes at 7"));
        assert!(!findings.is_new(&id, "bad bytes at 7"));
        assert!(findings.is_new(&id, "bad bytes at 9"), "stored anew, and damaged anew");
        let new = (0..2 * MOST).filter(|n| findings.is_new(&SpoolId::new(), &n.to_string())).count();
        assert_eq!(new, 2 * MOST, "none is missed, however many there are");
        assert!(findings.0.lock().len() <= MOST);
    }
}
