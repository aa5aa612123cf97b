//! Files that are deleted to free space: an index engine may not write or open on a full disk, and
//! a spool that can't open can't be emptied.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::storage::{DiskRoom, Loss, OpenMode, Storage, reserve};

/// The ballast, in two halves. One frees space for checkpoints while the spool runs. The other
/// frees space to open the index, even if the first half was used up and other files took its
/// space.
#[derive(Debug)]
pub(crate) struct Ballast {
    storage: Arc<dyn Storage>,
    room: Arc<DiskRoom>,
    for_checkpoint: Half,
    for_opening: Half,
}

/// One of the two files.
#[derive(Debug)]
struct Half {
    path: PathBuf,
    size: u64,
    /// [`PRESENT`], plus a count of releases and losses. A thread that checked or wrote the file
    /// changes the state only if it is unchanged since then.
    state: AtomicU64,
}

/// In [`Half::state`]: the file exists. Without this bit it was released, could not be written, or
/// was not checked yet.
const PRESENT: u64 = 1;
/// In [`Half::state`]: one release or loss.
const ONE_CHANGE: u64 = 2;

impl Ballast {
    /// `size`: bytes of both halves. 0 disables the ballast.
    pub(crate) fn new(storage: Arc<dyn Storage>, room: Arc<DiskRoom>, dir: &Path, size: u64) -> Self {
        let half = |name, size| Half { path: dir.join(name), size, state: AtomicU64::new(0) };
        let for_opening = half("ballast.open", size / 2);
        let for_checkpoint = half("ballast", size - size / 2);
        Self { storage, room, for_checkpoint, for_opening }
    }

    /// Returns the size of both halves, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.for_checkpoint.size + self.for_opening.size
    }

    /// Returns true if the disk has space for `bytes` bytes.
    pub(crate) fn is_room_for(&self, bytes: u64) -> bool {
        self.room.is_for(bytes)
    }

    /// Returns true if the disk has space for a checkpoint that needs `bytes` bytes, or will have
    /// it when the ballast for checkpoints is released.
    pub(crate) fn is_room_to_checkpoint(&self, bytes: u64) -> bool {
        self.room.is_surely_for(bytes) || self.for_checkpoint.state.load(Ordering::Acquire) & PRESENT != 0
    }

    /// Returns the free space of the disk that holds the ballast.
    pub(crate) fn room(&self) -> &DiskRoom {
        &self.room
    }

    /// Deletes both halves.
    pub(crate) fn release(&self) {
        self.release_for_checkpoint();
        self.release_for_opening();
    }

    /// Deletes the half for checkpoints. Returns false if it did not exist.
    pub(crate) fn release_for_checkpoint(&self) -> bool {
        self.release_half(&self.for_checkpoint)
    }

    /// Deletes the half for opening the index. Returns false if it did not exist.
    pub(crate) fn release_for_opening(&self) -> bool {
        self.release_half(&self.for_opening)
    }

    fn release_half(&self, half: &Half) -> bool {
        let gave = half.release(&*self.storage);
        if gave {
            self.room.note_given();
        }
        gave
    }

    /// Returns the files that something else deleted or changed, each loss once.
    /// [`restore`](Self::restore) writes them again when there is space.
    pub(crate) fn take_lost(&self) -> Vec<(PathBuf, Loss)> {
        let halves = [&self.for_opening, &self.for_checkpoint];
        halves.into_iter().filter_map(|half| half.take_loss(&*self.storage)).collect()
    }

    /// Writes missing halves again, if the disk has space for twice the ballast. Written too early,
    /// it would take the space that the index needs next. Failing to write it is no error.
    pub(crate) fn restore(&self) {
        for half in [&self.for_opening, &self.for_checkpoint] {
            if half.is_missing(&*self.storage) && self.is_room_for(2 * self.size()) {
                half.restore(&*self.storage);
            }
        }
    }
}

impl Half {
    fn release(&self, storage: &dyn Storage) -> bool {
        let absent = |state: u64| Some((state & !PRESENT) + ONE_CHANGE);
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, absent);
        match storage.remove_file(&self.path) {
            Ok(()) => return true,
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "the ballast could not be released");
            }
            Err(_) => {}
        }
        false
    }

    fn take_loss(&self, storage: &dyn Storage) -> Option<(PathBuf, Loss)> {
        let before = self.state.load(Ordering::Acquire);
        if self.size == 0 || before & PRESENT == 0 {
            return None;
        }
        let loss = match storage.state(&self.path) {
            Ok(state) if state.len == self.size => return None,
            Ok(state) => Loss::CutShort { len: state.len, of: self.size },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Loss::Gone,
            Err(_) => return None,
        };
        // If the file was released meanwhile, it is not lost.
        self.change(before, (before & !PRESENT) + ONE_CHANGE).then(|| (self.path.clone(), loss))
    }

    fn is_missing(&self, storage: &dyn Storage) -> bool {
        let before = self.state.load(Ordering::Acquire);
        if self.size == 0 || before & PRESENT != 0 {
            return false;
        }
        let len = storage.open(&self.path, OpenMode::Read).and_then(|file| file.len());
        let is_whole = len.is_ok_and(|len| len == self.size);
        !(is_whole && self.change(before, before | PRESENT))
    }

    fn restore(&self, storage: &dyn Storage) {
        let before = self.state.load(Ordering::Acquire);
        match self.write(storage) {
            // If the file was released meanwhile, it is not present.
            Ok(()) => drop(self.change(before, before | PRESENT)),
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "no room for the ballast");
                self.release(storage);
            }
        }
    }

    /// Returns false if another thread changed the state first.
    fn change(&self, from: u64, to: u64) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn write(&self, storage: &dyn Storage) -> io::Result<()> {
        let file = storage.open(&self.path, OpenMode::Create)?;
        reserve(&*file, self.size)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{OnceLock, Weak};

    use super::*;
    use crate::storage::{OsStorage, TestCall, TestStorage};

    fn ballast(dir: &Path, size: u64) -> Ballast {
        let storage = Arc::new(OsStorage);
        Ballast::new(storage.clone(), Arc::new(DiskRoom::new(storage, dir, 0)), dir, size)
    }

    #[test]
    fn it_is_written_released_and_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let len = |name| std::fs::metadata(dir.path().join(name)).map_or(0, |found| found.len());
        let ballast = ballast(dir.path(), 3 << 20);
        ballast.release();
        for _ in 0..2 {
            ballast.restore();
            assert_eq!((len("ballast"), len("ballast.open")), (3 << 19, 3 << 19));
        }
        ballast.release_for_checkpoint();
        assert_eq!((len("ballast"), len("ballast.open")), (0, 3 << 19));
        assert_eq!(ballast.take_lost(), [], "it was released");
        ballast.restore();
        assert_eq!(ballast.take_lost(), []);
        std::fs::remove_file(dir.path().join("ballast")).unwrap();
        std::fs::write(dir.path().join("ballast.open"), "short").unwrap();
        let lost = ballast.take_lost();
        let cut = Loss::CutShort { len: 5, of: 3 << 19 };
        assert_eq!(lost, [(dir.path().join("ballast.open"), cut), (dir.path().join("ballast"), Loss::Gone)]);
        ballast.restore();
        assert_eq!((len("ballast"), len("ballast.open")), (3 << 19, 3 << 19));
        assert_eq!(ballast.take_lost(), []);
        ballast.release();
        assert_eq!((len("ballast"), len("ballast.open")), (0, 0));
        super::tests::ballast(dir.path(), 0).restore();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn it_is_not_written_without_space_for_twice_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = ballast(dir.path(), 1 << 60);
        assert!(ballast.is_room_for(1) && !ballast.is_room_for(1 << 60));
        ballast.restore();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// The committer released the ballast while the checkpointer thread was writing it. The spool
    /// reported the file as deleted and closed the gate.
    #[test]
    fn ballast_that_is_released_while_it_is_written_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let released = Arc::new(OnceLock::<Weak<Ballast>>::new());
        let ballast = released.clone();
        let storage = Arc::new(TestStorage::with(move |_, call| {
            if call == TestCall::Sync {
                ballast.get().and_then(Weak::upgrade).unwrap().release();
            }
            Ok(())
        }));
        let room = Arc::new(DiskRoom::new(storage.clone(), dir.path(), 0));
        let ballast = Arc::new(Ballast::new(storage, room, dir.path(), 2 << 20));
        released.set(Arc::downgrade(&ballast)).unwrap();
        ballast.restore();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it was released");
        assert_eq!(ballast.take_lost(), []);
    }
}
