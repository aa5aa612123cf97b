//! The thread that waits for the disk, so that the committer fills the next batch meanwhile.

use parking_lot::{Condvar, Mutex};

use crate::journal::{SyncEnd, SyncJob};
use crate::stats::Site;
use crate::tiered::shared::Shared;

/// Its mailbox: at most one job, for one sync does for all that was written before it begins.
#[derive(Debug, Default)]
pub(crate) struct Syncer {
    state: Mutex<SyncerState>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct SyncerState {
    queued: Option<SyncJob>,
    /// A sync failed, and the committer does not know yet: what it hands over meanwhile is not synced, for it may be in the same file.
    failed: bool,
    stopped: bool,
}

impl Syncer {
    /// The committer's: has this synced, after what is being synced now.
    pub(super) fn submit(&self, job: SyncJob) {
        let mut state = self.state.lock();
        if state.failed {
            return;
        }
        match &mut state.queued {
            Some(queued) => queued.merge(job),
            None => state.queued = Some(job),
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The committer's: what was handed over and not begun is of no account any more. It knows of every failure.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        (state.queued, state.failed) = (None, false);
    }

    /// Ends the thread after what it is at.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.wake.notify_one();
    }

    /// The thread, until it is stopped.
    pub(crate) fn run(&self, shared: &Shared) {
        while let Some(job) = self.next() {
            let end = run(job, shared);
            if end.error().is_some() {
                let mut state = self.state.lock();
                (state.queued, state.failed) = (None, true);
            }
            shared.commit_queue.synced(end);
        }
    }

    /// The job that waits, if there is one.
    #[cfg(test)]
    pub(super) fn try_next(&self) -> Option<SyncJob> {
        self.state.lock().queued.take()
    }

    fn next(&self) -> Option<SyncJob> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            match state.queued.take() {
                Some(job) => return Some(job),
                None => self.wake.wait(&mut state),
            }
        }
    }
}

/// Syncs, and counts its failure at once: the committer, who is told next, may be waiting for the same disk.
pub(super) fn run(job: SyncJob, shared: &Shared) -> SyncEnd {
    let end = job.run();
    if let Some(error) = end.error() {
        shared.disk_error(Site::JournalSync, error);
    }
    end
}
