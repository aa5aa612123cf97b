//! The index built anew, from the footers of the retained segments and the log of what lives in
//! them.
//!
//! The index is thrown away on any doubt: it is missing, it does not open, one of its calls failed
//! or hung, its files are not what an orderly end left, or it differs from the manifest. What lives
//! is a function of the segments and the manifest alone, so nothing is lost by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use super::leftover::{Leftovers, newest_puts};
use super::manifest::Manifest;
use super::value_log::liveness::{Liveness, LivenessChanges};
use super::value_log::living::{FiledMessage, living_in};
use super::value_log::retained::{Retained, RetainedMap, account, place_of_found, record_at};
use crate::durable::{IndexChange, IndexOp, Record, Tally};
use crate::journal::Segment;

/// How far a rebuild is, for those beside it.
#[derive(Debug, Default)]
pub(crate) struct Rebuilding {
    is_running: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
}

impl Rebuilding {
    /// Messages that are in the new index, and messages in all. `None`: no rebuild runs.
    pub(crate) fn progress(&self) -> Option<(u64, u64)> {
        let done = self.done.load(Ordering::Relaxed);
        self.is_running.load(Ordering::Acquire).then(|| (done, self.total.load(Ordering::Relaxed)))
    }

    fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.is_running.store(true, Ordering::Release);
    }

    fn end(&self) {
        self.is_running.store(false, Ordering::Release);
    }
}

/// What a rebuild found.
#[derive(Debug, Default)]
struct Built {
    tally: Tally,
    retained: RetainedMap,
    /// Messages of which no record can be read any more.
    lost: u64,
}

impl Checkpointer {
    /// Builds the index anew. Beside it, segments in which nothing lives are recycled.
    pub(super) fn rebuild(&mut self) -> Result<(), CheckpointError> {
        let rebuilding = self.rebuilding.clone();
        rebuilding.begin(self.manifest.retained.values().map(|segment| segment.live).sum());
        let built = self.build();
        rebuilding.end();
        if let Err(error) = &built {
            self.durable.let_go(&format!("its rebuild did not end: {error}"));
            if error.is_full_disk() {
                // What is filed can't be read meanwhile: all of the ballast is for that.
                self.ballast.release();
            }
        }
        built
    }

    fn build(&mut self) -> Result<(), CheckpointError> {
        let started = Instant::now();
        let is_retained = |generation: u64| self.manifest.retained.contains_key(&generation);
        let liveness = self.liveness.read(&is_retained)?;
        // Its room is needed where the disk is full, also of inodes.
        self.durable.remove_all()?;
        match self.make_room(self.manifest.tally.records) {
            // It may be enough all the same, and nothing but time is lost where it is not. Without
            // an index nothing that is filed can be read.
            Err(CheckpointError::NoRoom { .. }) => {}
            made => made?,
        }
        self.durable.begin()?;
        let generations: Vec<u64> = self.manifest.retained.keys().copied().collect();
        let (known, unknown): (Vec<u64>, Vec<u64>) =
            generations.into_iter().partition(|generation| liveness.is_exact(*generation));
        let mut built = Built::default();
        for &generation in &known {
            self.check_going_on()?;
            self.add_segment(generation, &liveness, &mut built)?;
            self.recycle_dead()?;
        }
        let is_log_whole = unknown.is_empty() && !liveness.has_gap();
        self.add_unknown(&unknown, &known, &mut built)?;
        self.take_over(built, is_log_whole)?;
        self.durable.finish();
        let (messages, ms) = (self.manifest.tally.records, started.elapsed().as_millis());
        tracing::info!(messages, ms, "the index was rebuilt from the segments");
        self.events.rebuilt(messages, started.elapsed());
        Ok(())
    }

    /// Adds what lives in a segment.
    fn add_segment(
        &self,
        generation: u64,
        liveness: &Liveness,
        built: &mut Built,
    ) -> Result<(), CheckpointError> {
        let expected = liveness.count(generation).unwrap_or(0);
        let Some(segment) = self.segments.get(generation) else {
            self.note_missing(generation, expected, built);
            return Ok(());
        };
        let living = living_in(&segment, self.segments.salt(), liveness)?.into_iter();
        let put = |message: FiledMessage| IndexOp {
            key: message.key,
            change: IndexChange::Put(record_at(message.seq, message.place)),
        };
        let mut ops: Vec<IndexOp> = living.map(put).collect();
        let found = ops.len() as u64;
        ops.sort_unstable_by_key(|op| op.key);
        self.fill(&ops, built)?;
        if found < expected {
            let what = format!(
                "{}: {} of {expected} messages have no record that can be read",
                segment.path.display(),
                expected - found
            );
            built.lost += expected - found;
            self.events.found_loss(expected - found, &what);
        }
        Ok(())
    }

    /// Adds what the other segments tell where it is not known what lives in them: the newest
    /// version of each message. Messages that were removed can come back by this: better twice than
    /// never.
    fn add_unknown(
        &self,
        generations: &[u64],
        known: &[u64],
        built: &mut Built,
    ) -> Result<(), CheckpointError> {
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        for generation in generations {
            match self.segments.get(*generation) {
                Some(segment) => segments.push(segment),
                None => {
                    let live = self.manifest.retained.get(generation).map_or(0, |segment| segment.live);
                    self.note_missing(*generation, live, built);
                }
            }
        }
        if segments.is_empty() {
            return Ok(());
        }
        let mut gone = Leftovers::default();
        for segment in known.iter().filter_map(|generation| self.segments.get(*generation)) {
            gone.add(&segment, self.segments.salt())?;
        }
        let puts = newest_puts(segments.iter().map(|segment| &**segment), self.segments.salt(), gone)?;
        let mut ops = Vec::new();
        for (key, found) in puts {
            let is_newest = |record: Option<Record>| record.is_none_or(|other| other.seq < found.header.seq);
            if is_newest(self.durable.get_filled(&key)?) {
                let record = record_at(found.header.seq, place_of_found(&found));
                ops.push(IndexOp { key, change: IndexChange::Put(record) });
            }
        }
        self.fill(&ops, built)
    }

    fn note_missing(&self, generation: u64, messages: u64, built: &mut Built) {
        built.lost += messages;
        self.events.found_loss(messages, &format!("the segment of generation {generation} is missing"));
    }

    fn fill(&self, ops: &[IndexOp], built: &mut Built) -> Result<(), CheckpointError> {
        let Built { tally, retained, .. } = built;
        let mut filled = ops.iter();
        let delta = self.durable.fill(&mut ops.iter().copied(), &mut |_, before| {
            let after = filled.next().and_then(|op| match op.change {
                IndexChange::Put(record) => Some(record),
                IndexChange::Remove => None,
            });
            account(retained, |generation| self.size_of(generation), before, after);
        })?;
        *tally = tally.plus(delta);
        self.rebuilding.done.fetch_add(ops.len() as u64, Ordering::Relaxed);
        self.checkpoint_requests.note_progress();
        Ok(())
    }

    /// The manifest says what was found, where that differs from what it said.
    fn take_over(&mut self, built: Built, is_log_whole: bool) -> Result<(), CheckpointError> {
        let Built { tally, retained, lost } = built;
        let same = |(generation, found): (&u64, &Retained)| {
            self.manifest
                .retained
                .get(generation)
                .is_some_and(|said| (said.live, said.live_bytes) == (found.live, found.live_bytes))
        };
        let is_same = retained.len() == self.manifest.retained.len() && retained.iter().all(same);
        if is_same && is_log_whole && tally == self.manifest.tally {
            return Ok(());
        }
        let lost = self.manifest.lost + lost;
        self.renew_log(Manifest { tally, retained, lost, ..self.manifest.clone() })
    }

    /// Writes the log anew from the index, and the manifest that names it.
    pub(super) fn renew_log(&mut self, next: Manifest) -> Result<(), CheckpointError> {
        let mut changes = LivenessChanges::default();
        self.durable.scan_all(&mut |_, record| {
            changes.live(record.generation, record.offset);
            true
        })?;
        let liveness = self.liveness.renew(&changes)?;
        self.write_manifest(Manifest { number: next.number + 1, liveness, ..next })
    }

    /// Recycles segments in which nothing lives: that needs no index.
    fn recycle_dead(&mut self) -> Result<(), CheckpointError> {
        let unfiled = self.unfiled();
        match self.dead.count(&unfiled, &*self.source) {
            0 => Ok(()),
            count => match self.checkpoint(unfiled[count - 1].generation) {
                // Removals of what is filed are among it.
                Err(CheckpointError::Rebuilding) => Ok(()),
                done => done,
            },
        }
    }
}
