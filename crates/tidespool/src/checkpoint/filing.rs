//! What the checkpoint thread waits for.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::FilingError;
use super::verify::Finding;

/// The result of a task, for those who asked.
pub(crate) type CleanupDone = oneshot::Sender<Result<(), FilingError>>;
pub(crate) type CompactDone = oneshot::Sender<Result<Vec<Finding>, FilingError>>;

/// The mailbox. Its queues are as long as there are callers that wait.
#[derive(Debug, Default)]
pub(crate) struct Filing {
    state: Mutex<State>,
    wake: Condvar,
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
