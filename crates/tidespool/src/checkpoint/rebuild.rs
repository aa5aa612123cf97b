//! Rebuilds the index from the footers of the retained segments and from the liveness log.
//!
//! The index is discarded if it is missing, does not open, differs from the manifest, or has files
//! other than those of the last orderly shutdown. It is also discarded after a call that failed or
//! hung. The segments and the manifest alone define the live messages, so this loses nothing.

use std::sync::Arc;
use std::time::Instant;

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use super::leftover::{Leftovers, newest_puts};
use super::manifest::Manifest;
use super::room::make_room;
use super::value_log::liveness::{Liveness, LivenessChanges};
use super::value_log::living::{CheckpointedMessage, living_in};
use super::value_log::retained::{Retained, RetainedMap, account, place_of_found, record_at};
use crate::index::{IndexChange, IndexOp, Record, Tally};
use crate::journal::Segment;

/// The result of a rebuild.
#[derive(Debug, Default)]
struct Built {
    tally: Tally,
    retained: RetainedMap,
    /// Messages without a readable record.
    lost: u64,
}

impl Checkpointer {
    /// Rebuilds the index. Segments without live messages are recycled meanwhile.
    pub(super) fn rebuild(&mut self) -> Result<(), CheckpointError> {
        let rebuilding = self.rebuilding.clone();
        rebuilding.begin(self.manifest.retained.values().map(|segment| segment.live).sum());
        let built = self.build();
        rebuilding.end();
        if let Err(error) = &built {
            self.durable.let_go(&format!("its rebuild failed: {error}"));
            if error.is_full_disk() {
                // Indexed messages can't be read until the rebuild succeeds, so it gets the whole
                // ballast.
                self.ballast.release();
            }
        }
        built
    }

    fn build(&mut self) -> Result<(), CheckpointError> {
        let started = Instant::now();
        let is_retained = |generation: u64| self.manifest.retained.contains_key(&generation);
        let liveness = self.liveness.read(&is_retained)?;
        // Frees the space and the inodes of the old index, in case the disk is full.
        self.durable.remove_all()?;
        match make_room(&self.durable, &self.ballast, self.segments.pool(), self.manifest.tally.records) {
            // The space may suffice anyway, and a failed try costs only time. Without an index no
            // checkpointed message can be read.
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

    /// Adds the live messages of a segment to the index.
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
        let put = |message: CheckpointedMessage| IndexOp {
            key: message.key,
            change: IndexChange::Put(record_at(message.seq, message.place)),
        };
        let mut ops: Vec<IndexOp> = living.map(put).collect();
        let found = ops.len() as u64;
        ops.sort_unstable_by_key(|op| op.key);
        self.fill(&ops, built)?;
        if found < expected {
            let what = format!(
                "{}: {} of {expected} messages have no readable record",
                segment.path.display(),
                expected - found
            );
            built.lost += expected - found;
            self.events.found_loss(expected - found, &what);
        }
        Ok(())
    }

    /// Adds the newest version of each message in the segments without an exact list. This may
    /// bring removed messages back: a duplicate is better than a loss.
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
        self.rebuilding.add(ops.len() as u64);
        self.inbox.note_progress();
        Ok(())
    }

    /// Writes a new manifest if the found messages differ from it.
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

    /// Writes a new liveness log from the index, and the manifest that names the log.
    pub(super) fn renew_log(&mut self, next: Manifest) -> Result<(), CheckpointError> {
        let mut changes = LivenessChanges::default();
        self.durable.scan_all(&mut |_, record| {
            changes.live(record.generation, record.offset);
            true
        })?;
        let liveness = self.liveness.renew(&changes)?;
        self.write_manifest(Manifest { number: next.number + 1, liveness, ..next })
    }

    /// Recycles segments without live messages, which needs no index.
    fn recycle_dead(&mut self) -> Result<(), CheckpointError> {
        let uncheckpointed = self.uncheckpointed();
        match self.dead.count(&uncheckpointed, &*self.source) {
            0 => Ok(()),
            count => match self.checkpoint(uncheckpointed[count - 1].generation) {
                // These segments hold removals of indexed messages.
                Err(CheckpointError::Rebuilding) => Ok(()),
                done => done,
            },
        }
    }
}
