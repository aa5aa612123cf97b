//! The requests to the memory balancer thread, and the memory that it may divide.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::mailbox::Mailbox;
use crate::memory::{Allowance, MemoryBound};

/// The requests to the balancer thread. Their number is bounded by the waiting callers.
#[derive(Debug)]
pub(in crate::tiered) struct MemoryBalancer {
    state: Mailbox<BalancerState>,
    /// The bytes that the last turn divided among the parts.
    allowed: AtomicU64,
}

#[derive(Debug)]
struct BalancerState {
    allowance: Allowance,
    bound: MemoryBound,
    requests: Vec<BalancerRequest>,
    kicked: bool,
    /// The next turn sets the cache to exactly its share, because no later change would bring it
    /// nearer.
    is_exact: bool,
    closed: bool,
}

/// A caller that waits for the next turn.
#[derive(Debug)]
pub(in crate::tiered) struct BalancerRequest {
    /// Drop all clean copies. If false, only adjust each part to its share.
    pub(in crate::tiered) clear: bool,
    pub(in crate::tiered) done: oneshot::Sender<BalancedShares>,
}

/// Accounted memory before and after a turn, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tiered) struct BalancedShares {
    pub(in crate::tiered) before: u64,
    pub(in crate::tiered) after: u64,
}

impl MemoryBalancer {
    /// `budget`: bytes.
    pub(in crate::tiered) fn new(budget: u64) -> Self {
        let state = BalancerState {
            allowance: Allowance::new(budget),
            bound: MemoryBound::default(),
            requests: Vec::new(),
            kicked: false,
            is_exact: false,
            closed: false,
        };
        Self { state: Mailbox::new(state), allowed: AtomicU64::new(budget) }
    }

    /// Drops all clean copies, and returns free memory to the system. The receiver fails if the
    /// spool closes first.
    pub(in crate::tiered) fn clear(&self) -> oneshot::Receiver<BalancedShares> {
        self.ask(true)
    }

    /// Adjusts each part to its share now, and returns free memory to the system. The receiver
    /// fails if the spool closes first.
    pub(in crate::tiered) fn settle(&self) -> oneshot::Receiver<BalancedShares> {
        self.ask(false)
    }

    fn ask(&self, clear: bool) -> oneshot::Receiver<BalancedShares> {
        let (done, receiver) = oneshot::channel();
        self.state.post(|state| {
            // After the end, `done` is dropped here, which closes the receiver.
            if !state.closed {
                state.requests.push(BalancerRequest { clear, done });
            }
        });
        receiver
    }

    /// Reduces the allowed memory under pressure: `excess` of the `accounted` bytes must be freed,
    /// and stay free until [`release`](Self::release).
    pub(in crate::tiered) fn press(&self, accounted: u64, excess: u64) {
        self.state.lock().allowance.press(accounted, excess);
    }

    /// Allows a little more memory after pressure. Returns false when all of the budget is allowed.
    pub(in crate::tiered) fn release(&self) -> bool {
        self.state.post(|state| {
            let more = state.allowance.release();
            state.is_exact |= !more;
            state.kicked = true;
            more
        })
    }

    /// Applies a change of the setting. `budget`: bytes.
    pub(in crate::tiered) fn set_budget(&self, budget: u64) {
        self.state.post(|state| {
            state.allowance.set_budget(budget);
            (state.is_exact, state.kicked) = (true, true);
        });
    }

    /// Returns the bytes that the spool may take now.
    pub(in crate::tiered) fn allowed(&self) -> u64 {
        self.allowed.load(Ordering::Relaxed)
    }

    /// Ends the thread, and drops all requests.
    pub(in crate::tiered) fn close(&self) {
        self.state.post(|state| {
            state.closed = true;
            state.requests.clear();
        });
    }

    /// Waits for a reason for a turn, at most until `until`, and takes the requests. `None`: the
    /// spool closes.
    pub(in crate::tiered) fn wait(&self, until: Instant) -> Option<Vec<BalancerRequest>> {
        self.state.wait_for(until, |state| state.closed || state.kicked || !state.requests.is_empty());
        let mut state = self.state.lock();
        state.kicked = false;
        (!state.closed).then(|| std::mem::take(&mut state.requests))
    }

    /// Returns the memory that may be divided now, and whether the cache must get exactly its
    /// share. `at_most`: the bytes that the system allows. `budget`: bytes.
    pub(in crate::tiered) fn divide(&self, at_most: Option<u64>, budget: u64) -> (Allowance, bool) {
        let mut state = self.state.lock();
        let at_most = state.bound.follow(Instant::now(), at_most, budget);
        let allowance = state.allowance.within(at_most);
        self.allowed.store(allowance.bytes(), Ordering::Relaxed);
        (allowance, std::mem::take(&mut state.is_exact))
    }
}
