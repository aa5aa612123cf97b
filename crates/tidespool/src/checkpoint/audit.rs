//! The index that the last orderly end left, compared with the manifest.
//!
//! Its files are what they were at that end. They may have been damaged before it. Until the
//! comparison is done, the index answers nothing: a wrong answer would be a message that is not
//! found, or one that was removed.

use std::time::Instant;

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use crate::durable::Tally;

/// Records that are counted between two looks at other work.
const BETWEEN_LOOKS: u64 = 1024;

impl Checkpointer {
    /// Has a whole index, and a log from which it can be rebuilt.
    pub(in crate::checkpoint) fn have_index(&mut self) -> Result<(), CheckpointError> {
        if !self.durable.is_whole() {
            self.check_or_rebuild()?;
        }
        // While the index is there, what lives is known. After its loss it would not be.
        if self.liveness.has_gap() {
            self.renew_log(self.manifest.clone())?;
        }
        Ok(())
    }

    /// Makes an index whole that an earlier run left, or builds a new one.
    pub(in crate::checkpoint) fn check_or_rebuild(&mut self) -> Result<(), CheckpointError> {
        if self.durable.is_unchecked() && self.check()? {
            return Ok(());
        }
        self.rebuild()
    }

    /// True if the index holds what the manifest says.
    fn check(&mut self) -> Result<bool, CheckpointError> {
        let started = Instant::now();
        let (mut tally, mut go_on) = (Tally::default(), true);
        let scanned = self.durable.scan_all(&mut |key, record| {
            tally.add(&key, &record.to_bytes());
            if tally.records % BETWEEN_LOOKS == 0 {
                self.checkpoint_requests.note_progress();
                go_on = !self.checkpoint_requests.is_stopped();
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
            Ok(()) => format!("it holds {} places, which differ from the {}", tally.records, should.records),
            Err(error) => error.to_string(),
        };
        tracing::warn!(path = %self.durable.path().display(), why, "the index is not what the manifest says: it is rebuilt");
        self.durable.let_go(&why);
        Ok(false)
    }
}
