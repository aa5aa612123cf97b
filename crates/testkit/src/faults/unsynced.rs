use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tidespool::storage::StorageFile;

/// The unit in which a disk keeps or loses writes, in bytes.
const PAGE: u64 = 4096;

/// The writes that are not synced. A power cut keeps any subset of their pages.
#[derive(Debug, Clone, Default)]
pub struct Unsynced {
    /// The writes, oldest first.
    writes: Vec<(PathBuf, Undo)>,
}

/// The bytes that a write replaced.
#[derive(Debug, Clone)]
pub(super) struct Undo {
    offset: u64,
    /// The length of the file before the write.
    len: u64,
    before: Vec<u8>,
}

impl Undo {
    pub(super) fn of(file: &dyn StorageFile, offset: u64, len: usize) -> io::Result<Self> {
        let mut before = vec![0; len];
        let mut have = 0;
        while have < len {
            match file.read_at(&mut before[have..], offset + have as u64)? {
                0 => break,
                read => have += read,
            }
        }
        Ok(Self { offset, len: file.len()?, before })
    }
}

impl Unsynced {
    /// Returns true if a power cut would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    pub(super) fn add(&mut self, path: &Path, undo: Undo) {
        self.writes.push((path.to_owned(), undo));
    }

    /// Returns the number of unsynced writes to a file.
    pub(super) fn count(&self, path: &Path) -> usize {
        self.writes.iter().filter(|(other, _)| other == path).count()
    }

    /// Drops the first `count` writes to a file, which are now on disk.
    pub(super) fn forget_first(&mut self, path: &Path, count: usize) {
        let mut left = count;
        self.writes.retain(|(other, _)| {
            let forgotten = left > 0 && other == path;
            left -= usize::from(forgotten);
            !forgotten
        });
    }

    pub(super) fn forget(&mut self, path: &Path) {
        self.writes.retain(|(other, _)| other != path);
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        self.forget(to);
        self.writes.iter_mut().filter(|(path, _)| path == from).for_each(|(path, _)| *path = to.to_owned());
    }

    /// Changes the files in `copy` to their state after a power cut. `copy` is a copy of the
    /// directory `original`. Each page of each unsynced write is kept if `keep` returns true, and
    /// else reverted.
    ///
    /// # Errors
    ///
    /// An I/O error of the file system.
    pub fn cut(&self, original: &Path, copy: &Path, mut keep: impl FnMut() -> bool) -> io::Result<()> {
        for (path, undo) in self.writes.iter().rev() {
            let inside = path.strip_prefix(original).map_err(io::Error::other)?;
            let file = match fs::File::options().write(true).open(copy.join(inside)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let (mut at, end) = (undo.offset, undo.offset + undo.before.len() as u64);
            while at < end {
                let next = (at / PAGE + 1) * PAGE;
                let next = next.min(end);
                if !keep() {
                    let part = at - undo.offset..next - undo.offset;
                    let [from, to] =
                        [part.start, part.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
                    file.write_all_at(&undo.before[from..to], at)?;
                }
                at = next;
            }
            if file.metadata()?.len() > undo.len && !keep() {
                file.set_len(undo.len)?;
            }
        }
        end_boot(copy)
    }
}

/// Overwrites the header of the crash log in a spool's directory. After a power cut, the crash log
/// belongs to an earlier boot and is invalid, even if all of it was written back.
fn end_boot(spool: &Path) -> io::Result<()> {
    match fs::File::options().write(true).open(spool.join("crash-log")) {
        Ok(log) if log.metadata()?.len() >= PAGE => log.write_all_at(&[0; 64], 0),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
