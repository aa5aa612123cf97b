//! Messages that identify themselves.
//!
//! Every word of 8 bytes is a checksum of the message's id, its version, its length and the offset
//! of the word. So [`read`] detects a message that is torn, truncated, shifted, or mixed from two
//! versions or messages, wherever the wrong bytes are.
//!
//! A message of at least 16 bytes starts with its version (8 bytes), its length (4) and a checksum
//! of both (4), so [`read`] returns its version. Shorter messages contain no version: [`read`] only
//! checks their bytes.

use std::sync::Arc;

use tidespool_core::SpoolId;

/// The size of version, length and their checksum.
pub const HEADER_BYTES: usize = 16;

/// The version and length of an intact message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The version; `None` below [`HEADER_BYTES`], where there is no space for it.
    pub version: Option<u64>,
    /// The length in bytes.
    pub len: usize,
}

impl Seen {
    /// What [`read`] returns for [`make`] of this version and length.
    #[must_use]
    pub fn of(version: u64, len: usize) -> Self {
        Self { version: (len >= HEADER_BYTES).then_some(version), len }
    }
}

/// The error for bytes that are not an intact message of this id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongBytes {
    /// The requested message.
    pub id: SpoolId,
    /// The first wrong byte, and what is wrong.
    pub what: String,
}

impl std::fmt::Display for WrongBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "wrong bytes in message {}: {}", self.id, self.what)
    }
}

impl std::error::Error for WrongBytes {}

/// Makes version `version` of the message `id`, `len` bytes long.
///
/// # Panics
///
/// Above 4 GiB.
#[must_use]
pub fn make(id: SpoolId, version: u64, len: usize) -> Vec<u8> {
    if len < HEADER_BYTES {
        return body(seed(id, None, len), 0, len);
    }
    let seed = seed(id, Some(version), len);
    let length = u32::try_from(len).expect("a message below 4 GiB");
    let mut data = Vec::with_capacity(len + 8);
    data.extend_from_slice(&version.to_le_bytes());
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(&header_check(seed));
    data.append(&mut body(seed, HEADER_BYTES, len));
    data
}

/// Like [`make`], as [`Spool::store`](tidespool_core::Spool::store) takes it.
#[must_use]
pub fn shared(id: SpoolId, version: u64, len: usize) -> Arc<Box<[u8]>> {
    Arc::new(make(id, version, len).into_boxed_slice())
}

/// Checks every byte of `data`, which a spool returned for `id`.
///
/// # Errors
///
/// The first wrong byte.
pub fn read(id: SpoolId, data: &[u8]) -> Result<Seen, WrongBytes> {
    let wrong = |what: String| WrongBytes { id, what };
    let len = data.len();
    let Some((header, rest)) = data.split_first_chunk::<HEADER_BYTES>() else {
        let expected = body(seed(id, None, len), 0, len);
        return match first_difference(data, &expected) {
            None => Ok(Seen { version: None, len }),
            Some(at) => Err(wrong(format!("byte {at} of {len} (a short message)"))),
        };
    };
    let [v0, v1, v2, v3, v4, v5, v6, v7, l0, l1, l2, l3, check @ ..] = *header;
    let version = u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]);
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if usize::try_from(length) != Ok(len) {
        return Err(wrong(format!("{len} bytes came back, but the header has length {length}")));
    }
    let seed = seed(id, Some(version), len);
    if check != header_check(seed) {
        return Err(wrong(format!("the header is of another message (version {version}, {len} bytes)")));
    }
    match first_difference(rest, &body(seed, HEADER_BYTES, len)) {
        None => Ok(Seen { version: Some(version), len }),
        Some(at) => Err(wrong(format!("byte {} of {len} (version {version})", HEADER_BYTES + at))),
    }
}

/// Checks that `data` is version `version` of `id`, `len` bytes long.
///
/// # Panics
///
/// If it is not.
pub fn assert_is(id: SpoolId, version: u64, len: usize, data: &[u8]) {
    let seen = read(id, data).unwrap_or_else(|err| panic!("{err}; expected version {version}, {len} bytes"));
    assert_eq!(seen.len, len, "message {id}: length (found version {:?}, expected {version})", seen.version);
    if let Some(found) = seen.version {
        assert_eq!(found, version, "message {id}: version");
    }
}

fn first_difference(found: &[u8], expected: &[u8]) -> Option<usize> {
    if found == expected {
        return None;
    }
    found.iter().zip(expected).position(|(a, b)| a != b)
}

/// The finishing step of `SplitMix64`: each input bit changes about half of the output bits.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn seed(id: SpoolId, version: Option<u64>, len: usize) -> u64 {
    let id = u128::from_be_bytes(*id.as_bytes());
    let halves = [id >> 64, id & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0));
    let version = version.map_or(0, |version| mix(version.wrapping_add(1)));
    mix(mix(mix(halves[0]) ^ halves[1]) ^ version).wrapping_add(mix(len as u64))
}

fn header_check(seed: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = mix(seed ^ 0x0068_6561_6465_7200).to_le_bytes();
    [a, b, c, d]
}

/// Returns bytes `from..to` of a message; `from` is a multiple of 8.
fn body(seed: u64, from: usize, to: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(to - from + 8);
    let mut place = from as u64;
    while bytes.len() < to - from {
        bytes.extend_from_slice(&mix(seed.wrapping_add(mix(place))).to_le_bytes());
        place += 8;
    }
    bytes.truncate(to - from);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 9] = [0, 1, 15, 16, 17, 24, 4095, 4096, 10_000];

    #[test]
    fn intact_messages_are_read_back() {
        let id = SpoolId::new();
        for len in LENGTHS {
            let data = make(id, 7, len);
            assert_eq!(data.len(), len);
            assert_eq!(read(id, &data), Ok(Seen::of(7, len)));
        }
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        let id = SpoolId::new();
        for len in [1, 15, 16, 17, 200] {
            let data = make(id, 3, len);
            for bit in 0..len * 8 {
                let mut damaged = data.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(read(id, &damaged).is_err(), "bit {bit} of {len} bytes");
            }
        }
    }

    #[test]
    fn truncated_extended_and_zeroed_messages_are_detected() {
        let id = SpoolId::new();
        let data = make(id, 3, 5000);
        assert!(read(id, &data[..4999]).is_err());
        assert!(read(id, &data[..16]).is_err());
        assert!(read(id, &data[..8]).is_err());
        assert!(read(id, &[&data[..], &[0]].concat()).is_err());
        let mut torn = data.clone();
        torn[4096..].fill(0);
        assert!(read(id, &torn).is_err());
        assert!(read(id, &vec![0; 5000]).is_err());
    }

    #[test]
    fn mixtures_and_other_messages_are_detected() {
        let (id, other) = (SpoolId::new(), SpoolId::new());
        let (old, new) = (make(id, 1, 5000), make(id, 2, 5000));
        for cut in [8, 16, 24, 2048, 4096, 4992] {
            assert!(read(id, &[&old[..cut], &new[cut..]].concat()).is_err(), "mixed at {cut}");
        }
        assert!(read(id, &make(other, 1, 5000)).is_err());
        assert!(read(id, &make(other, 1, 8)).is_err());
        let mut shifted = old.clone();
        shifted[16..].rotate_left(8);
        assert!(read(id, &shifted).is_err());
    }
}
