//! Frees space before the index is changed. An engine may be unusable after it met a full disk, and
//! unable to open again there. Then no checkpointed message can be read, although all are there.

use super::{Ballast, CheckpointError};
use crate::index::DiskIndex;
use crate::journal::Pool;
use crate::storage::largest_file;

/// Frees space for changing `records` records of the index, as far as possible: from the ballast
/// first, then from free segments.
pub(super) fn make_room(
    durable: &DiskIndex,
    ballast: &Ballast,
    pool: &Pool,
    records: u64,
) -> Result<(), CheckpointError> {
    let need = durable.bytes_to_change(records);
    // The engine writes its file itself. A write beyond the limit raises a signal that ends the
    // process by default.
    let grown = durable.size_on_disk().saturating_add(need);
    if largest_file().is_some_and(|limit| limit < grown) {
        return Err(CheckpointError::FileLimit { path: durable.path().to_owned(), need: grown });
    }
    let is_room = || ballast.room().is_surely_for(need);
    if is_room() {
        return Ok(());
    }
    ballast.release_for_checkpoint();
    let mut free = pool.free();
    while !is_room() {
        pool.trim(1);
        ballast.room().note_given();
        if pool.free() >= free {
            return Err(CheckpointError::NoRoom { path: durable.path().to_owned(), need });
        }
        free = pool.free();
    }
    Ok(())
}
