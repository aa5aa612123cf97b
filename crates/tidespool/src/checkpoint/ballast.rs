//! Files that are there to be deleted: sled can't write or open on a full disk, and a spool that can't open can't be emptied.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::storage::{OpenMode, Storage, write_all_at};

/// The ballast: one half of it for filing while the spool runs, the other for opening sled, also where the first is used up and its room somebody
/// else's.
#[derive(Debug)]
pub(crate) struct Ballast {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    for_filing: Half,
    for_opening: Half,
}

/// One of the files.
#[derive(Debug)]
struct Half {
    path: PathBuf,
    size: u64,
    /// It was given up, or could not be made, or nobody knows.
    missing: AtomicBool,
}

impl Ballast {
    /// `size`: bytes; 0 is none.
    pub(crate) fn new(storage: Arc<dyn Storage>, dir: &Path, size: u64) -> Self {
        let half = |name, size| Half { path: dir.join(name), size, missing: AtomicBool::new(true) };
        let for_opening = half("ballast.open", size / 2);
        let for_filing = half("ballast", size - size / 2);
        Self { storage, dir: dir.to_owned(), for_filing, for_opening }
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> u64 {
        self.for_filing.size + self.for_opening.size
    }

    /// Whether the file system has so many bytes left. Where it does not say, it has.
    pub(crate) fn is_room_for(&self, bytes: u64) -> bool {
        self.storage.free_bytes(&self.dir).map_or(true, |free| free >= bytes)
    }

    /// Gives all its room to others.
    pub(crate) fn release(&self) {
        self.release_for_filing();
        self.for_opening.release(&*self.storage);
    }

    /// Gives the room up that is for filing.
    pub(crate) fn release_for_filing(&self) {
        self.for_filing.release(&*self.storage);
    }

    /// Takes its room again, if there is enough for it and for what sled writes next: taken too early, it is what keeps sled from writing. Its
    /// absence is no error.
    pub(crate) fn restore(&self) {
        for half in [&self.for_opening, &self.for_filing] {
            if half.is_missing(&*self.storage) && self.is_room_for(2 * self.size()) {
                half.restore(&*self.storage);
            }
        }
    }
}

impl Half {
    fn release(&self, storage: &dyn Storage) {
        self.missing.store(true, Ordering::Relaxed);
        match storage.remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "the ballast could not be released");
            }
            _ => {}
        }
    }

    fn is_missing(&self, storage: &dyn Storage) -> bool {
        if self.size == 0 || !self.missing.load(Ordering::Relaxed) {
            return false;
        }
        let len = storage.open(&self.path, OpenMode::Read).and_then(|file| file.len());
        let is_whole = len.is_ok_and(|len| len == self.size);
        self.missing.store(!is_whole, Ordering::Relaxed);
        !is_whole
    }

    fn restore(&self, storage: &dyn Storage) {
        match self.write(storage) {
            Ok(()) => self.missing.store(false, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "no room for the ballast");
                self.release(storage);
            }
        }
    }

    fn write(&self, storage: &dyn Storage) -> io::Result<()> {
        const STEP: usize = 1 << 20;
        let zeros = vec![0; STEP];
        let file = storage.open(&self.path, OpenMode::Create)?;
        let mut at = 0;
        while at < self.size {
            let step = usize::try_from(self.size - at).unwrap_or(STEP).min(STEP);
            write_all_at(&*file, &mut [IoSlice::new(&zeros[..step])], at)?;
            at += step as u64;
        }
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::OsStorage;

    #[test]
    fn it_is_made_released_and_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let len = |name| std::fs::metadata(dir.path().join(name)).map_or(0, |found| found.len());
        let ballast = Ballast::new(Arc::new(OsStorage), dir.path(), 3 << 20);
        ballast.release();
        for _ in 0..2 {
            ballast.restore();
            assert_eq!((len("ballast"), len("ballast.open")), (3 << 19, 3 << 19));
        }
        ballast.release_for_filing();
        assert_eq!((len("ballast"), len("ballast.open")), (0, 3 << 19));
        ballast.restore();
        ballast.release();
        assert_eq!((len("ballast"), len("ballast.open")), (0, 0));
        Ballast::new(Arc::new(OsStorage), dir.path(), 0).restore();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn without_room_for_twice_its_size_it_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(Arc::new(OsStorage), dir.path(), 1 << 60);
        assert!(ballast.is_room_for(1) && !ballast.is_room_for(1 << 60));
        ballast.restore();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
