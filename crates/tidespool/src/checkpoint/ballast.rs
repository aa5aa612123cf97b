//! A file that is there to be deleted: sled can't open on a full disk, and a spool that can't open can't be emptied.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::{OpenMode, Storage, write_all_at};

/// The ballast file.
#[derive(Debug, Clone)]
pub(crate) struct Ballast {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    size: u64,
}

impl Ballast {
    /// `size`: bytes; 0 is none.
    pub(crate) fn new(storage: Arc<dyn Storage>, dir: &Path, size: u64) -> Self {
        Self { storage, path: dir.join("ballast"), size }
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Gives its room to others.
    pub(crate) fn release(&self) {
        match self.storage.remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "the ballast could not be released");
            }
            _ => {}
        }
    }

    /// Takes its room again, if there is some. Its absence is no error: it is made at the next start.
    pub(crate) fn restore(&self) {
        if self.size == 0 || self.is_whole() {
            return;
        }
        if let Err(error) = self.write() {
            tracing::debug!(path = %self.path.display(), %error, "no room for the ballast");
            self.release();
        }
    }

    fn is_whole(&self) -> bool {
        let len = self.storage.open(&self.path, OpenMode::Read).and_then(|file| file.len());
        len.is_ok_and(|len| len == self.size)
    }

    fn write(&self) -> io::Result<()> {
        const STEP: usize = 1 << 20;
        let zeros = vec![0; STEP];
        let file = self.storage.open(&self.path, OpenMode::Create)?;
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
        let ballast = Ballast::new(Arc::new(OsStorage), dir.path(), 3 << 20);
        ballast.release();
        for _ in 0..2 {
            ballast.restore();
            assert_eq!(std::fs::metadata(dir.path().join("ballast")).unwrap().len(), 3 << 20);
        }
        ballast.release();
        assert!(!dir.path().join("ballast").exists());
        Ballast::new(Arc::new(OsStorage), dir.path(), 0).restore();
        assert!(!dir.path().join("ballast").exists());
    }
}
