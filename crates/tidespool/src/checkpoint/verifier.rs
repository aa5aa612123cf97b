//! The verification thread. It only reads, so checkpoints, recycling and garbage collection
//! continue meanwhile.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tidespool_core::SpoolId;
use tokio::sync::oneshot;

use super::verify::{Finding, verify_indexed};
use super::{CheckpointError, CheckpointEvents, CheckpointRequests, LiveIndex};
use crate::index::{DiskIndex, IndexError};
use crate::journal::Segments;

/// The damaged messages that a verification found.
#[derive(Debug, Clone, Default)]
pub(crate) struct VerificationReport {
    pub(crate) count: u64,
    pub(crate) first: Option<Finding>,
}

type Done = oneshot::Sender<Result<VerificationReport, CheckpointError>>;

/// The request to the thread. There is at most one, because callers share a verification.
#[derive(Debug, Default)]
pub(crate) struct VerificationRequests {
    state: Mutex<VerifierState>,
    wake: Condvar,
}

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
        let mut state = self.state.lock();
        if !state.stopped {
            state.asked = Some(done);
        }
        drop(state);
        self.wake.notify_one();
        receiver
    }

    /// Stops the thread before the next message.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.asked = None;
        drop(state);
        self.wake.notify_one();
    }

    fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Waits for a request. `None` if the thread must end.
    fn wait(&self) -> Option<Done> {
        let mut state = self.state.lock();
        while !state.stopped && state.asked.is_none() {
            self.wake.wait(&mut state);
        }
        state.asked.take()
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

    fn verify(&self, go_on: &dyn Fn() -> bool) -> Result<VerificationReport, CheckpointError> {
        // Messages in memory are newer than the request: all older ones were checkpointed before
        // it.
        let wanted = |id: &SpoolId| !self.source.has_in_memory(id);
        let mut findings = VerificationReport::default();
        verify_indexed(&self.segments, &self.durable, &wanted, go_on, &mut |finding| {
            self.events.found_damage(&finding.id, &finding.what);
            findings.count += 1;
            findings.first.get_or_insert(finding);
        })?;
        Ok(findings)
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
