//! A storage that reads a failing disk as far as possible. Bytes that can't be read become zeros
//! and are reported.
//!
//! All data that is read through this storage has checksums, so that the zeros are always found as
//! damage.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Damage;
use crate::storage::{FileState, OpenMode, Space, Storage, StorageFile, is_unreadable, read_exact_at};

/// The unit in which unreadable bytes are replaced with zeros.
const PAGE: usize = 4096;

/// The parts of a file or directory that could not be read.
#[derive(Debug)]
struct Unread {
    /// The offsets of the pages. Empty: the file could not be opened, or the directory not listed.
    pages: BTreeSet<u64>,
    error: String,
}

type AllUnread = Arc<Mutex<BTreeMap<PathBuf, Unread>>>;

/// Wraps a storage. An unreadable file, directory or page is empty or zeros instead of an error.
#[derive(Debug)]
pub(super) struct LenientStorage {
    below: Arc<dyn Storage>,
    unread: AllUnread,
}

impl LenientStorage {
    pub(super) fn new(below: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { below, unread: AllUnread::default() })
    }

    /// The wrapped storage, which returns read errors.
    pub(super) fn below(&self) -> &dyn Storage {
        &*self.below
    }

    /// Whether a part of this file, or of a file below this directory, could not be read so far.
    pub(super) fn has_unread(&self, path: &Path) -> bool {
        self.unread.lock().keys().any(|file| file.starts_with(path))
    }

    /// Whether this file or directory itself could not be read.
    pub(super) fn is_unread(&self, path: &Path) -> bool {
        self.unread.lock().contains_key(path)
    }

    /// Reports the files that could not be read so far, one report for each.
    pub(super) fn damage(&self) -> Vec<Damage> {
        let unread = self.unread.lock();
        let reports = unread.iter().map(|(path, Unread { pages, error })| {
            let what = match pages.first() {
                Some(first) => format!(
                    "{} bytes of it can't be read, the first at byte {first} ({error})",
                    pages.len() * PAGE
                ),
                None => format!("it can't be read ({error})"),
            };
            Damage::new(path, what)
        });
        reports.collect()
    }
}

fn note(unread: &AllUnread, path: &Path, page: Option<u64>, error: &io::Error) {
    let mut unread = unread.lock();
    let of_file = unread.entry(path.to_owned());
    let entry = of_file.or_insert_with(|| Unread { pages: BTreeSet::new(), error: error.to_string() });
    entry.pages.extend(page);
}

impl Storage for LenientStorage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.below.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let file = match self.below.open(path, mode) {
            Err(error) if is_unreadable(&error) => {
                note(&self.unread, path, None, &error);
                None
            }
            opened => Some(opened?),
        };
        Ok(Arc::new(LenientFile { file, path: path.to_owned(), unread: self.unread.clone() }))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        match self.below.list(path) {
            Err(error) if is_unreadable(&error) => {
                note(&self.unread, path, None, &error);
                Ok(Vec::new())
            }
            names => names,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.below.remove_file(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.below.space(path)
    }

    fn state(&self, path: &Path) -> io::Result<FileState> {
        self.below.state(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.below.sync_dir(path)
    }

    fn boot_id(&self) -> io::Result<[u8; 16]> {
        self.below.boot_id()
    }
}

/// A file whose unreadable pages are read as zeros.
#[derive(Debug)]
struct LenientFile {
    /// `None`: the file could not be opened. It reads as empty.
    file: Option<Arc<dyn StorageFile>>,
    path: PathBuf,
    unread: AllUnread,
}

impl LenientFile {
    fn opened(&self) -> io::Result<&dyn StorageFile> {
        self.file.as_deref().ok_or_else(|| io::Error::other("it could not be opened"))
    }
}

impl StorageFile for LenientFile {
    fn len(&self) -> io::Result<u64> {
        self.file.as_ref().map_or(Ok(0), |file| file.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(file) = &self.file else { return Ok(0) };
        let error = match file.read_at(buf, offset) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => error,
            read => return read,
        };
        // The fault may be in any page of the range. So only the first page is read again: if that
        // succeeds, the fault is in a later page.
        let page = offset - offset % PAGE as u64;
        let to_its_end = PAGE - usize::try_from(offset - page).unwrap_or(0);
        let rest = usize::try_from(file.len()?.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(to_its_end).min(rest);
        let part = &mut buf[..len];
        if read_exact_at(&**file, part, offset).is_err() {
            part.fill(0);
            note(&self.unread, &self.path, Some(page), &error);
        }
        Ok(len)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let read = self.file.as_ref().map(|file| file.read_vectored_at(bufs, offset));
        match read {
            Some(Ok(read)) => Ok(read),
            _ => bufs.iter_mut().find(|buf| !buf.is_empty()).map_or(Ok(0), |buf| self.read_at(buf, offset)),
        }
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.opened()?.write_vectored_at(bufs, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.opened()?.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{TestCall, TestStorage};

    #[test]
    fn one_bad_page_costs_one_page_and_is_reported_once() {
        const LEN: usize = 5 * PAGE + 100;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("00000001.seg");
        std::fs::write(&path, [7; LEN]).unwrap();
        let disk = TestStorage::default();
        disk.fail("", |call| match call {
            TestCall::Read { offset, end } => offset < 3 * PAGE as u64 && end > 2 * PAGE as u64,
            _ => false,
        });
        let storage = LenientStorage::new(Arc::new(disk));
        let file = storage.open(&path, OpenMode::Read).unwrap();
        for from in [0, 1, 4095, 9000] {
            let mut bytes = vec![1; LEN - from];
            read_exact_at(&*file, &mut bytes, from as u64).unwrap();
            for (at, byte) in bytes.iter().enumerate() {
                let is_bad = (2 * PAGE..3 * PAGE).contains(&(from + at));
                assert_eq!(*byte, if is_bad { 0 } else { 7 }, "byte {} read from {from}", from + at);
            }
        }
        assert_eq!(file.read_at(&mut [0], LEN as u64).unwrap(), 0);
        assert!(storage.has_unread(dir.path()) && !storage.has_unread(&dir.path().join("index")));
        let [damage] = &storage.damage()[..] else { panic!("{:?}", storage.damage()) };
        assert!(
            damage.what.starts_with("4096 bytes of it can't be read, the first at byte 8192"),
            "{damage:?}"
        );
    }
}
