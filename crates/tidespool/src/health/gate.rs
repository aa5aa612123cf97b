use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::watch;
use tracing::{error, info};

use super::latch::Transition;
use crate::HealthSignal;

/// Open, or shut for a reason. Asked on every connection and every message, so asking is one atomic read.
#[derive(Debug)]
pub(crate) struct HealthGate {
    /// [`OPEN`], the [`code`] of the signal, or [`CLOSED`], which is final.
    state: AtomicU8,
    /// The reason, for those who wait for another.
    told: watch::Sender<Option<&'static str>>,
}

const OPEN: u8 = 0;

/// The spool is shut down.
const CLOSED: u8 = u8::MAX;

/// Why a spool that is shut down takes no messages: bland, as every reason.
const SHUT_DOWN: &str = "the spool is shut down";

impl Default for HealthGate {
    fn default() -> Self {
        Self { state: AtomicU8::new(OPEN), told: watch::Sender::new(None) }
    }
}

impl HealthGate {
    /// `None` while the spool is healthy, else a bland text why it takes no new messages.
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
        // Relaxed: nothing else is read on the strength of it, and a store that slips through just before is as good
        // as one that came earlier.
        self.state.load(Ordering::Relaxed)
    }

    /// The spool is shut down: the gate stays shut.
    pub(crate) fn is_closed(&self) -> bool {
        self.state() == CLOSED
    }

    /// The worst that is wrong. `None` while the spool is healthy, and after its shutdown.
    pub(crate) fn cause(&self) -> Option<HealthSignal> {
        signal(self.state())
    }

    /// Each change of the reason from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<&'static str>> {
        self.told.subscribe()
    }

    /// Shuts the gate for good: the spool is shut down.
    pub(crate) fn close(&self) {
        self.state.store(CLOSED, Ordering::Relaxed);
        self.publish();
    }

    /// Sets the gate as the latch decided, and logs it. Does nothing after [`close`](Self::close).
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
                error!(signal = cause.name(), %cause, "the spool refuses new messages; loads and removes go on");
            }
            (Some(_), Some(cause)) => {
                error!(signal = cause.name(), %cause, "the spool goes on refusing new messages, also for this");
            }
            (Some(was), None) => {
                info!(signal = was.name(), cause = %was, "the spool takes new messages again");
            }
            (None, None) => {}
        }
        self.publish();
    }

    /// Sends the reason to those who wait for another. It is read under the channel's lock: two
    /// threads may change the gate at once, and the last value sent must be the last reason.
    fn publish(&self) {
        self.told.send_if_modified(|told| {
            let reason = self.reason();
            std::mem::replace(told, reason) != reason
        });
    }
}

/// Out of the way of those who find the gate open.
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
    fn each_signal_is_told_by_its_reason() {
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
    fn who_waits_hears_of_each_other_reason_once() {
        let gate = HealthGate::default();
        let mut changes = gate.changes();
        let heard = |changes: &mut watch::Receiver<Option<&'static str>>| {
            changes.has_changed().unwrap().then(|| *changes.borrow_and_update())
        };
        assert_eq!(heard(&mut changes), None);
        gate.follow(Transition::Shut(HealthSignal::DirtyAge));
        assert_eq!(heard(&mut changes), Some(Some("the spool is catching up")));
        gate.follow(Transition::Worse(HealthSignal::DirtyBytes));
        assert_eq!(heard(&mut changes), None, "it reads the same");
        gate.follow(Transition::Worse(HealthSignal::LowSpace));
        assert_eq!(heard(&mut changes), Some(Some("the spool is short of disk space")));
        gate.follow(Transition::Open);
        assert_eq!(heard(&mut changes), Some(None));
    }

    /// After a shutdown the gate was open, though every store failed. Now it is shut for good: a
    /// transition that the latch decided on just before the shutdown must neither open it nor name
    /// another reason.
    #[test]
    fn a_closed_gate_stays_shut_and_says_so() {
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
                assert_eq!(gate.cause(), None, "nothing is wrong");
                assert!(changes.has_changed().unwrap());
                assert_eq!(*changes.borrow_and_update(), Some("the spool is shut down"));
            }
        }
    }

    #[test]
    fn a_broken_disk_reads_as_callers_expect_it() {
        assert_eq!(HealthSignal::JournalErrors.reason(), SpoolUnhealthyError.to_string());
    }

    #[test]
    fn a_signal_is_called_the_same_everywhere() {
        for signal in HealthSignal::ALL {
            assert_eq!(serde_json::to_value(signal).unwrap(), signal.name());
        }
    }

    #[test]
    fn reasons_tell_nothing_of_the_inside() {
        for reason in HealthSignal::ALL.map(HealthSignal::reason).into_iter().chain([SHUT_DOWN]) {
            assert!(reason.starts_with("the spool is "), "{reason}");
            for inside in ["journal", "sled", "segment", "dirty", "thread", "memory", "checkpoint", "/"] {
                assert!(!reason.contains(inside), "{reason}");
            }
        }
    }
}
