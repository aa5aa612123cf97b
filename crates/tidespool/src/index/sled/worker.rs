//! sled's own thread. It opens sled, applies its changes and drops it. Each of these can panic or
//! hang on damaged files or after an I/O error, and must not take a caller's thread with it.
//!
//! # Timeouts
//!
//! A caller waits for a bounded time, then gets an error. A thread can't be stopped from outside,
//! so it stays, with sled and its lock. [`SledThreads`] keeps and counts it, and joins it once
//! it has ended. If it never ends, sled can't be opened again in this process (the lock is taken),
//! and the process must be restarted. The thread holds the spool's directory all the time, because
//! it may still write there.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::lock::SledLock;
use crate::thread_limit::not_started;

/// Threads that sled starts at its first open in a process, and never again. If sled can't start
/// one, it hangs as long as the process lives.
const SLED_THREADS: usize = 7;

/// sled was opened in this process.
static HAS_THREADS: AtomicBool = AtomicBool::new(false);

/// Returns how many threads the next open starts: this module's, and those of sled itself.
pub(crate) fn threads_to_start() -> usize {
    1 + if HAS_THREADS.load(Ordering::Relaxed) { 0 } else { SLED_THREADS }
}

/// The number of stuck threads at which no new thread is started. Twice as many may be closing.
const MAX_STUCK: usize = 4;

/// Why a call into sled failed.
#[derive(Debug)]
pub(super) struct WorkerFailure {
    pub(super) what: String,
    pub(super) kind: Option<io::ErrorKind>,
}

impl From<sled::Error> for WorkerFailure {
    fn from(err: sled::Error) -> Self {
        let kind = if let sled::Error::Io(err) = &err { Some(err.kind()) } else { None };
        Self { what: err.to_string(), kind }
    }
}

impl From<io::Error> for WorkerFailure {
    fn from(err: io::Error) -> Self {
        Self { what: err.to_string(), kind: Some(err.kind()) }
    }
}

/// Runs `f`, and turns a panic into a failure.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T, WorkerFailure>) -> Result<T, WorkerFailure> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(failure_of(&*panic)))
}

fn failure_of(panic: &(dyn Any + Send)) -> WorkerFailure {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    WorkerFailure { what: format!("panic: {text}"), kind: None }
}

fn ended_early() -> WorkerFailure {
    WorkerFailure { what: "sled's thread ended".to_owned(), kind: None }
}

/// An open sled. Whichever thread drops the last reference, sled is dropped on its own thread, so
/// this `Drop` does not block.
pub(super) struct OpenSled {
    // Present until `drop`.
    parts: Option<WorkerParts>,
    drop_slot: Arc<DropSlot>,
    // Must be dropped after `drop` has filled the slot, because that wakes the thread.
    jobs: SyncSender<WorkerJob>,
}

/// The parts that are dropped to close sled.
pub(super) struct WorkerParts {
    pub(super) db: sled::Db,
    pub(super) tree: sled::Tree,
    /// `None` if it could not be duplicated. Then closing the file must release the lock.
    pub(super) lock: Option<SledLock>,
}

type DropSlot = Mutex<Option<WorkerParts>>;
type WorkerJob = Box<dyn FnOnce() + Send>;

impl OpenSled {
    pub(super) fn tree(&self) -> Result<&sled::Tree, WorkerFailure> {
        let gone = || WorkerFailure { what: "sled was dropped".to_owned(), kind: None };
        self.parts.as_ref().map(|parts| &parts.tree).ok_or_else(gone)
    }

    /// Runs `f` on sled's thread and waits at most `wait` for the result. Returns `None` after a
    /// timeout. Nothing must be run after that.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        wait: Duration,
        f: impl FnOnce(&Self) -> Result<T, WorkerFailure> + Send + 'static,
    ) -> Option<Result<T, WorkerFailure>> {
        let (answer, answered) = sync_channel(1);
        let sled = Arc::clone(self);
        let job: WorkerJob = Box::new(move || {
            let result = guarded(|| f(&sled));
            // Dropped before the answer is sent, because the receiver may expect sled to be closed.
            drop(sled);
            // Fails if the caller has timed out, which does not matter.
            let _ = answer.send(result);
        });
        // One job runs at a time. If the queue is full, the thread is stuck.
        self.jobs.try_send(job).ok()?;
        match answered.recv_timeout(wait) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(ended_early())),
        }
    }
}

impl Drop for OpenSled {
    fn drop(&mut self) {
        *self.drop_slot.lock() = self.parts.take();
    }
}

/// The thread, from the start of the open to the end of the drop.
#[derive(Debug)]
pub(super) struct Worker {
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

impl Worker {
    fn has_ended(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Disconnected))
    }
}

/// Drops sled, which writes its buffers, and panics if it can't sync.
fn close(parts: Option<WorkerParts>) -> Result<(), WorkerFailure> {
    let Some(WorkerParts { db, tree, lock }) = parts else { return Ok(()) };
    let closed = guarded(|| {
        drop((db, tree));
        Ok(())
    });
    if let Some(lock) = lock {
        lock.unlock();
    }
    closed
}

/// Starts the threads of a spool's indexes, and keeps those of released indexes until they end.
#[derive(Debug)]
pub(super) struct SledThreads {
    /// The locked directory, which each thread holds until it ends.
    pub(super) directory: Weak<dyn Any + Send + Sync>,
    /// The longest wait for an open. Default = 60 s.
    pub(super) open_timeout: Duration,
    /// The longest wait for a batch of changes, or for a flush and sync. Default = 60 s.
    pub(super) change_timeout: Duration,
    /// The threads of released indexes, each with the time from which it counts as stuck.
    closing: Mutex<Vec<(Instant, Worker)>>,
    /// A sled could not write or sync its last data when it was closed.
    closing_failed: Arc<AtomicBool>,
}

impl SledThreads {
    pub(super) fn new(directory: Weak<dyn Any + Send + Sync>) -> Self {
        let (open_timeout, change_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
        let (closing, closing_failed) = Default::default();
        Self { directory, open_timeout, change_timeout, closing, closing_failed }
    }

    /// Starts a thread, and opens the sled in `dir` on it. `None` after a timeout: if the open ends
    /// later, sled is dropped at once.
    pub(super) fn start(
        &self,
        dir: &Path,
        open: impl FnOnce() -> Result<WorkerParts, WorkerFailure> + Send + 'static,
    ) -> Result<Option<(OpenSled, Worker)>, WorkerFailure> {
        let (jobs, queue) = sync_channel::<WorkerJob>(1);
        let (answer, answered) = sync_channel(1);
        let (end, ended) = sync_channel::<()>(1);
        let drop_slot = Arc::new(DropSlot::default());
        let (failed, dir) = (Arc::clone(&self.closing_failed), dir.to_owned());
        let held = self.directory.upgrade();
        let thread = thread::Builder::new().name("tide-sled".to_owned()).spawn(move || {
            let opened = guarded(open);
            let sled = opened.map(|parts| OpenSled { parts: Some(parts), drop_slot: Arc::clone(&drop_slot), jobs });
            // If the caller has timed out, `send` returns sled and it is dropped, into the slot.
            drop(answer.send(sled));
            queue.into_iter().for_each(|job| job());
            let parts = drop_slot.lock().take();
            if let Err(failure) = close(parts) {
                tracing::error!(path = %dir.display(), what = failure.what, "sled failed while it was closed");
                failed.store(true, Ordering::Release);
            }
            drop(held);
            drop(end);
        });
        let thread = thread.map_err(|error| not_started("tide-sled", &error))?;
        let worker = Worker { thread, ended };
        let failure = match answered.recv_timeout(self.open_timeout) {
            Ok(Ok(sled)) => {
                HAS_THREADS.store(true, Ordering::Relaxed);
                return Ok(Some((sled, worker)));
            }
            Ok(Err(failure)) => failure,
            Err(RecvTimeoutError::Timeout) => {
                self.release(worker, Duration::ZERO);
                return Ok(None);
            }
            Err(RecvTimeoutError::Disconnected) => ended_early(),
        };
        self.end(worker);
        Err(failure)
    }

    /// Waits until the thread has ended, as long as for an open.
    pub(super) fn end(&self, worker: Worker) {
        let _ = worker.ended.recv_timeout(self.open_timeout);
        self.release(worker, Duration::ZERO);
    }

    /// Keeps a thread until it ends. It counts as stuck if it has not ended after `patience`.
    pub(super) fn release(&self, worker: Worker, patience: Duration) {
        self.closing.lock().push((Instant::now() + patience, worker));
    }

    /// Joins the threads that have ended, and returns how many have not.
    pub(super) fn reap(&self) -> usize {
        let mut workers = self.closing.lock();
        let (ended, running): (Vec<_>, Vec<_>) =
            workers.drain(..).partition(|(_, worker)| worker.has_ended());
        *workers = running;
        let left = workers.len();
        drop(workers);
        for (_, worker) in ended {
            // The thread dropped its channel last, so this does not wait. A panic was caught and
            // reported before.
            let _ = worker.thread.join();
        }
        left
    }

    /// Returns true if a sled failed while it was closed.
    pub(super) fn closing_failed(&self) -> bool {
        self.closing_failed.load(Ordering::Acquire)
    }

    /// Returns true if so many threads are stuck that no new one should be started.
    pub(super) fn are_stuck(&self) -> bool {
        let (left, now) = (self.reap(), Instant::now());
        let stuck = self.closing.lock().iter().filter(|(stuck_at, _)| *stuck_at <= now).count();
        stuck >= MAX_STUCK || left >= 2 * MAX_STUCK
    }

    /// Waits for all threads, at most `wait` in all, and returns how many are left.
    pub(super) fn join_all(&self, wait: Duration) -> usize {
        let until = Instant::now() + wait;
        for (_, worker) in &*self.closing.lock() {
            let _ = worker.ended.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
        self.reap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failure_with_its_text() {
        let what = |f: fn() -> Result<(), WorkerFailure>| guarded(f).unwrap_err().what;
        assert_eq!(what(|| panic!("broken {}", 7)), "panic: broken 7");
        assert_eq!(what(|| panic!("broken")), "panic: broken");
        assert_eq!(what(|| std::panic::panic_any(7)), "panic: no message");
    }

    #[test]
    fn an_opening_that_panics_fails_and_its_thread_ends() {
        let threads = SledThreads::new(Weak::<()>::new());
        let failure = threads.start(Path::new("sled"), || panic!("damaged")).err().unwrap();
        assert_eq!(failure.what, "panic: damaged");
        assert_eq!(threads.reap(), 0);
    }
}
