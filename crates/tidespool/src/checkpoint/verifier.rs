//! The verification thread: it reads, and changes nothing. So checkpoints, recycling and rewriting
//! go on beside it.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tidespool_core::SpoolId;
use tokio::sync::oneshot;

use super::verify::{Finding, verify_filed};
use super::{CheckpointError, CheckpointEvents, CheckpointRequests, LiveIndex};
use crate::durable::{DiskIndex, DurableError};
use crate::journal::Segments;

/// The damaged messages that a verification found.
#[derive(Debug, Clone, Default)]
pub(crate) struct VerificationReport {
    pub(crate) count: u64,
    pub(crate) first: Option<Finding>,
}

type Done = oneshot::Sender<Result<VerificationReport, CheckpointError>>;

/// What the thread is asked for. There is room for one request: callers share a verification.
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
    /// Asks for everything that is filed to be verified. Replaces a request that was not begun yet.
    /// An error of the receiver: the thread has ended. If the receiver is dropped, the verification
    /// ends before the next message.
    pub(crate) fn ask(&self) -> oneshot::Receiver<Result<VerificationReport, CheckpointError>> {
        let (done, heard) = oneshot::channel();
        let mut state = self.state.lock();
        if !state.stopped {
            state.asked = Some(done);
        }
        drop(state);
        self.wake.notify_one();
        heard
    }

    /// Ends the thread, before the next message.
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

    /// Waits for a request. `None`: it is over.
    fn wait(&self) -> Option<Done> {
        let mut state = self.state.lock();
        while !state.stopped && state.asked.is_none() {
            self.wake.wait(&mut state);
        }
        state.asked.take()
    }
}

/// The thread's state.
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
            // The caller may be gone.
            let _ = done.send(result);
        }
    }

    fn verify(&self, go_on: &dyn Fn() -> bool) -> Result<VerificationReport, CheckpointError> {
        // What is in memory came after the verification was asked for: everything older is filed by
        // then.
        let wanted = |id: &SpoolId| !self.source.knows(id);
        let mut findings = VerificationReport::default();
        verify_filed(&self.segments, &self.durable, &wanted, go_on, &mut |finding| {
            self.events.found_damage(&finding.id, &finding.what);
            findings.count += 1;
            findings.first.get_or_insert(finding);
        })?;
        Ok(findings)
    }

    fn note(&self, error: &CheckpointError) {
        match error {
            CheckpointError::Stopped => return,
            // It was counted when sled broke.
            CheckpointError::Engine(DurableError::Unavailable { .. }) => {}
            error => self.events.failed(error),
        }
        // The checkpoint thread opens sled again.
        self.checkpoint_requests.kick();
    }
}

/// A thread that is gone, however it went, is not waited for.
struct CloseVerificationOnExit<'a>(&'a VerificationRequests);

impl Drop for CloseVerificationOnExit<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
