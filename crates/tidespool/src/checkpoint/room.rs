//! Frees space before sled writes. If sled meets a full disk, it is poisoned and can't open again
//! on that disk. Then no checkpointed message can be read, although all are there.

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use crate::storage::largest_file;

/// Space for sled's snapshot and the segments it has begun in its file.
const AT_LEAST: u64 = 1 << 20;

/// The most space to require. sled writes step by step, and each step leaves the space that the
/// last one needed.
const AT_MOST: u64 = 16 << 20;

/// Bytes that sled writes for a changed record: its block, and a share of the leaf around it.
const PER_RECORD: u64 = 1 << 10;

impl Checkpointer {
    /// Frees space for changing `records` records of the index, as far as possible: from the
    /// ballast first, then from free segments.
    pub(super) fn make_room(&self, records: u64) -> Result<(), CheckpointError> {
        let need = (AT_LEAST + records * PER_RECORD).min(AT_MOST);
        // sled writes its file itself. A write beyond the limit raises a signal that ends the
        // process by default.
        let grown = self.durable.size_on_disk().saturating_add(need);
        if largest_file().is_some_and(|limit| limit < grown) {
            return Err(CheckpointError::FileLimit { path: self.durable.path().to_owned(), need: grown });
        }
        let is_room = || self.ballast.room().is_surely_for(need);
        if is_room() {
            return Ok(());
        }
        self.ballast.release_for_checkpoint();
        let pool = self.segments.pool();
        let mut free = pool.free();
        while !is_room() {
            pool.trim(1);
            self.ballast.room().note_given();
            if pool.free() >= free {
                return Err(CheckpointError::NoRoom { path: self.durable.path().to_owned(), need });
            }
            free = pool.free();
        }
        Ok(())
    }
}
