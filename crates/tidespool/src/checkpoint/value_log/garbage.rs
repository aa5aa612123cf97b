//! What the checkpoint thread does to keep the files small: survivors are moved together, removals are filed early, free segments are given up.

use super::liveness::LivenessChanges;
use super::retained::{Between, Retained, choose, copy_survivors};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::checkpointer::Checkpointer;
use crate::checkpoint::reclaim::ReclaimDecision;

/// What a record needs in the index's files, in bytes, generously.
const RECORD_OVERHEAD: u64 = 256;

impl Checkpointer {
    /// Rewrites retained segments that are mostly dead.
    pub(in crate::checkpoint) fn tidy(&mut self) -> Result<(), CheckpointError> {
        self.release();
        // One in which all that is left is damaged can't be given up, and is chosen again and again: a round that moves nothing is the last.
        let before = self.segments.next_generation();
        while self.tidy_some(false, before)? > 0 {
            // There may be many rounds, and the journal runs full meanwhile.
            self.checkpoint_all_due()?;
        }
        Ok(())
    }

    /// Rewrites a few retained segments from before this generation: of those that are mostly dead,
    /// or with `all` of those with something dead in them. Returns how many bytes were moved.
    pub(in crate::checkpoint) fn tidy_some(
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
        self.checkpoint_requests.begin();
        let rest = |worked| self.checkpoint_requests.rest(worked, self.is_urgent());
        // A segment is read whole to find its survivors. What stores wait for is filed before the
        // next one.
        let go_on = |moved| {
            self.check_going_on()?;
            Ok(moved == 0 || !self.is_waited_for())
        };
        let between = Between { rest: &rest, go_on: &go_on };
        let moved = copy_survivors(&self.segments, &self.durable, &victims, expected, &between)?;
        if moved.ops.is_empty() {
            return Ok(0);
        }
        let mut next = self.manifest.clone();
        let mut changes = LivenessChanges::default();
        let bytes = moved.bytes;
        let changed = self
            .make_room(moved.ops.len() as u64)
            .and_then(|()| Ok(self.apply_counted(&mut moved.ops.into_iter(), &mut next, &mut changes)?));
        // After an error the manifest on disk may name the new segments or not: `release` decides,
        // when the next one is written.
        changed.and_then(|()| self.commit(next, &changes))?;
        drop(moved.cold);
        self.release();
        self.events.rewritten(bytes);
        Ok(bytes)
    }

    /// Where the files are over their bound: has removals filed, or gives free segments up.
    pub(in crate::checkpoint) fn keep_within_bound(&mut self) {
        let records = self.manifest.tally.records;
        let others = || {
            let sled = self.durable.size_on_disk();
            self.ballast.size() + sled.saturating_sub(records * RECORD_OVERHEAD)
        };
        let (manifest, segments) = (&self.manifest, &self.segments);
        let verdict = self.reclaim.look(
            &manifest.retained,
            segments,
            &*self.source,
            &self.checkpoint_requests,
            manifest.filed_generation,
            others,
        );
        match verdict {
            ReclaimDecision::Nothing => {}
            ReclaimDecision::Seal => {
                self.events.wants_seal();
                // What is sealed already is due now, and there may be nothing else.
                self.checkpoint_requests.kick();
            }
            ReclaimDecision::Trim(count) => segments.pool().trim(count),
        }
    }
}
