//! Makes written records durable: starts syncs, applies their results, notifies the callers.

use std::time::Instant;

use super::intake::KEPT;
use super::{Committer, Submitted, Taken, publish, syncer};
use crate::journal::{SyncEnd, WriteError};

/// Minimum records and bytes of a sync that is handed over to the syncer. The committer thread runs
/// a smaller one itself, because the handover would take longer than it saves.
const WORTH_HANDING_OVER: (usize, u64) = (4, 128 << 10);

impl Committer {
    pub(super) fn submitted_records(&self) -> usize {
        self.submitted.iter().map(|submitted| submitted.records).sum()
    }

    /// Starts a sync of everything that is written. A large sync runs on the syncer thread, a small
    /// one on this thread, which blocks.
    pub(super) fn start_sync(&mut self, began: Instant) -> Result<(), WriteError> {
        let records = self.taken.len() - self.submitted_records();
        let few = records < WORTH_HANDING_OVER.0 || self.taken_bytes < WORTH_HANDING_OVER.1;
        if self.failing || (few && !self.writer.is_syncing()) {
            return self.sync(began);
        }
        let job = self.writer.take_sync();
        self.submit(job.up_to(), began);
        self.syncer.submit(job);
        Ok(())
    }

    /// Makes everything that is written durable and publishes it. Blocks.
    pub(super) fn sync(&mut self, began: Instant) -> Result<(), WriteError> {
        while self.writer.is_syncing() {
            let ends = self.shared.commit_queue.wait_synced();
            self.complete_all(ends)?;
        }
        let job = self.writer.take_sync();
        self.submit(job.up_to(), began);
        self.complete(syncer::run(job, &self.shared))?;
        self.publish_completed();
        Ok(())
    }

    /// Waits for the running syncs, and publishes their records.
    pub(super) fn complete_submitted(&mut self) {
        while self.writer.is_syncing() {
            let ends = self.shared.commit_queue.wait_synced();
            let completed = self.complete_all(ends);
            self.publish_completed();
            if let Err(error) = completed {
                self.failed(&error);
            }
        }
    }

    /// Records that everything written so far is part of a sync.
    fn submit(&mut self, up_to: u64, began: Instant) {
        let records = self.writer.written() - self.submitted_records();
        let (bytes, oldest) = (std::mem::take(&mut self.taken_bytes), self.oldest_taken);
        if !self.writer.has_unwritten() {
            self.oldest_taken = None;
        }
        self.submitted.push_back(Submitted { up_to, records, bytes, oldest, began });
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
        let completed = self.taken.drain(..synced.records.len()).zip(synced.records);
        let before = self.completed.len();
        self.completed.extend(completed);
        self.finished.extend(synced.finished);
        let records =
            self.completed[before..].iter().filter(|(taken, _)| !matches!(taken, Taken::Mark)).count();
        let (mut bytes, mut began) = (0, None);
        while let Some(submitted) = self.submitted.front().filter(|submitted| submitted.up_to <= up_to) {
            bytes += submitted.bytes;
            began = began.or(Some(submitted.began));
            self.submitted.pop_front();
        }
        let elapsed = began.map_or(took, |began| began.elapsed());
        // During part of this time the disk may have written earlier records.
        let since_last = self.completed_at.replace(Instant::now()).map_or(elapsed, |at| at.elapsed());
        self.shared.budget.note_drained(bytes, elapsed.min(since_last));
        self.shared.stats.synced(took);
        self.shared.stats.committed(records as u64, bytes, elapsed);
        if records > 0 {
            // A mark must follow the last acknowledged record when the journal becomes idle.
            self.mark_at = Some(Instant::now() + self.shared.config.load().dirty_expire);
        }
        Ok(())
    }

    /// Frees the memory of the queues after a burst. The number of removals in one is unbounded.
    fn shrink(&mut self) {
        if self.completed.capacity() > KEPT {
            self.completed.shrink_to(KEPT);
        }
        if self.taken.capacity() > KEPT && self.taken.len() < self.taken.capacity() / 4 {
            self.taken.shrink_to((self.taken.len() * 2).max(KEPT));
        }
        self.intake.shrink();
    }

    /// Publishes the durable records, and settles the segments that they complete.
    pub(super) fn publish_completed(&mut self) {
        for (taken, durable) in self.completed.drain(..) {
            publish(&self.shared, &mut self.aborts, taken, &durable);
        }
        self.shrink();
        if self.finished.is_empty() {
            return;
        }
        // The index has all records of these segments now.
        for segment in self.finished.drain(..) {
            segment.settle();
        }
        self.shared.checkpoint_requests.kick();
    }
}
