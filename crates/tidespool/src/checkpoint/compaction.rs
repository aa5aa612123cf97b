//! The checkpoint thread's part of `compact`: everything is filed, and what is retained is
//! rewritten; step by step, so that whatever else the thread has to do waits for one step at most.

use std::time::Instant;

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use super::requests::TaskDone;

/// A compaction under way.
#[derive(Debug)]
pub(crate) struct Compaction {
    /// The newest generation to be filed.
    up_to: u64,
    /// Segments of generations before this one are rewritten: those that it makes itself are as
    /// full as they get.
    before: u64,
    done: TaskDone,
}

impl Checkpointer {
    /// Begins a compaction. It replaces an earlier one, whose callers are gone.
    pub(super) fn begin_compaction(&mut self, done: TaskDone) {
        self.presence.look_at_all();
        let up_to = self.unfiled().last().map_or(0, |segment| segment.generation);
        let before = self.segments.next_generation();
        self.compaction = Some(Compaction { up_to, before, done });
    }

    /// Segments up to this generation are to be filed for a compaction.
    pub(super) fn compaction_due(&self) -> u64 {
        let wanted = self.compaction.as_ref().filter(|compaction| !compaction.done.is_closed());
        wanted.map_or(0, |compaction| compaction.up_to)
    }

    /// When the next step of a compaction is due.
    pub(super) fn compaction_at(&self) -> Option<Instant> {
        self.compaction.as_ref().map(|_| Instant::now())
    }

    /// Makes a step of the compaction, if there is one.
    pub(super) fn compact_some(&mut self) {
        let Some(compaction) = &self.compaction else { return };
        if compaction.done.is_closed() {
            self.compaction = None;
            return;
        }
        let before = compaction.before;
        self.checkpoint_requests.begin_work();
        let step = self.compact_step(before);
        self.note(&step);
        let result = match step {
            Ok(true) => return,
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Some(compaction) = self.compaction.take() {
            // The caller may be gone.
            let _ = compaction.done.send(result);
        }
    }

    /// False: there was nothing left to do.
    fn compact_step(&mut self, before: u64) -> Result<bool, CheckpointError> {
        self.restore_lost()?;
        self.have_index()?;
        self.checkpoint_all_due()?;
        self.release();
        Ok(self.tidy_some(true, before)? > 0)
    }
}
