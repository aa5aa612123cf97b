//! Garbage collection and disk use: moves survivors together, checkpoints removals early, deletes
//! free segments.

use super::liveness::LivenessChanges;
use super::retained::{CopyHooks, Retained, choose, copy_survivors};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::checkpointer::Checkpointer;
use crate::checkpoint::reclaim::ReclaimDecision;

/// A generous estimate of the bytes that a record needs in the index's files.
const RECORD_OVERHEAD: u64 = 256;

impl Checkpointer {
    /// Rewrites retained segments that are mostly dead.
    pub(in crate::checkpoint) fn collect_garbage(&mut self) -> Result<(), CheckpointError> {
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
    pub(in crate::checkpoint) fn collect_garbage_round(
        &mut self,
        all: bool,
        before: u64,
    ) -> Result<u64, CheckpointError> {
        let victims = choose(&self.manifest.retained, all, before);
        if victims.is_empty() {
            return Ok(0);
        }
        let chosen = victims.iter().filter_map(|generation| self.manifest.retained.get(generation));
        let expected = chosen.fold(Retained::default(), Retained::plus);
        self.inbox.begin();
        let rest = |worked| self.inbox.rest(worked, self.is_urgent());
        // A segment is read whole to find its survivors. Segments that stores wait for are
        // checkpointed before the next one is read.
        let go_on = |moved| {
            self.check_going_on()?;
            Ok(moved == 0 || !self.is_waited_for())
        };
        let hooks = CopyHooks { rest: &rest, go_on: &go_on };
        let moved = copy_survivors(&self.segments, &self.durable, &victims, expected, &hooks)?;
        if moved.ops.is_empty() {
            return Ok(0);
        }
        let mut next = self.manifest.clone();
        let mut changes = LivenessChanges::default();
        let bytes = moved.bytes;
        let changed = self
            .make_room(moved.ops.len() as u64)
            .and_then(|()| Ok(self.apply_counted(&mut moved.ops.into_iter(), &mut next, &mut changes)?));
        // After an error the manifest on disk may or may not name the new segments. `release`
        // decides after the next manifest is written.
        changed.and_then(|()| self.commit(next, &changes))?;
        drop(moved.cold);
        self.release();
        self.events.rewritten(bytes);
        Ok(bytes)
    }

    /// If the files exceed their bound, requests a checkpoint of removals or deletes free segments.
    pub(in crate::checkpoint) fn keep_within_bound(&mut self) {
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
