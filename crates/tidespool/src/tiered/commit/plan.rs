//! The decisions of the committer, without I/O.
//!
//! A [`Plan`] gets [`Facts`] about the time, the queues and the journal, and the failures of its
//! steps. It returns the steps of a turn, one after the other. The
//! [`Committer`](super::Committer) executes them.
//!
//! ```text
//! Append ► Write ► Sync, or HandOver and Publish ► Seal, Sync ► Complete ► make room ► Mark
//!                  (any step that fails) ► WriteAgain ► FreeDiskSpace ► Pause
//! ```

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::flushes::{Drains, Flushes};

/// How often the committer looks for a free segment that it was not notified of.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// First and longest pause after a failure.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Minimum records and bytes of a sync that is handed over to the syncer. The committer thread runs
/// a smaller one itself, because the handover would take longer than it saves.
const WORTH_HANDING_OVER: (usize, u64) = (4, 128 << 10);

/// One step of a turn.
#[derive(Debug)]
pub(super) enum Step {
    /// Append the records that fit.
    Append,
    /// Write all appended records.
    Write,
    /// Make everything that is written durable, and publish it. Blocks until running syncs end.
    Sync,
    /// Hand a sync of everything that is written over to the syncer thread.
    HandOver,
    /// Publish the records that are durable.
    Publish,
    /// Seal the active segment.
    Seal,
    /// Notify the callers of flushes.
    Complete(Vec<oneshot::Sender<()>>),
    /// Request a checkpoint, which frees segments.
    RequestCheckpoint,
    /// Append a mark, if there is room for it, and write it.
    Mark,
    /// Give up the running syncs: all records that are not durable have to be written again.
    WriteAgain,
    /// Free disk space that the spool holds in reserve.
    FreeDiskSpace,
    /// Wait until this time. If `for_room`, a segment that becomes free ends the pause.
    Pause { until: Instant, for_room: bool },
}

/// Why a step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No segment is free. The records before are written.
    NoSegment,
    /// The disk returned an error. `no_room`: it is full or at its quota.
    Disk { no_room: bool },
}

/// The result of [`Step::Append`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Appended {
    /// Work is waiting for which no segment has room.
    pub(super) blocked: bool,
    /// The first ticket of the backlog waits for a version of its id that is under way.
    pub(super) waits_for_other: bool,
    /// Some aborts had no room.
    pub(super) aborts_left: bool,
}

/// Why tickets are drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    /// A caller waits: all tickets are due.
    All,
    /// Much of the dirty limit is used.
    Urgent,
    /// The flush timer has expired.
    Aged,
}

/// The time, and the state of the queues and of the journal, at a step.
pub(super) trait Facts {
    fn now(&self) -> Instant;
    /// The age by which a message is on stable storage, on a disk that works.
    fn dirty_expire(&self) -> Duration;
    /// A sync is running.
    fn is_syncing(&self) -> bool;
    /// Arrivals, tickets or aborts are waiting.
    fn has_work(&self) -> bool;
    /// Tickets are waiting.
    fn has_tickets(&self) -> bool;
    /// When the version of the first waiting ticket was stored.
    fn next_ticket_at(&self) -> Option<Instant>;
    /// The result of the last [`Step::Append`].
    fn appended(&self) -> Appended;
    /// The number of records that are not durable.
    fn unsynced(&self) -> usize;
    /// Written records that are in no sync, and their dirty bytes.
    fn unsubmitted(&self) -> (usize, u64);
    /// One of the unsubmitted records is not a mark.
    fn has_unsubmitted_changes(&self) -> bool;
    /// The sequence numbers of the last appended and of the last durable record.
    fn sequence(&self) -> (u64, u64);
    /// When to write a mark, if no other record is written until then.
    fn mark_at(&self) -> Option<Instant>;
    /// The progress of the drains.
    fn drains(&self) -> Drains;
    /// A segment is full and published: a checkpoint can free it.
    fn has_settled_segment(&self) -> bool;
    /// Removals have room when the active segment is sealed, or will get it by a checkpoint.
    fn may_seal(&self) -> bool;
    /// Something became dirty since the last drain.
    fn is_dirty(&self) -> bool;
    /// Much of the dirty limit was used when something became dirty.
    fn is_urgent(&self) -> bool;
    /// The dirty bytes exceed the limit.
    fn is_over_limit(&self) -> bool;
    /// So much of the dirty limit is used that the flush timer is too late.
    fn is_flush_urgent(&self) -> bool;
    /// When the oldest dirty version was stored that has no ticket yet.
    fn oldest_dirty(&self) -> Option<Instant>;
}

/// The position in a turn: what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Append,
    Write,
    Sync,
    Publish,
    Published,
    Flushes,
    SealedForFlush,
    Complete,
    MakeRoom,
    SealedForRoom,
    RequestCheckpoint,
    Mark,
    SyncWritten,
    Failed(Failure),
    FreeDiskSpace,
    Pause { for_room: bool },
}

/// Times at which the committer acts on its own.
#[derive(Debug, Default)]
struct Timers {
    /// When the flush timer for dirty data expires.
    flush_at: Option<Instant>,
    /// The time limit of a shutdown. After it the thread begins nothing more.
    end_by: Option<Instant>,
}

/// The committer's decisions, and the state that they depend on.
#[derive(Debug)]
pub(super) struct Plan {
    stage: Stage,
    /// When the turn began.
    began: Instant,
    flushes: Flushes,
    /// The active segment is sealed once the flushes have their records in it.
    seal: bool,
    timers: Timers,
    /// The last turn failed. The next one retries.
    failing: bool,
    /// First and longest pause after a failure.
    pauses: (Duration, Duration),
    /// The pause after the next failure.
    pause: Duration,
}

impl Plan {
    pub(super) fn new(pauses: (Duration, Duration)) -> Self {
        Self {
            stage: Stage::Idle,
            began: Instant::now(),
            flushes: Flushes::default(),
            seal: false,
            timers: Timers::default(),
            failing: false,
            pauses,
            pause: pauses.0,
        }
    }

    /// Returns when to wake at the latest. `None`: there is nothing to do until the next kick.
    pub(super) fn wake_at(&self, facts: &impl Facts) -> Option<Instant> {
        let (has_work, is_syncing) = (facts.has_work(), facts.is_syncing());
        // The result of a running sync will wake the thread.
        if self.failing || (has_work && !facts.appended().blocked && !is_syncing) {
            return Some(facts.now());
        }
        // A free segment kicks the committer. This wake-up is a safeguard.
        let look_again = (has_work || !self.flushes.is_empty()).then(|| facts.now() + LOOK_AGAIN);
        // No mark is written while a sync is running, however long it takes.
        let mark_at = facts.mark_at().filter(|_| !is_syncing);
        [self.timers.flush_at, mark_at, look_again, self.timers.end_by].into_iter().flatten().min()
    }

    #[cfg(test)]
    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }

    /// Begins the shutdown: everything is synced, until `by` at the latest.
    pub(super) fn end_by(&mut self, by: Instant) {
        self.timers.end_by = Some(by);
    }

    /// Decides whether to drain tickets. `is_requested`: a flush, a shutdown or a store that waits
    /// for room needs all of them.
    pub(super) fn drain(&self, facts: &impl Facts, is_requested: bool) -> Option<Drain> {
        if is_requested {
            return Some(Drain::All);
        }
        // While earlier tickets are being written, the amount that they will free is unknown.
        if facts.is_urgent() && !facts.has_tickets() && !facts.is_syncing() {
            return Some(Drain::Urgent);
        }
        let has_expired = self.timers.flush_at.map_or(facts.is_dirty(), |at| at <= facts.now());
        has_expired.then_some(Drain::Aged)
    }

    /// Returns the time up to which versions are drained.
    pub(super) fn cutoff(drain: Drain, facts: &impl Facts) -> Instant {
        let now = facts.now();
        let age = match drain {
            Drain::All => Duration::ZERO,
            // The limit can be exceeded: removals never wait for room, and it can be lowered.
            Drain::Urgent if facts.is_over_limit() => Duration::ZERO,
            // The older half: the younger a message is, the more likely it is removed before it is
            // written.
            Drain::Urgent if facts.is_flush_urgent() => {
                let age = facts
                    .oldest_dirty()
                    .map_or(Duration::ZERO, |oldest| now.saturating_duration_since(oldest));
                (age / 2).min(flush_age(facts))
            }
            Drain::Urgent | Drain::Aged => flush_age(facts),
        };
        now.checked_sub(age).unwrap_or(now)
    }

    /// Sets the flush timer after a drain. Returns false if nothing is dirty.
    pub(super) fn set_flush_timer(&mut self, facts: &impl Facts) -> bool {
        // At most a few flushes in the remaining time: the later a message is written, the more
        // likely it has been removed by then.
        let soonest = facts.now() + facts.dirty_expire() / 8;
        self.timers.flush_at = facts.oldest_dirty().map(|oldest| (oldest + flush_age(facts)).max(soonest));
        self.timers.flush_at.is_some()
    }

    /// Adds flush requests. Everything that is dirty has a ticket of `drain` or an earlier one.
    /// `seal`: seal the active segment, too.
    pub(super) fn request(&mut self, flushes: Vec<oneshot::Sender<()>>, seal: bool, drain: u64) {
        self.seal |= seal;
        self.flushes.add(flushes, drain);
    }

    /// Makes the flushes wait for the replacements of versions that were replaced. Call it before
    /// the next drain begins.
    pub(super) fn postpone_flushes(&mut self, drains: Drains) {
        self.flushes.postpone(drains);
    }

    /// Begins the steps of a turn.
    pub(super) fn begin(&mut self, facts: &impl Facts) {
        self.stage = Stage::Append;
        self.began = facts.now();
    }

    /// Ends the turn with a failure: of the last step, or of a sync that was handed over.
    pub(super) fn failed(&mut self, failure: Failure) {
        // What is written is made durable, so that the segments it fills can be checkpointed.
        let is_full = self.stage == Stage::Sync && failure == Failure::NoSegment;
        self.stage = if is_full { Stage::SyncWritten } else { Stage::Failed(failure) };
    }

    /// Returns the next step of the turn. `None`: the turn is over.
    pub(super) fn next(&mut self, facts: &impl Facts) -> Option<Step> {
        loop {
            match self.stage {
                Stage::Idle => return None,
                Stage::Append => return self.step(Step::Append, Stage::Write),
                Stage::Write => return self.step(Step::Write, Stage::Sync),
                Stage::Sync => match self.sync(facts) {
                    // It publishes, too.
                    Some(Step::Sync) => return self.step(Step::Sync, Stage::Published),
                    Some(step) => return self.step(step, Stage::Publish),
                    None => self.stage = Stage::Publish,
                },
                // Only now: the disk is busy with the next records meanwhile.
                Stage::Publish => return self.step(Step::Publish, Stage::Published),
                Stage::Published => {
                    if !facts.is_syncing() {
                        self.pause = self.pauses.0;
                    }
                    // Stores that failed in doubt before the request need their aborts in the
                    // journal.
                    let is_possible = !facts.appended().aborts_left;
                    let is_wanted = !self.flushes.is_empty() || self.seal;
                    self.stage = if is_possible && is_wanted { Stage::Flushes } else { Stage::MakeRoom };
                }
                Stage::Flushes => match self.reach_flushes(facts) {
                    true => return self.step(Step::Seal, Stage::SealedForFlush),
                    false => self.stage = Stage::Complete,
                },
                Stage::SealedForFlush if facts.unsynced() == 0 => {
                    return self.step(Step::Sync, Stage::Complete);
                }
                Stage::SealedForFlush => self.stage = Stage::Complete,
                Stage::Complete => {
                    let (_, durable) = facts.sequence();
                    let completed = self.flushes.take_durable(durable);
                    return self.step(Step::Complete(completed), Stage::MakeRoom);
                }
                Stage::MakeRoom if !facts.appended().blocked || facts.is_syncing() => {
                    self.stage = Stage::Mark;
                }
                Stage::MakeRoom if facts.has_settled_segment() || !facts.may_seal() => {
                    self.stage = Stage::RequestCheckpoint;
                }
                // Only a sealed segment is checkpointed. The records of the active one may free
                // others.
                Stage::MakeRoom => return self.step(Step::Seal, Stage::SealedForRoom),
                Stage::SealedForRoom => return self.step(Step::Sync, Stage::RequestCheckpoint),
                Stage::RequestCheckpoint => return self.step(Step::RequestCheckpoint, Stage::Mark),
                Stage::Mark => {
                    (self.failing, self.stage) = (false, Stage::Idle);
                    return self.mark(facts);
                }
                Stage::SyncWritten => return self.step(Step::Sync, Stage::Failed(Failure::NoSegment)),
                Stage::Failed(Failure::NoSegment) => {
                    self.failing = true;
                    return self.step(Step::RequestCheckpoint, Stage::Pause { for_room: true });
                }
                Stage::Failed(Failure::Disk { no_room }) => {
                    self.failing = true;
                    let next = if no_room { Stage::FreeDiskSpace } else { Stage::Pause { for_room: false } };
                    return self.step(Step::WriteAgain, next);
                }
                Stage::FreeDiskSpace => {
                    return self.step(Step::FreeDiskSpace, Stage::Pause { for_room: false });
                }
                Stage::Pause { for_room } => {
                    let until = facts.now() + self.pause;
                    self.pause = (self.pause * 2).min(self.pauses.1);
                    return self.step(Step::Pause { until, for_room }, Stage::Idle);
                }
            }
        }
    }

    fn step(&mut self, step: Step, next: Stage) -> Option<Step> {
        self.stage = next;
        Some(step)
    }

    /// Decides how the written records are synced.
    fn sync(&self, facts: &impl Facts) -> Option<Step> {
        if facts.appended().waits_for_other && is_late(facts) {
            // Without a blocking sync, callers that give up again and again could delay the ticket
            // for as long as some version of its id is always under way.
            return Some(Step::Sync);
        }
        let (records, bytes) = facts.unsubmitted();
        if records == 0 || !self.wants_sync(facts) {
            return None;
        }
        let is_small = records < WORTH_HANDING_OVER.0 || bytes < WORTH_HANDING_OVER.1;
        let here = self.failing || (is_small && !facts.is_syncing());
        Some(if here { Step::Sync } else { Step::HandOver })
    }

    /// True if the records that are written and not submitted need a sync now. A mark alone does
    /// not: it is synced with the next record, with a flush (which may wait for it), and at the
    /// end.
    fn wants_sync(&self, facts: &impl Facts) -> bool {
        !self.flushes.is_empty()
            || self.timers.end_by.is_some()
            || facts.appended().waits_for_other
            || facts.has_unsubmitted_changes()
    }

    /// Notes the last record of each flush whose versions are all appended. Returns true if the
    /// segment is to be sealed: it was requested and is possible, and all flushes are in it.
    fn reach_flushes(&mut self, facts: &impl Facts) -> bool {
        let drains = facts.drains();
        self.flushes.postpone(drains);
        if self.seal && !self.flushes.are_all_reached(drains) {
            return false;
        }
        let (last, _) = facts.sequence();
        self.flushes.reach(drains, last);
        std::mem::take(&mut self.seal) && facts.may_seal()
    }

    /// Writes a mark before a quiet time. A recovery can treat the last commit as durable only if
    /// a later record proves it.
    fn mark(&self, facts: &impl Facts) -> Option<Step> {
        let is_due = !facts.is_syncing() && facts.mark_at().is_some_and(|at| at <= self.began);
        is_due.then_some(Step::Mark)
    }
}

/// Returns the age at which dirty data is written: half of `dirty_expire`. The other half is left
/// for the writing.
fn flush_age(facts: &impl Facts) -> Duration {
    facts.dirty_expire() / 2
}

/// True if the first ticket of the backlog has used three quarters of `dirty_expire`. Then it is
/// written whatever the cost.
pub(super) fn is_late(facts: &impl Facts) -> bool {
    let late = facts.dirty_expire() / 4 * 3;
    facts.next_ticket_at().is_some_and(|at| facts.now().saturating_duration_since(at) >= late)
}
