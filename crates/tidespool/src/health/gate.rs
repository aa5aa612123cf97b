use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::watch;
use tracing::{error, info};

use super::latch::Transition;
use crate::HealthSignal;

/// Open, or shut for a reason. Asked on every connection and every message, so asking is one atomic read.
#[derive(Debug)]
pub(crate) struct HealthGate {
    /// [`OPEN`], or the [`code`] of the signal. Written by one thread.
    state: AtomicU8,
    /// The reason, for those who wait for another.
    told: watch::Sender<Option<&'static str>>,
}

const OPEN: u8 = 0;

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

    /// `None` while the spool is healthy, else the worst that is wrong.
    pub(crate) fn cause(&self) -> Option<HealthSignal> {
        signal(self.state())
    }

    /// Each change of the reason from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<&'static str>> {
        self.told.subscribe()
    }

    /// Does what the latch says, and logs it.
    pub(crate) fn follow(&self, transition: Transition) {
        let next = match transition {
            Transition::Shut(signal) | Transition::Worse(signal) => Some(signal),
            Transition::Open => None,
        };
        let was = signal(self.state.swap(next.map_or(OPEN, code), Ordering::Relaxed));
        match (was, next) {
            (_, Some(cause)) if was.is_none() => {
                error!(signal = cause.name(), %cause, "the spool refuses new messages; loads and removes go on");
            }
            (_, Some(cause)) => {
                error!(signal = cause.name(), %cause, "the spool goes on refusing new messages, also for this");
            }
            (Some(was), None) => {
                info!(signal = was.name(), cause = %was, "the spool takes new messages again");
            }
            (None, None) => {}
        }
        let reason = next.map(HealthSignal::reason);
        self.told.send_if_modified(|told| std::mem::replace(told, reason) != reason);
    }
}

/// Out of the way of those who find the gate open.
#[cold]
fn reason(code: u8) -> Option<&'static str> {
    signal(code).map(HealthSignal::reason)
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
        for reason in HealthSignal::ALL.map(HealthSignal::reason) {
            assert!(reason.starts_with("the spool is "), "{reason}");
            for inside in ["journal", "sled", "segment", "dirty", "thread", "memory", "checkpoint", "/"] {
                assert!(!reason.contains(inside), "{reason}");
            }
        }
    }
}
