//! The verification thread: reads every byte of every checkpointed message while the spool runs. It
//! only reads, so checkpoints, recycling and garbage collection continue meanwhile.
//!
//! It takes records from the index a few at a time, and reads their payloads while no scan of the
//! index is open. A disk that hangs in a segment then blocks the verification alone.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::value_log::retained::{describe, place_of_record};
use super::{CheckpointError, CheckpointEvents, CheckpointRequests, LiveIndex};
use crate::index::{DiskIndex, IndexError, Key, KeyRange, Record};
use crate::journal::{ReadError, Segments};
use crate::mailbox::Mailbox;
use crate::message_id::MessageId;

/// Records taken from the index at a time.
const STEP: usize = 256;

/// A damaged message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) id: MessageId,
    pub(crate) what: String,
}

/// The damaged messages that a verification found.
#[derive(Debug, Clone, Default)]
pub(crate) struct VerificationReport {
    pub(crate) count: u64,
    pub(crate) first: Option<Finding>,
}

type Done = oneshot::Sender<Result<VerificationReport, CheckpointError>>;

/// The request to the thread. There is at most one, because callers share a verification.
#[derive(Debug, Default)]
pub(crate) struct VerificationRequests(Mailbox<VerifierState>);

#[derive(Debug, Default)]
struct VerifierState {
    asked: Option<Done>,
    stopped: bool,
}

impl VerificationRequests {
    /// Requests a verification of all checkpointed messages. It replaces a request that has not
    /// begun. The receiver returns an error if the thread has ended. Dropping the receiver stops
    /// the verification before the next message.
    pub(crate) fn ask(&self) -> oneshot::Receiver<Result<VerificationReport, CheckpointError>> {
        let (done, receiver) = oneshot::channel();
        self.0.post(|state| {
            if !state.stopped {
                state.asked = Some(done);
            }
        });
        receiver
    }

    /// Stops the thread before the next message.
    pub(crate) fn stop(&self) {
        self.0.post(|state| *state = VerifierState { asked: None, stopped: true });
    }

    fn is_stopped(&self) -> bool {
        self.0.lock().stopped
    }

    /// Waits for a request. `None` if the thread must end.
    fn wait(&self) -> Option<Done> {
        self.0.wait(None, |state| if state.stopped { Some(None) } else { state.asked.take().map(Some) })?
    }
}

/// The state of the verification thread.
pub(crate) struct Verifier {
    pub(crate) segments: Arc<Segments>,
    pub(crate) durable: Arc<DiskIndex>,
    pub(crate) source: Arc<dyn LiveIndex>,
    pub(crate) checkpoint_requests: Arc<CheckpointRequests>,
    pub(crate) events: Arc<dyn CheckpointEvents>,
    pub(crate) verification: Arc<VerificationRequests>,
}

impl Verifier {
    /// Runs until it is stopped.
    pub(crate) fn run(&self) {
        let _end = CloseVerificationOnExit(&self.verification);
        while let Some(done) = self.verification.wait() {
            let result = self.verify(&|| !done.is_closed() && !self.verification.is_stopped());
            if let Err(error) = &result {
                self.note(error);
            }
            // The caller may have given up.
            let _ = done.send(result);
        }
    }

    /// Checks every checkpointed message. Calls `go_on` before each.
    ///
    /// Messages that are added, replaced, moved or removed meanwhile are not reported. Every
    /// message that stays in place is checked.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Stopped`] if `go_on` returned false; an I/O error.
    fn verify(&self, go_on: &dyn Fn() -> bool) -> Result<VerificationReport, CheckpointError> {
        let mut findings = VerificationReport::default();
        let mut left = KeyRange::ALL;
        loop {
            let step = self.next_records(&left)?;
            let Some((last, _)) = step.last() else { break };
            left = left.after(last);
            for (key, record) in step {
                if !go_on() {
                    return Err(CheckpointError::Stopped);
                }
                if let Some(what) = self.damage_of(&key, record)? {
                    let finding = Finding { id: key.message(), what };
                    self.events.found_damage(&finding.id, &finding.what);
                    findings.count += 1;
                    findings.first.get_or_insert(finding);
                }
            }
        }
        if go_on() { Ok(findings) } else { Err(CheckpointError::Stopped) }
    }

    /// Returns the first records in `range`, at most [`STEP`].
    fn next_records(&self, range: &KeyRange) -> Result<Vec<(Key, Record)>, CheckpointError> {
        let mut records = Vec::with_capacity(STEP);
        self.durable.scan(std::slice::from_ref(range), &mut |key, record| {
            records.push((key, record));
            records.len() < STEP
        })?;
        Ok(records)
    }

    /// Returns the damage of a message. `None` if it is intact, or was removed or replaced.
    fn damage_of(&self, key: &Key, mut record: Record) -> Result<Option<String>, CheckpointError> {
        let id = key.message();
        // Messages in memory are newer than the request: all older ones were checkpointed before
        // it.
        if self.source.has_in_memory(&id) {
            return Ok(None);
        }
        loop {
            let Some(what) = self.damage_at(&id, &record)? else { return Ok(None) };
            // The record may have been replaced, moved or removed since it was read, so the current
            // one counts. Memory is checked first, because an id leaves memory once the index has
            // its newest record.
            if self.source.has_in_memory(&id) {
                return Ok(None);
            }
            match self.durable.get(key)? {
                None => return Ok(None),
                Some(now) if now == record => return Ok(Some(what)),
                Some(now) => record = now,
            }
        }
    }

    /// Reads a message. Returns its damage, if any.
    fn damage_at(&self, id: &MessageId, record: &Record) -> Result<Option<String>, CheckpointError> {
        let place = place_of_record(record);
        let Some(segment) = self.segments.get(place.generation) else {
            return Ok(Some(format!("{}: the segment is missing", describe(id, place))));
        };
        match segment.read_put(self.segments.salt(), id, place) {
            Ok(_) => Ok(None),
            Err(error @ ReadError::Damaged { .. }) => Ok(Some(error.to_string())),
            Err(error @ ReadError::Io { .. }) => Err(error.into()),
        }
    }

    fn note(&self, error: &CheckpointError) {
        match error {
            CheckpointError::Stopped => return,
            // The error was counted when the index failed.
            CheckpointError::Engine(IndexError::Unavailable { .. }) => {}
            error => self.events.failed(error),
        }
        // The checkpointer thread makes a new index.
        self.checkpoint_requests.kick();
    }
}

/// Stops the requests when the thread ends, even by a panic, so that no caller waits for it.
struct CloseVerificationOnExit<'a>(&'a VerificationRequests);

impl Drop for CloseVerificationOnExit<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
