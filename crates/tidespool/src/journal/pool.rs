//! Segment files that are free for use: taken by the writer, given back by the checkpoint, prewritten ahead by a thread.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::segment::{Role, SegmentHeader};
use crate::storage::{OpenMode, Storage, StorageFile, write_all_at};

/// Free segments that stores may not take, so that removes can be written whatever else waits.
pub(crate) const RESERVED: usize = 1;

/// Free segments that the prewriting thread keeps ready: the reserve, and one to go on with.
const READY: usize = RESERVED + 1;

/// Pause after prewriting failed: full disks are not asked again at once.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A segment file without content that counts.
#[derive(Debug)]
pub(crate) struct FreeSegment {
    pub(crate) slot: u32,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn StorageFile>,
    pub(crate) size: u64,
}

/// What the pool tells its owner.
pub(crate) trait PoolEvents: Send + Sync {
    /// A segment became free.
    fn segment_free(&self);
    /// A segment could not be prewritten.
    fn prewrite_failed(&self, error: &io::Error);
}

/// The free segments, and the count of those in the journal's capacity.
pub(crate) struct Pool {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    spool: [u8; 16],
    segment_size: u64,
    max_counted: usize,
    /// Bytes of the file system that new segments leave to others: to the ledger and to sled, without which no segment is ever recycled.
    keep_free: u64,
    state: Mutex<State>,
    wake: Condvar,
    events: Arc<dyn PoolEvents>,
}

#[derive(Debug)]
struct State {
    free: Vec<FreeSegment>,
    /// Segments that count against the capacity: the free ones and the journal's, not the retained ones.
    counted: usize,
    next_slot: u32,
    /// The last new segment found no room on disk: there is no headroom beyond what is free.
    disk_full: bool,
    stopped: bool,
}

/// What a pool is made of.
#[derive(Debug)]
pub(crate) struct PoolSettings {
    pub(crate) dir: PathBuf,
    pub(crate) spool: [u8; 16],
    /// Bytes of a segment.
    pub(crate) segment_size: u64,
    /// Bytes of the segments that count.
    pub(crate) capacity: u64,
    /// Bytes of the file system that are left to others.
    pub(crate) keep_free: u64,
    /// The first slot that no file has.
    pub(crate) next_slot: u32,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("dir", &self.dir).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Pool {
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        settings: PoolSettings,
        events: Arc<dyn PoolEvents>,
    ) -> Self {
        let PoolSettings { dir, spool, segment_size, capacity, keep_free, next_slot } = settings;
        let max_counted = usize::try_from(capacity / segment_size).unwrap_or(usize::MAX).max(4);
        let state = State { free: Vec::new(), counted: 0, next_slot, disk_full: false, stopped: false };
        Self {
            storage,
            dir,
            spool,
            segment_size,
            max_counted,
            keep_free,
            state: Mutex::new(state),
            wake: Condvar::new(),
            events,
        }
    }

    pub(crate) fn segment_size(&self) -> u64 {
        self.segment_size
    }

    /// Takes a free segment, leaving `keep` of them.
    pub(crate) fn take(&self, keep: usize) -> Option<FreeSegment> {
        let mut state = self.state.lock();
        if state.free.len() <= keep {
            return None;
        }
        let taken = state.free.pop();
        self.wake.notify_one();
        taken
    }

    /// Free segments, all told.
    pub(crate) fn free(&self) -> usize {
        self.state.lock().free.len()
    }

    /// How many more segments the capacity allows, free ones included.
    pub(crate) fn headroom(&self) -> usize {
        let state = self.state.lock();
        let more = if state.disk_full { 0 } else { self.max_counted.saturating_sub(state.counted) };
        state.free.len() + more
    }

    /// The most segments that the capacity allows.
    pub(crate) fn capacity(&self) -> usize {
        self.max_counted
    }

    /// Counts a segment that is in the journal already: found by recovery.
    pub(crate) fn count_existing(&self) {
        self.state.lock().counted += 1;
    }

    /// Counts a segment out: it is retained or deleted from here on.
    pub(crate) fn count_out(&self) {
        let mut state = self.state.lock();
        state.counted = state.counted.saturating_sub(1);
        self.wake.notify_one();
    }

    /// Adds a file for use. One too many is deleted.
    pub(crate) fn give(&self, segment: FreeSegment) {
        let surplus = {
            let mut state = self.state.lock();
            if segment.size == self.segment_size && state.counted < self.max_counted {
                state.counted += 1;
                state.free.push(segment);
                None
            } else {
                Some(segment)
            }
        };
        match surplus {
            None => self.events.segment_free(),
            Some(segment) => self.delete(&segment.path),
        }
    }

    /// Deletes a segment's file. Where that fails it stays as garbage, which the next open takes for a free segment.
    pub(crate) fn delete(&self, path: &std::path::Path) {
        if let Err(error) = self.storage.remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "a segment that is no longer needed could not be deleted");
        }
    }

    /// Makes a segment file of `size` bytes, written full of zeros, its name and its blocks durable.
    pub(crate) fn create(&self, size: u64) -> io::Result<FreeSegment> {
        let (slot, path) = self.unused_slot()?;
        let made = self.create_at(&path, size);
        match made {
            Ok(file) => Ok(FreeSegment { slot, path, file, size }),
            Err(error) => {
                // Half a segment is of no use, and on a full disk its blocks are wanted.
                let _ = self.storage.remove_file(&path);
                Err(error)
            }
        }
    }

    /// The next slot of which no file is there: names go round after the last, and others may put files here.
    fn unused_slot(&self) -> io::Result<(u32, PathBuf)> {
        loop {
            let slot = {
                let mut state = self.state.lock();
                let slot = state.next_slot;
                state.next_slot = slot.wrapping_add(1);
                slot
            };
            let path = self.dir.join(segment_file_name(slot));
            match self.storage.open(&path, OpenMode::Read) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((slot, path)),
                Err(error) => return Err(error),
            }
        }
    }

    fn create_at(&self, path: &std::path::Path, size: u64) -> io::Result<Arc<dyn StorageFile>> {
        // Synced step by step: one long sync would hold up the journal's own.
        const STEP: usize = 2 << 20;
        let file = self.storage.open(path, OpenMode::Create)?;
        let zeros = vec![0; STEP];
        let header = SegmentHeader { role: Role::Free, generation: 0, size, spool: self.spool }.encode();
        let mut offset = header.len() as u64;
        write_all_at(&*file, &mut [IoSlice::new(&header)], 0)?;
        while offset < size {
            let step = usize::try_from(size - offset).unwrap_or(STEP).min(STEP);
            write_all_at(&*file, &mut [IoSlice::new(&zeros[..step])], offset)?;
            file.sync_data()?;
            offset += step as u64;
        }
        self.storage.sync_dir(&self.dir)?;
        Ok(file)
    }

    /// Makes a segment, if that leaves enough of the disk to others.
    pub(crate) fn create_if_room(&self, size: u64) -> io::Result<FreeSegment> {
        if self.storage.free_bytes(&self.dir)? < size + self.keep_free {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.create(size)
    }

    /// Makes the segments that a new spool starts with.
    pub(crate) fn fill(&self) -> io::Result<()> {
        while self.wants_one(&self.state.lock()) {
            self.give(self.create_if_room(self.segment_size)?);
        }
        Ok(())
    }

    fn wants_one(&self, state: &State) -> bool {
        state.free.len() < READY && state.counted < self.max_counted
    }

    /// The prewriting thread: keeps some segments ready until [`Pool::stop`].
    pub(crate) fn run_prewriter(&self) {
        let mut state = self.state.lock();
        while !state.stopped {
            if !self.wants_one(&state) {
                self.wake.wait(&mut state);
                continue;
            }
            drop(state);
            let made = self.create_if_room(self.segment_size);
            let failed = made.is_err();
            match made {
                Ok(segment) => self.give(segment),
                Err(error) => self.events.prewrite_failed(&error),
            }
            state = self.state.lock();
            state.disk_full = failed;
            if failed && !state.stopped {
                self.wake.wait_for(&mut state, RETRY_AFTER);
            }
        }
    }

    /// Ends the prewriting thread after what it is at.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.wake.notify_all();
    }
}

/// The name of a segment's file.
pub(crate) fn segment_file_name(slot: u32) -> String {
    format!("{slot:08x}.seg")
}

/// The slot in a segment's file name, or `None` for any other file.
pub(crate) fn parse_segment_file_name(name: &str) -> Option<u32> {
    let slot = name.strip_suffix(".seg").filter(|slot| slot.len() == 8)?;
    let slot = u32::from_str_radix(slot, 16).ok()?;
    // Not `+0000001.seg` or upper case: names that were never ours.
    (segment_file_name(slot) == name).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_round_trip_and_foreign_ones_are_none() {
        for slot in [0, 1, 0xab, u32::MAX] {
            assert_eq!(parse_segment_file_name(&segment_file_name(slot)), Some(slot));
        }
        for name in ["", ".seg", "1.seg", "+0000001.seg", "0000000A.seg", "00000001.seg.bak", "00000001"] {
            assert_eq!(parse_segment_file_name(name), None, "{name}");
        }
    }
}
