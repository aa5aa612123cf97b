//! sled's own thread. It opens sled, applies its changes and drops it. Each of these can panic or
//! hang on damaged files or after an I/O error, and must not take a caller's thread with it.
//!
//! # Timeouts
//!
//! A caller waits for a bounded time, then gets an error. A thread can't be stopped from outside,
//! so it stays, with sled and its lock. [`StuckThreads`] keeps and counts it, and joins it once it
//! has ended. If it never ends, sled can't be opened again in this process (the lock is taken), and
//! the process must be restarted. The thread holds the spool's directory all the time, because it
//! may still write there.

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

use super::sled_lock::SledLock;
use crate::thread_limit::not_started;

/// Threads that sled starts at its first open in a process, and never again. If sled can't start
/// one, it hangs as long as the process lives.
const SLED_THREADS: usize = 7;

/// sled was opened in this process.
static HAS_THREADS: AtomicBool = AtomicBool::new(false);

/// Returns how many threads sled itself starts at the next open.
pub(crate) fn sled_threads_to_come() -> usize {
    if HAS_THREADS.load(Ordering::Relaxed) { 0 } else { SLED_THREADS }
}

/// The number of stuck threads at which no new thread is started.
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

/// An open sled. Whichever thread drops the last reference, sled is dropped on its own thread, so
/// this `Drop` does not block.
pub(super) struct Engine {
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

impl Engine {
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
        let engine = Arc::clone(self);
        let job: WorkerJob = Box::new(move || {
            let result = guarded(|| f(&engine));
            // Dropped before the answer is sent, because the receiver may expect sled to be closed.
            drop(engine);
            // Fails if the caller has timed out, which does not matter.
            let _ = answer.send(result);
        });
        // One job runs at a time. If the queue is full, the thread is stuck.
        self.jobs.try_send(job).ok()?;
        match answered.recv_timeout(wait) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(WorkerFailure { what: "sled's thread ended".to_owned(), kind: None }))
            }
        }
    }
}

impl Drop for Engine {
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

/// The result of an open.
pub(super) enum OpenOutcome {
    /// sled is open.
    Ready(Engine, Worker),
    /// The open failed. The thread has ended or is about to.
    Failed(WorkerFailure, Worker),
    /// The open did not end in time. If it ends later, sled is dropped at once.
    Late(Worker),
}

impl Worker {
    /// Starts the thread, runs `open` for the sled in `dir` on it, and waits at most `wait` for the
    /// result.
    pub(super) fn start(
        dir: &Path,
        wait: Duration,
        stuck: &StuckThreads,
        open: impl FnOnce() -> Result<WorkerParts, WorkerFailure> + Send + 'static,
    ) -> io::Result<OpenOutcome> {
        let (jobs, queue) = sync_channel::<WorkerJob>(1);
        let (answer, answered) = sync_channel(1);
        let (end, ended) = sync_channel::<()>(1);
        let drop_slot = Arc::new(DropSlot::default());
        let (failed, dir) = (Arc::clone(&stuck.closing_failed), dir.to_owned());
        let held = stuck.directory.as_ref().and_then(Weak::upgrade);
        let thread = thread::Builder::new().name("tide-sled".to_owned()).spawn(move || {
            let opened = guarded(open);
            let engine = opened.map(|parts| Engine { parts: Some(parts), drop_slot: Arc::clone(&drop_slot), jobs });
            // If the caller has timed out, `send` returns the engine and it is dropped, into the
            // slot.
            drop(answer.send(engine));
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
        let worker = Self { thread, ended };
        Ok(match answered.recv_timeout(wait) {
            Ok(Ok(engine)) => {
                HAS_THREADS.store(true, Ordering::Relaxed);
                OpenOutcome::Ready(engine, worker)
            }
            Ok(Err(failure)) => OpenOutcome::Failed(failure, worker),
            Err(RecvTimeoutError::Timeout) => OpenOutcome::Late(worker),
            Err(RecvTimeoutError::Disconnected) => OpenOutcome::Failed(
                WorkerFailure { what: "sled's thread ended".to_owned(), kind: None },
                worker,
            ),
        })
    }

    /// Waits at most `wait` until the thread has ended. Gives a thread that has not ended to
    /// `stuck`.
    pub(super) fn join(self, wait: Duration, stuck: &StuckThreads) -> bool {
        let ended = matches!(self.ended.recv_timeout(wait), Err(RecvTimeoutError::Disconnected));
        stuck.keep(self);
        ended && {
            stuck.reap();
            true
        }
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

/// Threads that did not end in time. Shared by all engines of a spool.
#[derive(Debug, Default)]
pub(crate) struct StuckThreads {
    workers: Mutex<Vec<Worker>>,
    /// A sled could not write or sync its last data when it was closed.
    closing_failed: Arc<AtomicBool>,
    /// The locked directory, which each thread holds until it ends.
    directory: Option<Weak<dyn Any + Send + Sync>>,
}

impl StuckThreads {
    /// Creates a set whose threads hold `directory` as long as they live.
    pub(crate) fn holding<T: Any + Send + Sync>(directory: &Arc<T>) -> Self {
        let directory: Weak<T> = Arc::downgrade(directory);
        Self { directory: Some(directory), ..Self::default() }
    }

    fn keep(&self, worker: Worker) {
        self.workers.lock().push(worker);
    }

    /// Joins the threads that have ended, and returns how many have not.
    pub(crate) fn reap(&self) -> usize {
        let mut workers = self.workers.lock();
        let (ended, running): (Vec<_>, Vec<_>) = workers.drain(..).partition(Worker::has_ended);
        *workers = running;
        let left = workers.len();
        drop(workers);
        for worker in ended {
            // The thread dropped its channel last, so this does not wait. A panic was caught and
            // reported before.
            let _ = worker.thread.join();
        }
        left
    }

    /// Returns true if a sled failed while it was closed.
    pub(crate) fn closing_failed(&self) -> bool {
        self.closing_failed.load(Ordering::Acquire)
    }

    /// Returns true if so many threads are stuck that no new one should be started.
    pub(super) fn are_too_many(&self) -> bool {
        self.reap() >= MAX_STUCK
    }

    /// Waits for all threads, at most `wait` in all, and returns how many are left.
    pub(crate) fn join_all(&self, wait: Duration) -> usize {
        let until = Instant::now() + wait;
        for worker in &*self.workers.lock() {
            let _ = worker.ended.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
        self.reap()
    }
}

impl Worker {
    fn has_ended(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Disconnected))
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
        let stuck = StuckThreads::default();
        let opened =
            Worker::start(Path::new("sled"), Duration::from_secs(60), &stuck, || panic!("damaged")).unwrap();
        let OpenOutcome::Failed(failure, worker) = opened else { panic!("opened") };
        assert_eq!(failure.what, "panic: damaged");
        assert!(worker.join(Duration::from_secs(60), &stuck));
        assert_eq!(stuck.reap(), 0);
    }
}
