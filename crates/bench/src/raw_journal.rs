//! The limit of the machine: the batches of a journal, appended and synced, and nothing else.
//!
//! There are no headers, checksums, index or recovery: nothing is read back. One writer thread
//! takes all waiting messages, writes them with one vectored write at a multiple of 4 096, syncs
//! once and wakes all waiters.

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use tokio::sync::{mpsc, oneshot};

/// Bytes of a segment, unless a message is larger.
const SEGMENT_SIZE: usize = 32 << 20;

/// Number of segments, which are used in turn.
const SEGMENTS: usize = 4;

/// Each batch starts at a multiple of this, so that no page is read or written twice.
const ALIGNMENT: usize = 4_096;

/// The most slices of one vectored write (`IOV_MAX`).
const MAX_SLICES: usize = 1_024;

static ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];

/// A message in the queue.
struct Append {
    data: Arc<Box<[u8]>>,
    done: oneshot::Sender<Result<(), Arc<io::Error>>>,
}

enum Request {
    Append(Append),
    Stop,
}

/// The handle of a journal that is never read, and of its writer thread.
#[derive(Debug)]
pub struct RawJournal {
    requests: mpsc::Sender<Request>,
    writer: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl RawJournal {
    /// Preallocates the segments in `dir` and starts the writer. Blocks.
    ///
    /// At most `concurrency` messages of at most `largest` bytes each wait at a time. With `sync`
    /// each batch is synced.
    ///
    /// # Errors
    ///
    /// An I/O error that names the file.
    pub fn create(dir: &Path, concurrency: usize, largest: usize, sync: bool) -> Result<Self> {
        let segments = Segments::create(dir, SEGMENT_SIZE.max(padded(largest)))?;
        let (requests, waiting) = mpsc::channel(concurrency);
        let writer = std::thread::Builder::new()
            .name("raw-journal".to_owned())
            .spawn(move || write_batches(segments, waiting, concurrency, sync))
            .context("starting the writer thread")?;
        Ok(Self { requests, writer: Mutex::new(Some(writer)) })
    }

    /// Appends a message. Returns when its batch is written, and synced if the journal syncs.
    pub(crate) async fn store(&self, data: Arc<Box<[u8]>>) -> Result<()> {
        let (done, written) = oneshot::channel();
        let stopped = || anyhow!("the writer of the raw journal has stopped");
        self.requests.send(Request::Append(Append { data, done })).await.map_err(|_| stopped())?;
        match written.await {
            Ok(result) => result.map_err(|err| anyhow::Error::new(err).context("writing the raw journal")),
            Err(_) => Err(stopped()),
        }
    }

    /// Syncs everything and joins the writer.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        // An error means that the writer has stopped already; joining it returns the reason.
        drop(self.requests.send(Request::Stop).await);
        let joined = tokio::task::spawn_blocking(move || writer.join()).await?;
        joined.map_err(|_| anyhow!("the writer of the raw journal panicked"))?
    }
}

/// The writer thread. It runs until the stop request.
fn write_batches(
    mut segments: Segments,
    mut waiting: mpsc::Receiver<Request>,
    concurrency: usize,
    sync: bool,
) -> Result<()> {
    let mut requests = Vec::with_capacity(concurrency);
    let mut batch = Vec::with_capacity(concurrency);
    let mut go_on = true;
    while go_on && waiting.blocking_recv_many(&mut requests, concurrency) > 0 {
        for request in requests.drain(..) {
            match request {
                Request::Append(append) => batch.push(append),
                Request::Stop => go_on = false,
            }
        }
        while !batch.is_empty() {
            let fitting = segments.make_room(&batch);
            let result = segments.append(batch.get(..fitting).unwrap_or(&batch), sync).map_err(Arc::new);
            for append in batch.drain(..fitting) {
                // The caller may have been dropped.
                drop(append.done.send(result.clone()));
            }
        }
    }
    segments.sync_all()
}

/// Preallocated files, used in turn.
struct Segments {
    files: Vec<File>,
    size: usize,
    /// The index of the segment in use.
    current: usize,
    /// Where the next batch starts in it.
    position: usize,
}

impl Segments {
    fn create(dir: &Path, size: usize) -> Result<Self> {
        let mut files = Vec::with_capacity(SEGMENTS);
        for slot in 0..SEGMENTS {
            let path = dir.join(format!("{slot:08x}.seg"));
            let file = prewritten(&path, size)
                .with_context(|| format!("prewriting {}, {size} bytes", path.display()))?;
            files.push(file);
        }
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .with_context(|| format!("syncing {}", dir.display()))?;
        Ok(Self { files, size, current: 0, position: 0 })
    }

    /// Returns how many messages of `batch` fit into the segment in use, at least 1. Switches to
    /// the next segment if none does.
    fn make_room(&mut self, batch: &[Append]) -> usize {
        let fitting = fitting(batch, self.size - self.position);
        if fitting > 0 {
            return fitting;
        }
        self.current = (self.current + 1) % self.files.len();
        self.position = 0;
        fitting_or_one(batch, self.size)
    }

    /// Appends with one vectored write and one sync.
    fn append(&mut self, batch: &[Append], sync: bool) -> io::Result<()> {
        let bytes: usize = batch.iter().map(|append| append.data.len()).sum();
        let padding = padded(bytes) - bytes;
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(batch.len() + 1);
        slices.extend(batch.iter().map(|append| IoSlice::new(&append.data)));
        slices.push(IoSlice::new(ZEROS.get(..padding).unwrap_or_default()));
        let Some(file) = self.files.get(self.current) else {
            return Err(io::Error::other("no segment"));
        };
        write_all_at(file, &mut slices, self.position as u64)?;
        self.position += bytes + padding;
        if sync {
            rustix::fs::fdatasync(file)?;
        }
        Ok(())
    }

    fn sync_all(&self) -> Result<()> {
        for file in &self.files {
            rustix::fs::fdatasync(file).context("syncing the raw journal")?;
        }
        Ok(())
    }
}

/// Returns how many messages from the front of `batch` fit into `room` bytes.
fn fitting(batch: &[Append], room: usize) -> usize {
    let mut bytes = 0;
    batch
        .iter()
        .take_while(|append| {
            bytes += append.data.len();
            padded(bytes) <= room
        })
        .count()
}

/// Returns at least 1: an empty segment holds the largest message.
fn fitting_or_one(batch: &[Append], room: usize) -> usize {
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

    fn append(byte: u8, size: usize) -> Append {
        Append { data: Arc::new(vec![byte; size].into()), done: oneshot::channel().0 }
    }

    fn read(dir: &Path, slot: usize) -> Vec<u8> {
        std::fs::read(dir.join(format!("{slot:08x}.seg"))).unwrap()
    }

    #[test]
    fn batches_start_aligned_and_segments_are_used_in_turn() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = Segments::create(dir.path(), 2 * ALIGNMENT).unwrap();
        for round in 0..=SEGMENTS {
            for half in 0..2 {
                let byte = u8::try_from(10 * round + half + 1).unwrap();
                let batch = [append(byte, 10), append(byte, 20)];
                assert_eq!(segments.make_room(&batch), 2);
                segments.append(&batch, true).unwrap();
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
        let mut segments = Segments::create(dir.path(), 2 * ALIGNMENT).unwrap();
        let batch: Vec<Append> = (0..5).map(|n| append(n, ALIGNMENT)).collect();
        assert_eq!(segments.make_room(&batch), 2);
        segments.append(&batch[..2], false).unwrap();
        assert_eq!(segments.make_room(&batch[2..]), 2);
        assert_eq!((segments.current, segments.position), (1, 0));
    }

    #[test]
    fn more_slices_than_one_call_takes_are_all_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = Segments::create(dir.path(), 8 * ALIGNMENT).unwrap();
        let batch: Vec<Append> = (0..3_000).map(|n| append(u8::try_from(n % 251).unwrap(), 8)).collect();
        assert_eq!(segments.make_room(&batch), 3_000);
        segments.append(&batch, false).unwrap();
        let bytes = read(dir.path(), 0);
        for (n, chunk) in bytes.chunks(8).take(3_000).enumerate() {
            assert_eq!(chunk, [u8::try_from(n % 251).unwrap(); 8]);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_get_results_and_a_stopped_journal_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(RawJournal::create(dir.path(), 4, 100, true).unwrap());
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let journal = Arc::clone(&journal);
                tokio::spawn(async move {
                    for _ in 0..20 {
                        journal.store(Arc::new(vec![7; 100].into())).await.unwrap();
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        journal.shutdown().await.unwrap();
        journal.shutdown().await.unwrap();
        assert!(journal.store(Arc::new(vec![7; 100].into())).await.is_err());
        assert_eq!(read(dir.path(), 0)[..100], [7; 100]);
    }
}
