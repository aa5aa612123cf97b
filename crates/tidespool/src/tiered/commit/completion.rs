//! From written to durable: syncs, here or by the syncer, and what is told when they have ended.

use std::time::Instant;

use super::intake::KEPT;
use super::{Committer, Submitted, Taken, publish, syncer};
use crate::journal::{SyncEnd, WriteError};

/// A sync of fewer records, or fewer bytes, is done on the committer's own thread: handing it over would take longer than what it saves.
const WORTH_HANDING_OVER: (usize, u64) = (4, 128 << 10);

impl Committer {
    pub(super) fn submitted_records(&self) -> usize {
        self.submitted.iter().map(|submitted| submitted.records).sum()
    }

    /// Has everything that is written made durable: by the syncer where that is worth it, else here and now.
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

    /// Makes everything that is written durable, and tells of it, before it returns.
    pub(super) fn sync(&mut self, began: Instant) -> Result<(), WriteError> {
        while self.writer.is_syncing() {
            let ends = self.shared.commit_queue.wait_synced();
            self.land_all(ends)?;
        }
        let job = self.writer.take_sync();
        self.submit(job.up_to(), began);
        self.land(syncer::run(job, &self.shared))?;
        self.publish_landed();
        Ok(())
    }

    /// Waits for what is being synced, and tells of it.
    pub(super) fn land_submitted(&mut self) {
        while self.writer.is_syncing() {
            let ends = self.shared.commit_queue.wait_synced();
            let landed = self.land_all(ends);
            self.publish_landed();
            if let Err(error) = landed {
                self.failed(&error);
            }
        }
    }

    /// Notes that everything written so far is being synced.
    fn submit(&mut self, up_to: u64, began: Instant) {
        let records = self.writer.written() - self.submitted_records();
        let (bytes, oldest) = (std::mem::take(&mut self.taken_bytes), self.oldest_taken);
        if !self.writer.has_unwritten() {
            self.oldest_taken = None;
        }
        self.submitted.push_back(Submitted { up_to, records, bytes, oldest, began });
    }

    /// All of them, whatever the first error: one of those after it may be good.
    pub(super) fn land_all(&mut self, ends: Vec<SyncEnd>) -> Result<(), WriteError> {
        ends.into_iter().map(|end| self.land(end)).fold(Ok(()), Result::and)
    }

    /// A sync has ended: what it covered is durable, or everything is to be written again.
    fn land(&mut self, end: SyncEnd) -> Result<(), WriteError> {
        let (up_to, took) = (end.up_to(), end.took());
        let Some(synced) = self.writer.end_sync(end)? else { return Ok(()) };
        let landed = self.taken.drain(..synced.records.len()).zip(synced.records);
        let before = self.landed.len();
        self.landed.extend(landed);
        self.finished.extend(synced.finished);
        let records = self.landed[before..].iter().filter(|(taken, _)| !matches!(taken, Taken::Mark)).count();
        let (mut bytes, mut began) = (0, None);
        while let Some(submitted) = self.submitted.pop_front_if(|submitted| submitted.up_to <= up_to) {
            bytes += submitted.bytes;
            began = began.or(Some(submitted.began));
        }
        let elapsed = began.map_or(took, |began| began.elapsed());
        // Some of that time the disk was at the records before these.
        let since_last = self.landed_at.replace(Instant::now()).map_or(elapsed, |at| at.elapsed());
        self.shared.budget.note_drained(bytes, elapsed.min(since_last));
        self.shared.stats.synced(took);
        self.shared.stats.committed(records as u64, bytes, elapsed);
        if records > 0 {
            // Something was acknowledged: when it gets quiet, the journal shall say so.
            self.mark_at = Some(Instant::now() + self.shared.config.load().dirty_expire);
        }
        Ok(())
    }

    /// After a burst (removals come without a bound) the queues are nearly empty, and as large as it was.
    fn give_back(&mut self) {
        if self.landed.capacity() > KEPT {
            self.landed.shrink_to(KEPT);
        }
        if self.taken.capacity() > KEPT && self.taken.len() < self.taken.capacity() / 4 {
            self.taken.shrink_to((self.taken.len() * 2).max(KEPT));
        }
        self.intake.give_back();
    }

    /// Tells everybody of what is durable.
    pub(super) fn publish_landed(&mut self) {
        for (taken, durable) in self.landed.drain(..) {
            publish(&self.shared, &mut self.aborts, taken, &durable);
        }
        self.give_back();
        if self.finished.is_empty() {
            return;
        }
        // The index knows everything in these segments now.
        for segment in self.finished.drain(..) {
            segment.settle();
        }
        self.shared.checkpoint_requests.kick();
    }
}
