//! Sizes: `u64` bytes in the code, `"256MiB"` or an integer of bytes in a file.

use bytesize::ByteSize;
use serde::de::{Deserialize, Deserializer, Error as _, Unexpected};
use serde::ser::Serializer;

/// Formats a size in the largest unit that divides it, so that reading it back gives the same
/// number.
pub(crate) fn show(bytes: u64) -> String {
    let (unit, name) = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
        .into_iter()
        .find(|&(unit, _)| bytes != 0 && bytes.is_multiple_of(unit))
        .unwrap_or((1, "B"));
    format!("{}{name}", bytes / unit)
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
pub(crate) fn serialize<S: Serializer>(bytes: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => serializer.serialize_str(&show(*bytes)),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged, expecting = "a size such as \"256MiB\", or an integer of bytes")]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => match text.trim().parse::<ByteSize>() {
            Ok(size) => Ok(Some(size.as_u64())),
            Err(_) => Err(D::Error::invalid_value(Unexpected::Str(&text), &"a size such as \"256MiB\"")),
        },
    }
}
