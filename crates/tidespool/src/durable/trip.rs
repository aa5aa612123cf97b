//! Changes on their way to sled's thread: packed on the caller's thread, made on sled's.

use super::record::{RECORD_LEN, Record};
use super::worker::Failure;
use super::{Change, Key, Op};

/// Changes that go to sled's thread at once.
const TRIP_OPS: usize = 256;

/// Changes that go to sled's thread together.
pub(super) struct Trip(Vec<Op>);

/// One change, made.
pub(super) struct Made {
    pub(super) key: Key,
    /// The bytes that stand there now.
    pub(super) value: Option<[u8; RECORD_LEN]>,
    /// The bytes that stood there before.
    pub(super) old: Option<sled::IVec>,
}

impl Trip {
    /// Takes the next changes, [`TRIP_OPS`] at most. Empty at the end.
    pub(super) fn pack(ops: &mut dyn Iterator<Item = Op>) -> Self {
        Self(ops.take(TRIP_OPS).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that sled has to write for them, about.
    pub(super) fn bytes(&self) -> usize {
        self.0.len() * (size_of::<Key>() + RECORD_LEN)
    }

    /// Makes the changes, and lets sled write them out if `write`. sled returns what stood there
    /// before, and writes nothing where nothing changes.
    pub(super) fn make(self, tree: &sled::Tree, write: bool) -> Result<Vec<Made>, Failure> {
        let mut made = Vec::with_capacity(self.0.len());
        for Op { key, change } in self.0 {
            let value = match change {
                Change::Put(record) => Some(Record::encode(&record, &key)),
                Change::Remove => None,
            };
            let old = match &value {
                Some(value) => tree.insert(key.as_bytes(), &value[..])?,
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
