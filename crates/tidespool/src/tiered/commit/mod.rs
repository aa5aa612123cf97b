//! The committer thread: group commit. Takes all waiting stores, writes them at once, runs one
//! sync, and notifies all callers.
//!
//! The thread syncs a few records itself. For more, the syncer thread runs the sync while the
//! committer writes the next batch. The committer keeps all records that it has taken until they
//! are durable. After a failure it retries with pauses for as long as the spool is open.

mod batch;
mod completion;
mod intake;
pub(super) mod publish;
pub(super) mod queue;
pub(super) mod state;
mod syncer;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use intake::Intake;
pub(super) use syncer::Syncer;
use tidespool_core::SpoolId;
use tokio::sync::oneshot;

use super::commit::publish::{publish_arrival, publish_ticketed};
use super::commit::queue::{Arrival, CommitQueue, CommitWork, Outcome, Stop};
use super::lifecycle::workers::Committed;
use super::shared::Shared;
use crate::journal::{DurableState, JournalChange, PAGE, Segment, WriteError, Writer};
use crate::memory::{Dirty, Ticket};
use crate::stats::Site;
use crate::storage::is_no_room;

/// How often the committer looks for a free segment that it was not notified of.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A record that was appended, with the data to publish it when it is durable.
#[derive(Debug)]
enum Taken {
    Ticketed(Ticket, Arc<Dirty>),
    Arrived(Arrival),
    /// A put whose abort is appended behind it, or will be next. It holds its permit until no retry
    /// can write it again.
    Abandoned(#[expect(dead_code, reason = "holds the permit")] Arc<Dirty>),
    /// The abort of a put of this id. The put counts as under way until the abort is durable.
    Abort(SpoolId),
    Mark,
}

/// A flush request: its caller waits until everything is durable that was dirty at the request.
#[derive(Debug)]
struct Flush {
    /// Everything that was dirty at the request has a ticket of this drain or an earlier one. A
    /// version or a time would not do: a store gets them in two steps, so that their orders may
    /// differ.
    requested: u64,
    /// The same drain, or a later one in which the replacements of such versions have tickets.
    drain: u64,
    /// The last record in the journal when all of these versions were appended. `None` until then.
    last: Option<u64>,
    done: oneshot::Sender<()>,
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

/// The thread's state.
pub(super) struct Committer {
    shared: Arc<Shared>,
    syncer: Arc<Syncer>,
    writer: Writer,
    intake: Intake,
    /// Puts that need an abort: ids and record numbers.
    aborts: Vec<(SpoolId, u64)>,
    /// The records that are appended and not durable. They are the writer's records, one for one.
    taken: VecDeque<Taken>,
    /// The syncs under way. They cover the first records of `taken`.
    submitted: VecDeque<Submitted>,
    /// Dirty bytes of the other records of `taken`.
    taken_bytes: u64,
    /// When the oldest of the other records of `taken` was stored.
    oldest_taken: Option<Instant>,
    /// Records that are durable and not published yet.
    completed: Vec<(Taken, DurableState)>,
    /// Full segments whose records are all in `completed` or published.
    finished: Vec<Arc<Segment>>,
    flushes: Vec<Flush>,
    seal: bool,
    /// When the flush timer for dirty data expires.
    flush_at: Option<Instant>,
    /// When to write a mark, if no other record is written until then.
    mark_at: Option<Instant>,
    retry: Duration,
    /// The last turn failed. The next one retries.
    failing: bool,
    /// Work is waiting for which no segment has room.
    blocked: bool,
    /// The first ticket of the backlog waits for a version of its id that is under way.
    waits_for_other: bool,
    /// When the last sync ended.
    completed_at: Option<Instant>,
    /// The time limit of a shutdown. After it the thread begins nothing more.
    end_by: Option<Instant>,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, syncer: Arc<Syncer>, writer: Writer) -> Self {
        Self {
            shared,
            syncer,
            writer,
            intake: Intake::default(),
            aborts: Vec::new(),
            taken: VecDeque::new(),
            submitted: VecDeque::new(),
            taken_bytes: 0,
            oldest_taken: None,
            completed: Vec::new(),
            finished: Vec::new(),
            flushes: Vec::new(),
            seal: false,
            flush_at: None,
            mark_at: None,
            retry: RETRY.0,
            failing: false,
            blocked: false,
            waits_for_other: false,
            completed_at: None,
            end_by: None,
        }
    }

    /// Runs the thread until it is stopped.
    pub(super) fn run(mut self) -> Committed {
        let _end = CloseQueuesOnExit(self.shared.commit_queue.clone(), self.syncer.clone());
        loop {
            let work = self.shared.commit_queue.wait(self.wake_at(), self.writer.is_syncing());
            let stop = work.stop;
            if stop == Some(Stop::Abandon) {
                return self.ended(false);
            }
            if let Some(Stop::Drained(by)) = stop {
                self.end_by = Some(by);
            }
            let result = self.turn(work);
            // After an error, too: some records may be durable.
            self.publish_completed();
            self.failing = result.is_err();
            if let Err(error) = result {
                self.failed(&error);
            }
            self.shared.note_oldest_dirty(self.oldest());
            match stop {
                Some(Stop::Drained(_)) if self.is_drained() => return self.ended(true),
                // Begin nothing more. Wait for the running syncs: their callers must get the true
                // outcome.
                Some(Stop::Drained(by)) if Instant::now() >= by => {
                    self.complete_submitted();
                    return self.ended(self.is_drained());
                }
                _ => {}
            }
        }
    }

    /// Makes room if no segment is free. Seals the active segment if no other one can be
    /// checkpointed: its records may free others, and only a sealed segment is checkpointed.
    fn make_room(&mut self) -> Result<(), WriteError> {
        if !self.blocked || self.writer.is_syncing() {
            return Ok(());
        }
        let is_settled = |segment: &Arc<Segment>| segment.is_counted() && segment.settled_at().is_some();
        if !self.shared.segments.all().iter().any(is_settled) {
            self.writer.seal();
            self.sync(Instant::now())?;
        }
        self.shared.checkpoint_requests.kick();
        Ok(())
    }

    fn ended(&self, all: bool) -> Committed {
        Committed { all, durable_seq: self.writer.durable_seq() }
    }

    /// Returns when to wake at the latest. `None`: there is nothing to do until the next kick.
    fn wake_at(&self) -> Option<Instant> {
        let now = Instant::now();
        // The result of a running sync will wake the thread.
        if self.failing || (self.has_work() && !self.blocked && !self.writer.is_syncing()) {
            return Some(now);
        }
        // A free segment kicks the committer. This wake-up is a safeguard.
        let look_again = (self.has_work() || !self.flushes.is_empty()).then(|| now + LOOK_AGAIN);
        // No mark is written while a sync is running, however long it takes.
        let mark_at = self.mark_at.filter(|_| !self.writer.is_syncing());
        [self.flush_at, mark_at, look_again, self.end_by].into_iter().flatten().min()
    }

    fn has_work(&self) -> bool {
        !self.intake.is_empty() || self.intake.first_replaced().is_some() || !self.aborts.is_empty()
    }

    /// Returns the age at which dirty data is written: half of `dirty_expire`. The other half is
    /// left for the writing.
    fn flush_age(&self) -> Duration {
        self.shared.config.load().dirty_expire / 2
    }

    /// True if the first ticket of the backlog has used three quarters of `dirty_expire`. Then it
    /// is written whatever the cost.
    fn is_late(&self) -> bool {
        let late = self.shared.config.load().dirty_expire / 4 * 3;
        self.intake.next_ticket().is_some_and(|ticket| ticket.at.elapsed() >= late)
    }

    /// Writes at most one batch.
    fn turn(&mut self, work: CommitWork) -> Result<(), WriteError> {
        let now = Instant::now();
        self.gather(work, now)?;
        self.commit(now)
    }

    /// Takes arrivals and due tickets into the intake. Applies the syncs that have ended, and
    /// returns their first error.
    fn gather(&mut self, work: CommitWork, now: Instant) -> Result<(), WriteError> {
        let completed = self.complete_all(work.synced);
        let everything = work.stop.is_some() || work.seal || !work.flushes.is_empty();
        let cutoff = self.cutoff(now, everything);
        self.postpone_flushes();
        self.intake.refill(&self.shared.table, &self.shared.commit_queue, work.arrivals, cutoff);
        if cutoff.is_some() {
            self.set_timer(now);
        }
        self.seal |= work.seal;
        let drain = self.intake.drains();
        let flush = |done| Flush { requested: drain, drain, last: None, done };
        self.flushes.extend(work.flushes.into_iter().map(flush));
        completed
    }

    /// Writes a batch from the intake, and starts its sync.
    fn commit(&mut self, now: Instant) -> Result<(), WriteError> {
        // Before any disk access (a large message needs one already for its file): if the disk
        // hangs, this age shows it.
        self.shared.note_oldest_dirty(self.oldest());
        self.append_batch();
        let aborts_appended = self.aborts.is_empty();
        let started = Instant::now();
        match self.writer.write() {
            // Make the written records durable, so that the segments they fill can be checkpointed.
            Err(WriteError::NoSegment) => return self.sync(started).and(Err(WriteError::NoSegment)),
            written => written?,
        }
        if self.waits_for_other && self.is_late() {
            // Without a blocking sync, callers that give up again and again could delay the ticket
            // for as long as some version of its id is always under way.
            self.sync(started)?;
        } else if self.writer.unsynced() > self.submitted_records() && self.wants_sync() {
            self.start_sync(started)?;
        }
        if !self.writer.is_syncing() {
            self.retry = RETRY.0;
        }
        // Only now: the disk is busy with the next records meanwhile.
        self.publish_completed();
        self.finish_flushes(aborts_appended)?;
        self.make_room()?;
        self.mark_when_idle(now)
    }

    /// Returns the time up to which tickets are due, or `None` if no drain is needed. `everything`:
    /// all of them are due.
    fn cutoff(&self, now: Instant, everything: bool) -> Option<Instant> {
        let commit_queue = &self.shared.commit_queue;
        let rang = self.flush_at.map_or(commit_queue.is_dirty(), |at| at <= now);
        let mut everything = everything || commit_queue.is_starved();
        // While earlier tickets are being written, the amount that they will free is unknown.
        let urgent = commit_queue.is_urgent() && !self.intake.has_tickets() && !self.writer.is_syncing();
        if !everything && !rang && !urgent {
            return None;
        }
        everything |= commit_queue.rearm();
        let age = match everything {
            true => Duration::ZERO,
            // The limit can be exceeded: removals never wait for room, and it can be lowered.
            false if urgent && self.shared.is_over_limit() => Duration::ZERO,
            // The older half: the younger a message is, the more likely it is removed before it is
            // written.
            false if urgent && self.shared.is_flush_urgent() => {
                let oldest = self.shared.table.oldest_dirty();
                oldest.map_or(Duration::ZERO, |oldest| oldest.elapsed() / 2).min(self.flush_age())
            }
            false => self.flush_age(),
        };
        Some(Instant::now().checked_sub(age).unwrap_or(now))
    }

    /// Sets the timer for the next tickets.
    fn set_timer(&mut self, now: Instant) {
        // At most a few flushes in the remaining time: the later a message is written, the more
        // likely it has been removed by then.
        let soonest = now + self.shared.config.load().dirty_expire / 8;
        self.flush_at =
            self.shared.table.oldest_dirty().map(|oldest| (oldest + self.flush_age()).max(soonest));
        if self.flush_at.is_some() {
            self.shared.commit_queue.timer_is_set();
        }
    }

    /// True if the records that are written and not submitted need a sync now. A mark alone does
    /// not: it is synced with the next record, with a flush (which may wait for it), and at the
    /// end.
    fn wants_sync(&self) -> bool {
        !self.flushes.is_empty()
            || self.end_by.is_some()
            || self.waits_for_other
            || self.taken.iter().skip(self.submitted_records()).any(|taken| !matches!(taken, Taken::Mark))
    }

    fn is_drained(&self) -> bool {
        !self.has_work()
            && self.taken.iter().all(|taken| matches!(taken, Taken::Mark))
            && self.shared.table.oldest_dirty().is_none()
    }

    /// Completes the flushes for which everything is durable that was dirty at the request. Later
    /// versions, which may always be under way, delay no flush. `aborts_appended`: all stores that
    /// had failed in doubt at the request have their aborts in the journal.
    fn finish_flushes(&mut self, aborts_appended: bool) -> Result<(), WriteError> {
        if !aborts_appended || (self.flushes.is_empty() && !self.seal) {
            return Ok(());
        }
        self.postpone_flushes();
        let (reached, next) = (self.intake.reached(), self.intake.drains() + 1);
        let is_behind = |flush: &Flush| flush.drain < reached.min(next);
        if !self.seal || self.flushes.iter().all(is_behind) {
            let last = self.writer.last_seq();
            for flush in self.flushes.iter_mut().filter(|flush| is_behind(flush)) {
                flush.last.get_or_insert(last);
            }
            if std::mem::take(&mut self.seal) {
                self.writer.seal();
                if self.writer.unsynced() == 0 {
                    self.sync(Instant::now())?;
                }
            }
        }
        let durable = self.writer.durable_seq();
        for flush in self.flushes.extract_if(.., |flush| flush.last.is_some_and(|last| last <= durable)) {
            // The caller may be gone.
            let _ = flush.done.send(());
        }
        Ok(())
    }

    /// Makes the flushes that wait for a replaced version wait for its replacement, which has a
    /// ticket by the next drain at the latest. Otherwise neither of the two would be durable.
    ///
    /// The wait is finite: the replacement is pledged, and is written whatever replaces it.
    fn postpone_flushes(&mut self) {
        let Some(first) = self.intake.first_replaced() else { return };
        let next = self.intake.drains() + 1;
        let open = self.flushes.iter_mut().filter(|flush| flush.last.is_none() && flush.requested >= first);
        open.for_each(|flush| flush.drain = next);
    }

    /// Appends a mark before a quiet time. A recovery can treat the last commit as durable only if
    /// a later record proves it.
    fn mark_when_idle(&mut self, now: Instant) -> Result<(), WriteError> {
        if self.writer.is_syncing() || self.mark_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        self.mark_at = None;
        if self.writer.active_generation().is_some() && self.writer.room(true).take(PAGE) {
            self.writer.append(SpoolId::from_bytes([0; 16]), JournalChange::Mark);
            self.taken.push_back(Taken::Mark);
            self.writer.write()?;
        }
        Ok(())
    }

    /// Returns when the oldest version was stored that this thread has taken.
    fn oldest(&self) -> Option<Instant> {
        let syncing = self.submitted.iter().filter_map(|submitted| submitted.oldest).min();
        [self.intake.oldest(), self.oldest_taken, syncing].into_iter().flatten().min()
    }

    fn failed(&mut self, error: &WriteError) {
        if !matches!(error, WriteError::NoSegment) {
            // All records have to be written again.
            self.syncer.forget();
            for submitted in self.submitted.drain(..) {
                self.taken_bytes += submitted.bytes;
                self.oldest_taken = [self.oldest_taken, submitted.oldest].into_iter().flatten().min();
            }
        }
        match error {
            WriteError::NoSegment => self.shared.checkpoint_requests.kick(),
            WriteError::Write(source) => {
                self.shared.disk_error(Site::JournalWrite, source);
                self.free_disk_space(source);
            }
            WriteError::Create(source) => self.shared.disk_error(Site::JournalWrite, source),
            // `syncer::run` has recorded the error.
            WriteError::Sync(source) => self.free_disk_space(source),
        }
        self.shared.commit_queue.pause(Instant::now() + self.retry, matches!(error, WriteError::NoSegment));
        self.retry = (self.retry * 2).min(RETRY.1);
    }
}

impl Committer {
    /// Frees disk space if an existing segment could not be overwritten for lack of it, as on btrfs
    /// at its quota. Removals have to be written, because only they can free the spool's space.
    ///
    /// Each failure frees one part: the ballast for checkpoints, then the ballast for the opening,
    /// then one free segment each time.
    fn free_disk_space(&self, error: &io::Error) {
        let (ballast, pool) = (&self.shared.ballast, self.shared.segments.pool());
        let _ = is_no_room(error)
            && (ballast.release_for_checkpoint() || ballast.release_for_opening() || pool.give_up_one());
    }
}

/// Closes the commit queue and stops the syncer when the thread ends, even by a panic.
struct CloseQueuesOnExit(Arc<CommitQueue>, Arc<Syncer>);

impl Drop for CloseQueuesOnExit {
    fn drop(&mut self) {
        self.0.end();
        self.1.stop();
    }
}

fn publish(shared: &Shared, aborts: &mut Vec<(SpoolId, u64)>, taken: Taken, durable: &DurableState) {
    match taken {
        Taken::Ticketed(ticket, dirty) => {
            publish_ticketed(shared, ticket.id, ticket.version, &dirty, durable.newest);
        }
        Taken::Arrived(arrival) if arrival.state.commit() => {
            // Before the caller gets its outcome: publishing drops an older version's entry from
            // the crash log, which would replace this version at the next opening.
            publish_arrival(shared, &arrival, durable.newest);
            // The caller may have dropped its future just now. The message stays stored.
            let _ = arrival.done.send(Outcome::Durable(durable.seq));
        }
        Taken::Arrived(arrival) => {
            check_abort(shared, &arrival);
            aborts.push((arrival.id, durable.seq));
        }
        Taken::Abort(id) => shared.table.lock(&id).pending.arrive(&id),
        Taken::Abandoned(_) | Taken::Mark => {}
    }
}

/// Debug builds check the order in which the versions of an id are written. This one is aborted.
#[cfg_attr(not(debug_assertions), expect(unused_variables, reason = "only debug builds check"))]
fn check_abort(shared: &Shared, arrival: &Arrival) {
    #[cfg(debug_assertions)]
    shared.table.lock(&arrival.id).pending.check_order(&arrival.id, |order| order.abort(arrival.version));
}
