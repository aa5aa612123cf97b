use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::watch;
use tracing::{error, info};

use super::latch::Transition;
use crate::HealthSignal;

/// Open, or shut for a reason. It is read for every connection and message, by one atomic read.
#[derive(Debug)]
pub(crate) struct HealthGate {
    /// [`OPEN`], the [`code`] of the signal, or [`CLOSED`], which is final.
    state: AtomicU8,
    /// The reason, for callers that wait for changes.
    reasons: watch::Sender<Option<&'static str>>,
}

const OPEN: u8 = 0;

/// The spool is shut down.
const CLOSED: u8 = u8::MAX;

/// The reason after a shutdown. It names no internals, like every reason.
const SHUT_DOWN: &str = "the spool is shut down";

impl Default for HealthGate {
    fn default() -> Self {
        Self { state: AtomicU8::new(OPEN), reasons: watch::Sender::new(None) }
    }
}

impl HealthGate {
    /// `None` while the spool is healthy, else a text for callers that names no internals.
    #[inline]
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self.state() {
            OPEN => None,
            shut => reason(shut),
        }
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.state() == OPEN
    }

    #[inline]
    fn state(&self) -> u8 {
        // Relaxed: no other read depends on it. A store that passes just before a change is
        // equivalent to an earlier store.
        self.state.load(Ordering::Relaxed)
    }

    /// True if the spool is shut down. The gate then stays shut.
    pub(crate) fn is_closed(&self) -> bool {
        self.state() == CLOSED
    }

    /// The worst active signal. `None` while the spool is healthy, and after its shutdown.
    pub(crate) fn cause(&self) -> Option<HealthSignal> {
        signal(self.state())
    }

    /// A channel that receives each later change of the reason.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<&'static str>> {
        self.reasons.subscribe()
    }

    /// Shuts the gate permanently, because the spool is shut down.
    pub(crate) fn close(&self) {
        self.state.store(CLOSED, Ordering::Relaxed);
        self.publish();
    }

    /// Applies and logs a transition of the latch. Does nothing after [`close`](Self::close).
    pub(crate) fn follow(&self, transition: Transition) {
        let next = match transition {
            Transition::Shut(signal) | Transition::Worse(signal) => Some(signal),
            Transition::Open => None,
        };
        let to = next.map_or(OPEN, code);
        let unless_closed = |state| (state != CLOSED).then_some(to);
        let Ok(was) = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, unless_closed) else {
            return;
        };
        match (signal(was), next) {
            (None, Some(cause)) => {
                error!(signal = cause.name(), %cause, "the spool refuses new messages; loads and removals continue");
            }
            (Some(_), Some(cause)) => {
                error!(signal = cause.name(), %cause, "the spool still refuses new messages, now for this reason");
            }
            (Some(was), None) => {
                info!(signal = was.name(), cause = %was, "the spool accepts new messages again");
            }
            (None, None) => {}
        }
        self.publish();
    }

    /// Sends the reason to the waiting callers. The reason is read under the channel's lock: two
    /// threads may change the gate at once, and the last value sent must be the last reason.
    fn publish(&self) {
        self.reasons.send_if_modified(|sent| {
            let reason = self.reason();
            std::mem::replace(sent, reason) != reason
        });
    }
}

/// Cold, so that callers that find the gate open do not pay for this code.
#[cold]
fn reason(code: u8) -> Option<&'static str> {
    match code {
        CLOSED => Some(SHUT_DOWN),
        code => signal(code).map(HealthSignal::reason),
    }
}

fn code(signal: HealthSignal) -> u8 {
    signal as u8 + 1
}

fn signal(code: u8) -> Option<HealthSignal> {
    HealthSignal::ALL.get(usize::from(code.checked_sub(1)?)).copied()
}

#[cfg(test)]
mod tests {
    use tidespool_core::SpoolUnhealthyError;

    use super::*;

    #[test]
    fn each_signal_sets_its_reason() {
        for why in HealthSignal::ALL {
            let gate = HealthGate::default();
            assert_eq!(gate.reason(), None);
            gate.follow(Transition::Shut(why));
            assert_eq!(gate.cause(), Some(why));
            assert_eq!(gate.reason(), Some(why.reason()));
            gate.follow(Transition::Open);
            assert_eq!(gate.reason(), None);
        }
    }

    #[test]
    fn each_change_of_the_reason_is_sent_once() {
        let gate = HealthGate::default();
        let mut changes = gate.changes();
        let received = |changes: &mut watch::Receiver<Option<&'static str>>| {
            changes.has_changed().unwrap().then(|| *changes.borrow_and_update())
        };
        assert_eq!(received(&mut changes), None);
        gate.follow(Transition::Shut(HealthSignal::DirtyAge));
        assert_eq!(received(&mut changes), Some(Some("the spool is catching up")));
        gate.follow(Transition::Worse(HealthSignal::DirtyBytes));
        assert_eq!(received(&mut changes), None, "the text is the same");
        gate.follow(Transition::Worse(HealthSignal::LowSpace));
        assert_eq!(received(&mut changes), Some(Some("the spool is short of disk space")));
        gate.follow(Transition::Open);
        assert_eq!(received(&mut changes), Some(None));
    }

    /// The gate was open after a shutdown, although every store failed. A late transition of the
    /// latch must neither open a closed gate nor change its reason.
    #[test]
    fn a_closed_gate_stays_shut() {
        let shut = Transition::Shut(HealthSignal::LowSpace);
        for before in [None, Some(shut)] {
            for after in [shut, Transition::Worse(HealthSignal::DeadWorker), Transition::Open] {
                let gate = HealthGate::default();
                before.into_iter().for_each(|before| gate.follow(before));
                let mut changes = gate.changes();
                gate.close();
                gate.follow(after);
                gate.close();
                assert_eq!(gate.reason(), Some("the spool is shut down"));
                assert!(gate.is_closed() && !gate.is_open());
                assert_eq!(gate.cause(), None, "no signal is active");
                assert!(changes.has_changed().unwrap());
                assert_eq!(*changes.borrow_and_update(), Some("the spool is shut down"));
            }
        }
    }

    #[test]
    fn the_reason_for_a_broken_disk_matches_the_public_error() {
        assert_eq!(HealthSignal::JournalErrors.reason(), SpoolUnhealthyError.to_string());
    }

    #[test]
    fn a_signal_has_the_same_name_in_settings_and_metrics() {
        for signal in HealthSignal::ALL {
            assert_eq!(serde_json::to_value(signal).unwrap(), signal.name());
        }
    }

    #[test]
    fn reasons_name_no_internals() {
        for reason in HealthSignal::ALL.map(HealthSignal::reason).into_iter().chain([SHUT_DOWN]) {
            assert!(reason.starts_with("the spool is "), "{reason}");
            for inside in ["journal", "sled", "segment", "dirty", "thread", "memory", "checkpoint", "/"] {
                assert!(!reason.contains(inside), "{reason}");
            }
        }
    }
}
