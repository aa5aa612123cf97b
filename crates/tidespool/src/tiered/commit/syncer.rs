//! The syncer thread: runs syncs, so that the committer can write the next batch meanwhile.

use crate::journal::{SyncEnd, SyncJob};
use crate::mailbox::Mailbox;
use crate::stats::Site;
use crate::tiered::state::Shared;

/// The queue to the syncer thread. It holds at most one job, because a sync covers everything that
/// was written before it begins.
#[derive(Debug, Default)]
pub(crate) struct Syncer(Mailbox<SyncerState>);

#[derive(Debug, Default)]
struct SyncerState {
    queued: Option<SyncJob>,
    /// A sync failed and the committer has not called [`Syncer::forget`] yet. Jobs that it submits
    /// meanwhile are dropped, because their records may be in the same file.
    failed: bool,
    stopped: bool,
}

impl Syncer {
    /// Queues a job behind the running one. Called by the committer.
    pub(super) fn submit(&self, job: SyncJob) {
        self.0.post(|state| match &mut state.queued {
            _ if state.failed => {}
            Some(queued) => queued.merge(job),
            None => state.queued = Some(job),
        });
    }

    /// Drops the queued job, and accepts new jobs again. Called by the committer after a failure:
    /// it writes all records that are not durable again, to another segment.
    pub(super) fn forget(&self) {
        let mut state = self.0.lock();
        (state.queued, state.failed) = (None, false);
    }

    /// Ends the thread after the running job.
    pub(crate) fn stop(&self) {
        self.0.post(|state| state.stopped = true);
    }

    /// Runs the thread until it is stopped.
    pub(crate) fn run(&self, shared: &Shared) {
        while let Some(job) = self.next() {
            let end = run(job, shared);
            if end.error().is_some() {
                let mut state = self.0.lock();
                (state.queued, state.failed) = (None, true);
            }
            shared.commit_queue.synced(end);
        }
    }

    /// Takes the queued job, if there is one.
    #[cfg(test)]
    pub(super) fn try_next(&self) -> Option<SyncJob> {
        self.0.lock().queued.take()
    }

    fn next(&self) -> Option<SyncJob> {
        let next = |state: &mut SyncerState| match state.stopped {
            true => Some(None),
            false => state.queued.take().map(Some),
        };
        self.0.wait(None, next).flatten()
    }
}

/// Runs a sync, and records a failure immediately. The committer may be blocked on the same disk
/// and would record it late.
pub(super) fn run(job: SyncJob, shared: &Shared) -> SyncEnd {
    let end = job.run();
    if let Some(error) = end.error() {
        shared.disk_error(Site::JournalSync, error);
    }
    end
}
