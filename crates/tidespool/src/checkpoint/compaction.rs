//! The checkpointer's part of `compact`: checkpoints everything and rewrites the retained segments.
//! It runs step by step, so that other work waits for one step at most.

use std::time::Instant;

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use super::requests::TaskDone;

/// A compaction in progress.
#[derive(Debug)]
pub(crate) struct Compaction {
    /// The newest generation to checkpoint.
    up_to: u64,
    /// Only segments of earlier generations are rewritten. The segments that the compaction itself
    /// creates are full.
    before: u64,
    done: TaskDone,
}

impl Checkpointer {
    /// Begins a compaction. It replaces an earlier one whose callers are gone.
    pub(super) fn begin_compaction(&mut self, done: TaskDone) {
        self.presence.look_at_all();
        let up_to = self.uncheckpointed().last().map_or(0, |segment| segment.generation);
        let before = self.segments.next_generation();
        self.compaction = Some(Compaction { up_to, before, done });
    }

    /// Returns the generation up to which a compaction needs checkpoints. 0 if there is none.
    pub(super) fn compaction_due(&self) -> u64 {
        let wanted = self.compaction.as_ref().filter(|compaction| !compaction.done.is_closed());
        wanted.map_or(0, |compaction| compaction.up_to)
    }

    /// Returns when the next step of a compaction is due.
    pub(super) fn compaction_at(&self) -> Option<Instant> {
        self.compaction.as_ref().map(|_| Instant::now())
    }

    /// Runs one step of the compaction, if there is one.
    pub(super) fn compact_some(&mut self) {
        let Some(compaction) = &self.compaction else { return };
        if compaction.done.is_closed() {
            self.compaction = None;
            return;
        }
        let before = compaction.before;
        self.inbox.begin_work();
        let step = self.compact_step(before);
        self.note(&step);
        let result = match step {
            Ok(true) => return,
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Some(compaction) = self.compaction.take() {
            // The caller may have given up.
            let _ = compaction.done.send(result);
        }
    }

    /// Returns false if nothing was left to do.
    fn compact_step(&mut self, before: u64) -> Result<bool, CheckpointError> {
        self.restore_lost()?;
        self.ensure_index()?;
        self.checkpoint_all_due()?;
        self.release();
        Ok(self.collect_garbage_round(true, before)? > 0)
    }
}
