//! Batches of changes for sled's thread: packed on the caller's thread, applied on sled's.
//!
//! # Blocks
//!
//! sled holds [blocks](super::block) of messages. A block's key is at or before that of its first
//! message, and each message of an earlier block is before that key. So a message can only be in
//! the last block whose key is at or before its own.
//!
//! New messages become new blocks. A block takes consecutive new messages, up to [`MOST`], until a
//! message that already exists lies between. So messages that come in key order fill their blocks,
//! and keys without an order get blocks of one. Changing a message costs as much as its block is
//! long.
//!
//! Only a message whose key lies between two keys of a block goes into that block. A block that
//! gets too long is split. No other operation moves a message: the upper part is written before the
//! lower part is cut.

use std::ops::{Bound, RangeBounds as _};
use std::sync::atomic::{AtomicU64, Ordering};

use super::block::{self, BlockEntry, MOST};
use super::worker::WorkerFailure;
use crate::index::key::KEY_LEN;
use crate::index::{IndexChange, IndexOp, Key, Record};

/// Changes in one batch.
const BATCH_OPS: usize = 512;

/// A batch of changes for sled's thread.
pub(super) struct PackedChanges(Vec<IndexOp>);

/// The result of a batch.
#[derive(Default)]
pub(super) struct Applied {
    pub(super) changes: Vec<Changed>,
    /// Blocks that were added, minus blocks that were removed, modulo 2⁶⁴.
    pub(super) more_blocks: u64,
    /// Existing blocks that were replaced or removed.
    pub(super) changed_blocks: u64,
    /// Blocks that were written to sled.
    pub(super) written_blocks: u64,
    /// Bytes of keys and blocks that were written to sled.
    pub(super) bytes: usize,
}

/// An applied change.
pub(super) struct Changed {
    pub(super) key: Key,
    pub(super) new: Option<Record>,
    pub(super) old: Option<Record>,
}

impl PackedChanges {
    /// Takes the next changes, at most [`BATCH_OPS`]. Empty at the end.
    pub(super) fn pack(ops: &mut dyn Iterator<Item = IndexOp>) -> Self {
        Self(ops.take(BATCH_OPS).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Applies the changes, one after the other. Writes only blocks that change. Counts each split
    /// of a block in `splits`, before the lower part is cut.
    pub(super) fn make(self, tree: &sled::Tree, splits: &AtomicU64) -> Result<Applied, WorkerFailure> {
        let mut made = Applied { changes: Vec::with_capacity(self.0.len()), ..Applied::default() };
        let mut span: Option<KeySpan> = None;
        for IndexOp { key, change } in self.0 {
            let mut current = match span.take() {
                Some(span) if span.includes(&key) => span,
                other => {
                    if let Some(done) = other {
                        done.write(tree, splits, &mut made)?;
                    }
                    KeySpan::around(tree, &key)?
                }
            };
            let new = match change {
                IndexChange::Put(record) => Some(record),
                IndexChange::Remove => None,
            };
            let old = current.replace(key, new);
            made.changes.push(Changed { key, new, old });
            span = Some(current);
        }
        if let Some(last) = span {
            last.write(tree, splits, &mut made)?;
        }
        Ok(made)
    }
}

/// A span of keys: from the first to the last message of a block, or between two blocks.
struct KeySpan {
    /// The key of the block. `None` between two blocks.
    block: Option<Key>,
    range: (Bound<Key>, Bound<Key>),
    entries: Vec<BlockEntry>,
    is_changed: bool,
}

impl KeySpan {
    fn around(tree: &sled::Tree, key: &Key) -> Result<Self, WorkerFailure> {
        if let Some((at, bytes)) = last_block_at(tree, key)? {
            let (at, entries) = read_block(&at, &bytes)?;
            // A block has at least one entry.
            let last = entries.last().map_or(at, |(last, _)| *last);
            if *key <= last {
                let range = (Bound::Included(at), Bound::Included(last));
                return Ok(Self { block: Some(at), range, entries, is_changed: false });
            }
            return Self::between(tree, Bound::Excluded(last), key);
        }
        Self::between(tree, Bound::Unbounded, key)
    }

    fn between(tree: &sled::Tree, from: Bound<Key>, key: &Key) -> Result<Self, WorkerFailure> {
        let after: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Excluded(key.as_bytes()), Bound::Unbounded);
        let to = match tree.range::<&[u8], _>(after).next().transpose()? {
            Some((bytes, _)) => Bound::Excluded(key_of(&bytes)?),
            None => Bound::Unbounded,
        };
        Ok(Self { block: None, range: (from, to), entries: Vec::new(), is_changed: false })
    }

    fn includes(&self, key: &Key) -> bool {
        self.range.contains(key)
    }

    /// Returns the replaced record.
    fn replace(&mut self, key: Key, new: Option<Record>) -> Option<Record> {
        let place = self.entries.binary_search_by(|(other, _)| other.cmp(&key));
        let old = place.ok().map(|place| self.entries[place].1);
        match (place, new) {
            (Ok(place), Some(new)) => self.entries[place].1 = new,
            (Ok(place), None) => drop(self.entries.remove(place)),
            (Err(place), Some(new)) => self.entries.insert(place, (key, new)),
            (Err(_), None) => {}
        }
        self.is_changed |= old != new;
        old
    }

    fn write(self, tree: &sled::Tree, splits: &AtomicU64, made: &mut Applied) -> Result<(), WorkerFailure> {
        if !self.is_changed {
            return Ok(());
        }
        made.changed_blocks += u64::from(self.block.is_some());
        let count = self.entries.len().div_ceil(MOST);
        made.more_blocks =
            made.more_blocks.wrapping_add(count as u64).wrapping_sub(u64::from(self.block.is_some()));
        if let (Some(at), 0) = (self.block, count) {
            tree.remove(at.as_bytes())?;
            made.bytes += KEY_LEN;
            return Ok(());
        }
        // New messages in order fill their blocks. The parts of a split block have space for more.
        let len = if self.block.is_some() { self.entries.len().div_ceil(count.max(1)) } else { MOST };
        for (number, entries) in self.entries.chunks(len.max(1)).enumerate().rev() {
            let first = self.block.filter(|_| number == 0);
            if first.is_some() && count > 1 {
                splits.fetch_add(1, Ordering::SeqCst);
            }
            let at = first.unwrap_or(entries[0].0);
            let bytes = block::encode(&at, entries);
            made.written_blocks += 1;
            made.bytes += KEY_LEN + bytes.len();
            tree.insert(at.as_bytes(), bytes)?;
        }
        Ok(())
    }
}

/// Returns the record under `key`.
pub(super) fn find(
    tree: &sled::Tree,
    splits: &AtomicU64,
    key: &Key,
) -> Result<Option<Record>, WorkerFailure> {
    retry_after_splits(splits, || {
        let Some((at, bytes)) = last_block_at(tree, key)? else { return Ok(None) };
        block::find(&key_of(&at)?, &bytes, key).ok_or_else(|| not_ours(&at))
    })
}

/// Repeats `look` if it finds nothing and a block was split meanwhile. It may have searched the
/// upper part before that was written, and the lower part after it was cut.
fn retry_after_splits<T>(
    splits: &AtomicU64,
    mut look: impl FnMut() -> Result<Option<T>, WorkerFailure>,
) -> Result<Option<T>, WorkerFailure> {
    loop {
        let before = splits.load(Ordering::SeqCst);
        let found = look()?;
        if found.is_some() || splits.load(Ordering::SeqCst) == before {
            return Ok(found);
        }
    }
}

/// Returns the key and the bytes of the last block whose key is at or before `key`.
fn last_block_at(tree: &sled::Tree, key: &Key) -> Result<Option<(sled::IVec, sled::IVec)>, WorkerFailure> {
    Ok(tree.range::<&[u8], _>(..=&key.as_bytes()[..]).next_back().transpose()?)
}

fn key_of(at: &[u8]) -> Result<Key, WorkerFailure> {
    Key::from_slice(at).map_err(|_| not_ours(at))
}

/// Decodes a block and its key.
pub(super) fn read_block(at: &[u8], bytes: &[u8]) -> Result<(Key, Vec<BlockEntry>), WorkerFailure> {
    let key = key_of(at)?;
    Ok((key, block::decode(&key, bytes).ok_or_else(|| not_ours(at))?))
}

/// An entry in sled that this spool did not write.
fn not_ours(at: &[u8]) -> WorkerFailure {
    let key: String = at.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
    WorkerFailure { what: format!("the bytes under the key {key} are not a block of the index"), kind: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message_id::MessageId;

    #[test]
    fn a_miss_counts_only_if_no_block_was_split_meanwhile() {
        let splits = AtomicU64::new(7);
        let mut looks = 0;
        let found = retry_after_splits(&splits, || {
            looks += 1;
            if looks < 3 {
                splits.fetch_add(1, Ordering::SeqCst);
                return Ok(None);
            }
            Ok(Some("a record"))
        });
        assert_eq!((found.unwrap(), looks), (Some("a record"), 3));
        let mut looks = 0;
        let found = retry_after_splits::<()>(&splits, || {
            looks += 1;
            Ok(None)
        });
        assert_eq!((found.unwrap(), looks), (None, 1));
    }

    #[test]
    fn only_splits_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::Config::new().path(dir.path()).flush_every_ms(None).open().unwrap();
        let tree = db.open_tree("places").unwrap();
        let splits = AtomicU64::new(0);
        let record = Record { seq: 1, generation: 1, offset: 4096, len: 9 };
        let put = |n: u8| {
            let id = MessageId::from_bytes([n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            IndexOp { key: Key::of(&id), change: IndexChange::Put(record) }
        };
        let make = |numbers: &mut dyn Iterator<Item = u8>| {
            let made = PackedChanges::pack(&mut numbers.map(put)).make(&tree, &splits).unwrap();
            (made.more_blocks, made.changed_blocks, splits.load(Ordering::SeqCst))
        };
        assert_eq!(make(&mut (0..128).step_by(2)), (2, 0, 0), "64 in order fill two blocks");
        assert_eq!(make(&mut (0..128).step_by(2)), (0, 0, 0), "nothing changes");
        assert_eq!(make(&mut [63].into_iter()), (1, 0, 0), "between two blocks");
        assert_eq!(make(&mut (1..128).step_by(2)), (3, 2, 2), "both are split, and one is added behind");
        assert_eq!(tree.len(), 6);
    }
}
