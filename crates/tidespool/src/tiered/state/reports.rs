//! Forwards events to statistics, log and commit queue.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::commit_queue::CommitQueue;
use crate::checkpoint::{CheckpointError, CheckpointEvents, CheckpointRequests, PresenceEvents};
use crate::journal::PoolEvents;
use crate::message_id::MessageId;
use crate::rate_limit::RateLimit;
use crate::stats::{Site, Stats};
use crate::storage::{DiskRoom, Loss, is_no_room};

/// Counts, logs and forwards the events of the checkpointer and of the segment pool.
pub(in crate::tiered) struct Reports {
    pub(in crate::tiered) stats: Arc<Stats>,
    pub(in crate::tiered) commit_queue: Arc<CommitQueue>,
    pub(super) checkpoint_requests: Arc<CheckpointRequests>,
    room: Arc<DiskRoom>,
    /// Limits the rate of the warning about a segment that could not be prepared.
    unprepared: RateLimit,
}

impl Reports {
    pub(in crate::tiered) fn new(
        commit_queue: Arc<CommitQueue>,
        checkpoint_requests: Arc<CheckpointRequests>,
        room: Arc<DiskRoom>,
    ) -> Self {
        Self {
            stats: Arc::default(),
            commit_queue,
            checkpoint_requests,
            room,
            unprepared: RateLimit::default(),
        }
    }
}

impl CheckpointEvents for Reports {
    fn checkpointed(&self, records: u64, segments: u64, took: Duration) {
        self.stats.checkpoint(records, segments, took);
    }

    fn recycled(&self) {
        self.stats.segment_recycled();
    }

    fn wants_seal(&self) {
        // The result is not needed: the checkpointer is notified when the segment is settled.
        drop(self.commit_queue.flush(true));
    }

    fn rewritten(&self, bytes: u64) {
        self.stats.segment_rewritten(bytes);
    }

    fn failed(&self, error: &CheckpointError) {
        let site = match error {
            // A lost directory is logged when it is detected.
            CheckpointError::Stopped | CheckpointError::Away(_) | CheckpointError::Rebuilding => return,
            // Not a disk error: the health gate checks free space.
            CheckpointError::NoRoom { .. } | CheckpointError::FileLimit { .. } => {
                return tracing::warn!(%error, "a checkpoint is delayed");
            }
            CheckpointError::Engine(_) => Site::Sled,
            CheckpointError::Manifest(_)
            | CheckpointError::Liveness(_)
            | CheckpointError::Rewrite(_)
            | CheckpointError::Restore(_) => Site::Manifest,
            CheckpointError::Segment(_) => Site::JournalRead,
        };
        match error.of_own_file() {
            Some(source) => self.room.note(source),
            None if error.is_full_disk() => self.room.note_no_room(),
            None => {}
        }
        self.stats.disk_error(site);
        tracing::error!(%error, "a checkpoint or a verification failed: the checkpoint will be retried");
    }

    fn found_damage(&self, id: &MessageId, what: &str) {
        if self.stats.found_damage(id, what) {
            tracing::error!(%id, what, "a message is damaged");
        }
    }

    fn rebuilt(&self, _messages: u64, _took: Duration) {
        self.stats.rebuilt_index();
    }

    fn found_loss(&self, messages: u64, what: &str) {
        self.stats.corrupt();
        self.stats.lost(messages);
        tracing::error!(what, "found damage");
    }
}

impl PresenceEvents for Reports {
    fn lost_file(&self, path: &Path, loss: Loss) {
        self.stats.lost_file();
        tracing::error!(path = %path.display(), %loss, "a file of the spool is lost");
    }

    fn found_file(&self, path: &Path) {
        let path = path.display();
        tracing::info!(%path, "a lost file of the spool is whole again, or no longer needed");
    }
}

impl PoolEvents for Reports {
    fn segment_free(&self) {
        self.commit_queue.segment_freed();
    }

    fn leaves_enough(&self, size: u64) -> bool {
        self.room.leaves_enough(size)
    }

    fn prewrite_failed(&self, error: &io::Error) {
        self.room.note(error);
        // A full disk is not a disk error: the health gate checks free space and free segments.
        if !is_no_room(error) {
            self.stats.disk_error(Site::JournalWrite);
        } else {
            // The checkpointer frees the space of dead records now.
            self.checkpoint_requests.kick();
        }
        if let Some(left_out) = self.unprepared.allow() {
            tracing::warn!(%error, left_out, "a journal segment could not be prepared");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::super::commit_queue::commit_queue;
    use super::*;
    use crate::checkpoint::LivenessError;
    use crate::storage::{Space, TestCall, TestStorage};

    /// Returns a storage that reports free space and fails to open any file with `EDQUOT`.
    fn used_up() -> TestStorage {
        let fail = |_: &Path, call| if call == TestCall::Open { Err(Errno::DQUOT.into()) } else { Ok(()) };
        TestStorage::with(fail).show(Space { free_bytes: 1 << 40, total_bytes: 1 << 41, ..Space::default() })
    }

    /// The spool did not create a segment, to keep disk space free. It took that for a quota, and
    /// shut the gate on a disk with more than the minimum of free space.
    #[test]
    fn space_that_the_spool_keeps_free_is_not_taken_for_a_quota() {
        let dir = tempfile::tempdir().unwrap();
        let room = || Arc::new(DiskRoom::new(Arc::new(used_up()), dir.path(), 1 << 20));
        let own = || io::Error::new(io::ErrorKind::StorageFull, "too little free space would remain");
        let systems = || io::Error::from(Errno::DQUOT);
        for (is_known, source) in [(false, own as fn() -> io::Error), (true, systems)] {
            let path = dir.path().to_owned();
            let liveness = LivenessError::Io { doing: "writing", path, source: source() };
            for error in [
                CheckpointError::Rewrite(source()),
                CheckpointError::Restore(source()),
                CheckpointError::Liveness(liveness),
            ] {
                assert!(error.is_full_disk(), "{error}");
                let reports = Reports::new(commit_queue().0, Arc::default(), room());
                reports.failed(&error);
                assert_eq!(reports.room.is_still_used_up(), is_known, "{error}");
            }
        }
    }
}
