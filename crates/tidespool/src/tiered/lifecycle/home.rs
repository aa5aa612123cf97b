//! Detects the loss of the spool's directory, its format file or its lock file, and restores the
//! files.

use std::fs::Permissions;
use std::io::{self, IoSlice};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::checkpoint::DirectoryCheck;
use crate::directory::{Directory, FORMAT_FILE, LOCK_FILE, lock_again, render_format};
use crate::storage::{Loss, OpenMode, Storage, StorageFile, loss_of, loss_of_state, state, write_all_at};

/// The name of a restored format file until it is complete. It differs from the name in a spool
/// that is being created.
const UNFINISHED: &str = "FORMAT.again";

/// The directory of an open spool.
pub(in crate::tiered) struct SpoolHome {
    storage: Arc<dyn Storage>,
    /// Weak, because the threads keep the directory locked.
    directory: Weak<Directory>,
    format: Mutex<Format>,
    /// Another process has locked a file that replaced the lock file.
    is_taken: AtomicBool,
}

struct Format {
    file: Arc<dyn StorageFile>,
    len: u64,
}

impl SpoolHome {
    /// # Errors
    ///
    /// The format file cannot be opened.
    pub(in crate::tiered) fn new(storage: Arc<dyn Storage>, directory: &Arc<Directory>) -> io::Result<Self> {
        let file = storage.open(&directory.path.join(FORMAT_FILE), OpenMode::Read)?;
        let len = file.len()?;
        Ok(Self {
            storage,
            directory: Arc::downgrade(directory),
            format: Mutex::new(Format { file, len }),
            is_taken: AtomicBool::new(false),
        })
    }

    fn lost_lock(&self, directory: &Directory) -> Option<(PathBuf, Loss)> {
        let path = directory.path.join(LOCK_FILE);
        let held = state(&directory.lock.lock().file().metadata().ok()?);
        let loss = loss_of_state(&*self.storage, &path, held, 0)?;
        Some((path, loss))
    }

    fn lost_format(&self, directory: &Directory) -> Option<(PathBuf, Loss)> {
        let path = directory.path.join(FORMAT_FILE);
        let format = self.format.lock();
        let loss = loss_of(&*self.storage, &path, &*format.file, format.len)?;
        Some((path, loss))
    }

    fn write_format(&self, directory: &Directory) -> io::Result<()> {
        let text = render_format(directory.spool);
        let unfinished = directory.path.join(UNFINISHED);
        let file = self.storage.open(&unfinished, OpenMode::Create)?;
        write_all_at(&*file, &mut [IoSlice::new(text.as_bytes())], 0)?;
        file.sync_data()?;
        self.storage.rename(&unfinished, &directory.path.join(FORMAT_FILE))?;
        self.storage.sync_dir(&directory.path)?;
        *self.format.lock() = Format { file, len: text.len() as u64 };
        Ok(())
    }
}

impl DirectoryCheck for SpoolHome {
    fn away(&self) -> Option<(PathBuf, Loss)> {
        let directory = self.directory.upgrade()?;
        if self.is_taken.load(Ordering::Relaxed) {
            return Some((directory.path.join(LOCK_FILE), Loss::Replaced));
        }
        let held = directory.held.state().ok()?;
        let loss = loss_of_state(&*self.storage, &directory.path, held, 0)?;
        // An unreadable directory is not lost. The checks of its files show whether it is usable.
        (loss != Loss::Unreadable).then(|| (directory.path.clone(), loss))
    }

    fn lost(&self) -> Vec<(PathBuf, Loss)> {
        let Some(directory) = self.directory.upgrade() else { return Vec::new() };
        [self.lost_lock(&directory), self.lost_format(&directory)].into_iter().flatten().collect()
    }

    fn restore(&self) -> io::Result<()> {
        let Some(directory) = self.directory.upgrade() else { return Ok(()) };
        match self.lost_lock(&directory) {
            None => {}
            Some((_, Loss::Unreadable)) => {
                directory.lock.lock().file().set_permissions(Permissions::from_mode(0o600))?;
            }
            Some(_) => match lock_again(&directory.path) {
                Ok(file) => *directory.lock.lock() = file,
                Err(error) => {
                    self.is_taken.fetch_or(error.kind() == io::ErrorKind::WouldBlock, Ordering::Relaxed);
                    return Err(error);
                }
            },
        }
        match self.lost_format(&directory) {
            None => Ok(()),
            Some(_) => self.write_format(&directory),
        }
    }
}
