//! What the checkpoint thread waits for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::FilingError;
use super::pace::Pace;
use super::progress::Progress;
use super::verify::Finding;

/// The result of a task, for those who asked.
pub(crate) type CleanupDone = oneshot::Sender<Result<(), FilingError>>;
pub(crate) type CompactDone = oneshot::Sender<Result<Vec<Finding>, FilingError>>;

/// The mailbox. Its queues are as long as there are callers that wait.
#[derive(Debug, Default)]
pub(crate) struct Filing {
    state: Mutex<State>,
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
struct State {
    kicked: bool,
    tasks: Vec<FilingTask>,
    stopped: bool,
}

/// Something asked for.
#[derive(Debug)]
pub(crate) enum FilingTask {
    /// File what is old, recycle, prune.
    Cleanup(CleanupDone),
    /// File everything, verify every byte, rewrite retained segments.
    Compact(CompactDone),
}

/// What was in the mailbox.
pub(crate) enum FilingMail {
    /// Look whether there is something to do.
    Look,
    Tasks(Vec<FilingTask>),
    Stop,
}

impl Filing {
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

    pub(crate) fn ask(&self, task: FilingTask) {
        let mut state = self.state.lock();
        // After the end the task is dropped here, which tells its sender.
        if !state.stopped {
            state.tasks.push(task);
        }
        drop(state);
        self.wake.notify_one();
    }

    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.tasks.clear();
        drop(state);
        self.wake.notify_one();
    }

    /// Asked between the steps of long work.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Asked in the middle of work that can wait.
    pub(crate) fn is_asked(&self) -> bool {
        let state = self.state.lock();
        state.stopped || !state.tasks.is_empty()
    }

    /// The thread's: waits for something to do, or until `until`.
    pub(crate) fn wait(&self, until: Option<Instant>) -> FilingMail {
        let mut state = self.state.lock();
        while !state.kicked && state.tasks.is_empty() && !state.stopped {
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
        match (state.stopped, state.tasks.is_empty()) {
            (true, _) => FilingMail::Stop,
            (false, true) => FilingMail::Look,
            (false, false) => FilingMail::Tasks(std::mem::take(&mut state.tasks)),
        }
    }
}
