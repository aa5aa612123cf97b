//! The requests to the checkpointer thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::CheckpointError;
use super::pace::Pace;
use super::progress::Progress;
use crate::mailbox::Mailbox;

/// Sends the result of a task to its caller.
pub(crate) type TaskDone = oneshot::Sender<Result<(), CheckpointError>>;

/// The callers' end of the requests. It holds one task of each kind, because callers share a run.
#[derive(Debug, Default)]
pub(crate) struct CheckpointRequests {
    state: Mailbox<RequestState>,
    /// Removals of indexed messages since the thread last counted them.
    removals: AtomicU64,
    /// The thread is woken when `removals` reaches this.
    kick_at: AtomicU64,
    /// The average duration of recent syncs of the journal, in microseconds. 0 if there was none.
    sync_us: AtomicU64,
    progress: Progress,
}

/// The checkpointer's end of the requests. When it is dropped, all tasks are dropped, and their
/// receivers return an error.
#[derive(Debug)]
pub(crate) struct CheckpointInbox {
    requests: Arc<CheckpointRequests>,
    pace: Mutex<Pace>,
}

/// Creates the two ends.
pub(crate) fn checkpoint_requests() -> (Arc<CheckpointRequests>, CheckpointInbox) {
    let requests = Arc::<CheckpointRequests>::default();
    (requests.clone(), CheckpointInbox { requests, pace: Mutex::default() })
}

#[derive(Debug, Default)]
struct RequestState {
    kicked: bool,
    cleanup: Option<TaskDone>,
    compact: Option<TaskDone>,
    stopped: bool,
}

/// A requested task.
#[derive(Debug)]
pub(crate) enum CheckpointTask {
    /// Checkpoint old segments, recycle, prune.
    Cleanup(TaskDone),
    /// Checkpoint everything and rewrite retained segments.
    Compact(TaskDone),
}

/// What [`CheckpointInbox::wait`] returns.
pub(crate) enum CheckpointWork {
    /// Check whether work is due.
    Look,
    Task(CheckpointTask),
    Stop,
}

impl CheckpointRequests {
    /// Wakes the thread, because a segment was sealed or is needed.
    pub(crate) fn kick(&self) {
        self.state.post(|state| state.kicked = true);
    }

    /// Sets the average duration of recent syncs of the journal. `None` if there was none.
    pub(crate) fn note_sync(&self, took: Option<Duration>) {
        let us = took.map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        self.sync_us.store(us, Ordering::Relaxed);
    }

    /// Returns how long the thread has worked without progress.
    pub(crate) fn stalled_for(&self) -> Duration {
        self.progress.stalled_for(Instant::now())
    }

    /// Counts a removal that must be applied to the index on disk.
    pub(crate) fn note_removal(&self) {
        if self.removals.fetch_add(1, Ordering::SeqCst) + 1 == self.kick_at.load(Ordering::SeqCst) {
            self.kick();
        }
    }

    /// Requests a task. It replaces a task of the same kind that has not begun, and whose callers
    /// are gone. If the thread has stopped, the task is dropped and its receiver returns an error.
    pub(crate) fn ask(&self, task: CheckpointTask) {
        let dropped = self.state.post(|state| match task {
            CheckpointTask::Cleanup(done) | CheckpointTask::Compact(done) if state.stopped => Some(done),
            CheckpointTask::Cleanup(done) => state.cleanup.replace(done),
            CheckpointTask::Compact(done) => state.compact.replace(done),
        });
        // Not under the lock: dropping a sender can run code of its receiver's task.
        drop(dropped);
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        let stopped = RequestState { stopped: true, ..RequestState::default() };
        drop(self.state.post(|state| std::mem::replace(state, stopped)));
    }
}

impl CheckpointInbox {
    /// Waits for work, or until `until`.
    pub(crate) fn wait(&self, until: Option<Instant>) -> CheckpointWork {
        let work = self.requests.state.wait(until, RequestState::take_work);
        work.unwrap_or(CheckpointWork::Look)
    }

    /// Returns true after a stop. Long work checks this between its steps.
    pub(crate) fn is_stopped(&self) -> bool {
        self.requests.state.lock().stopped
    }

    /// Has [`wait`](Self::wait) return at once.
    pub(crate) fn look_again(&self) {
        self.requests.kick();
    }

    fn sync_latency(&self) -> Option<Duration> {
        let us = self.requests.sync_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    /// A checkpoint begins.
    pub(crate) fn begin(&self) {
        self.pace.lock().begin(self.sync_latency());
    }

    /// Work begins.
    pub(crate) fn begin_work(&self) {
        self.requests.progress.begin(Instant::now());
    }

    /// A step of the work is done.
    pub(crate) fn note_progress(&self) {
        self.requests.progress.note(Instant::now());
    }

    /// All work is done.
    pub(crate) fn end_work(&self) {
        self.requests.progress.end();
    }

    /// Rests the thread after it worked for `worked`, as long as commits need it. Only a stop
    /// interrupts the rest.
    pub(crate) fn rest(&self, worked: Duration, is_urgent: bool) {
        let rest = self.pace.lock().rest(worked, self.sync_latency(), is_urgent);
        if !rest.is_zero() {
            self.requests.state.wait_for(Instant::now() + rest, |state| state.stopped);
        }
    }

    /// Resets the count of removals.
    pub(crate) fn count_removals(&self) {
        self.requests.removals.store(0, Ordering::SeqCst);
    }

    /// Wakes the thread after `count` removals.
    pub(crate) fn kick_after_removals(&self, count: u64) {
        self.requests.kick_at.store(count, Ordering::SeqCst);
        // These removals came while the thread counted them.
        if self.requests.removals.load(Ordering::SeqCst) >= count {
            self.requests.kick();
        }
    }
}

impl Drop for CheckpointInbox {
    fn drop(&mut self) {
        self.requests.stop();
    }
}

impl RequestState {
    /// Takes the shorter task first.
    fn take_work(&mut self) -> Option<CheckpointWork> {
        if self.stopped {
            return Some(CheckpointWork::Stop);
        }
        let cleanup = self.cleanup.take().map(CheckpointTask::Cleanup);
        let task = cleanup.or_else(|| self.compact.take().map(CheckpointTask::Compact));
        let kicked = std::mem::take(&mut self.kicked);
        task.map(CheckpointWork::Task).or_else(|| kicked.then_some(CheckpointWork::Look))
    }
}
