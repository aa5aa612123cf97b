//! The threads that read from disk, so that no caller's thread does.

use std::panic::{AssertUnwindSafe, catch_unwind};

use async_channel::{Receiver, Sender};
use tidespool_core::Closed;
use tokio::sync::oneshot;

/// Reads that may wait for a thread; more callers wait for a place in the queue.
const QUEUE: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The queue to the reading threads.
#[derive(Debug)]
pub(crate) struct Readers {
    jobs: Sender<Job>,
}

impl Readers {
    /// The queue, and its other end for each of the threads.
    pub(crate) fn new() -> (Self, Receiver<Job>) {
        let (jobs, queue) = async_channel::bounded(QUEUE);
        (Self { jobs }, queue)
    }

    /// Runs `read` on one of the threads. Dropping the future drops its place in the queue, or the result.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Closed> {
        let (done, heard) = oneshot::channel();
        let job: Job = Box::new(move || {
            if !done.is_closed() {
                // Whoever asked may be gone by now.
                let _ = done.send(read());
            }
        });
        self.jobs.send(job).await.map_err(|_| Closed)?;
        heard.await.map_err(|_| Closed)
    }

    /// Ends the threads after what they are at. What waits is not read any more.
    pub(crate) fn close(&self) {
        self.jobs.close();
    }
}

/// A reading thread.
pub(crate) fn run_reader(queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv_blocking() {
        // One message that makes the reading panic must not take the others' reader away; its caller hears of it.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a read panicked");
        }
    }
}
