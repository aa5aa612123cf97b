//! Files of segments that something else deletes, renames, replaces or cuts short while the spool
//! runs.
//!
//! The open descriptor still reads the bytes of a deleted file. So the file is written anew under
//! its name, byte for byte: each place in it stays what it was, and recovery finds the same records
//! as before.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pool::{Pool, parse_segment_file_name};
use super::segment::{PAGE, Segment, SegmentHeader};
use super::segments::Segments;
use crate::storage::{Loss, OpenMode, StorageFile, loss_of, read_exact_at, write_all_at};

/// What the file is called until it is whole: no segment's name, so a crash leaves nothing that
/// recovery reads.
const UNFINISHED: &str = "new";

/// Bytes that are copied at once.
const STEP: usize = 1 << 20;

/// Steps between two syncs: one long sync would hold up the journal's own.
const SYNC_AFTER: usize = 2;

/// A crash in the middle of [`Segments::restore`] leaves a file of such a name.
pub(super) fn is_left_by_a_restoration(name: &str) -> bool {
    name.strip_suffix(UNFINISHED)
        .and_then(|name| name.strip_suffix('.'))
        .is_some_and(|name| parse_segment_file_name(name).is_some())
}

impl Segments {
    /// Looks at the files of up to `count` segments of the generations from `from` on, and notes in
    /// each whether its file is lost. Returns the lost ones, and the generation to go on with:
    /// `None` after the last one.
    pub(crate) fn look(&self, from: u64, count: usize) -> (Vec<(PathBuf, Loss)>, Option<u64>) {
        let generations = self.generations(from, count);
        let next = generations.last().filter(|_| generations.len() == count).map(|last| last + 1);
        let mut lost = Vec::new();
        for generation in generations {
            // Not held during calls to the file system: a segment that is held is not recycled.
            let parts = |segment: Arc<Segment>| (segment.path.clone(), segment.file.clone(), segment.least());
            let Some((path, file, least)) = self.get(generation).map(parts) else { continue };
            let loss = loss_of(self.pool().storage(), &path, &*file, least);
            // A segment is taken out of the table before its file is deleted: what is still in the
            // table was not deleted here.
            let is_same = |segment: &Arc<Segment>| Arc::ptr_eq(&segment.file, &file);
            if let Some(segment) = self.get(generation).filter(is_same) {
                segment.set_lost(loss.is_some());
                lost.extend(loss.map(|loss| (path, loss)));
            }
        }
        (lost, next)
    }

    /// Gives up the free segments of which the file is lost, and returns them: nothing is in them.
    pub(crate) fn give_up_lost(&self) -> Vec<(PathBuf, Loss)> {
        let pool = self.pool();
        let lost = pool.free_files().into_iter().filter_map(|(path, file)| {
            let loss = loss_of(pool.storage(), &path, &*file, pool.segment_size())?;
            pool.give_up(&file).then_some((path, loss))
        });
        lost.collect()
    }

    /// The spool's directory was deleted or moved, or is back. While it is away no segment is used,
    /// and what is written to one is not acknowledged.
    pub(crate) fn set_away(&self, away: bool) {
        self.pool().set_away(away);
        if away {
            self.all().iter().for_each(|segment| segment.set_lost(true));
        }
    }

    /// Whether a segment has lost its file.
    pub(crate) fn lost(&self) -> Vec<Arc<Segment>> {
        let mut lost = self.all();
        lost.retain(|segment| segment.is_lost());
        lost
    }

    /// Writes the file of a segment anew, durably and under its name. Nothing may be written to the
    /// segment any more. Returns how many bytes the old file still had: zeros stand for the others.
    pub(crate) fn restore(&self, segment: &Arc<Segment>) -> io::Result<u64> {
        let pool = self.pool();
        make_dir(pool)?;
        let unfinished = segment.path.with_added_extension(UNFINISHED);
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
                // On a full disk its blocks are wanted.
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
            // The rest of a segment that was never filled is zeros there already.
            if bytes[..step].iter().any(|byte| *byte != 0) {
                write_all_at(&*file, &mut [IoSlice::new(&bytes[..step])], at)?;
                steps += 1;
                if steps % SYNC_AFTER == 0 {
                    file.sync_data()?;
                }
            }
            at += step as u64;
        }
        let header = SegmentHeader { role, generation, size, spool: self.spool() }.encode();
        write_all_at(&*file, &mut [IoSlice::new(&header)], 0)?;
        file.sync_data()?;
        Ok((file, len))
    }
}

/// The journal's directory may be gone as well.
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
    fn what_a_crash_leaves_of_a_restoration_is_no_segment_and_is_known() {
        let name = Path::new(&segment_file_name(7)).with_added_extension(UNFINISHED);
        let name = name.to_str().unwrap();
        assert!(parse_segment_file_name(name).is_none() && is_left_by_a_restoration(name));
        for other in ["00000007.seg", "7.seg.new", "manifest.new", "new"] {
            assert!(!is_left_by_a_restoration(other), "{other}");
        }
    }
}
