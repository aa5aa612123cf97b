//! The records that the committer has taken, until they are published.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::intake::KEPT;
use crate::journal::{DurableState, Segment, Synced};
use crate::memory::{Dirty, Ticket};
use crate::message_id::MessageId;
use crate::tiered::state::Arrival;

/// A record that was appended, with the data to publish it when it is durable.
#[derive(Debug)]
pub(super) enum Taken {
    Ticketed(Ticket, Arc<Dirty>),
    Arrived(Arrival),
    /// A put whose abort is appended behind it, or will be next. It holds its permit until no retry
    /// can write it again.
    Abandoned(#[expect(dead_code, reason = "holds the permit")] Arc<Dirty>),
    /// The abort of a put of this id. The put counts as under way until the abort is durable.
    Abort(MessageId),
    Mark,
}

/// Records that were submitted in one sync.
#[derive(Debug)]
struct Submitted {
    up_to: u64,
    records: usize,
    bytes: u64,
    /// When the oldest of them was stored.
    oldest: Option<Instant>,
    began: Instant,
}

/// What a sync made durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct SyncedAmount {
    /// The records other than marks.
    pub(super) changes: usize,
    /// Their dirty bytes.
    pub(super) bytes: u64,
    /// The time since the first of them was to be written.
    pub(super) elapsed: Duration,
    /// The part of this time in which no earlier sync ran.
    pub(super) alone: Duration,
}

#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// The records that are appended and not durable. They are the writer's records, one for one.
    taken: VecDeque<Taken>,
    /// The syncs under way. They cover the first records of `taken`.
    submitted: VecDeque<Submitted>,
    /// Dirty bytes of the other records of `taken`.
    bytes: u64,
    /// When the oldest of the other records of `taken` was stored.
    oldest: Option<Instant>,
    /// Records that are durable and not published yet.
    completed: Vec<(Taken, DurableState)>,
    /// Full segments whose records are all in `completed` or published.
    finished: Vec<Arc<Segment>>,
    /// When the last sync ended.
    completed_at: Option<Instant>,
    /// When to write a mark, if no other record is written until then.
    mark_at: Option<Instant>,
}

impl InFlight {
    /// Adds a record that was appended.
    pub(super) fn push(&mut self, taken: Taken) {
        let of_data = match &taken {
            Taken::Ticketed(ticket, dirty) => Some((ticket.at, dirty)),
            Taken::Arrived(arrival) => Some((arrival.at, &arrival.dirty)),
            Taken::Abandoned(_) | Taken::Abort(_) | Taken::Mark => None,
        };
        if let Some((at, dirty)) = of_data {
            self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
            self.bytes += dirty.bytes();
        }
        self.taken.push_back(taken);
    }

    /// The records that are appended and not durable, with their sequence numbers. `last` is the
    /// number of the last one.
    pub(super) fn appended(&mut self, last: u64) -> impl Iterator<Item = (u64, &mut Taken)> {
        (last + 1 - self.taken.len() as u64..).zip(&mut self.taken)
    }

    /// True if no record is appended and not published.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.completed.is_empty()
    }

    /// True if all changes are durable.
    pub(super) fn holds_only_marks(&self) -> bool {
        self.taken.iter().all(|taken| matches!(taken, Taken::Mark))
    }

    fn submitted_records(&self) -> usize {
        self.submitted.iter().map(|submitted| submitted.records).sum()
    }

    /// Records that are in no sync, and their dirty bytes.
    pub(super) fn unsubmitted(&self) -> (usize, u64) {
        (self.taken.len() - self.submitted_records(), self.bytes)
    }

    /// True if one of the records that are in no sync is not a mark.
    pub(super) fn has_unsubmitted_changes(&self) -> bool {
        self.taken.iter().skip(self.submitted_records()).any(|taken| !matches!(taken, Taken::Mark))
    }

    pub(super) fn mark_at(&self) -> Option<Instant> {
        self.mark_at
    }

    /// A mark is written, or has no room.
    pub(super) fn mark_is_done(&mut self) {
        self.mark_at = None;
    }

    /// Returns when the oldest version among the records was stored.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let syncing = self.submitted.iter().filter_map(|submitted| submitted.oldest).min();
        [self.oldest, syncing].into_iter().flatten().min()
    }

    /// Records that the first `written` records, up to the number `up_to`, are in a sync. Their
    /// writing began at `began`.
    pub(super) fn submit(&mut self, up_to: u64, written: usize, began: Instant) {
        let records = written - self.submitted_records();
        let (bytes, oldest) = (std::mem::take(&mut self.bytes), self.oldest);
        if written == self.taken.len() {
            self.oldest = None;
        }
        self.submitted.push_back(Submitted { up_to, records, bytes, oldest, began });
    }

    /// All records have to be written again: none is in a sync.
    pub(super) fn resubmit(&mut self) {
        for submitted in self.submitted.drain(..) {
            self.bytes += submitted.bytes;
            self.oldest = [self.oldest, submitted.oldest].into_iter().flatten().min();
        }
    }

    /// Applies a sync of the records up to the number `up_to`, which took `took`. A mark must
    /// follow the last acknowledged change when the journal is idle for `idle`.
    pub(super) fn complete(
        &mut self,
        synced: Synced,
        up_to: u64,
        took: Duration,
        idle: Duration,
    ) -> SyncedAmount {
        let before = self.completed.len();
        let completed = self.taken.drain(..synced.records.len()).zip(synced.records);
        self.completed.extend(completed);
        self.finished.extend(synced.finished);
        let changes =
            self.completed[before..].iter().filter(|(taken, _)| !matches!(taken, Taken::Mark)).count();
        let (mut bytes, mut began) = (0, None);
        while let Some(submitted) = self.submitted.front().filter(|submitted| submitted.up_to <= up_to) {
            bytes += submitted.bytes;
            began = began.or(Some(submitted.began));
            self.submitted.pop_front();
        }
        let now = Instant::now();
        let elapsed = began.map_or(took, |began| now.saturating_duration_since(began));
        // During part of this time the disk may have written earlier records.
        let since_last =
            self.completed_at.replace(now).map_or(elapsed, |at| now.saturating_duration_since(at));
        if changes > 0 {
            self.mark_at = Some(now + idle);
        }
        SyncedAmount { changes, bytes, elapsed, alone: elapsed.min(since_last) }
    }

    /// Removes and returns the durable records that are not published.
    pub(super) fn take_completed(&mut self) -> impl Iterator<Item = (Taken, DurableState)> {
        self.completed.drain(..)
    }

    /// Removes and returns the full segments whose records were all taken by
    /// [`take_completed`](Self::take_completed).
    pub(super) fn take_finished(&mut self) -> impl Iterator<Item = Arc<Segment>> {
        self.finished.drain(..)
    }

    /// Frees memory after a burst. The number of removals in one is unbounded.
    pub(super) fn shrink(&mut self) {
        if self.completed.capacity() > KEPT {
            self.completed.shrink_to(KEPT);
        }
        if self.taken.capacity() > KEPT && self.taken.len() < self.taken.capacity() / 4 {
            self.taken.shrink_to((self.taken.len() * 2).max(KEPT));
        }
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> &VecDeque<Taken> {
        &self.taken
    }
}
