//! The checkpoint thread. It alone changes what sled holds.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tidespool_core::SpoolId;

use super::ballast::Ballast;
use super::dead::DeadSegments;
use super::drained::Drained;
use super::filing::{FilingMail, FilingTask};
use super::ledger::{Ledger, LedgerFile};
use super::recount::Recount;
use super::retained::{RetainedMap, account, locator};
use super::stock::{Unfinished, take_stock};
use super::verify::{Finding, verify_filed};
use super::{Filing, FilingError, FilingEvents, Source};
use crate::durable::{Change, Durable, DurableError, DurableStore, Key, Op, Record, Tally};
use crate::journal::{Newest, Place, RESERVED, ReadError, Role, Segment, Segments};

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A checkpoint takes at most so many segments: what it collects stays small, and the first of them are free soon.
const AT_ONCE: usize = 8;

/// And so many records, or one segment: small ones are half a million in a segment.
const RECORDS_AT_ONCE: u64 = 128 * 1024;

/// Changes after which sled is synced.
const SYNC_AFTER: usize = 16_384;

/// Changes after which the thread rests a little.
const REST_AFTER: usize = 1_024;

/// What the thread is told. It may change at any time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FilerSettings {
    /// Payloads up to this many bytes go into sled whole.
    pub(crate) separate_above: u64,
    /// Sealed segments are filed at this age.
    pub(crate) checkpoint_after: Duration,
}

/// The thread's state.
pub(crate) struct Filer {
    pub(crate) segments: Arc<Segments>,
    pub(crate) durable: Arc<Durable>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) filing: Arc<Filing>,
    pub(crate) events: Arc<dyn FilingEvents>,
    pub(crate) ledger_file: LedgerFile,
    pub(crate) ledger: Ledger,
    pub(crate) ballast: Ballast,
    pub(crate) settings: Arc<ArcSwap<FilerSettings>>,
    pub(crate) retry: Retry,
    pub(crate) dead: DeadSegments,
    pub(crate) recount: Recount,
    pub(crate) drained: Drained,
}

/// The pause after failures.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    pause: Option<Duration>,
    at: Option<Instant>,
}

impl Retry {
    fn failed(&mut self) {
        let pause = self.pause.map_or(RETRY.0, |pause| (pause * 2).min(RETRY.1));
        (self.pause, self.at) = (Some(pause), Some(Instant::now() + pause));
    }
}

impl Filer {
    /// Runs until it is stopped; returns the ledger as it stands then.
    pub(crate) fn run(mut self) -> Self {
        // A journal that was found full waits for this.
        self.look();
        loop {
            match self.filing.wait(self.wake_at()) {
                FilingMail::Stop => return self,
                FilingMail::Look => self.look(),
                FilingMail::Tasks(tasks) => tasks.into_iter().for_each(|task| self.perform(task)),
            }
        }
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.retry.at.is_some() {
            return self.retry.at;
        }
        let oldest = self.unfiled().first().and_then(|segment| segment.settled_at());
        let due_at = oldest.map(|at| at + self.settings.load().checkpoint_after);
        // While sled may hold some of a change there is nothing to compare it with.
        let recount_at = self.recount.due_at().filter(|_| !self.ledger.filing);
        [due_at, self.drained.wake_at(), recount_at].into_iter().flatten().min()
    }

    fn look(&mut self) {
        if self.retry.at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.filing.begin_work();
        let done = self.tend();
        self.note(&done);
    }

    /// Everything that is due.
    pub(super) fn tend(&mut self) -> Result<(), FilingError> {
        if !self.durable.is_open() {
            // Loads need it, whether there is something to file or not.
            self.ensure_open()?;
        }
        while self.checkpoint_due()? && !self.filing.is_stopped() {}
        // On a full disk nothing can be moved, and what was removed is what gives room.
        let tidied = self.tidy(false);
        self.keep_within_bound();
        tidied?;
        self.recount()
    }

    fn note<T>(&mut self, done: &Result<T, FilingError>) {
        match done {
            Ok(_) => {
                self.retry = Retry::default();
                self.ballast.restore();
                // Now only: a disk that hangs may do so here as well.
                self.filing.end_work();
            }
            Err(error) => {
                self.events.failed(error);
                self.retry.failed();
                if error.is_full_disk() {
                    self.ballast.release_for_filing();
                }
            }
        }
    }

    fn perform(&mut self, task: FilingTask) {
        // Whoever asked may be gone; the work is done all the same.
        self.filing.begin_work();
        match task {
            FilingTask::Cleanup(done) => {
                self.recount.hurry();
                let result = self.tend();
                self.note(&result);
                let _ = done.send(result);
            }
            FilingTask::Compact(done) => {
                let result = self.compact();
                self.note(&result);
                let _ = done.send(result);
            }
        }
    }

    fn compact(&mut self) -> Result<Vec<Finding>, FilingError> {
        if let Some(newest) = self.unfiled().last().map(|segment| segment.generation) {
            self.checkpoint(newest)?;
        }
        self.tidy(true)?;
        let mut findings = Vec::new();
        let go_on = |_: &SpoolId| {
            self.filing.note_progress();
            !self.filing.is_stopped()
        };
        verify_filed(&self.segments, &self.durable, &go_on, &mut |finding| {
            findings.push(finding);
        })?;
        for finding in &findings {
            self.events.found_damage(&finding.id, &finding.what);
        }
        Ok(findings)
    }

    /// The journal's segments that can be filed, oldest first.
    fn unfiled(&self) -> Vec<Arc<Segment>> {
        let mut segments = self.segments.all();
        segments.retain(|segment| {
            segment.role == Role::Journal && segment.generation > self.ledger.filed_generation
        });
        let settled = segments.iter().take_while(|segment| segment.settled_at().is_some()).count();
        segments.truncate(settled);
        segments
    }

    /// Files a few segments, if some are due. True if there were.
    pub(super) fn checkpoint_due(&mut self) -> Result<bool, FilingError> {
        let unfiled = self.unfiled();
        let now = Instant::now();
        let pool = self.segments.pool();
        // Nearly out of segments: file until half of the capacity is free again.
        let missing = match pool.headroom() {
            headroom if headroom <= RESERVED + 1 || headroom * 4 < pool.capacity() => {
                (pool.capacity() / 2).saturating_sub(headroom)
            }
            _ => 0,
        };
        let checkpoint_after = self.settings.load().checkpoint_after;
        let due = |at: Instant| at + checkpoint_after <= now;
        let wanted = |segment: &Segment| segment.generation <= self.drained.due();
        let count = unfiled
            .iter()
            .enumerate()
            .take_while(|(number, segment)| {
                *number < missing || wanted(segment) || segment.settled_at().is_some_and(due)
            })
            .count();
        let count = count.max(self.dead.count(&unfiled, &*self.source)).min(AT_ONCE);
        let few = |segment: &&Arc<Segment>| {
            segment.last_seq().saturating_sub(self.ledger.filed_seq) <= RECORDS_AT_ONCE
        };
        let count = count.min(unfiled.iter().take_while(few).count().max(1));
        match count.checked_sub(1).map(|last| unfiled[last].generation) {
            Some(generation) => match self.checkpoint(generation) {
                Err(error) if error.is_full_disk() => self.checkpoint_dead(&unfiled, error),
                filed => filed.map(|()| true),
            },
            None => Ok(false),
        }
    }

    /// On a full disk: files the oldest segments in which nothing lives, for which sled is not needed. They are what removes are written to next.
    fn checkpoint_dead(&mut self, unfiled: &[Arc<Segment>], error: FilingError) -> Result<bool, FilingError> {
        let live = self.source.live_bytes();
        let is_dead = |segment: &&Arc<Segment>| !live.contains_key(&segment.generation);
        match unfiled.iter().take_while(is_dead).last() {
            Some(last) => self.checkpoint(last.generation).map(|()| true),
            None => Err(error),
        }
    }

    /// Files everything in segments up to `up_to`.
    fn checkpoint(&mut self, up_to: u64) -> Result<(), FilingError> {
        let started = Instant::now();
        self.ensure_open()?;
        // One list, without the keys: there may be many.
        let mut collected = self.source.collect(up_to);
        collected.sort_unstable_by_key(|(id, _)| Key::of(id));
        // Removals of what was never filed: sled need not hear of them.
        let high = self.ledger.high;
        let is_filed = |id: &SpoolId, newest: &Newest| newest.place.is_some() || high.may_have(&Key::of(id));
        let records = collected.iter().filter(|(id, newest)| is_filed(id, newest)).count() as u64;
        let mut next = self.ledger.clone();
        collected
            .iter()
            .filter(|(_, newest)| newest.place.is_some())
            .for_each(|(id, _)| next.high.raise(Key::of(id)));
        self.source.will_file(next.high);
        if records > 0 {
            self.make_room_to_file(&collected)?;
            self.apply_marked(&mut next, |filer, retained| filer.file(&collected, &is_filed, retained))?;
        }
        let filed: Vec<Arc<Segment>> =
            self.unfiled().into_iter().filter(|segment| segment.generation <= up_to).collect();
        next.number += 1;
        next.filed_generation = up_to;
        next.next_generation = self.segments.reserved_generation();
        let last_seq = filed.iter().map(|segment| segment.last_seq()).max().unwrap_or(0);
        next.filed_seq = next.filed_seq.max(last_seq);
        next.durable_seq = next.durable_seq.max(next.filed_seq);
        next.retained.retain(|_, segment| segment.live > 0);
        self.ledger_file.write(&next)?;
        self.ledger = next;
        let segments = filed.len() as u64;
        // Nobody holds them any more when they are to be recycled.
        drop(filed);
        self.source.forget(&collected);
        self.release();
        self.filing.note_progress();
        self.events.filed(records, segments, started.elapsed());
        Ok(())
    }

    /// Of the segments that are filed, recycles those in which nothing lives, and retains the others. It asks the ledger and not what the last step
    /// changed: a step before that may have failed half-way.
    pub(super) fn release(&self) {
        for segment in self.segments.all() {
            let is_filed = segment.role == Role::Cold || segment.generation <= self.ledger.filed_generation;
            if !is_filed {
                continue;
            }
            if self.ledger.retained.contains_key(&segment.generation) {
                self.segments.retain(&segment);
            } else {
                let generation = segment.generation;
                drop(segment);
                self.segments.retire(generation);
                self.events.recycled();
            }
        }
        self.segments.release_unread();
    }

    /// Changes sled between two ledgers: one that says that sled may hold some of the change, and (written by the caller) one that counts
    /// it. After an error the state on disk is counted anew before anything else.
    pub(super) fn apply_marked(
        &mut self,
        next: &mut Ledger,
        apply: impl FnOnce(&Self, &mut RetainedMap) -> Result<Tally, FilingError>,
    ) -> Result<(), FilingError> {
        // The highest keys are those of before: they tell what is new.
        let marked = Ledger { filing: true, retained: next.retained.clone(), ..self.ledger.clone() };
        self.ledger_file.write(&marked)?;
        self.ledger = marked;
        let delta = apply(self, &mut next.retained)?;
        next.tally = self.ledger.tally.plus(delta);
        next.filing = false;
        Ok(())
    }

    fn file(
        &self,
        entries: &[(SpoolId, Newest)],
        is_filed: &dyn Fn(&SpoolId, &Newest) -> bool,
        retained: &mut RetainedMap,
    ) -> Result<Tally, FilingError> {
        self.filing.begin();
        let mut delta = Tally::default();
        // Each of them ends with a sync of sled: many small ones hold up the journal's less than a long one.
        for some in entries.chunks(SYNC_AFTER) {
            delta = delta.plus(self.file_some(some, is_filed, retained)?);
        }
        Ok(delta)
    }

    fn file_some(
        &self,
        entries: &[(SpoolId, Newest)],
        is_filed: &dyn Fn(&SpoolId, &Newest) -> bool,
        retained: &mut RetainedMap,
    ) -> Result<Tally, FilingError> {
        let mut failure = None;
        let mut step = Instant::now();
        let mut ops = entries.iter().enumerate().take_while(|_| !self.filing.is_stopped()).map_while(
            |(number, (id, newest))| {
                if number % REST_AFTER == REST_AFTER - 1 {
                    self.filing.rest(step.elapsed(), self.is_urgent());
                    step = Instant::now();
                }
                if !is_filed(id, newest) {
                    return Some(None);
                }
                self.op(Key::of(id), id, *newest).map_err(|error| failure = Some(error)).ok()
            },
        );
        let delta = self.apply_counted(&mut ops.by_ref().flatten(), retained);
        drop(ops);
        match failure {
            Some(error) => Err(error),
            None if self.filing.is_stopped() => Err(FilingError::Stopped),
            None => Ok(delta?),
        }
    }

    /// The journal is about to run full: stores would wait for what is filed now.
    pub(super) fn is_urgent(&self) -> bool {
        let pool = self.segments.pool();
        let headroom = pool.headroom();
        headroom <= RESERVED + 1 || headroom * 8 < pool.capacity()
    }

    /// Applies `ops`, and counts what lives in each retained segment by them.
    pub(super) fn apply_counted(
        &self,
        ops: &mut dyn Iterator<Item = Op>,
        retained: &mut RetainedMap,
    ) -> Result<Tally, DurableError> {
        // The engine reads some ops ahead before it tells what the first of them replaced.
        let ahead = RefCell::new(VecDeque::new());
        let mut ops = ops.inspect(|op| {
            ahead.borrow_mut().push_back(match &op.change {
                Change::Put(record @ Record::Locator { .. }) => Some(record.clone()),
                Change::Put(_) | Change::Remove => None,
            });
        });
        let delta = self.durable.apply(&mut ops, &mut |_, before| {
            let after = ahead.borrow_mut().pop_front().flatten();
            account(retained, |generation| self.size_of(generation), before.as_ref(), after.as_ref());
        })?;
        // What was only read would be read again after an error, for ever.
        self.filing.note_progress();
        Ok(delta)
    }

    fn size_of(&self, generation: u64) -> u64 {
        self.segments.get(generation).map_or(0, |segment| segment.size)
    }

    /// What sled is to be told of an id: nothing, if something newer is there by now.
    fn op(&self, key: Key, id: &SpoolId, newest: Newest) -> Result<Option<Op>, FilingError> {
        if !self.source.is_newest(id, newest.seq) {
            return Ok(None);
        }
        let change = match newest.place {
            Some(place) => Change::Put(self.record(id, newest.seq, place)?),
            None => Change::Remove,
        };
        Ok(Some(Op { key, change }))
    }

    fn record(&self, id: &SpoolId, seq: u64, place: Place) -> Result<Record, FilingError> {
        let Some(segment) = self.segments.get(place.generation) else {
            let reason = format!("its segment (generation {}) is missing", place.generation);
            return Ok(Record::Damaged { seq, reason });
        };
        let salt = self.segments.salt();
        let read = if u64::from(place.len) <= self.settings.load().separate_above {
            let whole = segment.read_put(salt, id, place);
            whole.map(|(data, _)| Record::Whole { seq, data: data.into_boxed_slice() })
        } else {
            segment.read_payload_crc(salt, id, place).map(|crc| locator(seq, place, crc))
        };
        match read {
            Ok(record) => Ok(record),
            Err(error @ ReadError::Io { .. }) => Err(error.into()),
            Err(error @ ReadError::Damaged { .. }) => {
                self.events.found_damage(id, &error.to_string());
                Ok(Record::Damaged { seq, reason: error.to_string() })
            }
        }
    }

    /// After an error: opens sled again, and counts what it holds.
    pub(super) fn ensure_open(&mut self) -> Result<(), FilingError> {
        if self.durable.is_open() && !self.ledger.filing {
            return Ok(());
        }
        let (segments, ledger, ballast) = (&self.segments, &self.ledger, &self.ballast);
        let journal = self.source.collect(u64::MAX);
        let unfinished = match ledger.filing {
            true => Unfinished::by(ledger, journal.iter().map(|(id, _)| id)),
            // What it holds then is compared below.
            false => Unfinished::any(journal.len() as u64),
        };
        let mut stock = None;
        let mut count = |store: &dyn DurableStore| {
            // What is counted must be on stable storage: segments are given up on the strength of it.
            store.apply(&mut std::iter::empty(), &mut |_, _| {})?;
            let found = take_stock(store, segments, ledger)?;
            let missing = found.missing(ledger.tally.records, unfinished);
            if missing > 0 {
                let what = format!("{} records are there, {missing} more should be", found.tally.records);
                let path = self.ledger_file.path().to_owned();
                return Err(DurableError::Engine { path, doing: "counting again", what, kind: None });
            }
            stock = Some(found);
            Ok(())
        };
        if self.durable.is_open() {
            self.durable.with(|store| count(store))?;
        } else {
            let mut make_room = || {
                ballast.release_for_filing();
                Ok(())
            };
            let reopened = self.durable.reopen(&mut make_room, &mut count).map_err(FilingError::from);
            if reopened.as_ref().is_err_and(FilingError::is_full_disk) {
                // What is filed can't be read meanwhile: the rest of the ballast is for that, too.
                ballast.release();
            }
            reopened?;
        }
        let Some(stock) = stock else { return Ok(()) };
        // Nothing was being changed: it must hold what the ledger says, neither less nor anything else.
        let is_exact = !self.ledger.filing;
        if is_exact && stock.tally != self.ledger.tally {
            self.recount = Recount::Due(Instant::now());
            self.make_agree()?;
        } else {
            self.ledger.take_stock(&stock);
            self.ledger_file.write(&self.ledger)?;
        }
        if is_exact {
            self.recount = Recount::Done;
        }
        Ok(())
    }
}
