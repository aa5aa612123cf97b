use crate::SpoolId;

/// One message, as [`Spool::enumerate`](crate::Spool::enumerate) sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolEntry {
    /// An intact message: its bytes match their checksum.
    Item {
        /// The id of the message.
        id: SpoolId,
        /// The bytes of the message.
        data: Vec<u8>,
    },
    /// A message whose id is known and whose bytes are permanently damaged. Callers may remove it.
    /// An I/O error that may be temporary is reported as an [early end](SpoolEntry::EARLY_END)
    /// instead.
    Corrupt {
        /// The id of the message.
        id: SpoolId,
        /// The damage, as a text for a log.
        error: String,
    },
}

impl SpoolEntry {
    /// The id of an early end: a `Corrupt` entry that stands for no message. It is the last entry.
    /// It means that some messages could not be read for too long and were left out. All of them
    /// are still in the spool: enumerate again.
    pub const EARLY_END: SpoolId = SpoolId::from_bytes([0xff; 16]);

    /// Creates an early end with this reason.
    #[must_use]
    pub fn early_end(reason: &str) -> Self {
        let error = format!("the enumeration ends early, and leaves messages out: {reason}; enumerate again");
        Self::Corrupt { id: Self::EARLY_END, error }
    }

    /// Returns whether this entry is an [early end](Self::EARLY_END).
    #[must_use]
    pub fn is_early_end(&self) -> bool {
        matches!(self, Self::Corrupt { id, .. } if *id == Self::EARLY_END)
    }

    /// Returns the id of the message, intact or damaged.
    #[must_use]
    pub fn id(&self) -> SpoolId {
        match self {
            Self::Item { id, .. } | Self::Corrupt { id, .. } => *id,
        }
    }
}
