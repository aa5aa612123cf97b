use std::sync::atomic::{AtomicU8, Ordering};

use tracing::{error, info};

use super::cause::Cause;
use super::latch::Transition;

/// Open, or shut for a reason. Asked on every connection and every message, so asking is one atomic read.
#[derive(Debug, Default)]
pub(crate) struct HealthGate {
    /// [`OPEN`], or the [`code`] of the cause.
    state: AtomicU8,
}

const OPEN: u8 = 0;

impl HealthGate {
    /// `None` while the spool is healthy, else a bland text why it takes no new messages.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        // Relaxed: nothing else is read on the strength of it, and a store that slips through just before is as good
        // as one that came earlier.
        cause(self.state.load(Ordering::Relaxed)).map(Cause::reason)
    }

    /// Does what the latch says.
    pub(crate) fn follow(&self, transition: Transition) {
        match transition {
            Transition::Shut(cause) => self.shut(cause),
            Transition::Open => self.open(),
        };
    }

    /// Shuts the gate and logs it. Returns `false`, and changes nothing, where it is shut already.
    pub(crate) fn shut(&self, why: Cause) -> bool {
        let shut = self.state.compare_exchange(OPEN, code(why), Ordering::Relaxed, Ordering::Relaxed);
        if shut.is_ok() {
            error!(cause = %why, "the spool refuses new messages; loads and removes go on");
        }
        shut.is_ok()
    }

    /// Opens the gate and logs it. Returns `false` where it is open already.
    pub(crate) fn open(&self) -> bool {
        let was = cause(self.state.swap(OPEN, Ordering::Relaxed));
        if let Some(was) = was {
            info!(cause = %was, "the spool takes new messages again");
        }
        was.is_some()
    }
}

fn code(cause: Cause) -> u8 {
    cause as u8 + 1
}

fn cause(code: u8) -> Option<Cause> {
    Cause::ALL.get(usize::from(code.checked_sub(1)?)).copied()
}

#[cfg(test)]
mod tests {
    use tidespool_core::SpoolUnhealthyError;

    use super::*;

    #[test]
    fn each_cause_is_told_by_its_reason() {
        for why in Cause::ALL {
            let gate = HealthGate::default();
            assert_eq!(gate.reason(), None);
            assert!(gate.shut(why));
            assert_eq!(cause(gate.state.load(Ordering::Relaxed)), Some(why));
            assert_eq!(gate.reason(), Some(why.reason()));
            assert!(gate.open());
            assert_eq!(gate.reason(), None);
        }
    }

    #[test]
    fn it_moves_once_and_the_first_cause_stands() {
        let gate = HealthGate::default();
        assert!(!gate.open());
        assert!(gate.shut(Cause::DirtyAge));
        assert!(!gate.shut(Cause::JournalWrite));
        assert_eq!(gate.reason(), Some("the spool is catching up"));
        assert!(gate.open());
        assert!(!gate.open());
    }

    #[test]
    fn threads_that_shut_it_together_shut_it_once() {
        let gate = HealthGate::default();
        let shut: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| usize::from(gate.shut(Cause::NoSpace)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(shut, 1);
    }

    #[test]
    fn it_follows_the_latch() {
        let gate = HealthGate::default();
        gate.follow(Transition::Shut(Cause::NoSpace));
        assert_eq!(gate.reason(), Some("the spool is short of disk space"));
        gate.follow(Transition::Open);
        assert_eq!(gate.reason(), None);
    }

    #[test]
    fn a_broken_disk_reads_as_callers_expect_it() {
        assert_eq!(Cause::JournalWrite.reason(), SpoolUnhealthyError.to_string());
    }

    #[test]
    fn reasons_tell_nothing_of_the_inside() {
        for reason in Cause::ALL.map(Cause::reason) {
            assert!(reason.starts_with("the spool is "), "{reason}");
            for inside in ["journal", "sled", "segment", "dirty", "thread", "memory", "/"] {
                assert!(!reason.contains(inside), "{reason}");
            }
        }
    }
}
