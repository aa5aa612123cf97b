//! Ids of every kind that a spool may get, made from a number so that tests can be repeated.

use chrono::{DateTime, Utc};
use tidespool_core::SpoolId;
use uuid::Builder;

use crate::payload::mix;

/// The time from 1582-10-15, the start of UUID time, to 1970-01-01, in 100 ns.
const UNIX_EPOCH_TICKS: u64 = 0x01b2_1dd2_1381_4000;

/// Makes a version 1 UUID of the time `at` (to 100 ns). Its bytes are not in time order.
#[must_use]
pub fn v1(at: DateTime<Utc>, n: u64) -> SpoolId {
    let [high, low, node @ ..] = mix(n).to_be_bytes();
    id(Builder::from_gregorian_timestamp(gregorian_ticks(at), u16::from_be_bytes([high, low]), &node))
}

/// Makes a version 6 UUID of the time `at` (to 100 ns), like [`SpoolId::new`].
#[must_use]
pub fn v6(at: DateTime<Utc>, n: u64) -> SpoolId {
    let [high, low, node @ ..] = mix(n).to_be_bytes();
    id(Builder::from_sorted_gregorian_timestamp(gregorian_ticks(at), u16::from_be_bytes([high, low]), &node))
}

/// Makes a version 7 UUID of the time `at` (to 1 ms).
#[must_use]
pub fn v7(at: DateTime<Utc>, n: u64) -> SpoolId {
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
    let [a, b, c, d, e, f, g, h] = mix(n).to_be_bytes();
    id(Builder::from_unix_timestamp_millis(millis, &[0, 0, a, b, c, d, e, f, g, h]))
}

/// Makes a version 4 UUID, which has no time.
#[must_use]
pub fn v4(n: u64) -> SpoolId {
    let halves = [mix(n ^ 0x4444), mix(n)].map(u64::to_be_bytes);
    id(Builder::from_random_bytes(halves.as_flattened().try_into().unwrap_or_default()))
}

fn id(uuid: Builder) -> SpoolId {
    SpoolId::from_bytes(uuid.into_uuid().into_bytes())
}

/// Makes `count` ids of all kinds in turn, in the order of creation. Ids with a time are 1 ms apart
/// per id, starting at `from`.
#[must_use]
pub fn assorted(from: DateTime<Utc>, count: u64) -> Vec<SpoolId> {
    let id = |n: u64| {
        let at = from + chrono::TimeDelta::milliseconds(i64::try_from(n).unwrap_or(0));
        match n % 4 {
            0 => v6(at, n),
            1 => v1(at, n),
            2 => v7(at, n),
            _ => v4(n),
        }
    };
    (0..count).map(id).collect()
}

fn gregorian_ticks(at: DateTime<Utc>) -> u64 {
    let nanos = at.timestamp_nanos_opt().unwrap_or(0);
    u64::try_from(nanos / 100).unwrap_or(0) + UNIX_EPOCH_TICKS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_contain_the_time_they_were_made_for() {
        let at: DateTime<Utc> = "2026-03-04T05:06:07.8901234Z".parse().unwrap();
        assert_eq!(v1(at, 1).created(), Some(at));
        assert_eq!(v6(at, 2).created(), Some(at));
        assert_eq!(v7(at, 3).created().unwrap().timestamp_millis(), at.timestamp_millis());
        assert_eq!(v4(4).created(), None);
        assert_ne!(v6(at, 1), v6(at, 2));
    }

    #[test]
    fn assorted_ids_are_all_different() {
        let ids = assorted(Utc::now(), 1000);
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 1000);
    }
}
