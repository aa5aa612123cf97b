//! What the checkpoint thread waits for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::CheckpointError;
use super::pace::Pace;
use super::progress::Progress;

/// The result of a task, for the caller that asked.
pub(crate) type TaskDone = oneshot::Sender<Result<(), CheckpointError>>;

/// The mailbox. It has room for one task of each kind: callers share a run.
#[derive(Debug, Default)]
pub(crate) struct CheckpointRequests {
    state: Mutex<RequestState>,
    wake: Condvar,
    /// Removals of filed messages since the thread last counted them.
    removals: AtomicU64,
    /// The thread wants to hear when there are so many.
    hear_at: AtomicU64,
    /// What a sync of the journal took lately, in microseconds; 0 where there was none.
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

/// Something asked for.
#[derive(Debug)]
pub(crate) enum CheckpointTask {
    /// File what is old, recycle, prune.
    Cleanup(TaskDone),
    /// File everything, rewrite retained segments.
    Compact(TaskDone),
}

/// What was in the mailbox.
pub(crate) enum CheckpointWork {
    /// Look whether there is something to do.
    Look,
    Task(CheckpointTask),
    Stop,
}

impl CheckpointRequests {
    /// A segment was sealed, or one is needed: look.
    pub(crate) fn kick(&self) {
        self.state.lock().kicked = true;
        self.wake.notify_one();
    }

    /// What a sync of the journal took lately, on average; `None` where there was none.
    pub(crate) fn note_sync(&self, took: Option<Duration>) {
        let us = took.map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        self.sync_us.store(us, Ordering::Relaxed);
    }

    fn sync_latency(&self) -> Option<Duration> {
        let us = self.sync_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    /// The thread's: a checkpoint begins.
    pub(crate) fn begin(&self) {
        self.pace.lock().begin(self.sync_latency());
    }

    /// The thread's: it has something to do.
    pub(crate) fn begin_work(&self) {
        self.progress.begin(Instant::now());
    }

    /// The thread's: a step of it is done.
    pub(crate) fn note_progress(&self) {
        self.progress.note(Instant::now());
    }

    /// The thread's: all of it is.
    pub(crate) fn end_work(&self) {
        self.progress.end();
    }

    /// For how long the thread has been at work without progress.
    pub(crate) fn stalled_for(&self) -> Duration {
        self.progress.stalled_for(Instant::now())
    }

    /// The thread's: rests after having worked for so long, as long as commits want it. Only the end cuts it short.
    pub(crate) fn rest(&self, worked: Duration, is_urgent: bool) {
        let rest = self.pace.lock().rest(worked, self.sync_latency(), is_urgent);
        if rest.is_zero() {
            return;
        }
        let until = Instant::now() + rest;
        let mut state = self.state.lock();
        while !state.stopped && !self.wake.wait_until(&mut state, until).timed_out() {}
    }

    /// A message was removed of which sled must be told.
    pub(crate) fn note_removal(&self) {
        if self.removals.fetch_add(1, Ordering::SeqCst) + 1 == self.hear_at.load(Ordering::SeqCst) {
            self.kick();
        }
    }

    /// The thread's: counts anew from here on.
    pub(crate) fn count_removals(&self) {
        self.removals.store(0, Ordering::SeqCst);
    }

    /// The thread's: kicks it after so many removals.
    pub(crate) fn hear_of_removals(&self, count: u64) {
        self.hear_at.store(count, Ordering::SeqCst);
        // They came while it was counting.
        if self.removals.load(Ordering::SeqCst) >= count {
            self.kick();
        }
    }

    /// Asks for a task. It replaces a task of its kind that was not begun, whose callers are gone.
    /// After the end the task is dropped, and its receiver returns an error.
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

    /// Asked between the steps of long work.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// The thread's: waits for something to do, or until `until`.
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

    /// The shorter one first.
    fn take_task(&mut self) -> Option<CheckpointTask> {
        let cleanup = self.cleanup.take().map(CheckpointTask::Cleanup);
        cleanup.or_else(|| self.compact.take().map(CheckpointTask::Compact))
    }
}
