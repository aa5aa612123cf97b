//! The state of the checkpointer thread, and one checkpoint: collect, index in key order, commit,
//! forget, recycle. Only this thread changes the index, the manifest and the liveness log.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::ballast::Ballast;
use super::dead_segments::{DeadSegments, dead_segments};
use super::manifest::{Manifest, ManifestFile};
use super::progress::Rebuilding;
use super::reclaim::ReclaimPolicy;
use super::requests::TaskDone;
use super::room::make_room;
use super::value_log::liveness::{LivenessChanges, LivenessLog};
use super::value_log::retained::{account, record_at};
use super::{CheckpointError, CheckpointEvents, CheckpointInbox, LiveIndex, Presence};
use crate::index::{DiskIndex, IndexChange, IndexError, IndexOp, Key};
use crate::journal::{NewestRecord, RESERVED, Role, Segment, Segments};

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The most segments in one checkpoint. Keeps the collected records few, and frees the first
/// segments soon.
const AT_ONCE: usize = 8;

/// The most records in one checkpoint, unless its first segment alone has more. A segment full of
/// small messages has half a million.
const RECORDS_AT_ONCE: u64 = 128 * 1024;

/// Changes between two rests of the thread.
const REST_AFTER: usize = 1_024;

/// Settings of the thread, which may change at any time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckpointSettings {
    /// Sealed segments are checkpointed at this age.
    pub(crate) checkpoint_after: Duration,
}

/// The state of the checkpointer thread.
pub(crate) struct Checkpointer {
    pub(crate) segments: Arc<Segments>,
    pub(crate) durable: Arc<DiskIndex>,
    pub(crate) source: Arc<dyn LiveIndex>,
    pub(crate) inbox: CheckpointInbox,
    pub(crate) events: Arc<dyn CheckpointEvents>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) manifest_file: Arc<ManifestFile>,
    pub(crate) manifest: Manifest,
    pub(crate) liveness: LivenessLog,
    pub(crate) rebuilding: Arc<Rebuilding>,
    pub(crate) ballast: Arc<Ballast>,
    pub(crate) settings: Arc<ArcSwap<CheckpointSettings>>,
    pub(crate) retry: Retry,
    pub(crate) dead: DeadSegments,
    pub(crate) reclaim: ReclaimPolicy,
    pub(crate) compaction: Option<Compaction>,
    /// Segments up to this generation are due, because one of them was cut short.
    pub(crate) cut_up_to: u64,
    /// A write of the manifest failed: the disk may hold the new manifest or the previous one.
    pub(crate) is_manifest_in_doubt: bool,
}

/// A compaction in progress.
#[derive(Debug)]
pub(crate) struct Compaction {
    /// The newest generation to checkpoint.
    pub(super) up_to: u64,
    /// Only segments of earlier generations are rewritten. The segments that the compaction itself
    /// creates are full.
    pub(super) before: u64,
    pub(super) done: TaskDone,
}

impl Compaction {
    /// Returns the generation up to which checkpoints are needed. 0 if no caller waits any longer.
    fn due(&self) -> u64 {
        if self.done.is_closed() { 0 } else { self.up_to }
    }
}

/// The pause after a failure, which doubles with each further failure up to a bound.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    pause: Option<Duration>,
    pub(super) at: Option<Instant>,
}

impl Retry {
    pub(super) fn failed(&mut self) {
        let pause = self.pause.map_or(RETRY.0, |pause| (pause * 2).min(RETRY.1));
        (self.pause, self.at) = (Some(pause), Some(Instant::now() + pause));
    }
}

impl Checkpointer {
    /// Returns the journal's segments that can be checkpointed, oldest first.
    pub(super) fn uncheckpointed(&self) -> Vec<Arc<Segment>> {
        let mut segments = self.segments.all();
        segments.retain(|segment| {
            segment.role == Role::Journal && segment.generation > self.manifest.checkpointed_generation
        });
        let settled = segments.iter().take_while(|segment| segment.settled_at().is_some()).count();
        segments.truncate(settled);
        segments
    }

    /// Checkpoints all due segments, a few at a time.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Stopped`] if shutdown interrupted it, or may have.
    pub(super) fn checkpoint_all_due(&mut self) -> Result<(), CheckpointError> {
        while self.checkpoint_due()? {
            self.check_going_on()?;
        }
        self.check_going_on()
    }

    pub(super) fn check_going_on(&self) -> Result<(), CheckpointError> {
        if self.inbox.is_stopped() { Err(CheckpointError::Stopped) } else { Ok(()) }
    }

    /// Returns how many segments to checkpoint because few are free: up to half of the capacity,
    /// and at least the number that stores need to continue. 0 if enough are free.
    fn missing(&self) -> usize {
        /// The least headroom, in segments.
        const ENOUGH: usize = RESERVED + 2;
        let pool = self.segments.pool();
        match pool.headroom() {
            headroom if headroom < ENOUGH || headroom * 4 < pool.capacity() => {
                (pool.capacity() / 2).max(ENOUGH).saturating_sub(headroom)
            }
            _ => 0,
        }
    }

    /// Returns true if stores will soon wait for segments that can be checkpointed. Other work then
    /// stops to let the checkpoint run.
    pub(super) fn is_waited_for(&self) -> bool {
        self.missing() > 0 && !self.uncheckpointed().is_empty()
    }

    /// Checkpoints a few segments if some are due. Returns true if it did.
    pub(super) fn checkpoint_due(&mut self) -> Result<bool, CheckpointError> {
        let uncheckpointed = self.uncheckpointed();
        let now = Instant::now();
        let missing = self.missing();
        let checkpoint_after = self.settings.load().checkpoint_after;
        let due = |at: Instant| at + checkpoint_after <= now;
        let compaction_due = self.compaction.as_ref().map_or(0, Compaction::due);
        let wanted_up_to = self.reclaim.due().max(compaction_due).max(self.cut_up_to);
        let wanted = |segment: &Segment| segment.generation <= wanted_up_to;
        let count = uncheckpointed
            .iter()
            .enumerate()
            .take_while(|(number, segment)| {
                *number < missing || wanted(segment) || segment.settled_at().is_some_and(due)
            })
            .count();
        let count = count.max(self.dead.count(&uncheckpointed, &*self.source)).min(AT_ONCE);
        let few = |segment: &&Arc<Segment>| {
            segment.last_seq().saturating_sub(self.manifest.checkpointed_seq) <= RECORDS_AT_ONCE
        };
        let count = count.min(uncheckpointed.iter().take_while(few).count().max(1));
        match count.checked_sub(1).map(|last| uncheckpointed[last].generation) {
            Some(generation) => match self.checkpoint(generation) {
                Err(error) if error.is_full_disk() => self.checkpoint_dead(&uncheckpointed, error),
                done => done.map(|()| true),
            },
            None => Ok(false),
        }
    }

    /// Checkpoints the oldest segments without live messages. On a full disk this frees segments
    /// for removals, and needs no change of the index.
    fn checkpoint_dead(
        &mut self,
        uncheckpointed: &[Arc<Segment>],
        error: CheckpointError,
    ) -> Result<bool, CheckpointError> {
        match dead_segments(uncheckpointed, &*self.source).last() {
            Some(last) => self.checkpoint(last.generation).map(|()| true),
            None => Err(error),
        }
    }

    /// Checkpoints every record in segments up to `up_to`.
    pub(super) fn checkpoint(&mut self, up_to: u64) -> Result<(), CheckpointError> {
        let started = Instant::now();
        let mut collected = self.source.collect(up_to);
        collected.sort_unstable_by_key(|(key, _)| *key);
        // A removal of an id that was never checkpointed changes nothing in the index.
        let high = self.manifest.high;
        let changes_index = |key: &Key, newest: &NewestRecord| newest.place.is_some() || high.may_have(key);
        let records = collected.iter().filter(|(key, newest)| changes_index(key, newest)).count() as u64;
        if records > 0 && !self.durable.is_whole() {
            return Err(CheckpointError::Rebuilding);
        }
        let mut next = self.manifest.clone();
        collected
            .iter()
            .filter(|(_, newest)| newest.place.is_some())
            .for_each(|(key, _)| next.high.raise(*key));
        self.source.will_checkpoint(next.high);
        let mut changes = LivenessChanges::default();
        if records > 0 {
            make_room(&self.durable, &self.ballast, self.segments.pool(), records)?;
            self.apply_collected(&collected, &changes_index, &mut next, &mut changes)?;
        }
        let checkpointed: Vec<Arc<Segment>> =
            self.uncheckpointed().into_iter().filter(|segment| segment.generation <= up_to).collect();
        next.checkpointed_generation = up_to;
        next.next_generation = self.segments.reserved_generation();
        let last_seq = checkpointed.iter().map(|segment| segment.last_seq()).max().unwrap_or(0);
        next.checkpointed_seq = next.checkpointed_seq.max(last_seq);
        next.durable_seq = next.durable_seq.max(next.checkpointed_seq);
        self.commit(next, &changes)?;
        let segments = checkpointed.len() as u64;
        // A held `Arc` would keep the segment from being recycled.
        drop(checkpointed);
        self.source.forget(&collected);
        self.release();
        self.inbox.note_progress();
        self.events.checkpointed(records, segments, started.elapsed());
        Ok(())
    }

    /// Makes `next` durable: first the liveness log, then the manifest that names its end. If that
    /// fails, the index is ahead of the manifest, so it is taken out of use and rebuilt.
    pub(super) fn commit(
        &mut self,
        next: Manifest,
        changes: &LivenessChanges,
    ) -> Result<(), CheckpointError> {
        let committed = self.try_commit(next, changes);
        if let Err(error) = &committed
            && !changes.is_empty()
        {
            self.durable.let_go(&format!("a checkpoint that changed the index failed: {error}"));
        }
        committed
    }

    fn try_commit(&mut self, mut next: Manifest, changes: &LivenessChanges) -> Result<(), CheckpointError> {
        next.number += 1;
        next.retained.retain(|_, segment| segment.live > 0);
        let is_retained = |generation: u64| next.retained.contains_key(&generation);
        if self.liveness.wants_compaction(&is_retained) {
            next.liveness = self.liveness.compact(&is_retained, changes)?;
        } else if !changes.is_empty() {
            next.liveness = self.liveness.append(changes)?;
        }
        self.write_manifest(next)
    }

    pub(super) fn write_manifest(&mut self, next: Manifest) -> Result<(), CheckpointError> {
        self.is_manifest_in_doubt = true;
        self.manifest_file.write(&next)?;
        self.is_manifest_in_doubt = false;
        self.liveness.committed(next.liveness);
        self.presence.watch_liveness(self.liveness.kept_file());
        self.manifest = next;
        Ok(())
    }

    /// Recycles the checkpointed segments without live messages and retains the others. The
    /// manifest decides, not the changes of the last step, because an earlier step may have failed
    /// half-way.
    pub(super) fn release(&self) {
        // After a crash either manifest may be the valid one, so each segment that one of them
        // names must stay.
        if self.is_manifest_in_doubt {
            return;
        }
        for segment in self.segments.all() {
            let is_checkpointed =
                segment.role == Role::Cold || segment.generation <= self.manifest.checkpointed_generation;
            if !is_checkpointed {
                continue;
            }
            if self.manifest.retained.contains_key(&segment.generation) {
                self.segments.retain(&segment);
            } else {
                let generation = segment.generation;
                drop(segment);
                self.segments.retire(generation);
                self.ballast.room().note_given();
                self.events.recycled();
            }
        }
        self.segments.release_unread();
    }

    /// Applies the collected records to the index and to `next`. Shutdown does not interrupt it,
    /// because a half-changed index would have to be rebuilt.
    fn apply_collected(
        &self,
        entries: &[(Key, NewestRecord)],
        changes_index: &dyn Fn(&Key, &NewestRecord) -> bool,
        next: &mut Manifest,
        changes: &mut LivenessChanges,
    ) -> Result<(), IndexError> {
        self.inbox.begin();
        let mut step = Instant::now();
        let mut ops = entries.iter().enumerate().filter_map(|(number, (key, newest))| {
            if number % REST_AFTER == REST_AFTER - 1 {
                self.inbox.rest(step.elapsed(), self.is_urgent());
                step = Instant::now();
            }
            changes_index(key, newest).then(|| self.op(key, newest)).flatten()
        });
        self.apply_counted(&mut ops, next, changes)
    }

    /// Returns true if the journal is nearly full, so that stores would wait for this checkpoint.
    pub(super) fn is_urgent(&self) -> bool {
        let pool = self.segments.pool();
        let headroom = pool.headroom();
        headroom <= RESERVED + 1 || headroom * 8 < pool.capacity()
    }

    /// Applies `ops` to the index, and counts the live messages of each retained segment.
    pub(super) fn apply_counted(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        next: &mut Manifest,
        changes: &mut LivenessChanges,
    ) -> Result<(), IndexError> {
        // The engine takes some ops ahead before it returns the replaced record of the first one.
        let ahead = RefCell::new(VecDeque::new());
        let mut ops = ops.inspect(|op| ahead.borrow_mut().push_back(op.change));
        let mut steps = 0_usize;
        let delta = self.durable.apply(&mut ops, &mut |_, before| {
            let after = match ahead.borrow_mut().pop_front() {
                Some(IndexChange::Put(record)) => Some(record),
                Some(IndexChange::Remove) | None => None,
            };
            account(&mut next.retained, |generation| self.size_of(generation), before, after);
            before.inspect(|before| changes.dead(before.generation, before.offset));
            after.inspect(|after| changes.live(after.generation, after.offset));
            steps += 1;
            if steps.is_multiple_of(REST_AFTER) {
                self.inbox.note_progress();
            }
        })?;
        next.tally = next.tally.plus(delta);
        self.inbox.note_progress();
        Ok(())
    }

    pub(super) fn size_of(&self, generation: u64) -> u64 {
        self.segments.get(generation).map_or(0, |segment| segment.size)
    }

    /// Returns the index change for an id. `None` if the record is not the newest one.
    fn op(&self, key: &Key, newest: &NewestRecord) -> Option<IndexOp> {
        if !self.source.is_newest(&key.message(), newest.seq) {
            return None;
        }
        let change = match newest.place {
            Some(place) => IndexChange::Put(record_at(newest.seq, place)),
            None => IndexChange::Remove,
        };
        Some(IndexOp { key: *key, change })
    }
}
