//! Ids of every kind that a spool may get, made from a number so that tests can be repeated.

use chrono::{DateTime, Utc};
use tidespool_core::SpoolId;

use crate::payload::mix;

/// The time from 1582-10-15, the start of UUID time, to 1970-01-01, in 100 ns.
const UNIX_EPOCH_TICKS: u64 = 0x01b2_1dd2_1381_4000;

/// Makes a version 1 UUID of the time `at` (to 100 ns). Its bytes are not in time order.
#[must_use]
pub fn v1(at: DateTime<Utc>, n: u64) -> SpoolId {
    let ticks = gregorian_ticks(at).to_be_bytes();
    // Time low, middle, high: the 60 bits from the lowest 32 up.
    let mut bytes = tail(n);
    bytes[0..4].copy_from_slice(&ticks[4..8]);
    bytes[4..6].copy_from_slice(&ticks[2..4]);
    bytes[6] = 0x10 | (ticks[0] & 0x0f);
    bytes[7] = ticks[1];
    SpoolId::from_bytes(bytes)
}

/// Makes a version 6 UUID of the time `at` (to 100 ns), like [`SpoolId::new`].
#[must_use]
pub fn v6(at: DateTime<Utc>, n: u64) -> SpoolId {
    let ticks = gregorian_ticks(at);
    let mut bytes = tail(n);
    // The upper 48 of the 60 bits, the version, the lower 12.
    bytes[0..6].copy_from_slice(&(ticks >> 12).to_be_bytes()[2..8]);
    let low = (ticks & 0x0fff).to_be_bytes();
    bytes[6] = 0x60 | low[6];
    bytes[7] = low[7];
    SpoolId::from_bytes(bytes)
}

/// Makes a version 7 UUID of the time `at` (to 1 ms).
#[must_use]
pub fn v7(at: DateTime<Utc>, n: u64) -> SpoolId {
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
    let mut bytes = tail(n);
    bytes[0..6].copy_from_slice(&millis.to_be_bytes()[2..8]);
    bytes[6] = 0x70;
    bytes[7] = 0;
    SpoolId::from_bytes(bytes)
}

/// Makes a version 4 UUID, which has no time.
#[must_use]
pub fn v4(n: u64) -> SpoolId {
    let mut bytes = tail(n);
    bytes[0..8].copy_from_slice(&mix(n ^ 0x4444).to_be_bytes());
    bytes[6] = 0x40 | (bytes[6] & 0x0f);
    SpoolId::from_bytes(bytes)
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

/// Returns bytes that make ids of one time unique: `n` hashed into the last 8 bytes, with the
/// variant of RFC 9562, after zeros.
fn tail(n: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[8..16].copy_from_slice(&mix(n).to_be_bytes());
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    bytes
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
