//! Parses sizes on the command line: bytes, with or without a unit.

use bytesize::ByteSize;

/// The largest payload of the benchmark.
const LARGEST_PAYLOAD: u64 = 1 << 30;

/// Parses a number of bytes: `16384`, `16KiB` (1 024 bytes each), `16KB` (1 000 bytes each).
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| "expected a size, such as 16384, 16KiB or 1.5MiB".to_owned())
}

/// Parses the size of a message: 1 byte to 1 GiB.
pub(crate) fn parse_payload(text: &str) -> Result<usize, String> {
    let size = parse(text)?;
    if size == 0 || size > LARGEST_PAYLOAD {
        return Err(format!("{size} bytes is not in the range of 1 byte to 1 GiB"));
    }
    usize::try_from(size).map_err(|err| err.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_a_unit() {
        assert_eq!(parse("16384"), Ok(16_384));
        assert_eq!(parse("16KiB"), Ok(16_384));
        assert_eq!(parse("16 kib"), Ok(16_384));
        assert_eq!(parse("16KB"), Ok(16_000));
        assert_eq!(parse("1.5MiB"), Ok(1_572_864));
    }

    #[test]
    fn invalid_sizes_are_rejected() {
        for text in ["", "KiB", "16x", "-1", "1e3", "16 KiB each"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_payload_has_bounds() {
        assert_eq!(parse_payload("1"), Ok(1));
        assert_eq!(parse_payload("1GiB"), Ok(1 << 30));
        assert!(parse_payload("0").is_err());
        assert!(parse_payload("2GiB").unwrap_err().contains("1 GiB"));
        assert!(parse_payload("99999999999999999999999").is_err());
    }
}
