//! The committer thread: group commit. Takes all waiting stores, writes them at once, runs one
//! sync, and notifies all callers.
//!
//! The thread runs a small sync itself if no other sync is running, and every sync while it
//! retries. Otherwise the syncer thread runs the sync while the committer writes the next batch:
//! see [`plan`]. The committer keeps all records that it has taken until they are durable. After a
//! failure it retries with pauses for as long as the spool is open.
//!
//! # Layout
//!
//! * [`plan`]: decides what to do next. Pure. [`flushes`]: the flush requests that wait. Pure.
//! * `state/commit_queue.rs`: what callers send.
//! * [`intake`]: the stores and tickets that are due. [`batch`]: those that are appended next.
//! * [`in_flight`]: the records that are appended and not published.
//! * [`spin`]: waits a moment for the next store before the thread sleeps.
//! * [`syncer`]: the thread that syncs. [`completion`]: the results of syncs. [`publish`]: makes
//!   durable versions visible.

mod batch;
mod completion;
mod flushes;
mod in_flight;
mod intake;
mod plan;
mod publish;
mod spin;
mod syncer;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use flushes::Drains;
use in_flight::{InFlight, Taken};
use intake::Intake;
use plan::{Appended, Drain, Facts, Failure, PAUSES, Plan, Step};

use crate::message_id::MessageId;

use publish::Abort;
use spin::Spin;
pub(super) use syncer::Syncer;

use super::state::{Arrival, CommitReceiver, CommitWork, Shared, Stop};
use crate::journal::{JournalChange, PAGE, Segment, WriteError, Writer};
use crate::stats::Site;
use crate::storage::is_no_room;

/// The result of the committer thread.
#[derive(Debug, Clone, Copy)]
pub(in crate::tiered) struct Committed {
    /// Everything dirty is durable.
    pub(in crate::tiered) all: bool,
    /// Records up to this number are durable.
    pub(in crate::tiered) durable_seq: u64,
}

/// The thread's state: its decisions, and what executes them.
pub(super) struct Committer {
    plan: Plan,
    spin: Spin,
    executor: Executor,
}

/// Executes the steps of the [`Plan`].
struct Executor {
    shared: Arc<Shared>,
    syncer: Arc<Syncer>,
    receiver: CommitReceiver,
    writer: Writer,
    intake: Intake,
    /// Puts that need an abort.
    aborts: Vec<Abort>,
    in_flight: InFlight,
    /// Stores that are visible, and whose callers are woken next.
    published: Vec<Arrival>,
    /// The result of the last append.
    appended: Appended,
    /// The next transaction has asked the pool for segments.
    wants_room: bool,
    /// When the last write began.
    write_began: Instant,
    /// Changes that became durable in this turn.
    last_batch: usize,
}

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        syncer: Arc<Syncer>,
        receiver: CommitReceiver,
        writer: Writer,
    ) -> Self {
        let executor = Executor {
            shared,
            syncer,
            receiver,
            writer,
            intake: Intake::default(),
            aborts: Vec::new(),
            in_flight: InFlight::default(),
            published: Vec::new(),
            appended: Appended::default(),
            wants_room: false,
            write_began: Instant::now(),
            last_batch: 0,
        };
        Self { plan: Plan::new(PAUSES), spin: Spin::default(), executor }
    }

    /// Runs the thread until it is stopped.
    pub(super) fn run(mut self) -> Committed {
        let _end = StopSyncerOnExit(self.executor.syncer.clone());
        loop {
            self.look_for_store();
            let wake_at = self.plan.wake_at(&self.executor);
            let work = self.executor.receiver.wait(wake_at, self.executor.writer.is_syncing());
            let stop = work.stop;
            if stop == Some(Stop::Abandon) {
                return self.ended(false);
            }
            if let Some(Stop::Drained(by)) = stop {
                self.plan.end_by(by);
            }
            self.turn(work);
            match stop {
                Some(Stop::Drained(_)) if self.executor.is_drained() => return self.ended(true),
                // Begin nothing more. Wait for the running syncs: their callers must get the true
                // outcome.
                Some(Stop::Drained(by)) if Instant::now() >= by => {
                    self.complete_submitted();
                    let all = self.executor.is_drained();
                    return self.ended(all);
                }
                _ => {}
            }
        }
    }

    /// Waits a moment for the next store, if nothing else is to be done.
    fn look_for_store(&mut self) {
        let Self { plan: _, spin, executor } = self;
        let records = std::mem::take(&mut executor.last_batch);
        if !executor.has_work() && !executor.writer.is_syncing() {
            spin.after_batch(records, || executor.receiver.has_arrivals());
        }
    }

    fn ended(&self, all: bool) -> Committed {
        Committed { all, durable_seq: self.executor.writer.durable_seq() }
    }

    /// Writes at most one batch.
    fn turn(&mut self, work: CommitWork) {
        match self.gather(work) {
            Ok(()) => self.plan.begin(&self.executor),
            Err(error) => self.fail(&error),
        }
        self.run_steps();
        self.executor.note_oldest_dirty();
    }

    /// Takes arrivals and due tickets into the intake. Applies the syncs that have ended, and
    /// returns their first error.
    fn gather(&mut self, work: CommitWork) -> Result<(), WriteError> {
        let executor = &mut self.executor;
        let completed = executor.complete_all(work.synced);
        let is_requested = work.stop.is_some() || work.seal || !work.flushes.is_empty();
        let is_requested = is_requested || executor.receiver.is_starved();
        // The receiver is rearmed before the time is read: the next dirty byte wakes this thread.
        let drain = self.plan.drain(executor, is_requested);
        let drain = drain.map(|drain| if executor.receiver.rearm() { Drain::All } else { drain });
        let cutoff = drain.map(|drain| Plan::cutoff(drain, executor));
        self.plan.postpone_flushes(executor.intake.drains());
        executor.intake.refill(&executor.shared.table, &executor.receiver, work.arrivals, cutoff);
        if cutoff.is_some() && self.plan.set_flush_timer(executor) {
            executor.receiver.timer_is_set();
        }
        self.plan.request(work.flushes, work.seal, executor.intake.drains().count);
        completed
    }

    /// Executes the steps of a turn.
    fn run_steps(&mut self) {
        while let Some(step) = self.plan.next(&self.executor) {
            if let Err(error) = self.executor.execute(step) {
                self.fail(&error);
            }
        }
    }

    fn fail(&mut self, error: &WriteError) {
        // Some records may be durable. Their callers must not wait for the report, which can block.
        self.executor.publish_completed();
        self.plan.failed(self.executor.failure(error));
    }

    /// Waits for the running syncs, and publishes their records.
    fn complete_submitted(&mut self) {
        while self.executor.writer.is_syncing() {
            let ends = self.executor.receiver.wait_synced();
            if let Err(error) = self.executor.complete_all(ends) {
                self.fail(&error);
            }
            self.executor.publish_completed();
            self.run_steps();
        }
    }
}

impl Executor {
    fn execute(&mut self, step: Step) -> Result<(), WriteError> {
        match step {
            Step::Append => {
                // Before any disk access (a large message needs one already for its file): if the
                // disk hangs, this age shows it.
                self.note_oldest_dirty();
                self.append_batch();
            }
            Step::Write => {
                self.write_began = Instant::now();
                self.writer.write()?;
            }
            Step::Sync => self.sync()?,
            Step::HandOver => self.hand_over(),
            Step::Publish => self.publish_completed(),
            Step::Seal => {
                self.write_began = Instant::now();
                self.writer.seal();
            }
            Step::Complete(flushes) => {
                for done in flushes {
                    // The caller may be gone.
                    let _ = done.send(());
                }
            }
            Step::RequestCheckpoint => self.shared.checkpoint_requests.kick(),
            Step::Mark => self.write_mark()?,
            Step::WriteAgain => {
                self.syncer.forget();
                self.in_flight.resubmit();
            }
            Step::FreeDiskSpace => self.free_disk_space(),
            Step::Pause { until, for_room } => self.receiver.pause(until, for_room),
        }
        Ok(())
    }

    fn write_mark(&mut self) -> Result<(), WriteError> {
        self.in_flight.mark_is_done();
        if self.writer.active_generation().is_some() && self.writer.room(true).take(PAGE) {
            self.writer.append(MessageId::NONE, JournalChange::Mark);
            self.in_flight.push(Taken::Mark);
            self.writer.write()?;
        }
        Ok(())
    }

    /// Records an error of the disk, and returns its kind.
    fn failure(&self, error: &WriteError) -> Failure {
        match error {
            WriteError::NoSegment => return Failure::NoSegment,
            WriteError::Write(source) | WriteError::Create(source) => {
                self.shared.disk_error(Site::JournalWrite, source);
            }
            // `syncer::run` has recorded the error.
            WriteError::Sync(_) => {}
        }
        let no_room =
            matches!(error, WriteError::Write(source) | WriteError::Sync(source) if is_no_room(source));
        Failure::Disk { no_room }
    }

    /// Frees disk space if an existing segment could not be overwritten for lack of it, as on btrfs
    /// at its quota. Removals have to be written, because only they can free the spool's space.
    ///
    /// Each failure frees one part: the ballast for checkpoints, then the ballast for the opening,
    /// then one free segment each time.
    fn free_disk_space(&self) {
        let (ballast, pool) = (&self.shared.ballast, self.shared.segments.pool());
        let _ = ballast.release_for_checkpoint() || ballast.release_for_opening() || pool.give_up_one();
    }

    /// Reports when the oldest version was stored that this thread has taken.
    fn note_oldest_dirty(&self) {
        let oldest = [self.intake.oldest(), self.in_flight.oldest()].into_iter().flatten().min();
        self.shared.note_oldest_dirty(oldest);
    }

    /// True if everything dirty is durable.
    fn is_drained(&self) -> bool {
        !self.has_work() && self.in_flight.holds_only_marks() && self.oldest_dirty().is_none()
    }
}

impl Facts for Executor {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn dirty_expire(&self) -> Duration {
        self.shared.config.load().dirty_expire
    }

    fn is_syncing(&self) -> bool {
        self.writer.is_syncing()
    }

    fn has_work(&self) -> bool {
        !self.intake.is_empty() || self.intake.drains().first_replaced.is_some() || !self.aborts.is_empty()
    }

    fn has_tickets(&self) -> bool {
        self.intake.has_tickets()
    }

    fn next_ticket_at(&self) -> Option<Instant> {
        self.intake.next_ticket().map(|ticket| ticket.at)
    }

    fn appended(&self) -> Appended {
        self.appended
    }

    fn unsynced(&self) -> usize {
        self.writer.unsynced()
    }

    fn unsubmitted(&self) -> (usize, u64) {
        self.in_flight.unsubmitted()
    }

    fn has_unsubmitted_changes(&self) -> bool {
        self.in_flight.has_unsubmitted_changes()
    }

    fn sequence(&self) -> (u64, u64) {
        (self.writer.last_seq(), self.writer.durable_seq())
    }

    fn mark_at(&self) -> Option<Instant> {
        self.in_flight.mark_at()
    }

    fn drains(&self) -> Drains {
        self.intake.drains()
    }

    fn has_settled_segment(&self) -> bool {
        let is_settled = |segment: &Arc<Segment>| segment.is_counted() && segment.settled_at().is_some();
        self.shared.segments.all().iter().any(is_settled)
    }

    fn may_seal(&self) -> bool {
        let shared = &self.shared;
        // The last segment is the room of removals, which may be what frees space on a full disk.
        shared.segments.pool().free() > 0 || {
            let records = shared.table.size().index_entries;
            shared.ballast.is_room_to_checkpoint(shared.disk_index.bytes_to_change(records))
        }
    }

    fn is_dirty(&self) -> bool {
        self.receiver.is_dirty()
    }

    fn is_urgent(&self) -> bool {
        self.receiver.is_urgent()
    }

    fn is_over_limit(&self) -> bool {
        self.shared.is_over_limit()
    }

    fn is_flush_urgent(&self) -> bool {
        self.shared.is_flush_urgent()
    }

    fn oldest_dirty(&self) -> Option<Instant> {
        self.shared.table.oldest_dirty()
    }
}

/// Stops the syncer when the thread ends, even by a panic.
struct StopSyncerOnExit(Arc<Syncer>);

impl Drop for StopSyncerOnExit {
    fn drop(&mut self) {
        self.0.stop();
    }
}
