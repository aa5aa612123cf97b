//! Changes on their way to sled's thread: packed on the caller's, made there.

use super::key::KEY_LEN;
use super::worker::Failure;
use super::{Change, DurableError, Key, MAX_WHOLE, Op, Record};

/// One trip to sled's thread takes so many changes, or so many bytes, whichever is reached first.
const TRIP_OPS: usize = 256;
const TRIP_BYTES: usize = 512 * 1024;

/// Changes that go to sled's thread together.
pub(super) struct Trip {
    changes: Vec<Packed>,
    bytes: usize,
}

/// One change, encoded.
struct Packed {
    key: Key,
    value: Option<Vec<u8>>,
}

/// One change, made.
pub(super) struct Made {
    pub(super) key: Key,
    /// What stands there now.
    pub(super) value: Option<Vec<u8>>,
    /// What stood there before.
    pub(super) old: Option<sled::IVec>,
}

impl Trip {
    /// Takes the next changes, at most one trip of them. Empty at the end.
    pub(super) fn pack(ops: &mut dyn Iterator<Item = Op>) -> Result<Self, DurableError> {
        let mut trip = Self { changes: Vec::new(), bytes: 0 };
        while trip.changes.len() < TRIP_OPS && trip.bytes < TRIP_BYTES {
            let Some(Op { key, change }) = ops.next() else { break };
            let value = match change {
                Change::Remove => None,
                Change::Put(Record::Whole { data, .. }) if data.len() > MAX_WHOLE => {
                    return Err(DurableError::TooLarge { id: key.id(), len: data.len(), limit: MAX_WHOLE });
                }
                Change::Put(record) => Some(record.encode(&key)),
            };
            trip.bytes += KEY_LEN + value.as_ref().map_or(0, Vec::len);
            trip.changes.push(Packed { key, value });
        }
        Ok(trip)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes that sled has to write for them, about.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes the changes, and has sled write them out if `write`. sled gives back what stood there before, and writes
    /// nothing where nothing changes.
    pub(super) fn make(self, tree: &sled::Tree, write: bool) -> Result<Vec<Made>, Failure> {
        let mut made = Vec::with_capacity(self.changes.len());
        for Packed { key, value } in self.changes {
            let old = match &value {
                Some(value) => tree.insert(key.as_bytes(), value.as_slice())?,
                None => tree.remove(key.as_bytes())?,
            };
            made.push(Made { key, value, old });
        }
        if write {
            tree.flush()?;
        }
        Ok(made)
    }
}
