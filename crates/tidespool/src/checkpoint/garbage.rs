//! Garbage collection and disk use: moves survivors together, checkpoints removals early, deletes
//! free segments.

use std::sync::Arc;
use std::time::Instant;

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use super::reclaim::ReclaimDecision;
use super::room::make_room;
use super::value_log::liveness::LivenessChanges;
use super::value_log::retained::{Retained, choose, place_of_record, record_at};
use crate::index::{IndexChange, IndexOp, Key};
use crate::journal::{ColdWriter, RecordKind, RecordPlace, Segment};

/// A generous estimate of the bytes that a record needs in the index's files.
const RECORD_OVERHEAD: u64 = 256;

/// Bytes moved between two rests of the thread.
const REST_AFTER: u64 = 1 << 20;

/// The result of a copy: changes of the index, and the new segments.
#[derive(Debug, Default)]
struct Moved {
    ops: Vec<IndexOp>,
    cold: Vec<Arc<Segment>>,
    bytes: u64,
}

impl Checkpointer {
    /// Rewrites retained segments that are mostly dead.
    pub(super) fn collect_garbage(&mut self) -> Result<(), CheckpointError> {
        self.release();
        // A segment whose remaining messages are all damaged can't be recycled, and is chosen again
        // and again. So a round that moves nothing is the last.
        let before = self.segments.next_generation();
        while self.collect_garbage_round(false, before)? > 0 {
            // There may be many rounds, and the journal fills up meanwhile.
            self.checkpoint_all_due()?;
        }
        Ok(())
    }

    /// Rewrites a few retained segments of generations before `before`: mostly dead ones, or with
    /// `all` each one with dead records. Returns the bytes moved.
    pub(super) fn collect_garbage_round(&mut self, all: bool, before: u64) -> Result<u64, CheckpointError> {
        let victims = choose(&self.manifest.retained, all, before);
        if victims.is_empty() {
            return Ok(0);
        }
        self.inbox.begin();
        let moved = self.copy_survivors(&victims)?;
        if moved.ops.is_empty() {
            return Ok(0);
        }
        let mut next = self.manifest.clone();
        let mut changes = LivenessChanges::default();
        let bytes = moved.bytes;
        let changed = make_room(&self.durable, &self.ballast, self.segments.pool(), moved.ops.len() as u64)
            .and_then(|()| Ok(self.apply_counted(&mut moved.ops.into_iter(), &mut next, &mut changes)?));
        // After an error the manifest on disk may or may not name the new segments. `release`
        // decides after the next manifest is written.
        changed.and_then(|()| self.commit(next, &changes))?;
        drop(moved.cold);
        self.release();
        self.events.rewritten(bytes);
        Ok(bytes)
    }

    /// Copies the live records of `victims` to cold segments, durably. The index still names the
    /// old places.
    fn copy_survivors(&self, victims: &[u64]) -> Result<Moved, CheckpointError> {
        let chosen = victims.iter().filter_map(|generation| self.manifest.retained.get(generation));
        let expected = chosen.fold(Retained::default(), Retained::plus);
        let mut writer = ColdWriter::new(&self.segments, expected.live, expected.record_bytes());
        let copied = self.copy_all(victims, &mut writer);
        let moved = copied.and_then(|moved| Ok(Moved { cold: writer.finish()?, ..moved }));
        if moved.is_err() {
            writer.discard();
        }
        moved
    }

    fn copy_all(&self, victims: &[u64], writer: &mut ColdWriter<'_>) -> Result<Moved, CheckpointError> {
        let mut moved = Moved::default();
        let salt = self.segments.salt();
        let (mut step, mut rested_at) = (Instant::now(), 0);
        for segment in victims.iter().filter_map(|generation| self.segments.get(*generation)) {
            self.check_going_on()?;
            // A segment is read whole to find its survivors. Segments that stores wait for are
            // checkpointed before the next one is read.
            if moved.bytes > 0 && self.is_waited_for() {
                break;
            }
            for entry in segment.listing(salt)?.entries() {
                let (id, key) = (entry.id, Key::of(&entry.id));
                let place =
                    RecordPlace { generation: segment.generation, offset: entry.offset, len: entry.len };
                if entry.kind != RecordKind::Put {
                    continue;
                }
                let found = self.durable.get(&key)?;
                let Some(record) = found.filter(|record| place_of_record(record) == place) else { continue };
                // A damaged record is not moved, so its segment stays as well.
                let Ok((data, crc)) = segment.read_put(salt, &id, place) else { continue };
                let to = writer.append(id, record.seq, &data, crc)?;
                moved.bytes += u64::from(place.len);
                moved.ops.push(IndexOp { key, change: IndexChange::Put(record_at(record.seq, to)) });
                if moved.bytes - rested_at >= REST_AFTER {
                    self.inbox.rest(step.elapsed(), self.is_urgent());
                    (step, rested_at) = (Instant::now(), moved.bytes);
                }
            }
        }
        moved.ops.sort_by_key(|op| op.key);
        Ok(moved)
    }

    /// If the files exceed their bound, requests a checkpoint of removals or deletes free segments.
    pub(super) fn keep_within_bound(&mut self) {
        let records = self.manifest.tally.records;
        let others = || {
            let index = self.durable.size_on_disk();
            self.ballast.size() + index.saturating_sub(records * RECORD_OVERHEAD)
        };
        let (manifest, segments) = (&self.manifest, &self.segments);
        let decision = self.reclaim.look(
            &manifest.retained,
            segments,
            &*self.source,
            &self.inbox,
            manifest.checkpointed_generation,
            others,
        );
        match decision {
            ReclaimDecision::Nothing => {}
            ReclaimDecision::Seal => {
                self.events.wants_seal();
                // Segments that are already sealed are due now, and may be all there is.
                self.inbox.look_again();
            }
            ReclaimDecision::Trim(count) => segments.pool().trim(count),
        }
    }
}
