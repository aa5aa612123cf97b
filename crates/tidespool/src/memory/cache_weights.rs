//! What a clean copy costs in the cache that all spools of a store share. Pure.

use crate::message_id::SpoolNumber;

/// The weights of the spools. A copy of a spool with the highest weight costs its bytes. A copy of
/// another costs as many times more as its spool's weight is lower, so the bytes of all copies
/// never exceed the capacity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CacheWeights {
    /// The highest weight, at least 1.
    highest: u32,
    /// The spools with lower weights, by their numbers. Empty: all weights are equal.
    lower: Box<[(SpoolNumber, u32)]>,
}

impl CacheWeights {
    pub(crate) fn of(spools: impl Iterator<Item = (SpoolNumber, u32)>) -> Self {
        let mut lower: Vec<_> = spools.collect();
        let highest = lower.iter().map(|(_, weight)| *weight).max().unwrap_or(0).max(1);
        lower.retain(|(_, weight)| *weight < highest);
        if lower.is_empty() {
            return Self::default();
        }
        lower.sort_unstable();
        Self { highest, lower: lower.into() }
    }

    /// True if a copy of each spool costs its bytes.
    pub(super) fn are_equal(&self) -> bool {
        self.lower.is_empty()
    }

    /// False: copies of this spool are not kept.
    pub(super) fn keeps(&self, spool: SpoolNumber) -> bool {
        self.are_equal() || self.cost(spool, 1).is_some()
    }

    /// Returns what a copy of `bytes` costs. `None`: copies of this spool are not kept.
    pub(super) fn cost(&self, spool: SpoolNumber, bytes: u64) -> Option<u64> {
        match self.lower.binary_search_by_key(&spool, |(number, _)| *number) {
            // At most 1 GiB times 1 000.
            Ok(at) => (bytes * u64::from(self.highest)).checked_div(u64::from(self.lower[at].1)),
            Err(_) => Some(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u16) -> SpoolNumber {
        SpoolNumber::new(number).unwrap()
    }

    fn weights(weights: &[(u16, u32)]) -> CacheWeights {
        CacheWeights::of(weights.iter().map(|(spool, weight)| (number(*spool), *weight)))
    }

    #[test]
    fn a_copy_costs_more_the_lower_its_spools_weight_is() {
        let weights = weights(&[(7, 1), (2, 12), (5, 4), (3, 0)]);
        let costs = [2, 5, 7, 3, 9].map(|spool| weights.cost(number(spool), 1_000));
        // A spool that was just made has no weight yet.
        assert_eq!(costs, [Some(1_000), Some(3_000), Some(12_000), None, Some(1_000)]);
        assert!(!weights.are_equal());
    }

    #[test]
    fn equal_weights_cost_nothing_more() {
        for equal in
            [weights(&[]), weights(&[(1, 7)]), weights(&[(1, 1), (2, 1)]), weights(&[(1, 9), (2, 9)])]
        {
            assert_eq!(equal, CacheWeights::default());
            assert!(equal.are_equal());
            assert_eq!(equal.cost(number(2), 1_000), Some(1_000));
        }
    }

    #[test]
    fn no_spool_is_cached_if_every_weight_is_zero() {
        let none = weights(&[(1, 0), (2, 0)]);
        assert_eq!((none.cost(number(1), 10), none.cost(number(2), 10)), (None, None));
    }

    #[test]
    fn the_largest_message_has_a_cost_at_the_lowest_weight() {
        let weights = weights(&[(1, 1), (2, 1_000)]);
        assert_eq!(weights.cost(number(1), 1 << 30), Some(1_000 << 30));
    }
}
