//! Number and digest of the indexed records, independent of their order. The manifest is compared
//! with the index by them.

use serde::{Deserialize, Serialize};

use super::key::Key;

/// Number and digest of a set of records. Two sets that differ by accident have the same tally with
/// a probability of about 2⁻⁶⁴. The digest does not protect against intent.
///
/// The digest is the sum, modulo 2⁶⁴, of one 64-bit number for each record, so records can be added
/// and subtracted in any order. The number is stable, because it is in the manifest. See
/// [`Tally::add`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// The number of records.
    pub(crate) records: u64,
    /// The digest over key and value of each record.
    pub(crate) digest: u64,
}

impl Tally {
    /// Adds a record.
    ///
    /// Its number `h` starts at 0. For the key and then the value: `h = mix(h ^ length)`, then
    /// `h = mix(h ^ word)` for each 8 bytes, little endian. The last word is padded with zeros.
    /// `mix` is that of splitmix64.
    pub(crate) fn add(&mut self, key: &Key, value: &[u8]) {
        self.records = self.records.wrapping_add(1);
        self.digest = self.digest.wrapping_add(number_of(key.as_bytes(), value));
    }

    /// Subtracts a record that was added before.
    pub(crate) fn subtract(&mut self, key: &Key, value: &[u8]) {
        self.records = self.records.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(number_of(key.as_bytes(), value));
    }

    /// Adds another tally: that of a disjoint set, or a difference, whose `records` is
    /// modulo 2⁶⁴.
    #[must_use]
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            records: self.records.wrapping_add(other.records),
            digest: self.digest.wrapping_add(other.digest),
        }
    }
}

pub(super) fn number_of(key: &[u8], value: &[u8]) -> u64 {
    [key, value].into_iter().fold(0, |hash, bytes| {
        let (words, tail) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        let hash =
            words.iter().fold(mix(hash ^ bytes.len() as u64), |h, word| mix(h ^ u64::from_le_bytes(*word)));
        if tail.is_empty() { hash } else { mix(hash ^ u64::from_le_bytes(last)) }
    })
}

// CRCs would not do. A CRC is linear, so two values of the same length, each with its own CRC
// inside, would differ in at most 32 bits of any combination of CRCs.
const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message_id::MessageId;

    fn pairs() -> impl Strategy<Value = Vec<(Key, Vec<u8>)>> {
        let pair = (any::<[u8; 16]>(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(id, value)| (Key::of(&MessageId::from_bytes(id)), value));
        prop::collection::vec(pair, 0..20)
    }

    fn tally_of<'a>(pairs: impl IntoIterator<Item = &'a (Key, Vec<u8>)>) -> Tally {
        let mut tally = Tally::default();
        pairs.into_iter().for_each(|(key, value)| tally.add(key, value));
        tally
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_subtracting_reverts_adding(pairs in pairs(), cut in any::<prop::sample::Index>()) {
            let all = tally_of(&pairs);
            prop_assert_eq!(all, tally_of(pairs.iter().rev()));
            let (first, rest) = pairs.split_at(cut.index(pairs.len() + 1));
            prop_assert_eq!(tally_of(first).plus(tally_of(rest)), all);
            let mut tally = all;
            first.iter().for_each(|(key, value)| tally.subtract(key, value));
            prop_assert_eq!(tally, tally_of(rest));
        }

        #[test]
        fn each_bit_of_key_and_value_changes_the_digest(id in any::<[u8; 16]>(), value in prop::collection::vec(any::<u8>(), 1..40), bit in any::<prop::sample::Index>()) {
            let key = Key::of(&MessageId::from_bytes(id));
            let good = tally_of([&(key, value.clone())]);
            let mut other = value.clone();
            let at = bit.index(value.len() * 8);
            other[at / 8] ^= 1 << (at % 8);
            prop_assert_ne!(tally_of([&(key, other)]), good);
            let mut id = id;
            id[at / 8 % 16] ^= 1 << (at % 8);
            prop_assert_ne!(tally_of([&(Key::of(&MessageId::from_bytes(id)), value.clone())]), good);
            let longer = [&value[..], &[0]].concat();
            prop_assert_ne!(tally_of([&(key, longer)]), good);
        }
    }

    #[test]
    fn swapped_values_change_the_digest() {
        let [a, b] = [[1; 16], [2; 16]].map(|id| Key::of(&MessageId::from_bytes(id)));
        let straight = tally_of(&[(a, vec![1]), (b, vec![2])]);
        assert_ne!(straight, tally_of(&[(a, vec![2]), (b, vec![1])]));
        assert_ne!(straight, tally_of(&[(a, vec![1]), (a, vec![1])]));
    }

    #[test]
    fn the_digest_is_the_one_in_manifests() {
        let key = Key::of(&MessageId::from_bytes([0x11; 16]));
        let mut tally = Tally::default();
        tally.add(&key, b"a value of 20 bytes.");
        tally.add(&key, b"");
        assert_eq!((tally.records, tally.digest), (2, EXPECTED));
        let json = serde_json::to_string(&tally).unwrap();
        assert_eq!(serde_json::from_str::<Tally>(&json).unwrap(), tally);
    }

    // Computed independently from the rule documented at `Tally::add`.
    const EXPECTED: u64 = 0x1bb8_6bfb_caf0_bf10;
}
