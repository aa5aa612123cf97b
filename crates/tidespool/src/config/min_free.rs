use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use super::size::{self, SizeVisitor};

/// Free space of a file system: in code a size or a percentage, in a file `"256MiB"` or `"5%"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MinFree {
    /// Bytes.
    Bytes(u64),
    /// A percentage of the file system.
    Percent(f64),
}

/// As a file writes it.
impl fmt::Display for MinFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&size::show(*bytes)),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for MinFree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> de::Deserialize<'de> for MinFree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MinFreeVisitor)
    }
}

struct MinFreeVisitor;

impl Visitor<'_> for MinFreeVisitor {
    type Value = MinFree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"256MiB\", an integer of bytes, or a percentage such as \"5%\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<MinFree, E> {
        match text.trim().strip_suffix('%') {
            Some(percent) => match percent.trim_end().parse::<f64>() {
                Ok(percent) => Ok(MinFree::Percent(percent)),
                Err(_) => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
            },
            None => SizeVisitor.visit_str(text).map(MinFree::Bytes),
        }
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<MinFree, E> {
        Ok(MinFree::Bytes(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<MinFree, E> {
        SizeVisitor.visit_i64(bytes).map(MinFree::Bytes)
    }
}
