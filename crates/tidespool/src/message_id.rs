//! The identity of a message in a store: its spool's number, and its id in that spool.

use std::fmt;
use std::hash::{Hash, Hasher};

use tidespool_core::SpoolId;

/// The number of a spool in its store. A number is never used for another name, so that no record
/// of a spool that was removed can be taken for one of a later spool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SpoolNumber([u8; 2]);

impl SpoolNumber {
    /// The number of records that belong to no spool.
    pub(crate) const NONE: Self = Self([0; 2]);

    /// The number of a store's first spool.
    pub(crate) const FIRST: Self = Self([0, 1]);

    /// The highest number. A footer stores numbers inverted, and a scan must not take an inverted
    /// number for the high bits of a generation, which are 0.
    pub(crate) const LAST: Self = Self(0x7fff_u16.to_be_bytes());

    /// `None`: the number is too high.
    pub(crate) fn new(number: u16) -> Option<Self> {
        let number = Self(number.to_be_bytes());
        (number <= Self::LAST).then_some(number)
    }

    pub(crate) const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    /// The bytes, the most significant first.
    pub(crate) const fn to_bytes(self) -> [u8; 2] {
        self.0
    }
}

impl fmt::Display for SpoolNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl fmt::Debug for SpoolNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// A message of a store. The same id in two spools is two messages.
///
/// 18 bytes without alignment: memory holds one for each message that is not checkpointed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MessageId {
    spool: SpoolNumber,
    id: SpoolId,
}

const _: () = assert!(size_of::<MessageId>() == 18);

impl MessageId {
    /// The message of records that are of no message.
    pub(crate) const NONE: Self = Self::new(SpoolNumber::NONE, SpoolId::from_bytes([0; 16]));

    pub(crate) const fn new(spool: SpoolNumber, id: SpoolId) -> Self {
        Self { spool, id }
    }

    pub(crate) const fn spool(&self) -> SpoolNumber {
        self.spool
    }

    pub(crate) const fn id(&self) -> SpoolId {
        self.id
    }
}

impl Hash for MessageId {
    /// Hashes both parts as one number, as the id alone does: each message is hashed several times.
    fn hash<H: Hasher>(&self, state: &mut H) {
        // In other bits than the fast-changing ones of an id's time.
        let spool = u128::from(self.spool.get()) << 64;
        state.write_u128(u128::from_ne_bytes(*self.id.as_bytes()) ^ spool);
    }
}

/// The id, and the spool's number for a store with several.
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.spool {
            SpoolNumber::FIRST => write!(f, "{}", self.id),
            spool => write!(f, "{} of spool {spool}", self.id),
        }
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
impl MessageId {
    /// A new id in a spool that is not the first.
    pub(crate) fn random() -> Self {
        Self::of_test(SpoolId::new())
    }

    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self::of_test(SpoolId::from_bytes(bytes))
    }

    /// The message with this id in the spool of the tests.
    pub(crate) const fn of_test(id: SpoolId) -> Self {
        Self { spool: SpoolNumber([1, 2]), id }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;

    use super::*;

    #[test]
    fn the_same_id_in_two_spools_is_two_messages() {
        let id = SpoolId::new();
        let [one, two] = [1, 2].map(|number| MessageId::new(SpoolNumber::new(number).unwrap(), id));
        assert!(one < two && one.id() == two.id());
        let hasher = foldhash::fast::RandomState::default();
        assert_ne!(hasher.hash_one(one), hasher.hash_one(two));
    }

    #[test]
    fn numbers_end_below_the_range_that_a_scan_could_take_for_a_generation() {
        assert_eq!(SpoolNumber::new(0x7fff), Some(SpoolNumber::LAST));
        assert_eq!(SpoolNumber::new(0x8000), None);
        assert_eq!(SpoolNumber::FIRST.get(), 1);
    }
}
