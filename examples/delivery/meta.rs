//! The metadata of a message: a small JSON object that is saved again on each retry.

use serde::{Deserialize, Serialize};

/// The state of one message. The data spool holds its bytes under the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// The number of the message in the run.
    pub(crate) index: u64,
    pub(crate) sender: String,
    pub(crate) recipient: String,
    /// Delivery attempts so far.
    pub(crate) attempts: u32,
    /// Earliest time of the next attempt, in milliseconds since 1970.
    pub(crate) next_try_ms: i64,
    /// Time of acceptance, in milliseconds since 1970.
    pub(crate) accepted_ms: i64,
    /// Accepted with `--sync`.
    pub(crate) synced: bool,
    /// Length of the message in bytes.
    pub(crate) length: u64,
    /// CRC-32C of the message.
    pub(crate) crc32c: u32,
}

impl Meta {
    pub(crate) fn to_bytes(&self) -> serde_json::Result<Box<[u8]>> {
        Ok(serde_json::to_vec(self)?.into_boxed_slice())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// True if `data` has the length and checksum of the message.
    pub(crate) fn fits(&self, data: &[u8]) -> bool {
        self.length == data.len() as u64 && self.crc32c == crc32c::crc32c(data)
    }
}

/// The wall clock in milliseconds since 1970. It continues while the program does not run.
pub(crate) fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_reads_back_and_matches_its_data() {
        let meta = Meta {
            index: 7,
            sender: String::new(),
            recipient: "a@b".into(),
            attempts: 2,
            next_try_ms: 1_700_000_000_123,
            accepted_ms: 1_700_000_000_000,
            synced: true,
            length: 9,
            crc32c: 0xe306_9283,
        };
        assert_eq!(Meta::from_bytes(&meta.to_bytes().unwrap()).unwrap(), meta);
        assert!(meta.fits(b"123456789"));
        assert!(!meta.fits(b"123456780"));
        assert!(!meta.fits(b""));
        assert!(Meta::from_bytes(b"{\"index\":7}").is_err());
    }
}
