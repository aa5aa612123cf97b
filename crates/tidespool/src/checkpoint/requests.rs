//! The requests to the checkpointer thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::CheckpointError;
use super::pace::Pace;
use super::progress::Progress;

/// Sends the result of a task to its caller.
pub(crate) type TaskDone = oneshot::Sender<Result<(), CheckpointError>>;

/// The request queue. It holds one task of each kind, because callers share a run.
#[derive(Debug, Default)]
pub(crate) struct CheckpointRequests {
    state: Mutex<RequestState>,
    wake: Condvar,
    /// Removals of indexed messages since the thread last counted them.
    removals: AtomicU64,
    /// The thread is woken when `removals` reaches this.
    kick_at: AtomicU64,
    /// The average duration of recent syncs of the journal, in microseconds. 0 if there was none.
    sync_us: AtomicU64,
    pace: Mutex<Pace>,
    progress: Progress,
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

/// What [`CheckpointRequests::wait`] returns.
pub(crate) enum CheckpointWork {
    /// Check whether work is due.
    Look,
    Task(CheckpointTask),
    Stop,
}

impl CheckpointRequests {
    /// Wakes the thread, because a segment was sealed or is needed.
    pub(crate) fn kick(&self) {
        self.state.lock().kicked = true;
        self.wake.notify_one();
    }

    /// Sets the average duration of recent syncs of the journal. `None` if there was none.
    pub(crate) fn note_sync(&self, took: Option<Duration>) {
        let us = took.map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        self.sync_us.store(us, Ordering::Relaxed);
    }

    fn sync_latency(&self) -> Option<Duration> {
        let us = self.sync_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    /// Called by the thread when a checkpoint begins.
    pub(crate) fn begin(&self) {
        self.pace.lock().begin(self.sync_latency());
    }

    /// Called by the thread when it begins work.
    pub(crate) fn begin_work(&self) {
        self.progress.begin(Instant::now());
    }

    /// Called by the thread after each step of its work.
    pub(crate) fn note_progress(&self) {
        self.progress.note(Instant::now());
    }

    /// Called by the thread when all work is done.
    pub(crate) fn end_work(&self) {
        self.progress.end();
    }

    /// Returns how long the thread has worked without progress.
    pub(crate) fn stalled_for(&self) -> Duration {
        self.progress.stalled_for(Instant::now())
    }

    /// Rests the thread after it worked for `worked`, as long as commits need it. Only a stop
    /// interrupts the rest.
    pub(crate) fn rest(&self, worked: Duration, is_urgent: bool) {
        let rest = self.pace.lock().rest(worked, self.sync_latency(), is_urgent);
        if rest.is_zero() {
            return;
        }
        let until = Instant::now() + rest;
        let mut state = self.state.lock();
        while !state.stopped && !self.wake.wait_until(&mut state, until).timed_out() {}
    }

    /// Counts a removal that must be applied to the index on disk.
    pub(crate) fn note_removal(&self) {
        if self.removals.fetch_add(1, Ordering::SeqCst) + 1 == self.kick_at.load(Ordering::SeqCst) {
            self.kick();
        }
    }

    /// Called by the thread to reset the count of removals.
    pub(crate) fn count_removals(&self) {
        self.removals.store(0, Ordering::SeqCst);
    }

    /// Called by the thread to be woken after `count` removals.
    pub(crate) fn kick_after_removals(&self, count: u64) {
        self.kick_at.store(count, Ordering::SeqCst);
        // These removals came while the thread counted them.
        if self.removals.load(Ordering::SeqCst) >= count {
            self.kick();
        }
    }

    /// Requests a task. It replaces a task of the same kind that has not begun, and whose callers
    /// are gone. If the thread has stopped, the task is dropped and its receiver returns an error.
    pub(crate) fn ask(&self, task: CheckpointTask) {
        let mut state = self.state.lock();
        if !state.stopped {
            match task {
                CheckpointTask::Cleanup(done) => state.cleanup = Some(done),
                CheckpointTask::Compact(done) => state.compact = Some(done),
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        (state.cleanup, state.compact) = (None, None);
        drop(state);
        self.wake.notify_one();
    }

    /// Returns true after [`stop`](Self::stop). Long work checks this between its steps.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Called by the thread to wait for work, or until `until`.
    pub(crate) fn wait(&self, until: Option<Instant>) -> CheckpointWork {
        let mut state = self.state.lock();
        while !state.kicked && !state.has_task() && !state.stopped {
            match until {
                None => self.wake.wait(&mut state),
                Some(until) => {
                    if self.wake.wait_until(&mut state, until).timed_out() {
                        break;
                    }
                }
            }
        }
        state.kicked = false;
        if state.stopped {
            return CheckpointWork::Stop;
        }
        state.take_task().map_or(CheckpointWork::Look, CheckpointWork::Task)
    }
}

impl RequestState {
    fn has_task(&self) -> bool {
        self.cleanup.is_some() || self.compact.is_some()
    }

    /// Returns the shorter task first.
    fn take_task(&mut self) -> Option<CheckpointTask> {
        let cleanup = self.cleanup.take().map(CheckpointTask::Cleanup);
        cleanup.or_else(|| self.compact.take().map(CheckpointTask::Compact))
    }
}
