use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::{Timestamp, Uuid, Variant};

/// The id of a message: 16 bytes, any UUID.
///
/// [`SpoolId::new`] mints a version 6 UUID. Its bytes, and so its text and its order, follow the
/// creation time with a precision of 100 ns. Ids of other versions are accepted unchanged.
///
/// Text form: 32 hexadecimal digits. Parsing also accepts hyphens, braces and the `urn:uuid:`
/// prefix.
///
/// ```
/// # use tidespool_core::SpoolId;
/// let id = SpoolId::new();
/// assert_eq!(id.to_string().parse::<SpoolId>()?, id);
/// assert!(SpoolId::new() > id);
/// # Ok::<(), tidespool_core::ParseSpoolIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpoolId([u8; 16]);

impl Hash for SpoolId {
    /// Hashes the id as one number. Hashing an array includes its length, which takes half as long
    /// again, and each id is hashed several times per message.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.0));
    }
}

/// The parts that make the ids of one process unique: a random node and a random clock sequence.
/// The node has the multicast bit, as RFC 9562 requires of nodes that are not network addresses.
struct Mint {
    node: [u8; 6],
    clock_sequence: u16,
}

impl Mint {
    fn random() -> Self {
        let [a, b, c, d, e, f, .., y, z] = *Uuid::new_v4().as_bytes();
        Self { node: [a | 1, b, c, d, e, f], clock_sequence: u16::from_be_bytes([y, z]) & 0x3fff }
    }

    fn mint(&self, ticks: u64) -> SpoolId {
        let timestamp = Timestamp::from_gregorian_time(ticks, self.clock_sequence);
        SpoolId(Uuid::new_v6(timestamp, &self.node).into_bytes())
    }
}

static MINT: LazyLock<Mint> = LazyLock::new(Mint::random);

/// The newest time minted in this process, in 100 ns since 1582-10-15. No two ids share a time.
static NEWEST_TICKS: AtomicU64 = AtomicU64::new(0);

/// The time from 1582-10-15, the start of UUID time, to 1970-01-01, in 100 ns.
const UNIX_EPOCH_TICKS: u64 = 0x01b2_1dd2_1381_4000;

impl SpoolId {
    /// Mints an id that is later than every id minted before in this process, even if the clock
    /// stands still or steps back.
    ///
    /// Any clock works. UUID time starts at 1582-10-15 and ends in the year 5236. Outside of that
    /// range, the id has the nearest time inside it.
    #[must_use]
    pub fn new() -> Self {
        let now = ticks_at(SystemTime::now());
        let later = |newest| Some(ticks_after(newest, now));
        let newest = NEWEST_TICKS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        let newest = newest.unwrap_or_else(|newest| newest);
        let ticks = ticks_after(newest, now);
        if ticks == newest {
            // The last possible time: only the random bits of these ids differ.
            return Mint::random().mint(ticks);
        }
        MINT.mint(ticks)
    }

    /// Returns the id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the id.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns when the id was minted, for the UUID versions that contain a time: 1 and 6 (to 100
    /// ns) and 7 (to 1 ms). `None` for all others.
    #[must_use]
    pub fn created(&self) -> Option<DateTime<Utc>> {
        let uuid = Uuid::from_bytes(self.0);
        if uuid.get_variant() != Variant::RFC4122 {
            return None;
        }
        match uuid.get_version_num() {
            // Not `get_timestamp().to_unix()`: it wraps for times before 1970.
            1 | 6 => from_ticks(uuid.get_timestamp()?.to_gregorian().0),
            7 => {
                let (seconds, nanos) = uuid.get_timestamp()?.to_unix();
                DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
            }
            _ => None,
        }
    }
}

/// The newest time that an id can have. The time has 60 bits.
const LAST_TICKS: u64 = (1 << 60) - 1;

/// The time of an id minted at `now`, in 100 ns since 1582-10-15, or the nearest time that an id
/// can have.
fn ticks_at(now: SystemTime) -> u64 {
    let ticks = |time: Duration| u64::try_from(time.as_nanos() / 100).unwrap_or(u64::MAX);
    match now.duration_since(UNIX_EPOCH) {
        Ok(after) => UNIX_EPOCH_TICKS.saturating_add(ticks(after)).min(LAST_TICKS),
        Err(before) => UNIX_EPOCH_TICKS.saturating_sub(ticks(before.duration())),
    }
}

/// `now`, or the tick after `newest` if that is later. At the last tick, returns that tick again.
fn ticks_after(newest: u64, now: u64) -> u64 {
    now.max(newest.saturating_add(1)).min(LAST_TICKS)
}

fn from_ticks(ticks: u64) -> Option<DateTime<Utc>> {
    let ticks = i64::try_from(ticks).ok()? - i64::try_from(UNIX_EPOCH_TICKS).ok()?;
    let nanos = u32::try_from(ticks.rem_euclid(10_000_000) * 100).ok()?;
    DateTime::from_timestamp(ticks.div_euclid(10_000_000), nanos)
}

impl Default for SpoolId {
    /// Mints a new id, like [`SpoolId::new`]. Never a nil id.
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).simple().fmt(f)
    }
}

impl fmt::Debug for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpoolId({self})")
    }
}

/// The error for a text that is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a spool id ({reason}): expected 32 hexadecimal digits")]
pub struct ParseSpoolIdError {
    text: String,
    reason: String,
}

impl FromStr for SpoolId {
    type Err = ParseSpoolIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Uuid::try_parse(text) {
            Ok(uuid) => Ok(Self(uuid.into_bytes())),
            Err(err) => {
                Err(ParseSpoolIdError { text: text.chars().take(64).collect(), reason: err.to_string() })
            }
        }
    }
}

impl From<Uuid> for SpoolId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid.into_bytes())
    }
}

impl From<SpoolId> for Uuid {
    fn from(id: SpoolId) -> Self {
        Self::from_bytes(id.0)
    }
}

impl From<[u8; 16]> for SpoolId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for SpoolId {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for SpoolId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpoolId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl serde::de::Visitor<'_> for TextVisitor {
            type Value = SpoolId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a spool id: 32 hexadecimal digits")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SpoolId, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn minted_ids_are_in_time_order_and_contain_their_time() {
        let before = Utc::now() - TimeDelta::nanoseconds(100);
        let ids: Vec<SpoolId> = (0..10_000).map(|_| SpoolId::new()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1] && pair[0].created() < pair[1].created()));
        // A burst may run ahead of the clock by 100 ns an id, and other tests mint ids
        // concurrently.
        let after = Utc::now() + TimeDelta::seconds(1);
        assert!(ids.iter().all(|id| id.created().is_some_and(|t| before <= t && t <= after)));
    }

    /// Regression: with a clock before 1970, every id had the time of 1970. With one after the year
    /// 5236, the 60-bit time wrapped, and the newest id sorted first.
    #[test]
    fn any_clock_gives_ids_in_the_order_of_time() {
        let at = |seconds: i64| {
            let distance = Duration::from_secs(seconds.unsigned_abs());
            let clock =
                if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
            clock.unwrap()
        };
        let year = 31_556_952;
        // Years: -10 000, 1500, 1583, 1969, 1970, 2026, 5200.
        let clocks = [-11_970, -470, -387, -1, 0, 56, 3_230].map(|years| at(years * year));
        let ids = clocks.map(|clock| MINT.mint(ticks_at(clock)));
        assert_eq!(ids[0].created(), ids[1].created(), "before the first possible time");
        assert!(ids[1..].windows(2).all(|pair| pair[0] < pair[1] && pair[0].created() < pair[1].created()));
        for (id, clock) in ids.iter().zip(clocks).skip(2) {
            assert_eq!(id.created(), Some(DateTime::<Utc>::from(clock)));
        }
        for beyond in [6_000 * year, 200_000 * year, i64::MAX / 4] {
            assert_eq!(ticks_at(at(beyond)), LAST_TICKS, "the last possible time");
        }
        let last = MINT.mint(LAST_TICKS);
        assert!(ids[6] < last && last.created() > ids[6].created());
        assert_eq!(ticks_after(LAST_TICKS - 1, 0), LAST_TICKS);
        assert_eq!(ticks_after(LAST_TICKS, 0), LAST_TICKS, "it does not wrap");
        assert_eq!(ticks_after(7, 3), 8, "a clock that stepped back");
        assert_ne!(Mint::random().mint(LAST_TICKS), Mint::random().mint(LAST_TICKS));
    }

    #[test]
    fn threads_never_mint_the_same_id() {
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| (0..20_000).map(|_| SpoolId::new()).collect::<Vec<_>>()))
            .collect();
        let ids: Vec<SpoolId> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    }

    #[test]
    fn created_of_ids_minted_elsewhere() {
        // The examples of RFC 9562, appendix A: the time of each is 2022-02-22 19:22:22 UTC.
        let v1: SpoolId = "C232AB00-9414-11EC-B3C8-9F6BDECED846".parse().unwrap();
        let v6: SpoolId = "1EC9414C-232A-6B00-B3C8-9F6BDECED846".parse().unwrap();
        let v7: SpoolId = "017F22E2-79B0-7CC3-98C4-DC0C0C07398F".parse().unwrap();
        for id in [v1, v6, v7] {
            assert_eq!(id.created().unwrap().to_rfc3339(), "2022-02-22T19:22:22+00:00");
        }
    }

    #[test]
    fn created_is_none_without_a_time() {
        let v4: SpoolId = "919108f7-52d1-4320-9bac-f847db4148a8".parse().unwrap();
        let other_variant: SpoolId = "919108f7-52d1-1320-0bac-f847db4148a8".parse().unwrap();
        for id in [v4, other_variant, SpoolId::from_bytes([0; 16]), SpoolId::from_bytes([0xff; 16])] {
            assert_eq!(id.created(), None, "{id}");
        }
    }

    #[test]
    fn created_at_the_ends_of_time_does_not_panic() {
        let first: SpoolId = "00000000-0000-1000-8000-000000000000".parse().unwrap();
        assert_eq!(first.created().unwrap().to_rfc3339(), "1582-10-15T00:00:00+00:00");
        for text in ["ffffffff-ffff-1fff-bfff-ffffffffffff", "ffffffff-ffff-7fff-bfff-ffffffffffff"] {
            let last: SpoolId = text.parse().unwrap();
            assert!(last.created().is_some());
        }
    }

    #[test]
    fn text_and_json_round_trip() {
        let id = SpoolId::new();
        assert_eq!(id.to_string().len(), 32);
        assert_eq!(Uuid::from(id).hyphenated().to_string().parse::<SpoolId>().unwrap(), id);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<SpoolId>(&json).unwrap(), id);
        assert_eq!(SpoolId::from_bytes(*id.as_bytes()), id);
    }

    #[test]
    fn parse_error_quotes_the_text() {
        let err = "not-an-id".parse::<SpoolId>().unwrap_err();
        assert!(err.to_string().contains("\"not-an-id\" is not a spool id"), "{err}");
        assert!("".parse::<SpoolId>().is_err());
        assert!(serde_json::from_str::<SpoolId>("\"zz\"").is_err());
        assert!(serde_json::from_str::<SpoolId>("7").is_err());
    }
}
