//! The threads that read from disk, so that no caller's thread does.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_channel::{Receiver, Sender};
use tidespool_core::Closed;
use tokio::sync::oneshot;

use crate::tiered::lifecycle::closing::Over;

/// Reads that may wait for a thread; more callers wait for a place in the queue.
const QUEUE: usize = 1024;

type ReadJob = Box<dyn FnOnce() + Send>;

/// The queue to the reading threads.
#[derive(Debug)]
pub(crate) struct Readers {
    jobs: Sender<ReadJob>,
    /// For what waits when the spool closes.
    queue: Receiver<ReadJob>,
    /// Set when a read panics.
    dead: Arc<AtomicBool>,
    over: Over,
}

/// Why there is no result.
#[derive(Debug)]
pub(crate) enum NotRead {
    Closed,
    /// Reading panicked, which says nothing about the message.
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
    /// The queue, and its other end for each of the threads. `dead` is set when a read panics: the code is wrong, or memory is.
    pub(crate) fn new(dead: Arc<AtomicBool>) -> (Self, Receiver<ReadJob>) {
        let (jobs, queue) = async_channel::bounded(QUEUE);
        (Self { jobs, queue: queue.clone(), dead, over: Over::default() }, queue)
    }

    /// Runs `read` on one of the threads. Dropping the future drops its place in the queue, or the result.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotRead> {
        let (done, heard) = oneshot::channel();
        let dead = self.dead.clone();
        let job: ReadJob = Box::new(move || {
            if done.is_closed() {
                return;
            }
            // One message that makes the reading panic must not take the others' reader away.
            let result = catch_unwind(AssertUnwindSafe(read)).map_err(|_| {
                tracing::error!("a read panicked");
                dead.store(true, Ordering::Relaxed);
                NotRead::Panicked(io::Error::other("reading panicked: see the log"))
            });
            // Whoever asked may be gone by now.
            let _ = done.send(result);
        });
        let read = async {
            self.jobs.send(job).await.map_err(|_| NotRead::Closed)?;
            heard.await.map_err(|_| NotRead::Closed)?
        };
        self.over.unless_set(read).await.map_err(|Closed| NotRead::Closed)?
    }

    /// Ends the threads after what they are at. What waits is not read any more, and whoever waits for it is told now: all threads may hang.
    pub(crate) fn close(&self) {
        self.jobs.close();
        while self.queue.try_recv().is_ok() {}
    }

    /// Nobody waits any longer for what is being read.
    pub(in crate::tiered) fn end(&self) {
        self.over.set();
    }
}

/// A reading thread.
pub(crate) fn run_reader(queue: &Receiver<ReadJob>) {
    while let Ok(job) = queue.recv_blocking() {
        job();
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future;

    use super::*;

    /// A read that panicked was told as the end of the spool: an enumeration ended there, as if it had sent everything.
    #[test]
    fn a_read_that_panics_is_an_error_and_takes_no_reader_away() {
        let dead = Arc::<AtomicBool>::default();
        let (readers, queue) = Readers::new(dead.clone());
        let thread = std::thread::spawn(move || run_reader(&queue));
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
