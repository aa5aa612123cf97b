//! The state of a store that waits for its commit, shared by the committer and the caller.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// The outcome of a store that waited for its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The message is on stable storage. Of a transaction: all messages are.
    Durable,
    /// The disk has no room for the message, or its file could not be written.
    Refused,
}

/// The committer has dropped a store that has no outcome: it has ended, or the caller gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoOutcome;

/// The state of one waiting store, or of a transaction of several. The committer and the caller
/// race for each change: exactly one of them wins.
///
/// ```text
///    ┌──refuse──► REFUSED
/// WAITING ──append──► APPENDED ──commit──► COMMITTED ──publish──► DURABLE
///    │                    │
///  cancel              abandon
///    ▼                    ▼
/// CANCELLED           ABANDONED
/// ```
///
/// A cancelled store is never written. The record of an abandoned store may be on disk already: the
/// committer appends an abort behind it.
///
/// One allocation for the state and for its waker: a store has no other.
#[derive(Debug, Default)]
pub(crate) struct CommitState {
    step: AtomicU8,
    /// The committer has dropped the store. No step follows.
    is_over: AtomicBool,
    /// The caller's.
    waker: AtomicWaker,
}

const WAITING: u8 = 0;
const APPENDED: u8 = 1;
const COMMITTED: u8 = 2;
const CANCELLED: u8 = 3;
const ABANDONED: u8 = 4;
const DURABLE: u8 = 5;
const REFUSED: u8 = 6;

impl CommitState {
    /// Called by the committer before it appends the record. Returns false if the caller has
    /// cancelled the store.
    pub(crate) fn append(&self) -> bool {
        self.change(WAITING, APPENDED)
    }

    /// Called by the committer when a record is durable, for each record of a transaction. Returns
    /// false if the caller has abandoned the store.
    pub(crate) fn commit(&self) -> bool {
        self.change(APPENDED, COMMITTED) || self.step() == COMMITTED
    }

    /// Called by the committer when the message is visible, of a transaction once. Wakes the
    /// caller.
    pub(crate) fn publish(&self) {
        if self.change(COMMITTED, DURABLE) {
            self.waker.wake();
        }
    }

    /// Called by the committer instead of [`append`](Self::append). Wakes the caller.
    pub(crate) fn refuse(&self) {
        if self.change(WAITING, REFUSED) {
            self.waker.wake();
        }
    }

    /// Called when the committer drops the store. Wakes a caller that has no outcome.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        if !matches!(self.step(), DURABLE | REFUSED) {
            self.waker.wake();
        }
    }

    /// Called by a caller that gives up. Returns false if the record is appended, so that the disk
    /// may have it, or if the store is refused.
    pub(crate) fn cancel(&self) -> bool {
        self.change(WAITING, CANCELLED)
    }

    /// Called by a caller that gives up although the record is appended. Returns false if the
    /// message is stored.
    pub(crate) fn abandon(&self) -> bool {
        self.change(APPENDED, ABANDONED)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.step() == CANCELLED
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.step() == ABANDONED
    }

    /// The outcome, if it is known.
    pub(crate) fn outcome(&self) -> Option<Result<Outcome, NoOutcome>> {
        // Before the step: no step follows.
        let is_over = self.is_over.load(Ordering::Acquire);
        match self.step() {
            DURABLE => Some(Ok(Outcome::Durable)),
            REFUSED => Some(Ok(Outcome::Refused)),
            _ => is_over.then_some(Err(NoOutcome)),
        }
    }

    /// Waits for the outcome. At most one task may wait at a time.
    pub(crate) fn wait(&self) -> WaitForOutcome<'_> {
        WaitForOutcome(self)
    }

    fn step(&self) -> u8 {
        self.step.load(Ordering::Acquire)
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.step.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The future of [`CommitState::wait`].
#[derive(Debug)]
pub(crate) struct WaitForOutcome<'a>(&'a CommitState);

impl Future for WaitForOutcome<'_> {
    type Output = Result<Outcome, NoOutcome>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let known = self.0.outcome().or_else(|| {
            self.0.waker.register(context.waker());
            // It may have come before the waker was there.
            self.0.outcome()
        });
        known.map_or(Poll::Pending, Poll::Ready)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Wake, Waker};

    use super::*;

    #[test]
    fn a_cancelled_store_is_never_appended() {
        let state = CommitState::default();
        assert!(state.cancel() && state.is_cancelled());
        assert!(!state.append() && !state.commit() && !state.abandon());
    }

    #[test]
    fn an_appended_store_is_either_committed_or_abandoned() {
        let state = CommitState::default();
        assert!(!state.abandon() && !state.commit(), "nothing is appended");
        assert!(state.append() && !state.cancel());
        assert!(state.commit() && !state.abandon() && !state.is_abandoned());
        assert!(state.commit(), "the next record of the transaction");
        let state = CommitState::default();
        assert!(state.append() && state.abandon() && state.is_abandoned());
        assert!(!state.commit() && !state.cancel());
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicU8);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits, calls `end`, and returns the outcome and how often the caller was woken.
    fn outcome_after(end: impl FnOnce(&CommitState)) -> (Option<Result<Outcome, NoOutcome>>, u8) {
        let (state, woken) = (CommitState::default(), Arc::<Woken>::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut wait = state.wait();
        assert!(Pin::new(&mut wait).poll(&mut context).is_pending());
        end(&state);
        let outcome = match Pin::new(&mut wait).poll(&mut context) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        };
        (outcome, woken.0.load(Ordering::SeqCst))
    }

    #[test]
    fn a_waiting_caller_is_woken_once_with_the_outcome() {
        let durable = outcome_after(|state| {
            assert!(state.append() && state.commit());
            assert_eq!(state.outcome(), None, "it is not visible yet");
            state.publish();
            state.end();
        });
        assert_eq!(durable, (Some(Ok(Outcome::Durable)), 1));
        let refused = outcome_after(|state| {
            state.refuse();
            state.end();
        });
        assert_eq!(refused, (Some(Ok(Outcome::Refused)), 1));
        assert_eq!(outcome_after(CommitState::end), (Some(Err(NoOutcome)), 1));
        let appended = outcome_after(|state| {
            assert!(state.append());
            state.end();
        });
        assert_eq!(appended, (Some(Err(NoOutcome)), 1));
        assert_eq!(outcome_after(|state| assert!(state.append())), (None, 0));
    }

    #[test]
    fn a_refused_store_is_neither_cancelled_nor_appended() {
        let state = CommitState::default();
        state.refuse();
        assert!(!state.cancel() && !state.abandon() && !state.append());
        assert_eq!(state.outcome(), Some(Ok(Outcome::Refused)));
        let state = CommitState::default();
        assert!(state.cancel());
        state.refuse();
        assert!(state.is_cancelled() && state.outcome().is_none());
        state.publish();
        assert!(state.is_cancelled());
    }
}
