//! sled's own thread. It opens sled, makes its changes and drops it: each of these can panic or hang when files are
//! damaged or after an I/O error, and then it is this thread that does, not a caller.
//!
//! # When a wait ends
//!
//! A caller waits for a bounded time, then gets an error. A thread cannot be ended from outside: it stays, with sled
//! and its lock, and is kept in [`StuckThreads`], which count it and join it once it has ended by itself. If it never does,
//! sled cannot be opened again in this process (the lock is taken), and the process has to be started anew. It holds the spool's directory all
//! the time, for it may still write there.

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

/// Threads that sled starts when it is first opened in a process, and never again. If it can't
/// start one it hangs, for as long as the process lives.
const SLED_THREADS: usize = 7;

/// sled was opened in this process.
static HAS_THREADS: AtomicBool = AtomicBool::new(false);

/// How many threads sled itself starts at the next opening.
pub(crate) fn sled_threads_to_come() -> usize {
    if HAS_THREADS.load(Ordering::Relaxed) { 0 } else { SLED_THREADS }
}

/// The most threads that may be stuck before none is started any more.
const MAX_STRAYS: usize = 4;

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

/// Runs `f`; a panic in it becomes a failure.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T, WorkerFailure>) -> Result<T, WorkerFailure> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(failure_of(&*panic)))
}

fn failure_of(panic: &(dyn Any + Send)) -> WorkerFailure {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    WorkerFailure { what: format!("panic: {text}"), kind: None }
}

/// An open sled. Wherever the last owner lets go of it, it is dropped on its own thread: `Drop` here does not block.
pub(super) struct Engine {
    // Always there until `drop`.
    parts: Option<WorkerParts>,
    grave: Arc<Grave>,
    // Dropped after `drop` has filled the grave: that is what wakes the thread.
    jobs: SyncSender<WorkerJob>,
}

/// What is dropped to close sled.
pub(super) struct WorkerParts {
    pub(super) db: sled::Db,
    pub(super) tree: sled::Tree,
    /// `None` where it can't be had: then closing the file has to end the lock.
    pub(super) lock: Option<SledLock>,
}

type Grave = Mutex<Option<WorkerParts>>;
type WorkerJob = Box<dyn FnOnce() + Send>;

impl Engine {
    pub(super) fn tree(&self) -> Result<&sled::Tree, WorkerFailure> {
        let gone = || WorkerFailure { what: "sled was dropped".to_owned(), kind: None };
        self.parts.as_ref().map(|parts| &parts.tree).ok_or_else(gone)
    }

    /// Runs `f` on sled's thread and waits for it, at most for `wait`: `None` where that was not enough, and after
    /// that nothing should be run any more.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        wait: Duration,
        f: impl FnOnce(&Self) -> Result<T, WorkerFailure> + Send + 'static,
    ) -> Option<Result<T, WorkerFailure>> {
        let (answer, answered) = sync_channel(1);
        let engine = Arc::clone(self);
        let job: WorkerJob = Box::new(move || {
            let result = guarded(|| f(&engine));
            // Before the answer: who has it may want to see sled closed.
            drop(engine);
            // Nobody waits for it any more: then it does not matter.
            let _ = answer.send(result);
        });
        // One job at a time: if there is no room, the thread is stuck.
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
        *self.grave.lock() = self.parts.take();
    }
}

/// The thread, from the start of opening to the end of dropping.
#[derive(Debug)]
pub(super) struct Worker {
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

/// What became of an opening.
pub(super) enum OpenOutcome {
    /// It is open.
    Ready(Engine, Worker),
    /// It failed; the thread has ended, or is about to.
    Failed(WorkerFailure, Worker),
    /// It did not end in time. If it still does, sled is dropped right then.
    Late(Worker),
}

impl Worker {
    /// Starts the thread, lets it `open` sled in `dir`, and waits for that, at most for `wait`.
    pub(super) fn start(
        dir: &Path,
        wait: Duration,
        strays: &StuckThreads,
        open: impl FnOnce() -> Result<WorkerParts, WorkerFailure> + Send + 'static,
    ) -> io::Result<OpenOutcome> {
        let (jobs, queue) = sync_channel::<WorkerJob>(1);
        let (answer, answered) = sync_channel(1);
        let (end, ended) = sync_channel::<()>(1);
        let grave = Arc::new(Grave::default());
        let (failed, dir) = (Arc::clone(&strays.closing_failed), dir.to_owned());
        let held = strays.directory.as_ref().and_then(Weak::upgrade);
        let thread = thread::Builder::new().name("tide-sled".to_owned()).spawn(move || {
            let opened = guarded(open);
            let engine = opened.map(|parts| Engine { parts: Some(parts), grave: Arc::clone(&grave), jobs });
            // If nobody waits any more, the engine comes back and is dropped: into the grave.
            drop(answer.send(engine));
            queue.into_iter().for_each(|job| job());
            let parts = grave.lock().take();
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

    /// Waits until the thread has ended, at most for `wait`; a thread that has not is given to `strays`.
    pub(super) fn join(self, wait: Duration, strays: &StuckThreads) -> bool {
        let ended = matches!(self.ended.recv_timeout(wait), Err(RecvTimeoutError::Disconnected));
        strays.keep(self);
        ended && {
            strays.reap();
            true
        }
    }
}

/// Drops sled: it writes what is not written, and panics if it cannot sync.
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

/// Threads that did not end in time. Shared by all that open sled in one spool.
#[derive(Debug, Default)]
pub(crate) struct StuckThreads {
    workers: Mutex<Vec<Worker>>,
    /// Some sled could not write or sync its last when it was closed.
    closing_failed: Arc<AtomicBool>,
    /// What each thread holds until it ends: the directory with its lock.
    directory: Option<Weak<dyn Any + Send + Sync>>,
}

impl StuckThreads {
    /// Threads that hold `directory` for as long as they live.
    pub(crate) fn holding<T: Any + Send + Sync>(directory: &Arc<T>) -> Self {
        let directory: Weak<T> = Arc::downgrade(directory);
        Self { directory: Some(directory), ..Self::default() }
    }

    fn keep(&self, worker: Worker) {
        self.workers.lock().push(worker);
    }

    /// Joins those that have ended by now, and says how many have not.
    pub(crate) fn reap(&self) -> usize {
        let mut workers = self.workers.lock();
        let (ended, running): (Vec<_>, Vec<_>) = workers.drain(..).partition(Worker::has_ended);
        *workers = running;
        let left = workers.len();
        drop(workers);
        for worker in ended {
            // Its last act was to drop a channel: this does not wait. A panic was caught and reported before.
            let _ = worker.thread.join();
        }
        left
    }

    /// Whether some sled failed while it was closed.
    pub(crate) fn closing_failed(&self) -> bool {
        self.closing_failed.load(Ordering::Acquire)
    }

    /// Whether so many are stuck that no more should be started.
    pub(super) fn are_too_many(&self) -> bool {
        self.reap() >= MAX_STRAYS
    }

    /// Waits for all of them, at most for `wait` in all, and says how many are left.
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
        let strays = StuckThreads::default();
        let opened =
            Worker::start(Path::new("sled"), Duration::from_secs(60), &strays, || panic!("damaged")).unwrap();
        let OpenOutcome::Failed(failure, worker) = opened else { panic!("opened") };
        assert_eq!(failure.what, "panic: damaged");
        assert!(worker.join(Duration::from_secs(60), &strays));
        assert_eq!(strays.reap(), 0);
    }
}
