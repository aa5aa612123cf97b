//! A sorted, encoded set of record offsets: about two bytes for each record.

use crate::varint::{put_varint, take_varint};

/// Records of a segment are aligned to this many bytes. Offsets are kept in this unit.
pub(super) const UNIT: u64 = 8;

/// A sorted set of offsets: the first one, then the distance of each to the previous one. All are
/// in units of [`UNIT`] and encoded as varints (seven bits a byte, low bits first).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Offsets {
    count: u64,
    bytes: Vec<u8>,
}

impl Offsets {
    /// Creates a set from ascending units without duplicates.
    pub(super) fn from_ascending(units: impl IntoIterator<Item = u64>) -> Self {
        let mut offsets = Self::default();
        let mut before = 0;
        for unit in units {
            debug_assert!(offsets.count == 0 || unit > before, "{unit} after {before}");
            put_varint(&mut offsets.bytes, unit - before);
            before = unit;
            offsets.count += 1;
        }
        offsets.bytes.shrink_to_fit();
        offsets
    }

    /// Parses encoded bytes. `None` if they are not exactly `count` ascending offsets.
    pub(super) fn parse(count: u64, bytes: &[u8]) -> Option<Self> {
        let (mut rest, mut before) = (bytes, 0u64);
        for index in 0..count {
            // Each number takes at least one byte, so a `count` that is too large fails here.
            let step = take_varint(&mut rest)?;
            if index > 0 && step == 0 {
                return None;
            }
            before = before.checked_add(step)?;
            before.checked_mul(UNIT)?;
        }
        rest.is_empty().then(|| Self { count, bytes: bytes.to_vec() })
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the units, ascending.
    pub(super) fn units(&self) -> Units<'_> {
        Units { rest: &self.bytes, before: 0 }
    }

    /// Returns the union of both sets.
    pub(super) fn union(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.units().peekable(), other.units().peekable());
        Self::from_ascending(std::iter::from_fn(|| match (left.peek(), right.peek()) {
            (Some(one), Some(two)) if one == two => {
                left.next();
                right.next()
            }
            (Some(one), Some(two)) if one > two => right.next(),
            (Some(_), _) => left.next(),
            (None, _) => right.next(),
        }))
    }

    /// Returns this set without the given ascending units.
    pub(super) fn without(&self, units: &[u64]) -> Self {
        let mut others = units.iter().peekable();
        Self::from_ascending(self.units().filter(|unit| {
            while others.next_if(|other| *other < unit).is_some() {}
            others.peek() != Some(&unit)
        }))
    }
}

/// Iterates over the units of [`Offsets`].
#[derive(Debug, Clone)]
pub(super) struct Units<'a> {
    rest: &'a [u8],
    before: u64,
}

impl Iterator for Units<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let step = take_varint(&mut self.rest)?;
        self.before = self.before.wrapping_add(step);
        Some(self.before)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set() -> impl Strategy<Value = BTreeSet<u64>> {
        let unit = prop_oneof![4 => 0..200u64, 1 => 0..u64::MAX / UNIT];
        proptest::collection::btree_set(unit, 0..80)
    }

    fn back(offsets: &Offsets) -> BTreeSet<u64> {
        let units: Vec<u64> = offsets.units().collect();
        assert!(units.is_sorted() && units.len() as u64 == offsets.count());
        units.into_iter().collect()
    }

    #[test]
    fn a_record_takes_two_bytes() {
        // Records of 1 KiB.
        let offsets = Offsets::from_ascending((0..60_000).map(|record| 512 + record * 136));
        assert!(offsets.bytes().len() < 60_000 * 2 + 8, "{}", offsets.bytes().len());
    }

    proptest! {
        #[test]
        fn sets_are_read_back_united_and_reduced(one in set(), two in set()) {
            let (left, right) = (
                Offsets::from_ascending(one.iter().copied()),
                Offsets::from_ascending(two.iter().copied()),
            );
            prop_assert_eq!(Offsets::parse(left.count(), left.bytes()), Some(left.clone()));
            prop_assert_eq!(Offsets::parse(left.count() + 1, left.bytes()), None);
            prop_assert_eq!(back(&left), one.clone());
            prop_assert_eq!(back(&left.union(&right)), &one | &two);
            let units: Vec<u64> = two.iter().copied().collect();
            prop_assert_eq!(back(&left.without(&units)), &one - &two);
        }

        #[test]
        fn any_bytes_are_parsed_without_a_panic(
            count in prop_oneof![0..40u64, any::<u64>()],
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Some(offsets) = Offsets::parse(count, &bytes) {
                back(&offsets);
            }
        }
    }
}
