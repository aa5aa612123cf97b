//! The free segment files. The writer takes them, the checkpointer returns them, and a thread
//! prepares them ahead.
//!
//! # Written or allocated
//!
//! A new file can be prepared in two ways. Writing it full of zeros writes it twice. Allocating it
//! makes each sync of its first use wait for a commit of the file system, which marks the blocks as
//! written. The bytes that a sync covers decide: up to [`PREWRITE_UP_TO`] the file is written,
//! above it is allocated. A file that was filled once is as good as prewritten.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::segment::{PAGE, Role, SegmentHeader};
use crate::storage::{OpenMode, Space, Storage, StorageFile, at, is_no_room, write_all_at};

/// Free segments that stores may not take, so that removes can always be written.
pub(crate) const RESERVED: usize = 1;

/// Free segments that the prewriting thread keeps ready: the reserve and one more.
pub(super) const READY: usize = RESERVED + 1;

/// Files are prewritten if a sync covers at most this many bytes. Measured on ext4, MB/s prewritten
/// (preparation included) and allocated: 40 and 28 with 4 KiB a sync, 190 and 135 with 20 KiB, 450
/// and 375 with 64 KiB, 720 and 710 with 128 KiB, 950 and 1 020 with 256 KiB, 1 240 and 2 150 with
/// 1 MiB. Prewriting writes the device twice: a third of the rate is worth it, a fifth is not.
pub(super) const PREWRITE_UP_TO: u64 = 32 << 10;

/// Pause after a failure to prepare a segment: a full disk is not tried again at once.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The value of `active_room` if no segment is active.
const NONE_ACTIVE: u64 = u64::MAX;

/// A segment file whose content does not count.
#[derive(Debug)]
pub(crate) struct FreeSegment {
    pub(crate) slot: u32,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn StorageFile>,
    pub(crate) size: u64,
}

/// Events that the pool reports to its owner, and a question that it asks.
pub(crate) trait PoolEvents: Send + Sync {
    /// A segment became free.
    fn segment_free(&self);
    /// Whether a new segment of `size` bytes leaves enough room to others under a quota, which free
    /// space does not show.
    fn leaves_enough(&self, size: u64) -> bool {
        let _ = size;
        true
    }
    /// A segment could not be prewritten.
    fn prewrite_failed(&self, error: &io::Error);
}

/// The events of a pool that prewrites nothing.
pub(crate) struct NoPoolEvents;

impl PoolEvents for NoPoolEvents {
    fn segment_free(&self) {}
    fn prewrite_failed(&self, _error: &io::Error) {}
}

/// The free segments, and the count of the segments in the journal's capacity.
pub(crate) struct Pool {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    spool: [u8; 16],
    segment_size: u64,
    max_counted: AtomicUsize,
    /// Bytes of the file system that new segments leave to the manifest and the index. Without
    /// these no segment is ever recycled.
    keep_free: AtomicU64,
    /// Bytes that a sync of the journal covered recently; 0 until known.
    batch_bytes: AtomicU64,
    /// Bytes that the active segment has room for. `NONE_ACTIVE`: no segment is active.
    active_room: AtomicU64,
    state: Mutex<PoolState>,
    wake: Condvar,
    events: Arc<dyn PoolEvents>,
}

#[derive(Debug, Default)]
struct PoolState {
    free: Vec<FreeSegment>,
    /// Segments that count against the capacity: the free ones and the journal's. Retained segments
    /// do not.
    counted: usize,
    next_slot: u32,
    /// The last attempt to create a segment failed: there is no headroom beyond the free segments.
    failed: bool,
    /// The last attempt failed for lack of room on disk.
    is_blocked: bool,
    /// Segments for which the disk has room beside the existing ones, as of the last check.
    fits: usize,
    /// The free segments that a waiting transaction needs, if they are more than [`READY`].
    wanted: usize,
    /// The spool's directory was deleted or moved: what is written to a segment is missing at the
    /// next start.
    away: bool,
    stopped: bool,
}

impl PoolState {
    /// The free segments that the prewriting thread keeps ready.
    fn ready(&self) -> usize {
        READY.max(self.wanted)
    }

    /// Records the result of the last attempt to create a segment.
    fn note_attempt(&mut self, error: Option<&io::Error>) {
        self.failed = error.is_some();
        self.is_blocked = error.is_some_and(is_no_room);
    }
}

/// The settings of a [`Pool`].
#[derive(Debug)]
pub(crate) struct PoolSettings {
    pub(crate) dir: PathBuf,
    pub(crate) spool: [u8; 16],
    /// Bytes of a segment.
    pub(crate) segment_size: u64,
    /// Bytes of the segments that count against the capacity.
    pub(crate) capacity: u64,
    /// Bytes of the file system that new segments leave to others.
    pub(crate) keep_free: u64,
    /// The first unused slot.
    pub(crate) next_slot: u32,
}

impl PoolSettings {
    /// For the first segments of a directory. They leave no space to others.
    pub(crate) fn new(dir: PathBuf, spool: [u8; 16], segment_size: u64, capacity: u64) -> Self {
        Self { dir, spool, segment_size, capacity, keep_free: 0, next_slot: 0 }
    }
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
        let state = PoolState { next_slot, fits: usize::MAX, ..PoolState::default() };
        Self {
            storage,
            dir,
            spool,
            segment_size,
            max_counted: AtomicUsize::new(max_counted(capacity, segment_size)),
            keep_free: AtomicU64::new(keep_free),
            batch_bytes: AtomicU64::new(0),
            active_room: AtomicU64::new(NONE_ACTIVE),
            state: Mutex::new(state),
            wake: Condvar::new(),
            events,
        }
    }

    pub(crate) fn segment_size(&self) -> u64 {
        self.segment_size
    }

    /// Takes a free segment. `None` if that would leave fewer than `keep`.
    pub(crate) fn take(&self, keep: usize) -> Option<FreeSegment> {
        let mut state = self.state.lock();
        if state.away || state.free.len() <= keep {
            return None;
        }
        let taken = state.free.pop();
        self.wake.notify_one();
        taken
    }

    /// The number of free segments, reserve included.
    pub(crate) fn free(&self) -> usize {
        let state = self.state.lock();
        if state.away { 0 } else { state.free.len() }
    }

    /// Records whether the spool's directory is away. While it is, the pool gives out no segment.
    pub(super) fn set_away(&self, away: bool) {
        let was = std::mem::replace(&mut self.state.lock().away, away);
        if was && !away {
            self.events.segment_free();
        }
    }

    pub(super) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    pub(super) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// The path and the descriptor of each free segment.
    pub(super) fn free_files(&self) -> Vec<(PathBuf, Arc<dyn StorageFile>)> {
        self.state.lock().free.iter().map(|free| (free.path.clone(), free.file.clone())).collect()
    }

    /// Deletes a free segment, to be replaced by a new one. False if it is not free any more.
    pub(super) fn give_up(&self, file: &Arc<dyn StorageFile>) -> bool {
        let mut state = self.state.lock();
        let Some(place) = state.free.iter().position(|free| Arc::ptr_eq(&free.file, file)) else {
            return false;
        };
        let given_up = state.free.swap_remove(place);
        state.counted = state.counted.saturating_sub(1);
        self.wake.notify_one();
        drop(state);
        self.delete(&given_up.path);
        true
    }

    /// How many more segments the journal may use, free ones included.
    pub(crate) fn headroom(&self) -> usize {
        let state = self.state.lock();
        let more = if state.failed { 0 } else { self.most().saturating_sub(state.counted) };
        state.free.len() + more
    }

    /// The most segments that the setting allows.
    fn most(&self) -> usize {
        self.max_counted.load(Ordering::Relaxed)
    }

    /// The effective capacity in segments: what the setting allows, or what fits on the disk if
    /// that is less.
    pub(crate) fn capacity(&self) -> usize {
        let state = self.state.lock();
        let fits = if state.is_blocked { 0 } else { state.fits };
        self.most().min(state.counted.saturating_add(fits))
    }

    /// Records how many bytes the active segment has room for. `None`: no segment is active.
    pub(super) fn note_active_room(&self, bytes: Option<u64>) {
        self.active_room.store(bytes.unwrap_or(NONE_ACTIVE), Ordering::Relaxed);
    }

    /// True if the active segment has room for half a segment: stores can continue for a while
    /// without another one.
    pub(crate) fn active_has_room(&self) -> bool {
        let room = self.active_room.load(Ordering::Relaxed);
        room != NONE_ACTIVE && room >= self.segment_size / 2
    }

    /// True if a segment is active and has room for less than half a segment.
    pub(crate) fn active_is_used_up(&self) -> bool {
        self.active_room.load(Ordering::Relaxed) < self.segment_size / 2
    }

    /// True if another segment is wanted and the disk has no room for it.
    pub(crate) fn is_blocked(&self) -> bool {
        self.state.lock().is_blocked
    }

    /// Records the space that the disk has.
    pub(crate) fn note_space(&self, space: &Space) {
        let room = space.free_bytes.saturating_sub(self.keep_free.load(Ordering::Relaxed));
        let fits = match space.total_bytes {
            // The file system does not report its size.
            0 => usize::MAX,
            _ => usize::try_from(room / self.segment_size).unwrap_or(usize::MAX),
        };
        self.state.lock().fits = fits;
    }

    /// Changes [`PoolSettings::capacity`] and [`PoolSettings::keep_free`]. Segments in use above
    /// the new capacity are deleted when they become free.
    pub(crate) fn set_bounds(&self, capacity: u64, keep_free: u64) {
        self.max_counted.store(max_counted(capacity, self.segment_size), Ordering::Relaxed);
        self.keep_free.store(keep_free, Ordering::Relaxed);
        // Taking the lock ensures that the thread is not between its check and its wait. The thread
        // deletes the surplus, because that is file I/O.
        drop(self.state.lock());
        self.wake.notify_one();
        self.events.segment_free();
    }

    /// A transaction needs this many segments beside the active one. 0: none waits.
    pub(crate) fn want(&self, segments: usize) {
        let wanted = if segments == 0 { 0 } else { segments + RESERVED };
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.wanted, wanted) < wanted {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Bytes of the segments that count against the capacity.
    pub(crate) fn counted_bytes(&self) -> u64 {
        self.state.lock().counted as u64 * self.segment_size
    }

    /// Deletes up to `count` free segments. Keeps those that the thread would create again.
    pub(crate) fn trim(&self, count: u64) {
        for _ in 0..count {
            if !self.delete_spare(READY) {
                return;
            }
        }
    }

    /// Deletes one free segment to free its room, but never the last. False if it is the last.
    pub(crate) fn give_up_one(&self) -> bool {
        self.delete_spare(1)
    }

    /// Deletes one free segment. False if there are no more than `kept`.
    fn delete_spare(&self, kept: usize) -> bool {
        let mut state = self.state.lock();
        if state.free.len() <= kept {
            return false;
        }
        state.counted = state.counted.saturating_sub(1);
        let spare = state.free.pop();
        drop(state);
        spare.inspect(|spare| self.delete(&spare.path)).is_some()
    }

    /// Counts a segment that exists already: found by recovery, or created outside of the pool's
    /// thread.
    pub(crate) fn count_existing(&self) {
        self.state.lock().counted += 1;
    }

    /// Stops counting a segment: it is retained or deleted.
    pub(crate) fn count_out(&self) {
        let mut state = self.state.lock();
        state.counted = state.counted.saturating_sub(1);
        self.wake.notify_one();
    }

    /// Adds a free segment. Deletes a surplus one, or one of another size.
    pub(crate) fn give(&self, segment: FreeSegment) {
        let surplus = {
            let mut state = self.state.lock();
            if segment.size == self.segment_size && state.counted < self.most() {
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

    /// Deletes a segment's file. If that fails, the file stays, and the next open treats it as a
    /// free segment.
    pub(crate) fn delete(&self, path: &std::path::Path) {
        if let Err(error) = self.storage.remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a segment that is no longer needed could not be deleted");
        }
    }

    /// Creates a segment file of `size` bytes, full of zeros. Its name and its blocks are durable.
    pub(crate) fn create(&self, size: u64) -> io::Result<FreeSegment> {
        self.make(size, |file| Self::prewrite(file, size))
    }

    /// Creates a segment file of `size` bytes and allocates all of them. Its name and its blocks
    /// are durable. Written full of zeros only if the file system can't allocate.
    pub(crate) fn allocate(&self, size: u64) -> io::Result<FreeSegment> {
        self.make(size, |file| Self::reserve(file, size))
    }

    /// Reserves room for all bytes of a file. They read as zeros behind the header.
    pub(super) fn reserve(file: &dyn StorageFile, size: u64) -> io::Result<()> {
        match file.allocate(size) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Self::prewrite(file, size),
            allocated => allocated.and_then(|()| file.sync_data()),
        }
    }

    /// Records how many bytes a sync of the journal covers.
    pub(crate) fn note_batch_bytes(&self, bytes: u64) {
        self.batch_bytes.store(bytes, Ordering::Relaxed);
    }

    fn make(
        &self,
        size: u64,
        prepare: impl FnOnce(&dyn StorageFile) -> io::Result<()>,
    ) -> io::Result<FreeSegment> {
        let (slot, path) = self.unused_slot()?;
        let made = self.make_at(&path, size, prepare);
        match made {
            Ok(file) => {
                let fits = &mut self.state.lock().fits;
                if *fits != usize::MAX {
                    *fits = fits.saturating_sub(1);
                }
                Ok(FreeSegment { slot, path, file, size })
            }
            Err(error) => {
                // A partial segment is useless, and a full disk needs its blocks.
                let _ = self.storage.remove_file(&path);
                Err(at(&path, error))
            }
        }
    }

    /// Finds the next slot without a file. Slot numbers wrap around, and other software may create
    /// files here.
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
                Err(error) => return Err(at(&path, error)),
            }
        }
    }

    fn make_at(
        &self,
        path: &std::path::Path,
        size: u64,
        prepare: impl FnOnce(&dyn StorageFile) -> io::Result<()>,
    ) -> io::Result<Arc<dyn StorageFile>> {
        let file = self.storage.open(path, OpenMode::Create)?;
        SegmentHeader { role: Role::Free, generation: 0, size, spool: self.spool }.write(&*file)?;
        prepare(&*file)?;
        self.storage.sync_dir(&self.dir)?;
        Ok(file)
    }

    /// Writes zeros behind the header.
    fn prewrite(file: &dyn StorageFile, size: u64) -> io::Result<()> {
        // XFS takes up to twice the room for a growing file, for as long as it is open.
        match file.allocate(size) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            allocated => allocated?,
        }
        // Synced in steps: one long sync would delay the journal's syncs.
        const STEP: usize = 2 << 20;
        let zeros = vec![0; STEP];
        let mut offset = PAGE;
        while offset < size {
            let step = usize::try_from(size - offset).unwrap_or(STEP).min(STEP);
            write_all_at(file, &mut [IoSlice::new(&zeros[..step])], offset)?;
            file.sync_data()?;
            offset += step as u64;
        }
        // The page cache holds the zeros in pieces as large as the writes, and a sync of 4 KiB in
        // such a piece examines all of it.
        file.forget_cached();
        Ok(())
    }

    /// Creates a segment, if that leaves enough of the disk to others.
    pub(crate) fn create_if_room(&self, size: u64) -> io::Result<FreeSegment> {
        self.check_room(size)?;
        // A segment of another size is for a single message, written at once.
        let prewrites = self.batch_bytes.load(Ordering::Relaxed) <= PREWRITE_UP_TO;
        if size == self.segment_size && prewrites { self.create(size) } else { self.allocate(size) }
    }

    /// [`Pool::allocate`], if that leaves enough of the disk to others.
    pub(crate) fn allocate_if_room(&self, size: u64) -> io::Result<FreeSegment> {
        self.check_room(size)?;
        self.allocate(size)
    }

    fn check_room(&self, size: u64) -> io::Result<()> {
        let need = size.saturating_add(self.keep_free.load(Ordering::Relaxed));
        let space = self.storage.space(&self.dir).map_err(|error| at(&self.dir, error))?;
        if space.has_room_for(need) && self.events.leaves_enough(size) {
            return Ok(());
        }
        let what = format!("a segment of {size} bytes would leave too little free space to others");
        Err(at(&self.dir, io::Error::new(io::ErrorKind::StorageFull, what)))
    }

    /// Creates the segments that a new spool starts with.
    pub(crate) fn fill(&self) -> io::Result<()> {
        while self.wants_one(&self.state.lock()) {
            self.give(self.create_if_room(self.segment_size)?);
        }
        Ok(())
    }

    fn wants_one(&self, state: &PoolState) -> bool {
        state.free.len() < state.ready() && state.counted < self.most()
    }

    /// The body of the prewriting thread: keeps [`READY`] segments free, or as many as are
    /// [wanted](Self::want), until [`Pool::stop`].
    pub(crate) fn run_prewriter(&self) {
        let mut state = self.state.lock();
        while !state.stopped {
            let surplus = state.counted.saturating_sub(self.most());
            if surplus > 0 && state.free.len() > state.ready() {
                drop(state);
                self.trim(surplus as u64);
                state = self.state.lock();
                continue;
            }
            if !self.wants_one(&state) {
                // No segment is wanted, so an earlier failure does not matter.
                state.note_attempt(None);
                self.wake.wait(&mut state);
                continue;
            }
            // The reserve is for removes: it may use the space that `keep_free` leaves to others.
            let is_reserve = state.free.len() < RESERVED;
            drop(state);
            let made = match self.create_if_room(self.segment_size) {
                Err(error) if is_reserve && is_no_room(&error) => self.allocate(self.segment_size),
                made => made,
            };
            let failed = made.is_err();
            // Before the event, which wakes the checkpointer thread: that thread reads this state.
            self.state.lock().note_attempt(made.as_ref().err());
            match made {
                Ok(segment) => self.give(segment),
                Err(error) => self.events.prewrite_failed(&error),
            }
            state = self.state.lock();
            if failed && !state.stopped {
                self.wake.wait_for(&mut state, RETRY_AFTER);
            }
        }
    }

    /// Ends the prewriting thread after its current step.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.wake.notify_all();
    }
}

/// Segments that make up `capacity` bytes, but at least 4.
fn max_counted(capacity: u64, segment_size: u64) -> usize {
    usize::try_from(capacity / segment_size).unwrap_or(usize::MAX).max(4)
}

/// The name of a segment's file.
pub(crate) fn segment_file_name(slot: u32) -> String {
    format!("{slot:08x}.seg")
}

/// Parses the slot from a segment's file name. `None`: not the name of a segment.
pub(crate) fn parse_segment_file_name(name: &str) -> Option<u32> {
    let slot = name.strip_suffix(".seg").filter(|slot| slot.len() == 8)?;
    let slot = u32::from_str_radix(slot, 16).ok()?;
    // Rejects names such as `+0000001.seg` or upper case, which the spool never creates.
    (segment_file_name(slot) == name).then_some(slot)
}
