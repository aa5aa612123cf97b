//! Room for what sled writes, made before it is asked to write: one that meets a full disk is poisoned, and on a full disk it can't be opened again.
//! Then nothing that is filed could be read, though it is all there.

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use crate::storage::largest_file;

/// For its snapshot, and the segments of its file that it has begun.
const AT_LEAST: u64 = 1 << 20;

/// No more than this is ever asked for: sled writes step by step, and each step leaves what the last one needed.
const AT_MOST: u64 = 16 << 20;

/// Bytes that sled writes for one changed record: its block, and a share of the leaf around it.
const PER_RECORD: u64 = 1 << 10;

impl Checkpointer {
    /// Has room for changing so many records of the index, as far as that can be: the ballast goes
    /// first, then free segments.
    pub(super) fn make_room(&self, records: u64) -> Result<(), CheckpointError> {
        let need = (AT_LEAST + records * PER_RECORD).min(AT_MOST);
        // sled writes its file itself, and the signal that comes with a write beyond the limit ends
        // the process by default.
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
