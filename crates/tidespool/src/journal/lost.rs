//! Segment files that something else deletes, renames, replaces or cuts short while the spool runs.
//!
//! The open descriptor can still read a deleted file. So the file is written again under its name,
//! byte for byte. Every record keeps its place, and recovery finds the same records.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pool::{Pool, parse_segment_file_name};
use super::segment::{PAGE, Segment, SegmentHeader};
use super::segments::Segments;
use crate::storage::{Loss, OpenMode, StorageFile, loss_of, read_exact_at, write_all_at};

/// Extension of the file until it is complete. The name is not a segment's, so recovery ignores
/// what a crash leaves.
const UNFINISHED: &str = "new";

/// The name of a segment's file while it is being written again.
fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(UNFINISHED);
    name.into()
}

/// Bytes that one step copies.
const STEP: usize = 1 << 20;

/// Steps between two syncs: one long sync would delay the journal's syncs.
const SYNC_AFTER: usize = 2;

/// True for the name of a file that a crash during [`Segments::restore`] leaves.
pub(super) fn is_left_by_a_restoration(name: &str) -> bool {
    name.strip_suffix(UNFINISHED)
        .and_then(|name| name.strip_suffix('.'))
        .is_some_and(|name| parse_segment_file_name(name).is_some())
}

impl Segments {
    /// Checks the files of up to `count` segments from generation `from` on, and records in each
    /// whether its file is lost. Returns the lost files and the generation to continue with: `None`
    /// after the last one.
    pub(crate) fn look(&self, from: u64, count: usize) -> (Vec<(PathBuf, Loss)>, Option<u64>) {
        let generations = self.generations(from, count);
        let next = generations.last().filter(|_| generations.len() == count).map(|last| last + 1);
        let mut lost = Vec::new();
        for generation in generations {
            // The segment is not held during system calls: a held segment is not recycled.
            let parts = |segment: Arc<Segment>| (segment.path.clone(), segment.file.clone(), segment.least());
            let Some((path, file, least)) = self.get(generation).map(parts) else { continue };
            let loss = loss_of(self.pool().storage(), &path, &*file, least);
            // A segment leaves the table before the spool deletes its file. So the spool did not
            // delete the file of a segment in the table.
            let is_same = |segment: &Arc<Segment>| Arc::ptr_eq(&segment.file, &file);
            if let Some(segment) = self.get(generation).filter(is_same) {
                segment.set_lost(loss.is_some());
                lost.extend(loss.map(|loss| (path, loss)));
            }
        }
        (lost, next)
    }

    /// Removes the free segments with lost files from the pool, and returns their paths. They hold
    /// no records.
    pub(crate) fn give_up_lost(&self) -> Vec<(PathBuf, Loss)> {
        let pool = self.pool();
        let lost = pool.free_files().into_iter().filter_map(|(path, file)| {
            let loss = loss_of(pool.storage(), &path, &*file, pool.segment_size())?;
            pool.give_up(&file).then_some((path, loss))
        });
        lost.collect()
    }

    /// Records whether the spool's directory is away: deleted or moved. While it is, no segment is
    /// taken, and nothing written to one is acknowledged.
    pub(crate) fn set_away(&self, away: bool) {
        self.pool().set_away(away);
        if away {
            self.all().iter().for_each(|segment| segment.set_lost(true));
        }
    }

    /// The segments with lost files.
    pub(crate) fn lost(&self) -> Vec<Arc<Segment>> {
        let mut lost = self.all();
        lost.retain(|segment| segment.is_lost());
        lost
    }

    /// Writes the file of a segment again, durably and under its name. Nothing more may be written
    /// to the segment. Returns how many bytes of the old file were left: zeros replace the others.
    pub(crate) fn restore(&self, segment: &Arc<Segment>) -> io::Result<u64> {
        let pool = self.pool();
        make_dir(pool)?;
        let unfinished = unfinished_path(&segment.path);
        let copied = self.copy_to(&unfinished, segment);
        let placed = copied.and_then(|copied| {
            pool.storage().rename(&unfinished, &segment.path)?;
            pool.storage().sync_dir(pool.dir())?;
            Ok(copied)
        });
        match placed {
            Ok((file, len)) => {
                self.insert(Arc::new(segment.in_file(file)));
                Ok(len)
            }
            Err(error) => {
                // A full disk needs its blocks.
                let _ = pool.storage().remove_file(&unfinished);
                Err(error)
            }
        }
    }

    fn copy_to(&self, path: &Path, segment: &Segment) -> io::Result<(Arc<dyn StorageFile>, u64)> {
        let Segment { role, generation, size, .. } = *segment;
        let file = self.pool().storage().open(path, OpenMode::Create)?;
        Pool::reserve(&*file, size)?;
        let len = segment.file.len()?.min(size);
        let mut bytes = vec![0; STEP];
        let (mut at, mut steps) = (PAGE, 0);
        while at < len {
            let step = usize::try_from(len - at).unwrap_or(STEP).min(STEP);
            read_exact_at(&*segment.file, &mut bytes[..step], at)?;
            // The unused rest of a segment is zeros in the new file already.
            if bytes[..step].iter().any(|byte| *byte != 0) {
                write_all_at(&*file, &mut [IoSlice::new(&bytes[..step])], at)?;
                steps += 1;
                if steps % SYNC_AFTER == 0 {
                    file.sync_data()?;
                }
            }
            at += step as u64;
        }
        SegmentHeader { role, generation, size, spool: self.spool() }.write(&*file)?;
        file.sync_data()?;
        Ok((file, len))
    }
}

/// Creates the journal's directory if it is gone as well.
fn make_dir(pool: &Pool) -> io::Result<()> {
    let (storage, dir) = (pool.storage(), pool.dir());
    match storage.state(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        _ => return Ok(()),
    }
    storage.create_dir(dir)?;
    storage.sync_dir(dir.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::pool::segment_file_name;

    #[test]
    fn the_file_of_an_interrupted_restoration_is_recognized_and_is_no_segment() {
        let name = unfinished_path(Path::new(&segment_file_name(7)));
        let name = name.to_str().unwrap();
        assert!(parse_segment_file_name(name).is_none() && is_left_by_a_restoration(name));
        for other in ["00000007.seg", "7.seg.new", "manifest.new", "new"] {
            assert!(!is_left_by_a_restoration(other), "{other}");
        }
    }
}
