//! The reading threads: they read from disk, so that the callers' threads do not block.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_channel::{Receiver, Sender};
use tidespool_core::Closed;
use tokio::sync::oneshot;

use super::closing::Over;

/// Maximum number of queued reads. More callers wait for a place in the queue.
const QUEUE: usize = 1024;

type ReadJob = Box<dyn FnOnce() + Send>;

/// The queue to the reading threads.
#[derive(Debug)]
pub(crate) struct Readers {
    jobs: Sender<ReadJob>,
    /// The threads take the reads from it.
    queue: Receiver<ReadJob>,
    /// Set when a read panics.
    dead: Arc<AtomicBool>,
    over: Over,
}

/// Why a read has no result.
#[derive(Debug)]
pub(crate) enum NotRead {
    Closed,
    /// The read panicked. The message may be intact.
    Panicked(io::Error),
}

impl From<NotRead> for anyhow::Error {
    fn from(error: NotRead) -> Self {
        match error {
            NotRead::Closed => Closed.into(),
            NotRead::Panicked(error) => error.into(),
        }
    }
}

impl Readers {
    /// `dead` is set when a read panics, which means a bug or faulty memory.
    pub(super) fn new(dead: Arc<AtomicBool>) -> Self {
        let (jobs, queue) = async_channel::bounded(QUEUE);
        Self { jobs, queue, dead, over: Over::default() }
    }

    /// Runs a reading thread until the queue is closed.
    pub(in crate::tiered) fn serve(&self) {
        while let Ok(job) = self.queue.recv_blocking() {
            job();
        }
    }

    /// Runs `read` on a reading thread. Dropping the future cancels a queued read, and drops the
    /// result of a running one.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotRead> {
        let (done, receiver) = oneshot::channel();
        let dead = self.dead.clone();
        let job: ReadJob = Box::new(move || {
            if done.is_closed() {
                return;
            }
            // A message whose read panics must not end the thread, which reads other messages, too.
            let result = catch_unwind(AssertUnwindSafe(read)).map_err(|_| {
                tracing::error!("a read panicked");
                dead.store(true, Ordering::Relaxed);
                NotRead::Panicked(io::Error::other("reading panicked: see the log"))
            });
            // The caller may be gone.
            let _ = done.send(result);
        });
        let read = async {
            self.jobs.send(job).await.map_err(|_| NotRead::Closed)?;
            receiver.await.map_err(|_| NotRead::Closed)?
        };
        self.over.unless_set(read).await.map_err(|Closed| NotRead::Closed)?
    }

    /// Ends the threads after their running reads. Drops all queued reads now, so that their
    /// callers return even if all threads hang.
    pub(crate) fn close(&self) {
        self.jobs.close();
        while self.queue.try_recv().is_ok() {}
    }

    /// Makes the callers of running reads return.
    pub(in crate::tiered) fn end(&self) {
        self.over.set();
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future;

    use super::*;

    /// A read that panicked was reported as the end of the spool. An enumeration ended there, as if
    /// it had sent all messages.
    #[test]
    fn a_read_that_panics_is_an_error_and_ends_no_thread() {
        let dead = Arc::<AtomicBool>::default();
        let readers = Arc::new(Readers::new(dead.clone()));
        let reading = readers.clone();
        let thread = std::thread::spawn(move || reading.serve());
        assert_eq!(future::block_on(readers.run(|| 7)).unwrap(), 7);
        assert!(!dead.load(Ordering::Relaxed));
        let error = future::block_on(readers.run(|| panic!("on purpose"))).unwrap_err();
        assert!(matches!(error, NotRead::Panicked(_)), "{error:?}");
        assert!(dead.load(Ordering::Relaxed));
        assert_eq!(future::block_on(readers.run(|| 8)).unwrap(), 8);
        readers.close();
        assert!(matches!(future::block_on(readers.run(|| 9)), Err(NotRead::Closed)));
        thread.join().unwrap();
    }
}
