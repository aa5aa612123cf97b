//! Changes on their way to sled's thread: packed on the caller's thread, made on sled's.
//!
//! # Blocks
//!
//! sled holds [blocks](super::block) of messages. A block's key is at or before that of its first
//! message, and no message of an earlier block is at or behind it: a message can be in no other
//! block than the last one whose key is not behind its own.
//!
//! New messages become blocks of their own, as many in each as come one after the other without a
//! message between them that is there already. So messages that are filed in the order of their
//! keys fill their blocks, and keys without an order get blocks of one: changing a message costs
//! what its block is long. Only a message whose key lies between two of one block goes into that
//! one. A block that is too long then is split, and that is the only way in which a message moves:
//! the upper part is there before the lower part is cut.

use std::ops::{Bound, RangeBounds as _};
use std::sync::atomic::{AtomicU64, Ordering};

use super::block::{self, BlockEntry, MOST};
use super::key::KEY_LEN;
use super::worker::WorkerFailure;
use super::{IndexChange, IndexOp, Key, Record};

/// Changes that go to sled's thread at once.
const TRIP_OPS: usize = 512;

/// Changes that go to sled's thread together.
pub(super) struct PackedChanges(Vec<IndexOp>);

/// What became of a trip.
#[derive(Default)]
pub(super) struct Applied {
    pub(super) changes: Vec<Changed>,
    /// Blocks that are there now and were not before, modulo 2⁶⁴.
    pub(super) more_blocks: u64,
    /// Blocks that were there before, and were replaced or removed.
    pub(super) changed_blocks: u64,
    /// Blocks that sled was given.
    pub(super) written_blocks: u64,
    /// Bytes of keys and blocks that sled was given.
    pub(super) bytes: usize,
}

/// One change, made.
pub(super) struct Changed {
    pub(super) key: Key,
    pub(super) new: Option<Record>,
    pub(super) old: Option<Record>,
}

impl PackedChanges {
    /// Takes the next changes, [`TRIP_OPS`] at most. Empty at the end.
    pub(super) fn pack(ops: &mut dyn Iterator<Item = IndexOp>) -> Self {
        Self(ops.take(TRIP_OPS).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes the changes, one after the other. Writes nothing where nothing changes. Counts each
    /// block that it splits in `splits`, before the lower part is cut.
    pub(super) fn make(self, tree: &sled::Tree, splits: &AtomicU64) -> Result<Applied, WorkerFailure> {
        let mut made = Applied { changes: Vec::with_capacity(self.0.len()), ..Applied::default() };
        let mut stretch: Option<Stretch> = None;
        for IndexOp { key, change } in self.0 {
            let mut current = match stretch.take() {
                Some(stretch) if stretch.includes(&key) => stretch,
                other => {
                    if let Some(done) = other {
                        done.write(tree, splits, &mut made)?;
                    }
                    Stretch::around(tree, &key)?
                }
            };
            let new = match change {
                IndexChange::Put(record) => Some(record),
                IndexChange::Remove => None,
            };
            let old = current.replace(key, new);
            made.changes.push(Changed { key, new, old });
            stretch = Some(current);
        }
        if let Some(last) = stretch {
            last.write(tree, splits, &mut made)?;
        }
        Ok(made)
    }
}

/// A part of the row of keys: from the first to the last message of a block, or between two blocks.
struct Stretch {
    /// The key of the block. `None`: between two.
    block: Option<Key>,
    range: (Bound<Key>, Bound<Key>),
    entries: Vec<BlockEntry>,
    is_changed: bool,
}

impl Stretch {
    fn around(tree: &sled::Tree, key: &Key) -> Result<Self, WorkerFailure> {
        if let Some((at, bytes)) = last_block_at(tree, key)? {
            let (at, entries) = read_block(&at, &bytes)?;
            // A block has one entry at least.
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

    /// Returns what stood there.
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
        // What comes in order fills its blocks. The parts of one that was split have room for more.
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

/// The record under `key`.
pub(super) fn find(
    tree: &sled::Tree,
    splits: &AtomicU64,
    key: &Key,
) -> Result<Option<Record>, WorkerFailure> {
    until_sure(splits, || {
        let Some((at, bytes)) = last_block_at(tree, key)? else { return Ok(None) };
        block::find(&key_of(&at)?, &bytes, key).ok_or_else(|| not_ours(&at))
    })
}

/// What `look` finds. Nothing is found only where no block was split meanwhile: it may have been
/// looked for in the upper part before that was there, and in the lower part when that was cut.
fn until_sure<T>(
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

/// The last block whose key is not behind `key`: its key and its bytes.
fn last_block_at(tree: &sled::Tree, key: &Key) -> Result<Option<(sled::IVec, sled::IVec)>, WorkerFailure> {
    Ok(tree.range::<&[u8], _>(..=&key.as_bytes()[..]).next_back().transpose()?)
}

fn key_of(at: &[u8]) -> Result<Key, WorkerFailure> {
    Key::from_slice(at).map_err(|_| not_ours(at))
}

/// The block in these bytes.
pub(super) fn read_block(at: &[u8], bytes: &[u8]) -> Result<(Key, Vec<BlockEntry>), WorkerFailure> {
    let key = key_of(at)?;
    Ok((key, block::decode(&key, bytes).ok_or_else(|| not_ours(at))?))
}

/// Something in sled that this spool did not write there.
fn not_ours(at: &[u8]) -> WorkerFailure {
    let key: String = at.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
    WorkerFailure { what: format!("the bytes under the key {key} are not a block of the index"), kind: None }
}

#[cfg(test)]
mod tests {
    use tidespool_core::SpoolId;

    use super::*;

    #[test]
    fn nothing_is_found_only_where_no_block_was_split_meanwhile() {
        let splits = AtomicU64::new(7);
        let mut looks = 0;
        let found = until_sure(&splits, || {
            looks += 1;
            if looks < 3 {
                splits.fetch_add(1, Ordering::SeqCst);
                return Ok(None);
            }
            Ok(Some("a record"))
        });
        assert_eq!((found.unwrap(), looks), (Some("a record"), 3));
        let mut looks = 0;
        let found = until_sure::<()>(&splits, || {
            looks += 1;
            Ok(None)
        });
        assert_eq!((found.unwrap(), looks), (None, 1));
    }

    #[test]
    fn each_split_is_counted_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::Config::new().path(dir.path()).flush_every_ms(None).open().unwrap();
        let tree = db.open_tree("places").unwrap();
        let splits = AtomicU64::new(0);
        let record = Record { seq: 1, generation: 1, offset: 4096, len: 9 };
        let put = |n: u8| {
            let id = SpoolId::from_bytes([n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            IndexOp { key: Key::of(&id), change: IndexChange::Put(record) }
        };
        let make = |numbers: &mut dyn Iterator<Item = u8>| {
            let made = PackedChanges::pack(&mut numbers.map(put)).make(&tree, &splits).unwrap();
            (made.more_blocks, made.changed_blocks, splits.load(Ordering::SeqCst))
        };
        assert_eq!(make(&mut (0..128).step_by(2)), (2, 0, 0), "64 in order fill two blocks");
        assert_eq!(make(&mut (0..128).step_by(2)), (0, 0, 0), "nothing changes");
        assert_eq!(make(&mut [63].into_iter()), (1, 0, 0), "between two blocks");
        assert_eq!(make(&mut (1..128).step_by(2)), (3, 2, 2), "both are split, and one comes behind");
        assert_eq!(tree.len(), 6);
    }
}
