//! Room for what sled writes, made before it is asked to write: one that meets a full disk is poisoned, and on a full disk it can't be opened again.
//! Then nothing that is filed could be read, though it is all there.

use tidespool_core::SpoolId;

use super::FilingError;
use super::filer::Filer;
use crate::journal::Newest;

/// For its snapshot, and the segments of its file that it has begun.
const AT_LEAST: u64 = 1 << 20;

/// No more than this is ever asked for: sled writes step by step, and each step leaves what the last one needed.
const AT_MOST: u64 = 16 << 20;

/// A record that sled is told of, with the leaf that it makes sled write anew.
const PER_RECORD: u64 = 1 << 10;

impl Filer {
    /// Has room for filing these.
    pub(super) fn make_room_to_file(&self, records: &[(SpoolId, Newest)]) -> Result<(), FilingError> {
        let separate_above = self.settings.load().separate_above;
        let whole = |(_, newest): &(SpoolId, Newest)| {
            let len = newest.place.map_or(0, |place| u64::from(place.len));
            if len <= separate_above { 2 * len } else { 0 }
        };
        self.make_room(records.len() as u64, records.iter().map(whole).sum())
    }

    /// Has room for changing so many records with so many bytes, as far as that can be: the ballast goes first, then free segments.
    pub(super) fn make_room(&self, records: u64, bytes: u64) -> Result<(), FilingError> {
        let need = (AT_LEAST + records * PER_RECORD + bytes).min(AT_MOST);
        let is_room = || self.ballast.is_room_for(need);
        if is_room() {
            return Ok(());
        }
        self.ballast.release_for_filing();
        let pool = self.segments.pool();
        let mut free = pool.free();
        while !is_room() {
            pool.trim(1);
            if pool.free() >= free {
                return Err(FilingError::NoRoom { need });
            }
            free = pool.free();
        }
        Ok(())
    }
}
