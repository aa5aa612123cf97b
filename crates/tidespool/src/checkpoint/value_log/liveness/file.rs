//! One file of the liveness log.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{FileHeader, HEADER_LEN, LivenessEntry, VERSION, encode_run};
use super::{LivenessError, LogPosition};
use crate::storage::{Loss, OpenMode, Storage, StorageFile, is_no_room, loss_of, write_all_at};

const PREFIX: &str = "liveness.";

/// A file of the log that is open for appends.
#[derive(Debug)]
pub(super) struct LogFile {
    file: Arc<dyn StorageFile>,
    path: PathBuf,
    number: u64,
    /// The end of the written and synced bytes, committed or not.
    end: u64,
    /// A write or a sync failed, so the file is not written again.
    has_failed: bool,
}

impl LogFile {
    /// Opens the file of a committed position. `None` if it does not exist.
    pub(super) fn open(
        storage: &dyn Storage,
        dir: &Path,
        position: LogPosition,
        mode: OpenMode,
    ) -> Result<Option<Self>, LivenessError> {
        let LogPosition { number, len: end } = position;
        let path = path_of(dir, number);
        match storage.open(&path, mode) {
            Ok(file) => Ok(Some(Self { file, path, number, end, has_failed: false })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LivenessError::Io { doing: "opening", path, source }),
        }
    }

    /// Writes a new file, durably and with its name. Also returns the offset where `base` ends and
    /// `changes` begin.
    pub(super) fn create(
        storage: &dyn Storage,
        dir: &Path,
        number: u64,
        base: &[LivenessEntry],
        changes: &[LivenessEntry],
    ) -> Result<(Self, u64), LivenessError> {
        let path = path_of(dir, number);
        let mut bytes = FileHeader { version: VERSION, number }.encode();
        if !base.is_empty() {
            bytes.extend(encode_run(base, number, HEADER_LEN, HEADER_LEN));
        }
        let base_end = bytes.len() as u64;
        // At least one run is written, so that the file ends at a page.
        if !changes.is_empty() || base.is_empty() {
            bytes.extend(encode_run(changes, number, base_end, base_end));
        }
        match write_new(storage, dir, &path, &bytes) {
            Ok(file) => {
                let end = bytes.len() as u64;
                Ok((Self { file, path, number, end, has_failed: false }, base_end))
            }
            Err(source) => {
                // The file takes space. If it can't be removed it may stay, because its number is
                // not used again.
                let _ = storage.remove_file(&path);
                Err(LivenessError::Io { doing: "writing", path, source })
            }
        }
    }

    /// Appends entries, durably: one write, one sync. Earlier bytes from `after` on no longer
    /// count.
    pub(super) fn append(
        &mut self,
        entries: &[LivenessEntry],
        after: u64,
    ) -> Result<LogPosition, LivenessError> {
        let run = encode_run(entries, self.number, self.end, after);
        let failed = |source| LivenessError::Io { doing: "writing", path: self.path.clone(), source };
        if let Err(error) = write_all_at(&*self.file, &mut [IoSlice::new(&run)], self.end) {
            // If only space was missing, nothing was lost and the same bytes can be written later.
            self.has_failed = !is_no_room(&error);
            return Err(failed(error));
        }
        if let Err(error) = self.file.sync_data() {
            self.has_failed = true;
            return Err(failed(error));
        }
        self.end += run.len() as u64;
        Ok(self.position())
    }

    pub(super) const fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Returns the end of the written bytes.
    pub(super) const fn position(&self) -> LogPosition {
        LogPosition { number: self.number, len: self.end }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn shared(&self) -> Arc<dyn StorageFile> {
        self.file.clone()
    }

    pub(super) fn storage_file(&self) -> &dyn StorageFile {
        &*self.file
    }

    /// Returns what happened to the file's name or length. `None` if nothing did.
    pub(super) fn loss(&self, storage: &dyn Storage) -> Option<Loss> {
        loss_of(storage, &self.path, &*self.file, self.end)
    }
}

fn write_new(
    storage: &dyn Storage,
    dir: &Path,
    path: &Path,
    bytes: &[u8],
) -> io::Result<Arc<dyn StorageFile>> {
    let file = storage.open(path, OpenMode::Create)?;
    write_all_at(&*file, &mut [IoSlice::new(bytes)], 0)?;
    file.sync_data()?;
    storage.sync_dir(dir)?;
    Ok(file)
}

pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number}"))
}

/// Returns the numbers of the log files in a directory.
pub(super) fn numbers_in(storage: &dyn Storage, dir: &Path) -> io::Result<Vec<u64>> {
    let names = storage.list(dir)?;
    Ok(names.iter().filter_map(|name| number_of(name)).collect())
}

fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix(PREFIX)?.parse().ok()?;
    // Other spellings of a number, such as `+1` or `01`, are not names of this log.
    (format!("{PREFIX}{number}") == name).then_some(number)
}
