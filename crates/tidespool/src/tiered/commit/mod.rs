//! The committer thread: takes everything that waits, writes it at once, syncs once, wakes all.
//!
//! One loop. A few records are synced here; for more, the syncer waits for the disk while the next batch is written here. What it has taken
//! and not yet made durable it keeps; after a failure it tries again, with a pause, for as long as the spool lives.

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

/// How long to wait for a free segment before looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A record that was appended, with what is to be done when it is durable.
#[derive(Debug)]
enum Taken {
    Ticketed(Ticket, Arc<Dirty>),
    Arrived(Arrival),
    /// A put whose abort is appended behind it, or will be next. It keeps its room until it is no
    /// longer written again.
    Abandoned(#[expect(dead_code, reason = "holds the permit")] Arc<Dirty>),
    /// The abort of a put of this id, which counts as under way until it is durable.
    Abort(SpoolId),
    Mark,
}

/// A caller that waits until everything is durable that was dirty at a moment.
#[derive(Debug)]
struct Flush {
    /// Everything that was dirty had a ticket of this drain or an earlier one. It is no version and
    /// no time: a store draws its version and its time in two steps, so that their orders may
    /// differ.
    asked: u64,
    /// And so has, with this drain, what replaced some of it.
    drain: u64,
    /// The last record that was appended when all of it was: set then.
    last: Option<u64>,
    done: oneshot::Sender<()>,
}

/// Records that became part of a sync together.
#[derive(Debug)]
struct Submitted {
    up_to: u64,
    records: usize,
    bytes: u64,
    /// When the oldest of them came in.
    oldest: Option<Instant>,
    began: Instant,
}

/// The thread's state.
pub(super) struct Committer {
    shared: Arc<Shared>,
    syncer: Arc<Syncer>,
    writer: Writer,
    intake: Intake,
    /// Puts to be taken back.
    aborts: Vec<(SpoolId, u64)>,
    /// What was appended since the last good sync: the writer's records, one for one.
    taken: VecDeque<Taken>,
    /// Of `taken`, from the front: what is being synced.
    submitted: VecDeque<Submitted>,
    /// Dirty bytes in the rest of `taken`.
    taken_bytes: u64,
    /// When the oldest record in the rest of `taken` came in.
    oldest_taken: Option<Instant>,
    /// Durable, and nobody knows yet.
    landed: Vec<(Taken, DurableState)>,
    /// No more is written to these, and everything in them is in `landed` or was.
    finished: Vec<Arc<Segment>>,
    flushes: Vec<Flush>,
    seal: bool,
    /// When the timer for dirty data rings.
    flush_at: Option<Instant>,
    /// When to write a mark, if nothing else comes.
    mark_at: Option<Instant>,
    retry: Duration,
    /// The last turn failed: what it was at is tried again after a pause, whatever else comes.
    failing: bool,
    /// Something waits for which no segment has room.
    blocked: bool,
    /// The first of the backlog waits for a version of its id that is under way.
    waits_for_other: bool,
    /// When the last sync ended.
    landed_at: Option<Instant>,
    /// When to end at the latest: a sync that hangs elsewhere is not waited for.
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
            landed: Vec::new(),
            finished: Vec::new(),
            flushes: Vec::new(),
            seal: false,
            flush_at: None,
            mark_at: None,
            retry: RETRY.0,
            failing: false,
            blocked: false,
            waits_for_other: false,
            landed_at: None,
            end_by: None,
        }
    }

    /// Runs until it is stopped.
    pub(super) fn run(mut self) -> Committed {
        let _end = CloseQueuesOnExit(self.shared.commit_queue.clone(), self.syncer.clone());
        loop {
            let mail = self.shared.commit_queue.wait(self.wake_at(), self.writer.is_syncing());
            let stop = mail.stop;
            if stop == Some(Stop::Abandon) {
                return self.ended(false);
            }
            if let Some(Stop::Drained(by)) = stop {
                self.end_by = Some(by);
            }
            let result = self.turn(mail);
            // Whatever went wrong: what is durable is durable.
            self.publish_landed();
            self.failing = result.is_err();
            if let Err(error) = result {
                self.failed(&error);
            }
            self.shared.note_oldest_dirty(self.oldest());
            match stop {
                Some(Stop::Drained(_)) if self.is_drained() => return self.ended(true),
                // What is being synced may yet be durable, and whoever waits for it is to hear the truth: no more is begun, and that is waited for.
                Some(Stop::Drained(by)) if Instant::now() >= by => {
                    self.land_submitted();
                    return self.ended(self.is_drained());
                }
                _ => {}
            }
        }
    }

    /// Where no segment is free: what the active one holds may be what frees the others, and only a sealed one is filed.
    fn make_room(&mut self) -> Result<(), WriteError> {
        if !self.blocked || self.writer.is_syncing() {
            return Ok(());
        }
        let can_be_filed = |segment: &Arc<Segment>| segment.is_counted() && segment.settled_at().is_some();
        if !self.shared.segments.all().iter().any(can_be_filed) {
            self.writer.seal();
            self.sync(Instant::now())?;
        }
        self.shared.checkpoint_requests.kick();
        Ok(())
    }

    fn ended(&self, all: bool) -> Committed {
        Committed { all, durable_seq: self.writer.durable_seq() }
    }

    /// When to wake at the latest. `None`: there is nothing to do until somebody kicks.
    fn wake_at(&self) -> Option<Instant> {
        let now = Instant::now();
        // While something is synced there will be word of that.
        if self.failing || (self.has_work() && !self.blocked && !self.writer.is_syncing()) {
            return Some(now);
        }
        // Whoever waits for a segment is kicked by the next free one; this is for what was not foreseen.
        let look_again = (self.has_work() || !self.flushes.is_empty()).then(|| now + LOOK_AGAIN);
        // While something is synced no mark is written, however long the disk takes.
        let mark_at = self.mark_at.filter(|_| !self.writer.is_syncing());
        [self.flush_at, mark_at, look_again, self.end_by].into_iter().flatten().min()
    }

    fn has_work(&self) -> bool {
        !self.intake.is_empty() || self.intake.first_replaced().is_some() || !self.aborts.is_empty()
    }

    /// Dirty data is written at this age: the other half of `dirty_expire` is for the writing.
    fn flush_age(&self) -> Duration {
        self.shared.config.load().dirty_expire / 2
    }

    /// The first of the backlog is nearly too old: it goes whatever it costs.
    fn is_late(&self) -> bool {
        let late = self.shared.config.load().dirty_expire / 4 * 3;
        self.intake.next_ticket().is_some_and(|ticket| ticket.at.elapsed() >= late)
    }

    /// One batch, or none.
    fn turn(&mut self, mail: CommitWork) -> Result<(), WriteError> {
        let now = Instant::now();
        self.gather(mail, now)?;
        self.commit(now)
    }

    /// Takes in arrivals and due tickets. Returns the results of the syncs that have ended.
    fn gather(&mut self, mail: CommitWork, now: Instant) -> Result<(), WriteError> {
        let landed = self.land_all(mail.synced);
        let everything = mail.stop.is_some() || mail.seal || !mail.flushes.is_empty();
        let cutoff = self.cutoff(now, everything);
        self.put_off_flushes();
        self.intake.refill(&self.shared.table, &self.shared.commit_queue, mail.arrivals, cutoff);
        if cutoff.is_some() {
            self.set_timer(now);
        }
        self.seal |= mail.seal;
        let drain = self.intake.drains();
        let flush = |done| Flush { asked: drain, drain, last: None, done };
        self.flushes.extend(mail.flushes.into_iter().map(flush));
        landed
    }

    /// Writes a batch of what is there, and has it synced.
    fn commit(&mut self, now: Instant) -> Result<(), WriteError> {
        // Before the disk is asked, for which a large message is reason enough: it may hang, and then this is what tells.
        self.shared.note_oldest_dirty(self.oldest());
        self.append_batch();
        let took_back = self.aborts.is_empty();
        let started = Instant::now();
        match self.writer.write() {
            // What has a place is made durable: the segments that it fills can then be filed.
            Err(WriteError::NoSegment) => return self.sync(started).and(Err(WriteError::NoSegment)),
            written => written?,
        }
        if self.waits_for_other && self.is_late() {
            // Callers who give up again and again could keep it waiting for as long as there is always something under way.
            self.sync(started)?;
        } else if self.writer.unsynced() > self.submitted_records() && self.wants_sync() {
            self.start_sync(started)?;
        }
        if !self.writer.is_syncing() {
            self.retry = RETRY.0;
        }
        // The disk is at the next records by now.
        self.publish_landed();
        self.finish_flushes(took_back)?;
        self.make_room()?;
        self.mark_when_idle(now)
    }

    /// The time up to which tickets are due, if any are to be drained. `everything`: all of them
    /// are due.
    fn cutoff(&self, now: Instant, everything: bool) -> Option<Instant> {
        let commit_queue = &self.shared.commit_queue;
        let rang = self.flush_at.map_or(commit_queue.is_dirty(), |at| at <= now);
        let mut everything = everything || commit_queue.is_starved();
        // While the last ones are still being written, what they free is not known.
        let urgent = commit_queue.is_urgent() && !self.intake.has_tickets() && !self.writer.is_syncing();
        if !everything && !rang && !urgent {
            return None;
        }
        everything |= commit_queue.rearm();
        let age = match everything {
            true => Duration::ZERO,
            // Removals don't wait for room, and a limit may be lowered.
            false if urgent && self.shared.is_over_limit() => Duration::ZERO,
            // The older half: the younger a message is, the likelier it is gone before its turn comes.
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
        // A few flushes in the time that is left: the later a message is written, the likelier it is gone by then.
        let soonest = now + self.shared.config.load().dirty_expire / 8;
        self.flush_at =
            self.shared.table.oldest_dirty().map(|oldest| (oldest + self.flush_age()).max(soonest));
        if self.flush_at.is_some() {
            self.shared.commit_queue.timer_is_set();
        }
    }

    /// True if what is written and not submitted is to be synced now. A mark by itself is not: it
    /// is synced with the next record, with a flush (which may wait for it), and at the end.
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

    /// Tells those who asked for a flush, once there is nothing left of what was dirty when they asked. What came after it may be under way all
    /// the time, and no caller waits for that. `took_back`: the stores that had failed in doubt
    /// when they asked have their aborts in the journal.
    fn finish_flushes(&mut self, took_back: bool) -> Result<(), WriteError> {
        if !took_back || (self.flushes.is_empty() && !self.seal) {
            return Ok(());
        }
        self.put_off_flushes();
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

    /// What replaced a version before its turn has a ticket by the next drain at the latest.
    /// A flush that waits for that version waits for this one as well: otherwise neither of the two
    /// would be durable. This comes to an end: what replaced a version is pledged, and written
    /// whatever replaces it.
    fn put_off_flushes(&mut self) {
        let Some(first) = self.intake.first_replaced() else { return };
        let next = self.intake.drains() + 1;
        let waiting = self.flushes.iter_mut().filter(|flush| flush.last.is_none() && flush.asked >= first);
        waiting.for_each(|flush| flush.drain = next);
    }

    /// The last commit before a quiet time is known to have been durable only if a later record says so.
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

    /// When the oldest version came in that this thread has in hand.
    fn oldest(&self) -> Option<Instant> {
        let syncing = self.submitted.iter().filter_map(|submitted| submitted.oldest).min();
        [self.intake.oldest(), self.oldest_taken, syncing].into_iter().flatten().min()
    }

    fn failed(&mut self, error: &WriteError) {
        if !matches!(error, WriteError::NoSegment) {
            // All of it is to be written again.
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
                self.give_room(source);
            }
            WriteError::Create(source) => self.shared.disk_error(Site::JournalWrite, source),
            // Whoever did the sync has told.
            WriteError::Sync(source) => self.give_room(source),
        }
        self.shared.commit_queue.pause(Instant::now() + self.retry, matches!(error, WriteError::NoSegment));
        self.retry = (self.retry * 2).min(RETRY.1);
    }
}

impl Committer {
    /// A segment that is there could not be written for want of room: btrfs at its quota takes no
    /// overwriting either. Removals have to be written, or nothing frees the spool. So room is
    /// given up, a part for each failure: the ballast for filing, the other half, then free
    /// segments.
    fn give_room(&self, error: &io::Error) {
        let (ballast, pool) = (&self.shared.ballast, self.shared.segments.pool());
        let _ = is_no_room(error)
            && (ballast.release_for_checkpoint() || ballast.release_for_opening() || pool.give_up_one());
    }
}

/// Tells the mailbox when the thread is gone, however it went, and ends the syncer.
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
        Taken::Arrived(arrival) if arrival.verdict.commit() => {
            // Before the answer: it takes an older version's entry out of the crash log, which
            // would replace this version at the next opening.
            publish_arrival(shared, &arrival, durable.newest);
            // The caller may have dropped its future just now; the message stays.
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

/// Debug builds check the order in which the versions of an id are written: this one is taken back.
#[cfg_attr(not(debug_assertions), expect(unused_variables, reason = "only debug builds check"))]
fn check_abort(shared: &Shared, arrival: &Arrival) {
    #[cfg(debug_assertions)]
    shared.table.lock(&arrival.id).pending.check_order(&arrival.id, |order| order.abort(arrival.version));
}
