//! Preallocated files, used in turn: what the engines that only append write to.

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

/// Bytes of a segment, unless a message is larger.
const SEGMENT_SIZE: usize = 32 << 20;

/// Number of segments, which are used in turn.
const SEGMENTS: usize = 4;

/// Each batch starts at a multiple of this, so that no page is read or written twice.
const ALIGNMENT: usize = 4_096;

/// The most slices of one vectored write (`IOV_MAX`).
const MAX_SLICES: usize = 1_024;

static ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];

/// Preallocated files, used in turn.
pub(crate) struct Segments {
    files: Vec<Arc<File>>,
    size: usize,
    /// The index of the segment in use.
    current: usize,
    /// Where the next batch starts in it.
    position: usize,
}

impl Segments {
    /// Creates segments in `dir` for messages of at most `largest` bytes. Blocks.
    pub(crate) fn create(dir: &Path, largest: usize) -> Result<Self> {
        Self::of_size(dir, SEGMENT_SIZE.max(padded(largest)))
    }

    fn of_size(dir: &Path, size: usize) -> Result<Self> {
        let mut files = Vec::with_capacity(SEGMENTS);
        for slot in 0..SEGMENTS {
            let path = dir.join(format!("{slot:08x}.seg"));
            let file = prewritten(&path, size)
                .with_context(|| format!("prewriting {}, {size} bytes", path.display()))?;
            files.push(Arc::new(file));
        }
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .with_context(|| format!("syncing {}", dir.display()))?;
        Ok(Self { files, size, current: 0, position: 0 })
    }

    /// Returns how many messages of `batch` fit into the segment in use, at least 1. Switches to
    /// the next segment if none does.
    pub(crate) fn make_room(&mut self, batch: &[impl AsRef<[u8]>]) -> usize {
        let fitting = fitting(batch, self.size - self.position);
        if fitting > 0 {
            return fitting;
        }
        self.current = (self.current + 1) % self.files.len();
        self.position = 0;
        fitting_or_one(batch, self.size)
    }

    /// Appends with one vectored write. Returns the file, to sync it.
    pub(crate) fn append(&mut self, batch: &[impl AsRef<[u8]>]) -> io::Result<Arc<File>> {
        let bytes: usize = batch.iter().map(|message| message.as_ref().len()).sum();
        let padding = padded(bytes) - bytes;
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(batch.len() + 1);
        slices.extend(batch.iter().map(|message| IoSlice::new(message.as_ref())));
        slices.push(IoSlice::new(ZEROS.get(..padding).unwrap_or_default()));
        let Some(file) = self.files.get(self.current) else {
            return Err(io::Error::other("no segment"));
        };
        write_all_at(file, &mut slices, self.position as u64)?;
        self.position += bytes + padding;
        Ok(Arc::clone(file))
    }

    /// Syncs every segment.
    pub(crate) fn sync_all(&self) -> Result<()> {
        for file in &self.files {
            rustix::fs::fdatasync(file).context("syncing the segments")?;
        }
        Ok(())
    }
}

/// Returns how many messages from the front of `batch` fit into `room` bytes.
fn fitting(batch: &[impl AsRef<[u8]>], room: usize) -> usize {
    let mut bytes = 0;
    batch
        .iter()
        .take_while(|message| {
            bytes += message.as_ref().len();
            padded(bytes) <= room
        })
        .count()
}

/// Returns at least 1: an empty segment holds the largest message.
fn fitting_or_one(batch: &[impl AsRef<[u8]>], room: usize) -> usize {
    fitting(batch, room).max(1)
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Creates a file of zeros and syncs it. Later writes into it change no metadata.
pub(crate) fn prewritten(path: &Path, size: usize) -> io::Result<File> {
    let file = File::create_new(path)?;
    let zeros = vec![0; 1 << 20];
    let mut position = 0;
    while position < size {
        let step = zeros.len().min(size - position);
        let mut slices = [IoSlice::new(zeros.get(..step).unwrap_or(&zeros))];
        write_all_at(&file, &mut slices, position as u64)?;
        position += step;
    }
    file.sync_all()?;
    forget_pages(&file)?;
    Ok(file)
}

/// Drops a file on disk from the page cache. Its pages are never read. If preallocation left large
/// folios, the kernel would count a whole folio as written for each 4 096 bytes changed in it.
fn forget_pages(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

fn write_all_at(file: &File, mut slices: &mut [IoSlice<'_>], mut position: u64) -> io::Result<()> {
    // Also skips empty slices at the front.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let some = slices.get(..MAX_SLICES).unwrap_or(slices);
        let written = rustix::io::retry_on_intr(|| rustix::io::pwritev(file, some, position))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut slices, written);
        position += written as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(byte: u8, size: usize) -> Vec<u8> {
        vec![byte; size]
    }

    fn read(dir: &Path, slot: usize) -> Vec<u8> {
        std::fs::read(dir.join(format!("{slot:08x}.seg"))).unwrap()
    }

    #[test]
    fn batches_start_aligned_and_segments_are_used_in_turn() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = Segments::of_size(dir.path(), 2 * ALIGNMENT).unwrap();
        for round in 0..=SEGMENTS {
            for half in 0..2 {
                let byte = u8::try_from(10 * round + half + 1).unwrap();
                let batch = [message(byte, 10), message(byte, 20)];
                assert_eq!(segments.make_room(&batch), 2);
                segments.append(&batch).unwrap();
            }
        }
        // The first segment was used twice, the last one once.
        for (slot, first) in [(0, 41), (SEGMENTS - 1, 31)] {
            let bytes = read(dir.path(), slot);
            assert_eq!(bytes.len(), 2 * ALIGNMENT);
            assert_eq!(bytes[..31], [[first; 30].as_slice(), &[0]].concat());
            assert_eq!(bytes[ALIGNMENT..ALIGNMENT + 31], [[first + 1; 30].as_slice(), &[0]].concat());
        }
    }

    #[test]
    fn a_batch_larger_than_a_segment_is_split() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = Segments::of_size(dir.path(), 2 * ALIGNMENT).unwrap();
        let batch: Vec<Vec<u8>> = (0..5).map(|n| message(n, ALIGNMENT)).collect();
        assert_eq!(segments.make_room(&batch), 2);
        segments.append(&batch[..2]).unwrap();
        assert_eq!(segments.make_room(&batch[2..]), 2);
        assert_eq!((segments.current, segments.position), (1, 0));
    }

    #[test]
    fn more_slices_than_one_call_takes_are_all_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = Segments::of_size(dir.path(), 8 * ALIGNMENT).unwrap();
        let batch: Vec<Vec<u8>> = (0..3_000).map(|n| message(u8::try_from(n % 251).unwrap(), 8)).collect();
        assert_eq!(segments.make_room(&batch), 3_000);
        segments.append(&batch).unwrap();
        let bytes = read(dir.path(), 0);
        for (n, chunk) in bytes.chunks(8).take(3_000).enumerate() {
            assert_eq!(chunk, [u8::try_from(n % 251).unwrap(); 8]);
        }
    }
}
