//! The live records of a checkpointed segment.

use super::liveness::Liveness;
use crate::index::Key;
use crate::journal::{ReadError, RecordKind, RecordPlace, Segment};

/// A checkpointed message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckpointedMessage {
    pub(crate) key: Key,
    /// Sequence number of its record.
    pub(crate) seq: u64,
    pub(crate) place: RecordPlace,
}

/// Returns the messages that `liveness` lists in `segment`, in file order. Omits a message whose
/// record can't be read.
pub(crate) fn living_in(
    segment: &Segment,
    salt: u32,
    liveness: &Liveness,
) -> Result<Vec<CheckpointedMessage>, ReadError> {
    let generation = segment.generation;
    let mut offsets = liveness.of(generation).into_iter().flatten().peekable();
    let mut living = Vec::new();
    for entry in segment.listing(salt)?.entries() {
        while offsets.next_if(|offset| *offset < entry.offset).is_some() {}
        if entry.kind == RecordKind::Put && offsets.next_if_eq(&entry.offset).is_some() {
            let place = RecordPlace { generation, offset: entry.offset, len: entry.len };
            living.push(CheckpointedMessage { key: Key::of(&entry.id), seq: entry.seq, place });
        }
    }
    Ok(living)
}
