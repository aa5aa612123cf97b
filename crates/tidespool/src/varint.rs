//! Variable-length encoding of numbers: seven bits a byte, low bits first. Small numbers take few
//! bytes.

/// Bytes of the longest encoding.
const MAX_VARINT: usize = 10;

/// Appends a number.
pub(crate) fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = number.to_le_bytes()[0] & 0x7f;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

/// Decodes a number and removes it from the front of `bytes`. `None`: the bytes end too early, or
/// the number exceeds 64 bits.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for (index, byte) in bytes.iter().take(MAX_VARINT).enumerate() {
        let shift = 7 * index;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Some(number);
        }
    }
    None
}

/// Appends the difference of two numbers. A small difference takes few bytes, whatever its sign.
pub(crate) fn put_difference(bytes: &mut Vec<u8>, from: u64, to: u64) {
    let up = to.wrapping_sub(from).cast_signed();
    put_varint(bytes, ((up << 1) ^ (up >> 63)).cast_unsigned());
}

/// Decodes a difference, removes it from the front of `bytes`, and returns `from` plus the
/// difference. `None`: as [`take_varint`].
pub(crate) fn take_difference(bytes: &mut &[u8], from: u64) -> Option<u64> {
    let folded = take_varint(bytes)?;
    Some(from.wrapping_add((folded >> 1) ^ (folded & 1).wrapping_neg()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_beyond_64_bits_are_rejected() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, u64::MAX);
        assert_eq!(take_varint(&mut &bytes[..]), Some(u64::MAX));
        bytes[9] = 2;
        assert_eq!(take_varint(&mut &bytes[..]), None);
        assert_eq!(take_varint(&mut &[0x80; 30][..]), None);
        assert_eq!(take_varint(&mut &[][..]), None);
    }

    proptest! {
        #[test]
        fn every_difference_leads_from_one_number_to_the_other(from: u64, to: u64, near in 0..64_u64) {
            for to in [to, from.wrapping_add(near), from.wrapping_sub(near)] {
                let mut bytes = Vec::new();
                put_difference(&mut bytes, from, to);
                let mut rest = &bytes[..];
                prop_assert_eq!(take_difference(&mut rest, from), Some(to));
                prop_assert_eq!(rest.len(), 0);
            }
            let mut bytes = Vec::new();
            put_difference(&mut bytes, from, from.wrapping_sub(near));
            prop_assert_eq!(bytes.len(), 1);
        }
    }
}
