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
    /// that may pass is never reported like this.
    Corrupt {
        /// Its id.
        id: SpoolId,
        /// What is damaged, for a log.
        error: String,
    },
}

impl SpoolEntry {
    /// The id of the message, whether it is whole or damaged.
    #[must_use]
    pub fn id(&self) -> SpoolId {
        match self {
            Self::Item { id, .. } | Self::Corrupt { id, .. } => *id,
        }
    }
}
