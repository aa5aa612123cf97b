//! Makes written records durable: starts syncs, applies their results, publishes their records.

use super::intake::KEPT;
use super::plan::Facts as _;
use super::{Executor, publish, syncer};
use crate::journal::{SyncEnd, SyncJob, WriteError};

impl Executor {
    /// Hands a sync of everything that is written over to the syncer thread.
    pub(super) fn hand_over(&mut self) {
        let job = self.submit();
        self.syncer.submit(job);
    }

    /// Makes everything that is written durable and publishes it. Blocks.
    pub(super) fn sync(&mut self) -> Result<(), WriteError> {
        while self.writer.is_syncing() {
            let ends = self.receiver.wait_synced();
            self.complete_all(ends)?;
        }
        let job = self.submit();
        self.complete(syncer::run(job, &self.shared))?;
        self.publish_completed();
        Ok(())
    }

    /// Returns a sync of everything written so far.
    fn submit(&mut self) -> SyncJob {
        let job = self.writer.take_sync();
        self.in_flight.submit(job.up_to(), self.writer.written(), self.write_began);
        job
    }

    /// Applies the results of several syncs. Continues after an error: a later sync may have
    /// succeeded. Returns the first error.
    pub(super) fn complete_all(&mut self, ends: Vec<SyncEnd>) -> Result<(), WriteError> {
        ends.into_iter().map(|end| self.complete(end)).fold(Ok(()), Result::and)
    }

    /// Applies the result of a sync: its records are durable, or all records have to be written
    /// again.
    fn complete(&mut self, end: SyncEnd) -> Result<(), WriteError> {
        let (up_to, took) = (end.up_to(), end.took());
        let Some(synced) = self.writer.end_sync(end)? else { return Ok(()) };
        let synced = self.in_flight.complete(synced, up_to, took, self.dirty_expire());
        self.last_batch += synced.changes;
        self.shared.budget.note_drained(synced.bytes, synced.alone);
        self.shared.stats.synced(took);
        self.shared.stats.committed(synced.changes as u64, synced.bytes, synced.elapsed);
        Ok(())
    }

    /// Publishes the durable records, and settles the segments that they complete.
    pub(super) fn publish_completed(&mut self) {
        for (taken, durable) in self.in_flight.take_completed() {
            publish::publish(&self.shared, &mut self.aborts, &mut self.published, taken, &durable);
        }
        // Only now: a caller that wakes needs the processor, and the locks of other messages.
        // It may have dropped its future just now. The message stays stored.
        for arrival in self.published.drain(..) {
            arrival.publish();
        }
        // The callers of a burst are many.
        if self.published.capacity() > KEPT {
            self.published.shrink_to(KEPT);
        }
        self.in_flight.shrink();
        self.intake.shrink();
        let mut has_finished = false;
        // The index has all records of these segments now.
        for segment in self.in_flight.take_finished() {
            segment.settle();
            has_finished = true;
        }
        if has_finished {
            self.shared.checkpoint_requests.kick();
        }
    }
}
