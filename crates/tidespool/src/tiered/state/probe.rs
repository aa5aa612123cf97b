//! The results of the probe thread, and the requests to it.

use std::time::Instant;

use crate::mailbox::Mailbox;

/// The results of the probe thread, and the state of a requested test of the disk.
#[derive(Debug, Default)]
pub(crate) struct Probe(Mailbox<Answers>);

#[derive(Debug, Default)]
struct Answers {
    low_space: bool,
    state: ProbeState,
    closed: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ProbeState {
    #[default]
    Idle,
    Wanted,
    Running,
    Ended(bool),
}

impl Probe {
    pub(in crate::tiered) fn has_low_space(&self) -> bool {
        self.0.lock().low_space
    }

    pub(in crate::tiered) fn note_low_space(&self, low_space: bool) {
        self.0.lock().low_space = low_space;
    }

    /// Requests a test of the disk, unless one is requested or running. Returns the result of a
    /// test that has ended, once.
    pub(in crate::tiered) fn ask(&self) -> Option<bool> {
        self.0.post(|Answers { state, .. }| match *state {
            ProbeState::Idle => {
                *state = ProbeState::Wanted;
                None
            }
            ProbeState::Ended(ok) => {
                *state = ProbeState::Idle;
                Some(ok)
            }
            ProbeState::Wanted | ProbeState::Running => None,
        })
    }

    /// Cancels the request. The result of a running test is dropped.
    pub(in crate::tiered) fn forget(&self) {
        self.0.lock().state = ProbeState::Idle;
    }

    /// Ends the thread.
    pub(in crate::tiered) fn close(&self) {
        self.0.post(|answers| answers.closed = true);
    }

    /// Waits for a request, at most until `until`. Returns false if the spool closes.
    pub(in crate::tiered) fn wait(&self, until: Instant) -> bool {
        self.0.wait_for(until, |answers| answers.closed || answers.state == ProbeState::Wanted);
        !self.0.lock().closed
    }

    /// Begins a requested test. Returns false if none is requested.
    pub(in crate::tiered) fn begin(&self) -> bool {
        let state = &mut self.0.lock().state;
        let is_wanted = *state == ProbeState::Wanted;
        if is_wanted {
            *state = ProbeState::Running;
        }
        is_wanted
    }

    /// Notes the result of the running test.
    pub(in crate::tiered) fn end(&self, ok: bool) {
        let state = &mut self.0.lock().state;
        // Otherwise the test was cancelled, and perhaps requested again.
        if *state == ProbeState::Running {
            *state = ProbeState::Ended(ok);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_result_is_returned_once_and_never_for_an_earlier_request() {
        let probe = Probe::default();
        assert!(!probe.begin(), "no test is requested");
        assert_eq!(probe.ask(), None);
        assert!(probe.begin());
        assert!(!probe.begin(), "a test is running");
        assert_eq!(probe.ask(), None);
        probe.end(true);
        assert_eq!((probe.ask(), probe.ask()), (Some(true), None));
        assert!(probe.begin());
        probe.forget();
        assert_eq!(probe.ask(), None);
        probe.end(true);
        assert_eq!(probe.ask(), None, "that was the result of the cancelled request");
        assert!(probe.begin());
        probe.end(false);
        assert_eq!(probe.ask(), Some(false));
    }
}
