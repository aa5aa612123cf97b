//! The checkpointer thread: does the work that is due, and the requested tasks. A compaction
//! checkpoints everything and rewrites the retained segments. It runs step by step, so that other
//! work waits for one step at most.

use std::time::Instant;

use super::CheckpointError;
use super::checkpointer::{Checkpointer, Compaction, Retry};
use super::requests::{CheckpointTask, CheckpointWork, TaskDone};

impl Checkpointer {
    /// Runs until it is stopped, then returns itself with the last manifest.
    pub(crate) fn run(mut self) -> Self {
        self.presence.watch_liveness(self.liveness.kept_file());
        // A journal that was found full at open waits for this.
        self.look();
        loop {
            match self.inbox.wait(self.wake_at()) {
                CheckpointWork::Stop => {
                    // The caller of a compaction need not wait until the other workers have ended.
                    self.compaction = None;
                    return self;
                }
                CheckpointWork::Look => self.look(),
                CheckpointWork::Task(CheckpointTask::Cleanup(done)) => self.clean_up(done),
                CheckpointWork::Task(CheckpointTask::Compact(done)) => self.begin_compaction(done),
            }
            self.compact_some();
        }
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.compaction.is_some() {
            return Some(Instant::now());
        }
        if self.retry.at.is_some() {
            return self.retry.at;
        }
        let oldest = self.uncheckpointed().first().and_then(|segment| segment.settled_at());
        let due_at = oldest.map(|at| at + self.settings.load().checkpoint_after);
        [due_at, self.reclaim.wake_at(), self.look_again_at()].into_iter().flatten().min()
    }

    fn look(&mut self) {
        if self.retry.at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.inbox.begin_work();
        let done = self.run_due_work();
        self.note(&done);
    }

    /// Does all work that is due.
    pub(super) fn run_due_work(&mut self) -> Result<(), CheckpointError> {
        let restored = self.restore_lost();
        // Moves nothing out of the journal while the next start would not find the target files.
        if self.presence.is_away() {
            return restored;
        }
        // A file that can't be restored yet does not stop checkpoints, because checkpoints free
        // space.
        self.supervise_checkpoints().and(restored)
    }

    fn supervise_checkpoints(&mut self) -> Result<(), CheckpointError> {
        // Loads need the index, even if there is nothing to checkpoint.
        self.ensure_index()?;
        self.checkpoint_all_due()?;
        // A full disk blocks garbage collection, but must not block the removals that free space.
        let collected = match self.collect_garbage() {
            Err(error) if error.is_full_disk() => {
                self.events.failed(&error);
                Ok(())
            }
            collected => collected,
        };
        self.keep_within_bound();
        collected
    }

    pub(super) fn note<T>(&mut self, done: &Result<T, CheckpointError>) {
        match done {
            Ok(_) => {
                self.retry = Retry::default();
                self.ballast.restore();
                // Called last, because restoring the ballast may also hang on a bad disk.
                self.inbox.end_work();
            }
            Err(error) => {
                self.events.failed(error);
                self.retry.failed();
                if error.is_full_disk() {
                    self.ballast.release_for_checkpoint();
                }
            }
        }
    }

    fn clean_up(&mut self, done: TaskDone) {
        if done.is_closed() {
            return;
        }
        self.inbox.begin_work();
        self.presence.look_at_all();
        // A task that shutdown interrupted reports `Stopped`.
        let result = self.run_due_work().and_then(|()| self.check_going_on());
        self.note(&result);
        // The caller may have given up. The work is done anyway.
        let _ = done.send(result);
    }

    /// Begins a compaction. It replaces an earlier one whose callers are gone.
    pub(super) fn begin_compaction(&mut self, done: TaskDone) {
        self.presence.look_at_all();
        let up_to = self.uncheckpointed().last().map_or(0, |segment| segment.generation);
        let before = self.segments.next_generation();
        self.compaction = Some(Compaction { up_to, before, done });
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
