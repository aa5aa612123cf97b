//! The limit of the machine for one caller: it writes and syncs its messages itself.
//!
//! A journal with a writer thread wakes that thread for each batch, and the thread wakes the
//! callers. With one caller that is a part of each store, which this engine leaves out.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::segments::Segments;

/// A journal without a thread that is never read. Each message is a batch of its own.
pub struct Bare {
    segments: Mutex<Segments>,
    sync: bool,
}

impl std::fmt::Debug for Bare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bare").field("sync", &self.sync).finish_non_exhaustive()
    }
}

impl Bare {
    /// Preallocates the segments in `dir` for messages of at most `largest` bytes. With `sync` each
    /// message is synced. Blocks.
    ///
    /// # Errors
    ///
    /// An I/O error that names the file.
    pub fn create(dir: &Path, largest: usize, sync: bool) -> Result<Self> {
        Ok(Self { segments: Mutex::new(Segments::create(dir, largest)?), sync })
    }

    /// Appends a message. Blocks until it is written, and synced if the journal syncs.
    pub(crate) fn store(&self, data: &[u8]) -> Result<()> {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.make_room(&[data]);
        let file = segments.append(&[data]).context("writing the bare journal")?;
        // Callers sync at the same time.
        drop(segments);
        if self.sync {
            rustix::fs::fdatasync(&*file).context("syncing the bare journal")?;
        }
        Ok(())
    }

    /// Syncs everything. Blocks.
    pub(crate) fn shutdown(&self) -> Result<()> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner).sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_appended_at_page_boundaries() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Bare::create(dir.path(), 100, true).unwrap();
        for byte in [1, 2] {
            journal.store(&[byte; 100]).unwrap();
        }
        journal.shutdown().unwrap();
        let bytes = std::fs::read(dir.path().join("00000000.seg")).unwrap();
        assert_eq!(
            (&bytes[..101], &bytes[4_096..4_196]),
            (&[[1; 100].as_slice(), &[0]].concat()[..], &[2; 100][..])
        );
    }
}
