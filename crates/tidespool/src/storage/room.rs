//! Checks whether the disk of a spool has room.
//!
//! `statvfs` does not show most quotas. So before the index is changed or a segment is created, a
//! trial tests the room: it allocates and deletes a file. There is a quota if a trial or a write
//! fails for lack of room though `statvfs` shows room. From then on a trial confirms every answer.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{OpenMode, Storage, StorageFile, is_no_room, largest_file, os_code, write_all_at};

/// The file with which a trial tests the room. Only a kill leaves it behind.
pub(crate) const TRIAL_FILE: &str = "probe.room";

/// The pause after a failed trial, before a trial of as many bytes or more. Some file systems
/// (btrfs) count a deleted file for a while: trials in a row would take the room that they look
/// for.
const NEXT_TRIAL: Duration = Duration::from_secs(2);

/// The room on the disk of one spool.
#[derive(Debug)]
pub(crate) struct DiskRoom {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    /// Bytes that the spool needs to continue storing.
    enough: u64,
    /// `statvfs` is exact there, and a trial would take memory.
    is_in_memory: bool,
    /// `statvfs` showed room that was not there. Never reset: the quota stays, too.
    distrusts_statvfs: AtomicBool,
    /// Bytes that must be free before the shortage is over. 0: there is no shortage.
    missing: AtomicU64,
    /// See [`NEXT_TRIAL`].
    pause: Duration,
    /// Time and bytes of the last trial if it failed, and if the spool freed no room since.
    failed: Mutex<Option<(Instant, u64)>>,
    /// Held during a trial, so that only one runs at a time.
    trial: Mutex<()>,
}

impl DiskRoom {
    /// For a spool in `dir` that needs `enough` free bytes to continue storing.
    pub(crate) fn new(storage: Arc<dyn Storage>, dir: &Path, enough: u64) -> Self {
        Self {
            is_in_memory: storage.space(dir).is_ok_and(|space| space.is_in_memory),
            storage,
            dir: dir.to_owned(),
            enough,
            distrusts_statvfs: AtomicBool::new(false),
            missing: AtomicU64::new(0),
            pause: NEXT_TRIAL,
            failed: Mutex::default(),
            trial: Mutex::default(),
        }
    }

    /// Removes the trial file of a killed process, to free its bytes.
    pub(crate) fn remove_leftover(&self) {
        // Usually there is none.
        let _ = self.storage.remove_file(&self.dir.join(TRIAL_FILE));
    }

    /// Records an error of a write, a sync or a new file. The spool's own errors, which keep room
    /// free for others, have no system error number and do not count.
    pub(crate) fn note(&self, error: &io::Error) {
        if is_no_room(error) && os_code(error).is_some() {
            self.note_no_room();
        }
    }

    /// Records that the spool freed room of its own: the next trial may succeed.
    pub(crate) fn note_given(&self) {
        *self.failed.lock() = None;
    }

    /// Records that a write failed for lack of room.
    pub(crate) fn note_no_room(&self) {
        self.note_missing(self.enough);
    }

    fn note_missing(&self, need: u64) {
        // If `statvfs` shows the shortage, it also shows when the shortage ends.
        if self.shows_room_for(need) {
            self.distrusts_statvfs.store(true, Ordering::Relaxed);
            // More than was missing, or the shortage would return at once.
            self.missing.fetch_max(need.saturating_add(self.enough), Ordering::Relaxed);
        }
    }

    /// Whether there is room for `bytes`. True if the file system does not answer.
    pub(crate) fn is_for(&self, bytes: u64) -> bool {
        self.shows_room_for(bytes)
            && (!self.distrusts_statvfs.load(Ordering::Relaxed) || self.passes_trial(bytes))
    }

    /// Like [`is_for`](Self::is_for), for a caller that must not run out of room, such as the
    /// index. Tests more than `bytes`, to find a quota while there is still room to continue.
    pub(crate) fn is_surely_for(&self, bytes: u64) -> bool {
        self.shows_room_for(bytes)
            && (self.leaves(bytes, bytes)
                || !self.distrusts_statvfs.load(Ordering::Relaxed)
                || self.passes_trial(bytes))
    }

    /// False if a limit that `statvfs` does not show leaves less than `enough` bytes beside
    /// `bytes`.
    pub(crate) fn leaves_enough(&self, bytes: u64) -> bool {
        // Room that only a very large message lacks is not missing to the other messages.
        self.leaves(bytes, bytes.min(self.enough))
    }

    /// Like [`leaves_enough`](Self::leaves_enough). `missing`: the part of `bytes` that counts as
    /// missing if the room is not left.
    fn leaves(&self, bytes: u64, missing: u64) -> bool {
        let need = bytes.saturating_add(self.enough);
        let distrusts = self.distrusts_statvfs.load(Ordering::Relaxed);
        // If `statvfs` shows too little room, that is true. Zeros are not written only to find a
        // quota: on a file system that cannot allocate, `statvfs` is believed.
        let leaves = match distrusts {
            true => self.passes_trial(need),
            false => {
                self.is_in_memory
                    || !self.shows_room_for(need)
                    || self.try_room(need, |file, bytes| file.allocate(bytes))
            }
        };
        if !leaves {
            self.note_missing(missing.saturating_add(self.enough));
        }
        leaves
    }

    /// Whether a shortage that `statvfs` does not show persists. Tests the room.
    pub(crate) fn is_still_used_up(&self) -> bool {
        let missing = self.missing.load(Ordering::Relaxed);
        if missing == 0 {
            return false;
        }
        let is_there = self.passes_trial(missing);
        if is_there {
            // Fails if more is missing since.
            let _ = self.missing.compare_exchange(missing, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        !is_there
    }

    fn shows_room_for(&self, bytes: u64) -> bool {
        self.storage.space(&self.dir).map_or(true, |space| space.has_room_for(bytes))
    }

    /// Whether `bytes` can be taken. Gives them back.
    fn passes_trial(&self, bytes: u64) -> bool {
        self.try_room(bytes, reserve)
    }

    /// Creates a file, takes room for `bytes` with `take`, and deletes the file. False for lack of
    /// room.
    fn try_room(&self, bytes: u64, take: fn(&dyn StorageFile, u64) -> io::Result<()>) -> bool {
        // A limit on the size of one file is not a lack of room.
        let bytes = largest_file().map_or(bytes, |limit| limit.min(bytes));
        let _one = self.trial.lock();
        if self.failed.lock().is_some_and(|(at, least)| bytes >= least && at.elapsed() < self.pause) {
            return false;
        }
        let path = self.dir.join(TRIAL_FILE);
        let opened = self.storage.open(&path, OpenMode::Create);
        let tried = opened.and_then(|file| take(&*file, bytes));
        if let Err(error) = self.storage.remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "the file that tests the free space could not be removed");
        }
        // Other errors are not a lack of room.
        let is_there = tried.map_or_else(|error| !is_no_room(&error), |()| true);
        *self.failed.lock() = (!is_there).then(|| (Instant::now(), bytes));
        is_there
    }
}

/// Takes room for the first `bytes` of a new file. Allocates, because no compression shrinks an
/// allocation; writes zeros if the file system cannot allocate. Durable after a sync.
pub(crate) fn reserve(file: &dyn StorageFile, bytes: u64) -> io::Result<()> {
    const STEP: usize = 1 << 20;
    match file.allocate(bytes) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        allocated => return allocated,
    }
    let zeros = vec![0; STEP];
    let mut at = 0;
    while at < bytes {
        let step = usize::try_from(bytes - at).unwrap_or(STEP).min(STEP);
        write_all_at(file, &mut [IoSlice::new(&zeros[..step])], at)?;
        at += step as u64;
    }
    // Some file systems take the room only at write-back.
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{OsStorage, Space, TestCall, TestStorage};

    /// A file system whose `statvfs` shows free space, and on which one file may have `left` bytes.
    struct Limited {
        left: Arc<AtomicU64>,
        storage: TestStorage,
    }

    impl Limited {
        fn new(left: u64, free_bytes: u64, allocates: bool) -> Self {
            let left = Arc::new(AtomicU64::new(left));
            let limit = left.clone();
            let storage = TestStorage::with(move |_, call| match call {
                TestCall::Allocate(_) if !allocates => Err(io::ErrorKind::Unsupported.into()),
                TestCall::Allocate(end) | TestCall::Write { end, .. }
                    if end > limit.load(Ordering::Relaxed) =>
                {
                    Err(rustix::io::Errno::DQUOT.into())
                }
                _ => Ok(()),
            });
            let space = Space { free_bytes, total_bytes: 1 << 40, ..Space::default() };
            Self { left, storage: storage.show(space) }
        }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn after_a_quota_error_room_is_tested_and_found_again() {
        for allocates in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let disk = Limited::new(0, 1 << 30, allocates);
            let room = on_a_disk(&disk, dir.path());
            assert!(room.is_for(MIB), "nothing failed yet");
            assert!(!room.is_still_used_up(), "nothing failed yet");
            room.note(&rustix::io::Errno::IO.into());
            assert!(room.is_for(MIB) && !room.is_still_used_up(), "no lack of room");
            room.note(&rustix::io::Errno::DQUOT.into());
            assert!(!room.is_for(MIB) && room.is_still_used_up());
            disk.left.store(2 * MIB, Ordering::Relaxed);
            assert!(room.is_for(MIB) && room.is_still_used_up(), "not enough to continue");
            disk.left.store(4 * MIB, Ordering::Relaxed);
            assert!(room.is_still_used_up(), "it would be missing again at once");
            disk.left.store(6 * MIB, Ordering::Relaxed);
            assert!(!room.is_still_used_up());
            disk.left.store(0, Ordering::Relaxed);
            assert!(!room.is_still_used_up(), "no write failed since");
            assert!(!room.is_for(MIB) && !room.leaves_enough(MIB), "what is shown is not trusted");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    fn on_a_disk(disk: &Limited, dir: &Path) -> DiskRoom {
        let pause = Duration::ZERO;
        DiskRoom { pause, ..DiskRoom::new(Arc::new(disk.storage.clone()), dir, 3 * MIB) }
    }

    /// A write beyond the quota poisons the index: no checkpointed message could be read until it
    /// was rebuilt.
    #[test]
    fn a_quota_is_found_before_a_write_fails() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Limited::new(0, 1 << 30, true);
        let room = on_a_disk(&disk, dir.path());
        disk.left.store(4 * MIB, Ordering::Relaxed);
        assert!(room.is_surely_for(MIB) && !room.is_still_used_up());
        disk.left.store(2 * MIB, Ordering::Relaxed);
        assert!(room.is_surely_for(MIB), "there still is room");
        assert!(room.is_still_used_up(), "the quota is known");
        disk.left.store(MIB / 2, Ordering::Relaxed);
        assert!(!room.is_surely_for(MIB));
        disk.left.store(7 * MIB, Ordering::Relaxed);
        assert!(room.is_surely_for(MIB) && !room.is_still_used_up());
        let disk = Limited::new(0, 1 << 30, false);
        let room = on_a_disk(&disk, dir.path());
        assert!(room.is_surely_for(MIB) && !room.is_still_used_up(), "no zeros are written each time");
    }

    /// The probe tested the room four times a second. Each trial took the room that the next trial
    /// and the checkpoint needed.
    #[test]
    fn a_failed_trial_is_not_repeated_at_once_unless_room_was_freed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Limited::new(0, 1 << 30, true);
        let room = DiskRoom { pause: Duration::from_secs(3600), ..on_a_disk(&disk, dir.path()) };
        room.note_no_room();
        assert!(!room.is_for(2 * MIB));
        disk.left.store(10 * MIB, Ordering::Relaxed);
        assert!(!room.is_for(2 * MIB) && !room.is_for(3 * MIB), "these were not tested");
        assert!(room.is_for(MIB), "a smaller one is tested, and its success counts");
        assert!(room.is_for(2 * MIB));
        disk.left.store(0, Ordering::Relaxed);
        assert!(!room.is_for(2 * MIB));
        disk.left.store(10 * MIB, Ordering::Relaxed);
        room.note_given();
        assert!(room.is_for(2 * MIB));
    }

    /// One message larger than the rest of a quota closed the health gate for all others, until
    /// there was room for that message. In a small quota that was for ever, even with an empty
    /// spool.
    #[test]
    fn room_that_a_large_message_lacks_is_not_missing_to_others() {
        for allocates in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let disk = Limited::new(10 * MIB, 1 << 30, allocates);
            let room = on_a_disk(&disk, dir.path());
            room.distrusts_statvfs.store(!allocates, Ordering::Relaxed);
            assert!(!room.leaves_enough(100 * MIB), "it has no room");
            assert!(!room.is_still_used_up(), "and the others do");
            disk.left.store(4 * MIB, Ordering::Relaxed);
            assert!(!room.leaves_enough(100 * MIB) && room.is_still_used_up(), "nor do the others");
        }
    }

    #[test]
    fn an_unknown_free_space_is_neither_little_nor_plenty() {
        let dir = tempfile::tempdir().unwrap();
        let storage = TestStorage::with(|_, call| match call {
            TestCall::Space => Err(rustix::io::Errno::IO.into()),
            TestCall::Allocate(end) if end > 2 * MIB => Err(rustix::io::Errno::NOSPC.into()),
            _ => Ok(()),
        });
        let room = DiskRoom { pause: Duration::ZERO, ..DiskRoom::new(Arc::new(storage), dir.path(), MIB) };
        assert!(room.is_for(1 << 40) && !room.is_still_used_up(), "nothing failed yet");
        room.note(&rustix::io::Errno::NOSPC.into());
        assert!(room.is_for(2 * MIB) && !room.is_for(3 * MIB), "a trial decides");
    }

    #[test]
    fn a_full_disk_that_statvfs_shows_is_not_tested() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Limited::new(0, MIB, true);
        let room = on_a_disk(&disk, dir.path());
        room.note(&rustix::io::Errno::NOSPC.into());
        assert!(!room.is_still_used_up() && !room.is_for(2 * MIB) && room.is_for(MIB));
    }

    #[test]
    fn the_trial_file_of_a_killed_process_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TRIAL_FILE);
        let room = DiskRoom::new(Arc::new(OsStorage), dir.path(), MIB);
        std::fs::write(&path, "bytes").unwrap();
        room.remove_leftover();
        assert!(!path.exists());
    }
}
