//! Compares the index of the last orderly shutdown with the manifest.
//!
//! The files are unchanged since that shutdown, but may have been damaged before it. The index
//! answers nothing until the audit is done. A wrong answer would lose a message or bring back a
//! removed one.

use std::time::Instant;

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use crate::index::Tally;

/// Records counted between two checks for a stop.
const BETWEEN_LOOKS: u64 = 1024;

impl Checkpointer {
    /// Ensures a complete index, and a liveness log from which it can be rebuilt.
    pub(super) fn ensure_index(&mut self) -> Result<(), CheckpointError> {
        if !self.durable.is_whole() {
            self.check_or_rebuild()?;
        }
        // The log is written from the index while the index exists.
        if self.liveness.has_gap() {
            self.renew_log(self.manifest.clone())?;
        }
        Ok(())
    }

    /// Completes an index of an earlier run, or builds a new one.
    pub(super) fn check_or_rebuild(&mut self) -> Result<(), CheckpointError> {
        if self.durable.is_unchecked() && self.check()? {
            return Ok(());
        }
        self.rebuild()
    }

    /// Returns true if the index holds the records that the manifest counts.
    fn check(&mut self) -> Result<bool, CheckpointError> {
        let started = Instant::now();
        let (mut tally, mut go_on) = (Tally::default(), true);
        let scanned = self.durable.scan_all(&mut |key, record| {
            tally.add(&key, &record.to_bytes());
            if tally.records % BETWEEN_LOOKS == 0 {
                self.inbox.note_progress();
                go_on = !self.inbox.is_stopped();
            }
            go_on
        });
        self.check_going_on()?;
        let should = self.manifest.tally;
        let why = match scanned {
            Ok(()) if tally == should => {
                self.durable.finish();
                let ms = started.elapsed().as_millis();
                tracing::debug!(messages = tally.records, ms, "the index of the last run is kept");
                return Ok(true);
            }
            Ok(()) => format!(
                "it holds {} records, which differ from the {} of the manifest",
                tally.records, should.records
            ),
            Err(error) => error.to_string(),
        };
        tracing::warn!(path = %self.durable.path().display(), why, "the index differs from the manifest: it is rebuilt");
        self.durable.let_go(&why);
        Ok(false)
    }
}
