//! The committer thread: takes everything that waits, writes it at once, syncs once, wakes all.
//!
//! One loop. A few records are synced here; for more, the syncer waits for the disk while the next batch is written here. What it has taken
//! and not yet made durable it keeps; after a failure it tries again, with a pause, for as long as the spool lives.

mod batch;
mod landing;
mod syncer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use syncer::Syncer;
use tidespool_core::SpoolId;
use tokio::sync::oneshot;

use super::crew::Committed;
use super::mailbox::{Arrival, Floor, Mail, Mailbox, Outcome, Stop};
use super::publish::{publish_arrival, publish_ticketed, show_written};
use super::shared::Shared;
use crate::journal::{Change, Durable, PAGE, Segment, WriteError, Writer};
use crate::memory::{Dirty, Ticket};
use crate::stats::Site;

/// How long to wait for a free segment before looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A record that was appended, with what is to be done when it is durable.
#[derive(Debug)]
enum Taken {
    Ticketed(Ticket, Arc<Dirty>),
    Arrived(Arrival),
    /// A written store whose caller has the answer already.
    Shown {
        id: SpoolId,
        version: u64,
        dirty: Arc<Dirty>,
    },
    /// The abort of a put of this id, which counts as under way until it is durable.
    Abort(SpoolId),
    Mark,
}

/// Somebody who waits for everything up to `version` to be durable.
#[derive(Debug)]
struct Flush {
    version: u64,
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
    /// Tickets whose turn has come, oldest first.
    backlog: VecDeque<Ticket>,
    /// Synced stores that wait for a segment.
    arrivals: VecDeque<Arrival>,
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
    landed: Vec<(Taken, Durable)>,
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
            backlog: VecDeque::new(),
            arrivals: VecDeque::new(),
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
        let _end = End(self.shared.mailbox.clone(), self.syncer.clone());
        loop {
            let mail = self.shared.mailbox.wait(self.wake_at(), self.writer.is_syncing());
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
        self.shared.filing.kick();
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
        let sync_at = self.oldest_taken.map(|at| at + self.flush_age());
        // Whoever waits for a segment is kicked by the next free one; this is for what was not foreseen.
        let look_again = (self.has_work() || !self.flushes.is_empty()).then(|| now + LOOK_AGAIN);
        // While something is synced no mark is written, however long the disk takes.
        let mark_at = self.mark_at.filter(|_| !self.writer.is_syncing());
        [self.flush_at, mark_at, sync_at, look_again, self.end_by].into_iter().flatten().min()
    }

    fn has_work(&self) -> bool {
        !self.arrivals.is_empty() || !self.backlog.is_empty() || !self.aborts.is_empty()
    }

    /// Dirty data is written at this age: the other half of `dirty_expire` is for the writing.
    fn flush_age(&self) -> Duration {
        self.shared.config.load().dirty_expire / 2
    }

    /// The first of the backlog is nearly too old: it goes whatever it costs.
    fn is_late(&self) -> bool {
        let late = self.shared.config.load().dirty_expire / 4 * 3;
        self.backlog.front().is_some_and(|ticket| ticket.at.elapsed() >= late)
    }

    /// One batch, or none.
    fn turn(&mut self, mail: Mail) -> Result<(), WriteError> {
        let now = Instant::now();
        let everything = mail.stop.is_some() || mail.seal || !mail.flushes.is_empty();
        let landed = self.land_all(mail.synced);
        self.arrivals.extend(mail.arrivals);
        self.seal |= mail.seal;
        let everything = self.take_due_tickets(now, everything);
        let version = self.backlog.back().map_or(0, |ticket| ticket.version);
        self.flushes.extend(mail.flushes.into_iter().map(|done| Flush { version, last: None, done }));
        // After the tickets: of two versions of one id the older one is then never in a later batch.
        self.arrivals.extend(self.shared.mailbox.take_arrivals());
        landed?;

        // Before the disk is asked, for which a large message is reason enough: it may hang, and then this is what tells.
        self.shared.note_oldest_dirty(self.oldest());
        self.append_batch();
        let started = Instant::now();
        match self.writer.write() {
            // What has a place is made durable: the segments that it fills can then be filed.
            Err(WriteError::NoSegment) => return self.sync(started).and(Err(WriteError::NoSegment)),
            written => written?,
        }
        self.answer_written();
        let due = self.oldest_taken.is_some_and(|at| at + self.flush_age() <= now);
        // Of those who wait for room nobody waits for the disk, where it is all only written.
        let flushing = !self.flushes.is_empty() || everything;
        if self.waits_for_other && self.is_late() {
            // Callers who give up again and again could keep it waiting for as long as there is always something under way.
            self.sync(started)?;
        } else if self.writer.unsynced() > self.submitted_records() && (due || flushing || self.wants_sync())
        {
            self.start_sync(started)?;
        }
        if !self.writer.is_syncing() {
            self.retry = RETRY.0;
        }
        // The disk is at the next records by now.
        self.publish_landed();
        self.finish_flushes()?;
        self.make_room()?;
        self.mark_when_idle(now)
    }

    /// Puts the tickets that are due behind the backlog, and sets the timer for the next ones. True if what was only written is to be synced, too.
    fn take_due_tickets(&mut self, now: Instant, everything: bool) -> bool {
        let mailbox = &self.shared.mailbox;
        let rang = self.flush_at.map_or(mailbox.is_dirty(), |at| at <= now);
        let mut everything = everything || mailbox.is_starved();
        // While the last ones are still being written, what they free is not known.
        let urgent = mailbox.is_urgent() && self.backlog.is_empty() && !self.writer.is_syncing();
        if !everything && !rang && !urgent {
            return false;
        }
        everything |= mailbox.rearm();
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
        if let Some(cutoff) = Instant::now().checked_sub(age) {
            self.backlog.extend(self.shared.table.drain_tickets(cutoff));
        }
        // A few flushes in the time that is left: the later a message is written, the likelier it is gone by then.
        let soonest = now + self.shared.config.load().dirty_expire / 8;
        self.flush_at =
            self.shared.table.oldest_dirty().map(|oldest| (oldest + self.flush_age()).max(soonest));
        if self.flush_at.is_some() {
            mailbox.timer_is_set();
        }
        everything || urgent
    }

    /// Some caller waits for stable storage, or something was flushed because its time had come, or waits for what is not synced yet.
    fn wants_sync(&self) -> bool {
        self.waits_for_other
            || self.taken.iter().skip(self.submitted_records()).any(|taken| match taken {
                // An abort is as urgent: its caller was told that nothing is left behind.
                Taken::Ticketed(..) | Taken::Abort(_) => true,
                Taken::Arrived(arrival) => arrival.floor == Floor::Synced,
                Taken::Shown { .. } | Taken::Mark => false,
            })
    }

    /// Answers those who asked for no more than the operating system to have their message.
    fn answer_written(&mut self) {
        let submitted = self.submitted_records();
        for taken in self.taken.iter_mut().skip(submitted) {
            let shows = matches!(taken, Taken::Arrived(arrival)
                if arrival.floor == Floor::Written && show_written(&self.shared, arrival));
            if shows && let Taken::Arrived(arrival) = std::mem::replace(taken, Taken::Mark) {
                let Arrival { id, version, dirty, done, .. } = arrival;
                *taken = Taken::Shown { id, version, dirty };
                // The caller may be gone by now; the message stays.
                let _ = done.send(Outcome::Written);
            }
        }
    }

    fn is_drained(&self) -> bool {
        !self.has_work()
            && self.taken.iter().all(|taken| matches!(taken, Taken::Mark))
            && self.shared.table.oldest_dirty().is_none()
    }

    /// Tells those who asked for a flush, once there is nothing left of what was dirty when they asked. What came after it may be under way all
    /// the time, and nobody waits for that.
    fn finish_flushes(&mut self) -> Result<(), WriteError> {
        if self.flushes.is_empty() && !self.seal {
            return Ok(());
        }
        let reached = self.backlog.front().map_or(u64::MAX, |ticket| ticket.version);
        if !self.seal || self.flushes.iter().all(|flush| flush.version < reached) {
            let last = self.writer.last_seq();
            for flush in self.flushes.iter_mut().filter(|flush| flush.version < reached) {
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
            // Whoever asked may be gone.
            let _ = flush.done.send(());
        }
        Ok(())
    }

    /// The last commit before a quiet time is known to have been durable only if a later record says so.
    fn mark_when_idle(&mut self, now: Instant) -> Result<(), WriteError> {
        if self.writer.is_syncing() || self.mark_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        self.mark_at = None;
        if self.writer.active_generation().is_some() && self.writer.room(true).take(PAGE) {
            self.writer.append(SpoolId::from_bytes([0; 16]), Change::Mark);
            self.taken.push_back(Taken::Mark);
            self.writer.write()?;
        }
        Ok(())
    }

    /// When the oldest version came in that this thread has in hand.
    fn oldest(&self) -> Option<Instant> {
        let waiting = self.arrivals.front().map(|arrival| arrival.at);
        let flushed = self.backlog.front().map(|ticket| ticket.at);
        let syncing = self.submitted.iter().filter_map(|submitted| submitted.oldest).min();
        [flushed, self.oldest_taken, syncing, waiting].into_iter().flatten().min()
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
            WriteError::NoSegment => self.shared.filing.kick(),
            WriteError::Write(source) => self.shared.disk_error(Site::JournalWrite, source),
            // Whoever did the sync has told.
            WriteError::Sync(_) => {}
        }
        self.shared.mailbox.pause(Instant::now() + self.retry, matches!(error, WriteError::NoSegment));
        self.retry = (self.retry * 2).min(RETRY.1);
    }
}

/// Tells the mailbox when the thread is gone, however it went, and ends the syncer.
struct End(Arc<Mailbox>, Arc<Syncer>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
        self.1.stop();
    }
}

fn publish(shared: &Shared, aborts: &mut Vec<(SpoolId, u64)>, taken: Taken, durable: &Durable) {
    match taken {
        Taken::Ticketed(ticket, dirty) => {
            publish_ticketed(shared, ticket.id, ticket.version, &dirty, durable.newest);
        }
        Taken::Shown { id, version, dirty } => publish_ticketed(shared, id, version, &dirty, durable.newest),
        Taken::Arrived(arrival) if arrival.verdict.commit() => {
            publish_arrival(shared, &arrival, durable.newest);
            // The caller may have dropped its future just now; the message stays.
            let _ = arrival.done.send(Outcome::Durable(durable.seq));
        }
        Taken::Arrived(arrival) => {
            shared.stats.aborted();
            aborts.push((arrival.id, durable.seq));
        }
        Taken::Abort(id) => shared.table.lock(&id).pending.arrive(&id),
        Taken::Mark => {}
    }
}
