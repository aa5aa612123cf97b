//! Files that are there to be deleted: sled can't write or open on a full disk, and a spool that can't open can't be emptied.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::storage::{DiskRoom, Loss, OpenMode, Storage, reserve};

/// The ballast: one half of it for filing while the spool runs, the other for opening sled, also where the first is used up and its room somebody
/// else's.
#[derive(Debug)]
pub(crate) struct Ballast {
    storage: Arc<dyn Storage>,
    room: Arc<DiskRoom>,
    for_checkpoint: Half,
    for_opening: Half,
}

/// One of the files.
#[derive(Debug)]
struct Half {
    path: PathBuf,
    size: u64,
    /// [`THERE`], and how often it was given up or found lost. A thread that looked at the file, or
    /// made it, changes this only if it is as it was before the look.
    state: AtomicU64,
}

/// In [`Half::state`]: the file is there. Without this bit it was given up, could not be made, or was
/// not looked for yet.
const THERE: u64 = 1;
/// In [`Half::state`]: one more time.
const ONCE: u64 = 2;

impl Ballast {
    /// `size`: bytes; 0 is none.
    pub(crate) fn new(storage: Arc<dyn Storage>, room: Arc<DiskRoom>, dir: &Path, size: u64) -> Self {
        let half = |name, size| Half { path: dir.join(name), size, state: AtomicU64::new(0) };
        let for_opening = half("ballast.open", size / 2);
        let for_checkpoint = half("ballast", size - size / 2);
        Self { storage, room, for_checkpoint, for_opening }
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> u64 {
        self.for_checkpoint.size + self.for_opening.size
    }

    /// Whether the disk has room for so many bytes.
    pub(crate) fn is_room_for(&self, bytes: u64) -> bool {
        self.room.is_for(bytes)
    }

    /// The room on the disk that it is on.
    pub(crate) fn room(&self) -> &DiskRoom {
        &self.room
    }

    /// Gives all its room to others.
    pub(crate) fn release(&self) {
        self.release_for_checkpoint();
        self.release_for_opening();
    }

    /// Gives up the room for filing. False: it was not there.
    pub(crate) fn release_for_checkpoint(&self) -> bool {
        self.give(&self.for_checkpoint)
    }

    /// Gives up the room for opening sled. False: it was not there.
    pub(crate) fn release_for_opening(&self) -> bool {
        self.give(&self.for_opening)
    }

    fn give(&self, half: &Half) -> bool {
        let gave = half.release(&*self.storage);
        if gave {
            self.room.note_given();
        }
        gave
    }

    /// The files that something else deleted or changed. Each is returned once:
    /// [`restore`](Self::restore) makes it again when there is room.
    pub(crate) fn take_lost(&self) -> Vec<(PathBuf, Loss)> {
        let halves = [&self.for_opening, &self.for_checkpoint];
        halves.into_iter().filter_map(|half| half.take_loss(&*self.storage)).collect()
    }

    /// Takes its room again, if there is enough for it and for what sled writes next: taken too early, it is what keeps sled from writing. Its
    /// absence is no error.
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
        self.state.update(Ordering::AcqRel, Ordering::Acquire, |state| (state & !THERE) + ONCE);
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
        if self.size == 0 || before & THERE == 0 {
            return None;
        }
        let loss = match storage.state(&self.path) {
            Ok(state) if state.len == self.size => return None,
            Ok(state) => Loss::CutShort { len: state.len, of: self.size },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Loss::Gone,
            Err(_) => return None,
        };
        // Released meanwhile, it is no loss.
        self.change(before, (before & !THERE) + ONCE).then(|| (self.path.clone(), loss))
    }

    fn is_missing(&self, storage: &dyn Storage) -> bool {
        let before = self.state.load(Ordering::Acquire);
        if self.size == 0 || before & THERE != 0 {
            return false;
        }
        let len = storage.open(&self.path, OpenMode::Read).and_then(|file| file.len());
        let is_whole = len.is_ok_and(|len| len == self.size);
        !(is_whole && self.change(before, before | THERE))
    }

    fn restore(&self, storage: &dyn Storage) {
        let before = self.state.load(Ordering::Acquire);
        match self.write(storage) {
            // Given up meanwhile, it is not there.
            Ok(()) => drop(self.change(before, before | THERE)),
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "no room for the ballast");
                self.release(storage);
            }
        }
    }

    /// False where it was changed by another thread.
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
    use std::io::IoSlice;
    use std::sync::{OnceLock, Weak};

    use super::*;
    use crate::storage::{OsStorage, StorageFile};

    fn ballast(dir: &Path, size: u64) -> Ballast {
        let storage = Arc::new(OsStorage);
        Ballast::new(storage.clone(), Arc::new(DiskRoom::new(storage, dir, 0)), dir, size)
    }

    #[test]
    fn it_is_made_released_and_made_again() {
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
        assert_eq!(ballast.take_lost(), [], "it was given up");
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
    fn without_room_for_twice_its_size_it_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = ballast(dir.path(), 1 << 60);
        assert!(ballast.is_room_for(1) && !ballast.is_room_for(1 << 60));
        ballast.restore();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// The committer gave up the ballast for its room while the checkpoint thread was making it again.
    /// The spool reported the file as deleted, and the gate shut.
    #[test]
    fn ballast_that_is_given_up_while_it_is_made_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Arc::new(GivesUp::default());
        let room = Arc::new(DiskRoom::new(storage.clone(), dir.path(), 0));
        let ballast = Arc::new(Ballast::new(storage.clone(), room, dir.path(), 2 << 20));
        storage.0.set(Arc::downgrade(&ballast)).unwrap();
        ballast.restore();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it was given up");
        assert_eq!(ballast.take_lost(), []);
    }

    /// The ballast is given up whenever one of its files is synced.
    #[derive(Debug, Default)]
    struct GivesUp(OnceLock<Weak<Ballast>>);

    #[derive(Debug)]
    struct GivesUpFile(Arc<dyn StorageFile>, Weak<Ballast>);

    impl Storage for GivesUp {
        fn create_dir(&self, path: &Path) -> io::Result<()> {
            OsStorage.create_dir(path)
        }
        fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
            Ok(Arc::new(GivesUpFile(OsStorage.open(path, mode)?, self.0.get().unwrap().clone())))
        }
        fn list(&self, path: &Path) -> io::Result<Vec<String>> {
            OsStorage.list(path)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            OsStorage.rename(from, to)
        }
        fn remove_file(&self, path: &Path) -> io::Result<()> {
            OsStorage.remove_file(path)
        }
        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            OsStorage.sync_dir(path)
        }
    }

    impl StorageFile for GivesUpFile {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
            self.0.write_vectored_at(bufs, offset)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.1.upgrade().unwrap().release();
            self.0.sync_data()
        }
    }
}
