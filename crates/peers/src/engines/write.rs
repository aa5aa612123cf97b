//! A change to a message in the queue of a group commit.

use tidespool_core::SpoolId;

use super::committer::Job;
use super::spool::Payload;

/// One change.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) id: SpoolId,
    /// The message; `None` removes it.
    pub(crate) data: Option<Payload>,
}

impl Write {
    pub(crate) fn put(id: SpoolId, data: Payload) -> Self {
        Self { id, data: Some(data) }
    }

    pub(crate) fn remove(id: SpoolId) -> Self {
        Self { id, data: None }
    }

    pub(crate) fn key(&self) -> &[u8; 16] {
        self.id.as_bytes()
    }

    pub(crate) fn value(&self) -> Option<&[u8]> {
        self.data.as_deref().map(AsRef::as_ref)
    }
}

impl Job for Write {
    fn bytes(&self) -> usize {
        16 + self.data.as_ref().map_or(0, |data| data.len())
    }
}

/// Returns the id in a key of 16 bytes, or `None` for a key that no spool wrote.
pub(crate) fn id_of(key: &[u8]) -> Option<SpoolId> {
    key.try_into().ok().map(SpoolId::from_bytes)
}
