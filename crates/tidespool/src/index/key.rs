//! The keys of the index engine: ids arranged so that keys sort by time.

use std::fmt;
use std::ops::Range;

use chrono::{DateTime, Utc};
use tidespool_core::SpoolId;

use crate::message_id::{MessageId, SpoolNumber};

/// Bytes of a key: the number of the spool, the class of the id, then the 16 bytes of the id.
pub(crate) const KEY_LEN: usize = 19;

/// Where the id begins.
const ID_AT: usize = 3;

/// The time from 1582-10-15, where UUID time starts, to 1970-01-01, in 100 ns.
const UNIX_EPOCH_TICKS: i128 = 0x01b2_1dd2_1381_4000;
/// One more than the newest time of a UUID 1 or 6, in 100 ns.
const TICKS_END: i128 = 1 << 60;
/// One more than the newest time of a UUID 7, in milliseconds.
const MILLIS_END: i128 = 1 << 48;

/// The class of an id by its time. Keys of one class are contiguous, and in time order if the class
/// has a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum KeyClass {
    /// No time: the 16 bytes as they are.
    Timeless = 0,
    /// UUID 1 and 6: 60 bits of time, the version digit, then the other 8 bytes as they are.
    Ticks = 1,
    /// UUID 7: the 16 bytes as they are, which start with the time.
    Millis = 2,
}

impl KeyClass {
    fn of(id: &SpoolId) -> Self {
        let bytes = id.as_bytes();
        // The same condition as in `MessageId::created`: the variant of RFC 9562, then the version.
        match (bytes[8] >> 6, bytes[6] >> 4) {
            (0b10, 1 | 6) => Self::Ticks,
            (0b10, 7) => Self::Millis,
            _ => Self::Timeless,
        }
    }
}

/// The key of a message in the index engine. Each message has exactly one key, from which spool and
/// id can be restored. The messages of a spool are contiguous.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key([u8; KEY_LEN]);

/// The bytes are not the key of any id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} bytes that are not a key: {}", bytes.len(), hex(bytes))]
pub(crate) struct NotAKey {
    /// The bytes found in place of a key (the first 64 of them).
    pub(crate) bytes: Box<[u8]>,
}

impl Key {
    /// The highest id of each class.
    pub(crate) fn last_of_each_class() -> [Self; 3] {
        let last = |version: u8, variant: u8| {
            let mut id = [0xff; 16];
            (id[6], id[8]) = (version << 4 | 0xf, variant);
            Self::of(&MessageId::new(SpoolNumber::NONE, SpoolId::from_bytes(id)))
        };
        // The variant of the first one is not that of a UUID with a time.
        [last(0xf, 0xff), last(6, 0xbf), last(7, 0xbf)]
    }

    /// The key of `message`.
    pub(crate) fn of(message: &MessageId) -> Self {
        let id = message.id();
        let class = KeyClass::of(&id);
        let bytes = id.as_bytes();
        let mut key = [0; KEY_LEN];
        key[..2].copy_from_slice(&message.spool().to_bytes());
        key[2] = class as u8;
        key[ID_AT..].copy_from_slice(bytes);
        if class == KeyClass::Ticks {
            let version = u64::from(bytes[6] >> 4);
            key[ID_AT..ID_AT + 8].copy_from_slice(&(ticks_of(bytes) << 4 | version).to_be_bytes());
        }
        Self(key)
    }

    /// The key of the same id without a spool. Its order is that of the ids of all spools.
    pub(crate) fn without_spool(self) -> Self {
        let mut key = self.0;
        key[..2].copy_from_slice(&SpoolNumber::NONE.to_bytes());
        Self(key)
    }

    /// Parses the bytes of a key.
    pub(crate) fn from_slice(bytes: &[u8]) -> Result<Self, NotAKey> {
        let reject = || NotAKey { bytes: bytes.iter().copied().take(64).collect() };
        let key = Self(bytes.try_into().map_err(|_| reject())?);
        match key.try_message() {
            Some(message) if Self::of(&message) == key => Ok(key),
            _ => Err(reject()),
        }
    }

    /// Returns the bytes that are sorted, and that the engine stores.
    pub(crate) const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Returns the message of the key. `None` only for bytes that are not a key.
    fn try_message(&self) -> Option<MessageId> {
        let [high, low, class, bytes @ ..] = self.0;
        let spool = SpoolNumber::new(u16::from_be_bytes([high, low]))?;
        let id = if class == KeyClass::Ticks as u8 { id_of_ticks(bytes) } else { SpoolId::from_bytes(bytes) };
        Some(MessageId::new(spool, id))
    }

    /// Returns the message of the key.
    pub(crate) fn message(&self) -> MessageId {
        // A key has a valid number: `of` and `from_slice` are the only ways to make one.
        self.try_message().unwrap_or(MessageId::new(SpoolNumber::NONE, SpoolId::from_bytes([0; 16])))
    }

    /// Returns the number of the message's spool.
    pub(crate) fn spool(&self) -> SpoolNumber {
        self.message().spool()
    }

    /// Returns the class of the key.
    pub(crate) const fn class(&self) -> KeyClass {
        match self.0[2] {
            0 => KeyClass::Timeless,
            1 => KeyClass::Ticks,
            _ => KeyClass::Millis,
        }
    }
}

/// Returns the id whose time comes first in `bytes`.
fn id_of_ticks(bytes: [u8; 16]) -> SpoolId {
    let [t0, t1, t2, t3, t4, t5, t6, t7, rest @ ..] = bytes;
    let time_and_version = u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
    let (ticks, version) = (time_and_version >> 4, time_and_version & 0xf);
    let head = if version == 1 {
        ticks << 32 | (ticks >> 16 & 0xffff_0000) | version << 12 | ticks >> 48
    } else {
        (ticks >> 12) << 16 | version << 12 | (ticks & 0xfff)
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&head.to_be_bytes());
    id[8..].copy_from_slice(&rest);
    SpoolId::from_bytes(id)
}

/// Returns the time of a UUID 1 or 6, in 100 ns since 1582-10-15.
fn ticks_of(bytes: &[u8; 16]) -> u64 {
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = *bytes;
    let head = u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
    if b6 >> 4 == 1 {
        // time_low (32 bits), time_mid (16), version (4), time_hi (12)
        (head & 0xfff) << 48 | (head >> 16 & 0xffff) << 32 | head >> 32
    } else {
        (head >> 16) << 12 | (head & 0xfff)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?} {})", self.class(), self.message())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A range of keys, from a first key (included) to an end (excluded), or all keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRange(Option<Range<[u8; KEY_LEN]>>);

impl KeyRange {
    /// All entries, including entries whose key is malformed.
    pub(crate) const ALL: Self = Self(None);

    const fn between(start: [u8; KEY_LEN], end: [u8; KEY_LEN]) -> Self {
        Self(Some(start..end))
    }

    /// Returns the ranges of all ids of a spool with `created() < start` and of all its ids without
    /// a time, in key order.
    pub(crate) fn created_before(spool: SpoolNumber, start: DateTime<Utc>) -> [Self; 3] {
        let (ticks, millis) = heads_of(start);
        let first_of = |class, head| first_of(spool, class, head);
        [
            Self::between(first_of(0, 0), first_of(1, 0)),
            Self::between(first_of(1, 0), first_of(1, ticks << 4)),
            Self::between(first_of(2, 0), first_of(2, millis << 16)),
        ]
    }

    /// Returns the range of all ids of a spool.
    pub(crate) fn of_spool(spool: SpoolNumber) -> Self {
        Self::between(first_of(spool, 0, 0), first_of(spool, 3, 0))
    }

    /// Returns the ranges of all ids of a spool with a time at or after `start`: the complement of
    /// [`created_before`](Self::created_before). In key order.
    pub(crate) fn created_from(spool: SpoolNumber, start: DateTime<Utc>) -> [Self; 2] {
        let (ticks, millis) = heads_of(start);
        let first_of = |class, head| first_of(spool, class, head);
        [
            Self::between(first_of(1, ticks << 4), first_of(2, 0)),
            Self::between(first_of(2, millis << 16), first_of(3, 0)),
        ]
    }

    /// Returns the part of the range after `key`.
    pub(crate) fn after(&self, key: &Key) -> Self {
        let mut start = *key.as_bytes();
        for byte in start.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
        match &self.0 {
            Some(range) => Self::between(start.max(range.start), range.end),
            None => Self::between(start, [0xff; KEY_LEN]),
        }
    }

    /// Returns true if `key` is in the range.
    #[cfg(test)]
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.0.as_ref().is_none_or(|range| range.contains(key.as_bytes()))
    }

    /// Returns the first bytes (included) and the end (excluded). `None` if the range holds all
    /// keys.
    pub(crate) const fn bounds(&self) -> Option<&Range<[u8; KEY_LEN]>> {
        self.0.as_ref()
    }
}

/// Returns the first time at or after `start` of a UUID 1 or 6, and of a UUID 7.
fn heads_of(start: DateTime<Utc>) -> (i128, i128) {
    // A leap second counts on beyond 10^9. Every time that an id can have in that second is before
    // it.
    let nanos_of_second = i128::from(start.timestamp_subsec_nanos()).min(1_000_000_000);
    let nanos = i128::from(start.timestamp()) * 1_000_000_000 + nanos_of_second;
    let ticks = (ceil_div(nanos, 100) + UNIX_EPOCH_TICKS).clamp(0, TICKS_END);
    let millis = ceil_div(nanos, 1_000_000).clamp(0, MILLIS_END);
    (ticks, millis)
}

/// Returns the lowest key of `class` in a spool with `head` as its next 8 bytes. A head of 2^64 is
/// the first key of the next class.
fn first_of(spool: SpoolNumber, class: u128, head: i128) -> [u8; KEY_LEN] {
    let head = u128::try_from(head).unwrap_or_default();
    let [.., c, h0, h1, h2, h3, h4, h5, h6, h7] = ((class << 64) + head).to_be_bytes();
    let mut key = [0; KEY_LEN];
    key[..2].copy_from_slice(&spool.to_bytes());
    key[2..ID_AT + 8].copy_from_slice(&[c, h0, h1, h2, h3, h4, h5, h6, h7]);
    key
}

fn ceil_div(a: i128, b: i128) -> i128 {
    -(-a).div_euclid(b)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;
    use uuid::Builder;

    use super::*;

    const SPOOL: SpoolNumber = MessageId::from_bytes([0; 16]).spool();

    fn key_of(id: &SpoolId) -> Key {
        Key::of(&MessageId::of_test(*id))
    }

    /// Creates a UUID 1 or 6 of a fixed moment plus `after` times 100 ns.
    fn uuid_at(after: u64, counter: u16, node: [u8; 6], v1: bool) -> SpoolId {
        let ticks = 0x01ec_9414_c232_ab00 + after;
        SpoolId::from(if v1 {
            Builder::from_gregorian_timestamp(ticks, counter, &node).into_uuid()
        } else {
            Builder::from_sorted_gregorian_timestamp(ticks, counter, &node).into_uuid()
        })
    }

    /// Ids of each kind, with times near one another so that order matters.
    fn ids() -> impl Strategy<Value = SpoolId> {
        let whatever = any::<[u8; 16]>().prop_map(SpoolId::from_bytes);
        let timed =
            (any::<[u8; 16]>(), prop::sample::select(vec![1_u8, 4, 6, 7])).prop_map(|(mut b, version)| {
                b[6] = b[6] & 0x0f | version << 4;
                b[8] = b[8] & 0x3f | 0x80;
                SpoolId::from_bytes(b)
            });
        let near = (0_u64..20_000, any::<u16>(), any::<[u8; 6]>(), any::<bool>())
            .prop_map(|(after, counter, node, v1)| uuid_at(after, counter, node, v1));
        prop_oneof![whatever, timed, near]
    }

    proptest! {
        #[test]
        fn every_id_is_restored_from_its_key(id in ids()) {
            let key = key_of(&id);
            prop_assert_eq!(key.message(), MessageId::of_test(id));
            prop_assert!(KeyRange::of_spool(SPOOL).contains(&key));
            let others = [SPOOL.get() - 1, SPOOL.get() + 1].map(|number| SpoolNumber::new(number).unwrap());
            for other in others {
                prop_assert!(!KeyRange::of_spool(other).contains(&key));
                prop_assert!(!KeyRange::created_before(other, DateTime::<Utc>::MAX_UTC).iter().any(|range| range.contains(&key)));
            }
            prop_assert_eq!(Key::from_slice(key.as_bytes()).unwrap(), key);
            prop_assert_eq!(key.class() == KeyClass::Timeless, id.created().is_none());
        }

        #[test]
        fn keys_within_a_class_are_in_time_order(a in ids(), b in ids()) {
            let (ka, kb) = (key_of(&a), key_of(&b));
            if ka.class() == kb.class() && a.created() < b.created() {
                prop_assert!(ka < kb);
            }
        }

        #[test]
        fn valid_bytes_are_the_key_of_their_id(bytes in any::<[u8; KEY_LEN]>(), class in 0_u8..4) {
            let mut bytes = bytes;
            bytes[2] = class;
            if let Ok(key) = Key::from_slice(&bytes) {
                prop_assert_eq!(*Key::of(&key.message()).as_bytes(), bytes);
            }
        }

        #[test]
        fn the_ranges_hold_the_ids_created_before(id in ids(), nanos in -400_i64..400, leap in any::<bool>()) {
            let Some(created) = id.created() else {
                let [timeless, ..] = KeyRange::created_before(SPOOL, Utc::now());
                prop_assert!(timeless.contains(&key_of(&id)));
                prop_assert!(!KeyRange::created_from(SPOOL, Utc::now()).iter().any(|range| range.contains(&key_of(&id))));
                return Ok(());
            };
            let mut start = created + TimeDelta::nanoseconds(nanos);
            if leap {
                let in_leap = start.timestamp_subsec_nanos() + 1_000_000_000;
                start = DateTime::from_timestamp(start.timestamp().div_euclid(60) * 60 + 59, in_leap).unwrap();
            }
            let inside = KeyRange::created_before(SPOOL, start).iter().filter(|range| range.contains(&key_of(&id))).count();
            prop_assert_eq!(inside, usize::from(created < start), "{} and {}", created, start);
            let beyond = KeyRange::created_from(SPOOL, start).iter().filter(|range| range.contains(&key_of(&id))).count();
            prop_assert_eq!(inside + beyond, 1, "each is in one of them: {} and {}", created, start);
        }
    }

    fn key(text: &str) -> Key {
        key_of(&text.parse().unwrap())
    }

    fn found_before(id: &str, start: DateTime<Utc>) -> bool {
        KeyRange::created_before(SPOOL, start).iter().any(|range| range.contains(&key(id)))
    }

    #[test]
    fn the_key_bytes_match_the_format_on_disk() {
        // The examples of RFC 9562, appendix A. All have the same time.
        let v1 = key("C232AB00-9414-11EC-B3C8-9F6BDECED846");
        let v6 = key("1EC9414C-232A-6B00-B3C8-9F6BDECED846");
        let v7 = key("017F22E2-79B0-7CC3-98C4-DC0C0C07398F");
        assert_eq!(hex(v1.as_bytes()), "0102011ec9414c232ab001b3c89f6bdeced846");
        assert_eq!(hex(v6.as_bytes()), "0102011ec9414c232ab006b3c89f6bdeced846");
        assert_eq!(hex(v7.as_bytes()), "010202017f22e279b07cc398c4dc0c0c07398f");
        assert_eq!(
            hex(key("919108f7-52d1-4320-9bac-f847db4148a8").as_bytes()),
            "010200919108f752d143209bacf847db4148a8"
        );
    }

    #[test]
    fn a_version_1_and_a_version_6_id_are_in_time_order_together() {
        let keys: Vec<Key> =
            (0..10_000_u64).map(|t| key_of(&uuid_at(t, 7, [u8::from(t % 2 == 0); 6], t % 2 == 0))).collect();
        assert!(keys.is_sorted());
    }

    #[test]
    fn the_bound_is_exact() {
        for (id, step) in [
            ("C232AB00-9414-11EC-B3C8-9F6BDECED846", 100),
            ("1EC9414C-232A-6B00-B3C8-9F6BDECED846", 100),
            ("017F22E2-79B0-7CC3-98C4-DC0C0C07398F", 1_000_000),
        ] {
            let created = id.parse::<SpoolId>().unwrap().created().unwrap();
            assert!(!found_before(id, created - TimeDelta::nanoseconds(step)), "{id}");
            assert!(!found_before(id, created), "{id}");
            assert!(found_before(id, created + TimeDelta::nanoseconds(1)), "{id}");
            assert!(found_before(id, created + TimeDelta::nanoseconds(step)), "{id}");
        }
    }

    #[test]
    fn a_leap_second_ends_before_the_next_second() {
        let minute = 1_645_557_720_u32;
        let leap = DateTime::from_timestamp(i64::from(minute) - 1, 1_500_000_000).unwrap();
        let ticks = u64::try_from(UNIX_EPOCH_TICKS).unwrap() + u64::from(minute) * 10_000_000;
        for (ticks, before) in [(ticks - 1, true), (ticks, false), (ticks + 1, false)] {
            let id = SpoolId::from(Builder::from_sorted_gregorian_timestamp(ticks, 0, &[0; 6]).into_uuid());
            assert_eq!(id.created().unwrap() < leap, before);
            assert_eq!(found_before(&id.to_string(), leap), before, "{id}");
        }
    }

    #[test]
    fn the_first_and_the_last_time_are_valid_bounds() {
        let timed = ["00000000-0000-1000-8000-000000000000", "ffffffff-ffff-6fff-bfff-ffffffffffff"];
        let v7 = ["00000000-0000-7000-8000-000000000000", "ffffffff-ffff-7fff-bfff-ffffffffffff"];
        for id in timed.into_iter().chain(v7) {
            assert!(!found_before(id, DateTime::<Utc>::MIN_UTC), "{id}");
            assert!(found_before(id, DateTime::<Utc>::MAX_UTC), "{id}");
        }
        assert!(found_before("ffffffff-ffff-ffff-ffff-ffffffffffff", DateTime::<Utc>::MIN_UTC));
        let ranges = KeyRange::created_before(SPOOL, DateTime::<Utc>::MAX_UTC);
        let [a, b, c] = ranges.each_ref().map(|range| range.bounds().unwrap());
        assert!(a.end == b.start && b.end == c.start, "no gaps");
    }

    #[test]
    fn malformed_keys_are_rejected() {
        let good = *key("C232AB00-9414-11EC-B3C8-9F6BDECED846").as_bytes();
        let mut other_class = good;
        other_class[2] = 2;
        let mut no_class = good;
        no_class[2] = 3;
        let mut no_spool = good;
        no_spool[0] = 0x80;
        let mut other_version = good;
        other_version[10] = other_version[10] & 0xf0 | 4;
        for bytes in [&good[1..], &[], &other_class, &no_class, &no_spool, &other_version, &[0; 20]] {
            let err = Key::from_slice(bytes).unwrap_err();
            assert!(err.to_string().contains("not a key"), "{err}");
        }
    }
}
