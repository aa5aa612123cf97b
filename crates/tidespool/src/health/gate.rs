use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{error, info};

use super::latch::Transition;
use crate::{HealthCause, HealthSignal};

/// Open, or shut for a reason. It is read for every connection and message, by one atomic read.
///
/// Memory pressure is a cause that does not shut the gate: the memory budget makes stores wait.
#[derive(Debug)]
pub(crate) struct HealthGate {
    facts: Mutex<Facts>,
    /// [`OPEN`], the [`code`] of the worst signal, [`PRESSURE`], or [`CLOSED`].
    state: AtomicU8,
    /// The state if its cause is one that is reported to callers, else [`OPEN`].
    reported: AtomicU8,
    /// The state, for stores that wait.
    states: watch::Sender<u8>,
    /// The reported reason, for callers that wait for changes.
    reasons: watch::Sender<Option<&'static str>>,
}

/// What determines the state.
#[derive(Debug)]
struct Facts {
    /// The worst active signal.
    signal: Option<HealthSignal>,
    /// The monitor reports critical memory pressure.
    is_critical: bool,
    /// The spool is shut down, which is final.
    is_closed: bool,
    /// The causes that are reported to callers.
    reported: Vec<HealthCause>,
}

const OPEN: u8 = 0;

/// Memory is critically short, and no signal is active.
const PRESSURE: u8 = u8::MAX - 1;

/// The spool is shut down.
const CLOSED: u8 = u8::MAX;

/// The reason under memory pressure. Like every reason, it names no internals.
const SHORT_OF_RESOURCES: &str = "the spool is short of resources";

/// The reason after a shutdown.
pub(crate) const SHUT_DOWN: &str = "the spool is shut down";

impl Facts {
    fn state(&self) -> u8 {
        match (self.is_closed, self.signal) {
            (true, _) => CLOSED,
            (false, Some(signal)) => code(signal),
            (false, None) if self.is_critical => PRESSURE,
            (false, None) => OPEN,
        }
    }

    /// A shutdown is always reported.
    fn reported(&self) -> u8 {
        let state = self.state();
        let is_reported = self.is_closed || cause(state).is_some_and(|cause| self.reported.contains(&cause));
        if is_reported { state } else { OPEN }
    }
}

impl HealthGate {
    /// An open gate that reports these causes to callers.
    pub(crate) fn new(reported: &[HealthCause]) -> Self {
        let facts = Facts { signal: None, is_critical: false, is_closed: false, reported: reported.to_vec() };
        Self {
            facts: Mutex::new(facts),
            state: AtomicU8::new(OPEN),
            reported: AtomicU8::new(OPEN),
            states: watch::Sender::new(OPEN),
            reasons: watch::Sender::new(None),
        }
    }

    /// The reason for callers, if its cause is reported. `None` while the spool is healthy.
    #[inline]
    pub(crate) fn reason(&self) -> Option<&'static str> {
        // Relaxed: no other read depends on it. A store that passes just before a change is
        // equivalent to an earlier store.
        match self.reported.load(Ordering::Relaxed) {
            OPEN => None,
            reported => reason(reported),
        }
    }

    /// What is wrong, whether it is reported or not. `None` while the spool is healthy.
    #[inline]
    pub(crate) fn cause(&self) -> Option<HealthCause> {
        match self.state() {
            OPEN => None,
            state => cause(state),
        }
    }

    /// True while nothing is wrong. If not, memory pressure may be the cause, which refuses no
    /// store.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.state() == OPEN
    }

    #[inline]
    fn state(&self) -> u8 {
        self.state.load(Ordering::Relaxed)
    }

    /// True if the spool is shut down. The gate then stays shut.
    pub(crate) fn is_closed(&self) -> bool {
        self.state() == CLOSED
    }

    /// The worst active signal. `None` while there is none, and after the shutdown.
    pub(crate) fn signal(&self) -> Option<HealthSignal> {
        signal(self.state())
    }

    /// A channel that receives each later change of the reason.
    pub(crate) fn reasons(&self) -> watch::Receiver<Option<&'static str>> {
        self.reasons.subscribe()
    }

    /// A channel that receives each later change of the state.
    pub(crate) fn states(&self) -> watch::Receiver<u8> {
        self.states.subscribe()
    }

    /// Shuts the gate permanently, because the spool is shut down.
    pub(crate) fn close(&self) {
        self.change(|facts| facts.is_closed = true);
    }

    /// Sets the causes that are reported to callers.
    pub(crate) fn report(&self, causes: &[HealthCause]) {
        self.change(|facts| facts.reported = causes.to_vec());
    }

    /// Sets whether memory is critically short.
    pub(crate) fn set_critical(&self, is_critical: bool) {
        self.change(|facts| facts.is_critical = is_critical);
    }

    /// Applies and logs a transition of the latch. Does nothing after [`close`](Self::close).
    pub(crate) fn follow(&self, transition: Transition) {
        let next = match transition {
            Transition::Shut(signal) | Transition::Worse(signal) => Some(signal),
            Transition::Open => None,
        };
        let before =
            self.change(|facts| (!facts.is_closed).then(|| std::mem::replace(&mut facts.signal, next)));
        match (before, next) {
            (Some(None), Some(cause)) => {
                error!(signal = cause.name(), %cause, "the spool refuses new messages; loads and removals continue");
            }
            (Some(Some(_)), Some(cause)) => {
                error!(signal = cause.name(), %cause, "the spool still refuses new messages, now for this reason");
            }
            (Some(Some(was)), None) => {
                info!(signal = was.name(), cause = %was, "the spool accepts new messages again");
            }
            (None, _) | (Some(None), None) => {}
        }
    }

    /// Changes the facts, and what follows from them.
    fn change<R>(&self, change: impl FnOnce(&mut Facts) -> R) -> R {
        let result = {
            let mut facts = self.facts.lock();
            let result = change(&mut facts);
            self.state.store(facts.state(), Ordering::Relaxed);
            self.reported.store(facts.reported(), Ordering::Relaxed);
            result
        };
        // The values are read under the channels' locks: two threads may change the gate at once,
        // and the last value sent must be the last one.
        send(&self.states, || self.state());
        send(&self.reasons, || self.reason());
        result
    }
}

fn send<T: PartialEq>(channel: &watch::Sender<T>, read: impl FnOnce() -> T) {
    channel.send_if_modified(|sent| {
        let now = read();
        let is_new = *sent != now;
        *sent = now;
        is_new
    });
}

/// Cold, so that callers that find the gate open do not pay for this code.
#[cold]
fn reason(state: u8) -> Option<&'static str> {
    match state {
        CLOSED => Some(SHUT_DOWN),
        PRESSURE => Some(SHORT_OF_RESOURCES),
        state => signal(state).map(HealthSignal::reason),
    }
}

#[cold]
fn cause(state: u8) -> Option<HealthCause> {
    match state {
        CLOSED => Some(HealthCause::ShutDown),
        PRESSURE => Some(HealthCause::Pressure),
        state => signal(state).map(HealthSignal::cause),
    }
}

fn code(signal: HealthSignal) -> u8 {
    signal as u8 + 1
}

fn signal(state: u8) -> Option<HealthSignal> {
    HealthSignal::ALL.get(usize::from(state.checked_sub(1)?)).copied()
}

#[cfg(test)]
mod tests {
    use tidespool_core::SpoolUnhealthyError;

    use super::*;
    use crate::HealthConfig;

    /// A gate with the default of the reported causes.
    fn gate() -> HealthGate {
        HealthGate::new(&HealthConfig::default().reported_causes)
    }

    #[test]
    fn each_signal_sets_its_reason() {
        for why in HealthSignal::ALL {
            let gate = gate();
            assert_eq!((gate.reason(), gate.cause()), (None, None));
            gate.follow(Transition::Shut(why));
            assert_eq!(gate.signal(), Some(why));
            assert_eq!((gate.reason(), gate.cause()), (Some(why.reason()), Some(why.cause())));
            gate.follow(Transition::Open);
            assert_eq!((gate.reason(), gate.cause()), (None, None));
        }
    }

    #[test]
    fn only_the_reported_causes_have_a_reason() {
        for why in HealthSignal::ALL {
            let gate = gate();
            gate.follow(Transition::Shut(why));
            for cause in [HealthCause::Broken, HealthCause::Space, HealthCause::Backlog] {
                gate.report(&[cause]);
                assert_eq!(gate.reason().is_some(), cause == why.cause(), "{why:?} {cause:?}");
                assert_eq!(gate.cause(), Some(why.cause()));
                assert!(!gate.is_open());
            }
        }
    }

    #[test]
    fn memory_pressure_is_the_cause_while_no_signal_is_active() {
        let gate = gate();
        gate.set_critical(true);
        assert_eq!((gate.cause(), gate.reason()), (Some(HealthCause::Pressure), None));
        assert_eq!(gate.signal(), None, "pressure is no signal");
        gate.report(&[HealthCause::Pressure]);
        assert_eq!(gate.reason(), Some("the spool is short of resources"));
        gate.follow(Transition::Shut(HealthSignal::LowSpace));
        assert_eq!((gate.cause(), gate.reason()), (Some(HealthCause::Space), None));
        gate.follow(Transition::Open);
        assert_eq!(gate.cause(), Some(HealthCause::Pressure));
        gate.set_critical(false);
        assert_eq!((gate.cause(), gate.reason()), (None, None));
    }

    /// A store that waits for room must notice a gate that shuts without a report.
    #[test]
    fn each_change_of_the_state_is_sent_whether_it_is_reported_or_not() {
        let gate = HealthGate::new(&[]);
        let (mut states, reasons) = (gate.states(), gate.reasons());
        gate.follow(Transition::Shut(HealthSignal::LowSpace));
        assert!(states.has_changed().unwrap());
        states.mark_unchanged();
        gate.follow(Transition::Open);
        assert!(states.has_changed().unwrap());
        assert!(!reasons.has_changed().unwrap());
    }

    #[test]
    fn each_change_of_the_reason_is_sent_once() {
        let gate = gate();
        let mut changes = gate.reasons();
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
                let gate = gate();
                before.into_iter().for_each(|before| gate.follow(before));
                let mut changes = gate.reasons();
                gate.close();
                gate.follow(after);
                gate.report(&[]);
                gate.close();
                assert_eq!(gate.reason(), Some("the spool is shut down"));
                assert!(gate.is_closed() && !gate.is_open());
                assert_eq!((gate.signal(), gate.cause()), (None, Some(HealthCause::ShutDown)));
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
        for reason in
            HealthSignal::ALL.map(HealthSignal::reason).into_iter().chain([SHORT_OF_RESOURCES, SHUT_DOWN])
        {
            assert!(reason.starts_with("the spool is "), "{reason}");
            for inside in ["journal", "sled", "segment", "dirty", "thread", "memory", "checkpoint", "/"] {
                assert!(!reason.contains(inside), "{reason}");
            }
        }
    }
}
