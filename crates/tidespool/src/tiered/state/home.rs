//! The store's directory: the names of its spools, and the loss of the directory, of its format
//! file or of its lock file.

use std::fs::Permissions;
use std::io::{self, IoSlice};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::checkpoint::DirectoryCheck;
use crate::directory::{Directory, FORMAT_FILE, Format, LOCK_FILE, SpoolNames, lock_again, render_format};
use crate::storage::{Loss, OpenMode, Storage, StorageFile, at, loss_of, loss_of_state, state, write_all_at};

/// The name of a format file that replaces another, until it is complete. It differs from the name
/// in a store that is being created.
const UNFINISHED: &str = "FORMAT.again";

/// The directory of an open spool.
pub(in crate::tiered) struct SpoolHome {
    storage: Arc<dyn Storage>,
    /// Weak, because the threads keep the directory locked.
    directory: Weak<Directory>,
    format: Mutex<FormatOnDisk>,
    /// The format file may differ from the names in memory, because writing it failed.
    is_in_doubt: AtomicBool,
    /// Another process has locked a file that replaced the lock file.
    is_taken: AtomicBool,
}

struct FormatOnDisk {
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
            format: Mutex::new(FormatOnDisk { file, len }),
            is_in_doubt: AtomicBool::new(false),
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

    /// Returns the names of the spools. `None`: the directory is closed.
    pub(in crate::tiered) fn names(&self) -> Option<SpoolNames> {
        self.directory.upgrade().map(|directory| directory.names.lock().clone())
    }

    /// Makes `names` the names of the spools, on stable storage. After an error the format file may
    /// have either the names of before or these.
    pub(in crate::tiered) fn set_names(&self, names: SpoolNames) -> io::Result<()> {
        let Some(directory) = self.directory.upgrade() else { return Err(io::ErrorKind::NotFound.into()) };
        let mut current = directory.names.lock();
        self.is_in_doubt.store(true, Ordering::Relaxed);
        let path = directory.path.join(FORMAT_FILE);
        self.write_format(&directory, &names).map_err(|error| at(&path, error))?;
        *current = names;
        self.is_in_doubt.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the format file again if the last [`set_names`](Self::set_names) failed.
    pub(in crate::tiered) fn settle_names(&self) -> io::Result<()> {
        match self.names() {
            Some(names) if self.is_in_doubt.load(Ordering::Relaxed) => self.set_names(names),
            _ => Ok(()),
        }
    }

    fn write_format(&self, directory: &Directory, names: &SpoolNames) -> io::Result<()> {
        let text = render_format(&Format { id: directory.spool, names: names.clone() });
        let unfinished = directory.path.join(UNFINISHED);
        let file = self.storage.open(&unfinished, OpenMode::Create)?;
        write_all_at(&*file, &mut [IoSlice::new(text.as_bytes())], 0)?;
        file.sync_data()?;
        // Held until the new file is noted: the check of the files must not see it before, and take
        // it for one that replaced the format file.
        let mut format = self.format.lock();
        self.storage.rename(&unfinished, &directory.path.join(FORMAT_FILE))?;
        self.storage.sync_dir(&directory.path)?;
        *format = FormatOnDisk { file, len: text.len() as u64 };
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
            Some(_) => {
                let names = directory.names.lock();
                self.write_format(&directory, &names)
            }
        }
    }
}

#[cfg(test)]
impl SpoolHome {
    /// For a store without a directory of its own: it can make no spools.
    pub(in crate::tiered) fn in_no_directory(storage: Arc<dyn Storage>, dir: &std::path::Path) -> Self {
        let file = storage.open(&dir.join(FORMAT_FILE), OpenMode::Create).unwrap();
        Self {
            storage,
            directory: Weak::new(),
            format: Mutex::new(FormatOnDisk { file, len: 0 }),
            is_in_doubt: AtomicBool::new(false),
            is_taken: AtomicBool::new(false),
        }
    }
}
