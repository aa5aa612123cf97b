//! The limit of the machine: the batches of a journal, appended and synced, and nothing else.
//!
//! There are no headers, checksums, index or recovery: nothing is read back. A writer takes all
//! waiting messages, writes them with one vectored write at a multiple of 4 096, syncs once and
//! wakes all their waiters. Before it syncs a large batch, it passes the turn to another writer,
//! which collects and writes the next batch meanwhile. A small batch is synced first: its bytes
//! cost less than the additional sync of half a batch.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use tokio::sync::{mpsc, oneshot};

use crate::segments::Segments;

/// A message in the queue.
struct Append {
    data: Arc<Box<[u8]>>,
    done: oneshot::Sender<Result<(), Arc<io::Error>>>,
}

impl AsRef<[u8]> for Append {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

enum Request {
    Append(Append),
    Stop,
}

/// The number of writers: one collects and writes while the others sync.
const WRITERS: usize = 3;

/// A batch of at least this many bytes is synced while another writer writes the next one.
const OVERLAPPED: usize = 256 << 10;

/// The handle of a journal that is never read, and of its writer threads.
#[derive(Debug)]
pub struct RawJournal {
    requests: mpsc::Sender<Request>,
    writers: Mutex<Vec<JoinHandle<Result<()>>>>,
}

impl RawJournal {
    /// Preallocates the segments in `dir` and starts the writers. Blocks.
    ///
    /// At most `concurrency` messages of at most `largest` bytes each wait at a time. With `sync`
    /// each batch is synced.
    ///
    /// # Errors
    ///
    /// An I/O error that names the file.
    pub fn create(dir: &Path, concurrency: usize, largest: usize, sync: bool) -> Result<Self> {
        let segments = Segments::create(dir, largest)?;
        let (requests, waiting) = mpsc::channel(concurrency);
        let turn = Turn {
            segments,
            waiting,
            requests: Vec::with_capacity(concurrency),
            batch: Vec::with_capacity(concurrency),
            concurrency,
            go_on: true,
        };
        let baton = Arc::new(Baton { turn: Mutex::new(Some(turn)), is_free: Condvar::new() });
        let writers = (0..WRITERS).map(|number| {
            let baton = Arc::clone(&baton);
            std::thread::Builder::new()
                .name(format!("raw-journal-{number}"))
                .spawn(move || baton.write_batches(sync))
                .context("starting a writer thread")
        });
        Ok(Self { requests, writers: Mutex::new(writers.collect::<Result<_>>()?) })
    }

    /// Appends a message. Returns when its batch is written, and synced if the journal syncs.
    pub(crate) async fn store(&self, data: Arc<Box<[u8]>>) -> Result<()> {
        let (done, written) = oneshot::channel();
        let stopped = || anyhow!("the writers of the raw journal have stopped");
        self.requests.send(Request::Append(Append { data, done })).await.map_err(|_| stopped())?;
        match written.await {
            Ok(result) => result.map_err(|err| anyhow::Error::new(err).context("writing the raw journal")),
            Err(_) => Err(stopped()),
        }
    }

    /// Syncs everything and joins the writers.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        let writers = std::mem::take(&mut *self.writers.lock().unwrap_or_else(PoisonError::into_inner));
        if writers.is_empty() {
            return Ok(());
        }
        // An error means that the writers have stopped already; joining them returns the reason.
        drop(self.requests.send(Request::Stop).await);
        let join = || writers.into_iter().map(JoinHandle::join).collect::<Vec<_>>();
        for joined in tokio::task::spawn_blocking(join).await? {
            joined.map_err(|_| anyhow!("a writer of the raw journal panicked"))??;
        }
        Ok(())
    }
}

/// Passes the turn from one writer to the next.
///
/// A mutex around [`Turn`] would do, but then each small batch would wake a writer that waits for
/// the mutex and that has nothing to do.
struct Baton {
    /// `None` while a writer has the turn.
    turn: Mutex<Option<Turn>>,
    is_free: Condvar,
}

/// What the writer needs whose turn it is.
struct Turn {
    segments: Segments,
    waiting: mpsc::Receiver<Request>,
    /// Empty between two calls of [`take_waiting`](Self::take_waiting).
    requests: Vec<Request>,
    /// Messages that are taken and not written.
    batch: Vec<Append>,
    concurrency: usize,
    /// False after the stop request.
    go_on: bool,
}

impl Baton {
    /// A writer thread. It runs until the stop request.
    fn write_batches(&self, sync: bool) -> Result<()> {
        let mut batch = Vec::new();
        let mut held = None;
        loop {
            let mut turn = held.take().unwrap_or_else(|| self.take());
            if !turn.take_waiting() {
                let synced = turn.segments.sync_all();
                self.pass_on(turn);
                return synced;
            }
            let (bytes, written) = turn.write(&mut batch);
            if sync && bytes >= OVERLAPPED {
                self.pass_on(turn);
            } else {
                held = Some(turn);
            }
            let result = written.and_then(|file| match sync {
                true => Ok(rustix::fs::fdatasync(&*file)?),
                false => Ok(()),
            });
            let result = result.map_err(Arc::new);
            for append in batch.drain(..) {
                // The caller may have been dropped.
                drop(append.done.send(result.clone()));
            }
        }
    }

    fn take(&self) -> Turn {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match turn.take() {
                Some(turn) => return turn,
                None => turn = self.is_free.wait(turn).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn pass_on(&self, turn: Turn) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
        self.is_free.notify_one();
    }
}

impl Turn {
    /// Blocks until messages wait, and takes them. Returns false after the last ones.
    fn take_waiting(&mut self) -> bool {
        while self.batch.is_empty() && self.go_on {
            self.go_on = self.waiting.blocking_recv_many(&mut self.requests, self.concurrency) > 0;
            for request in self.requests.drain(..) {
                match request {
                    Request::Append(append) => self.batch.push(append),
                    Request::Stop => self.go_on = false,
                }
            }
        }
        !self.batch.is_empty()
    }

    /// Writes as many of the messages as fit, and moves them to `written`. Returns their bytes, and
    /// the file to sync.
    fn write(&mut self, written: &mut Vec<Append>) -> (usize, io::Result<Arc<File>>) {
        let fitting = self.segments.make_room(&self.batch);
        written.extend(self.batch.drain(..fitting));
        let bytes = written.iter().map(|append| append.data.len()).sum();
        (bytes, self.segments.append(written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches that are synced first, and batches that are overlapped.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_get_results_and_a_stopped_journal_is_an_error() {
        for size in [100, OVERLAPPED] {
            let dir = tempfile::tempdir().unwrap();
            let journal = Arc::new(RawJournal::create(dir.path(), 4, size, true).unwrap());
            let message = Arc::new(vec![7; size].into_boxed_slice());
            let callers: Vec<_> = (0..4)
                .map(|_| {
                    let (journal, message) = (Arc::clone(&journal), Arc::clone(&message));
                    tokio::spawn(async move {
                        for _ in 0..20 {
                            journal.store(Arc::clone(&message)).await.unwrap();
                        }
                    })
                })
                .collect();
            for caller in callers {
                caller.await.unwrap();
            }
            journal.shutdown().await.unwrap();
            journal.shutdown().await.unwrap();
            assert!(journal.store(Arc::clone(&message)).await.is_err());
            let bytes = std::fs::read(dir.path().join("00000000.seg")).unwrap();
            assert_eq!(bytes[..size], **message);
        }
    }
}
