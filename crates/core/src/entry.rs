use crate::SpoolId;

/// One message, as [`Spool::enumerate`](crate::Spool::enumerate) sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolEntry {
    /// A message, whole and checked.
    Item {
        /// Its id.
        id: SpoolId,
        /// Its bytes.
        data: Vec<u8>,
    },
    /// A message of which the id is known and the bytes are damaged for good. Callers may remove it. An I/O error
    /// that may pass is never reported like this, but by an [early end](SpoolEntry::EARLY_END).
    Corrupt {
        /// Its id.
        id: SpoolId,
        /// What is damaged, for a log.
        error: String,
    },
}

impl SpoolEntry {
    /// The id of an early end: a `Corrupt` entry that stands for no message. It is the last entry,
    /// and means that messages were left out because they could not be read for too long. All of
    /// them are still in the spool: enumerate again.
    pub const EARLY_END: SpoolId = SpoolId::from_bytes([0xff; 16]);

    /// An early end, for this reason.
    #[must_use]
    pub fn early_end(reason: &str) -> Self {
        let error = format!("the enumeration ends early, and leaves messages out: {reason}; enumerate again");
        Self::Corrupt { id: Self::EARLY_END, error }
    }

    /// Whether messages were left out: see [`EARLY_END`](Self::EARLY_END).
    #[must_use]
    pub fn is_early_end(&self) -> bool {
        matches!(self, Self::Corrupt { id, .. } if *id == Self::EARLY_END)
    }

    /// The id of the message, whether it is whole or damaged.
    #[must_use]
    pub fn id(&self) -> SpoolId {
        match self {
            Self::Item { id, .. } | Self::Corrupt { id, .. } => *id,
        }
    }
}
