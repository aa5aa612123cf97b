//! The memory balancer thread: measures the memory of each part of the spool, and divides the
//! allowed memory among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::Config;
use crate::mailbox::Mailbox;
use crate::memory::{Allowance, Evicted, MemoryBound, resident, trim};
use crate::tiered::shared::Shared;

/// The interval between two turns.
const INTERVAL: Duration = Duration::from_millis(100);

/// Minimum growth or evicted bytes before free memory is returned to the system again.
const WORTH_A_TRIM: u64 = 8 << 20;

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

#[derive(Debug)]
struct BalancerRequest {
    /// Drop all clean copies. If false, only adjust each part to its share.
    clear: bool,
    done: oneshot::Sender<BalancedShares>,
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

    /// Waits for the next turn, and takes the requests. `None`: the spool closes.
    fn wait(&self) -> Option<Vec<BalancerRequest>> {
        self.state.wait_for(Instant::now() + INTERVAL, |state| {
            state.closed || state.kicked || !state.requests.is_empty()
        });
        let mut state = self.state.lock();
        state.kicked = false;
        (!state.closed).then(|| std::mem::take(&mut state.requests))
    }
}

/// Runs the thread until the spool closes.
// Not inlined, as `watch`: `benches/cost` excludes both by name, because they run by the clock.
#[inline(never)]
pub(in crate::tiered) fn keep(shared: &Arc<Shared>) {
    let _end = CloseOnExit(&shared.balancer);
    let mut heap = Heap::default();
    // Before the first turn: a limit of the system may be far below the budget.
    balance(shared);
    while let Some(requests) = shared.balancer.wait() {
        shared.cache.upkeep();
        // Only requests need the sums.
        let accounted = || if requests.is_empty() { 0 } else { shared.accounted_bytes() };
        let before = accounted();
        let mut evicted = Evicted::default();
        if requests.iter().any(|request| request.clear) {
            evicted = shared.cache.clear();
        }
        let resized = balance(shared);
        let (entries, bytes) = (evicted.entries + resized.entries, evicted.bytes + resized.bytes);
        if entries > 0 {
            shared.stats.cache_evicted(entries, bytes);
        }
        shared.table.shards().for_each(|mut shard| shard.pending.trim());
        // Returns the memory that the crash log used during a burst.
        if !requests.is_empty() || shared.accounted_bytes() > shared.balancer.allowed() {
            shared.protection.trim();
        }
        heap.trim_if_grown(shared.config.load().memory_budget, !requests.is_empty() || bytes >= WORTH_A_TRIM);
        if !requests.is_empty() {
            // Includes the copies that were inserted meanwhile.
            shared.cache.upkeep();
        }
        let after = accounted();
        for request in requests {
            // The caller may be gone.
            let _ = request.done.send(BalancedShares { before, after });
        }
    }
}

/// Drops all requests when the thread ends, even by a panic, so that no caller waits for it.
struct CloseOnExit<'a>(&'a MemoryBalancer);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Decides when freed memory is returned to the system.
#[derive(Debug, Default)]
struct Heap {
    /// The least resident bytes since the last trim.
    least: u64,
}

impl Heap {
    /// Trims the heap if the process has grown by a good part of the budget, or on request.
    fn trim_if_grown(&mut self, budget: u64, is_requested: bool) {
        let Some(now) = resident() else { return };
        if is_requested || now > self.least + WORTH_A_TRIM.max(budget / 32) {
            trim();
            self.least = resident().unwrap_or(now);
        } else {
            self.least = self.least.min(now);
        }
    }
}

/// Adjusts each part to its share. Returns what was evicted from the cache.
fn balance(shared: &Shared) -> Evicted {
    let config = shared.config.load();
    let most = at_most(shared, &config);
    let (allowance, is_exact) = {
        let mut state = shared.balancer.state.lock();
        let most = state.bound.follow(Instant::now(), most, config.memory_budget);
        (state.allowance.within(most), std::mem::take(&mut state.is_exact))
    };
    shared.balancer.allowed.store(allowance.bytes(), Ordering::Relaxed);
    let shares = allowance.shares(config.effective_dirty_limit(), shared.held());
    if shared.budget.limit() != shares.dirty_limit {
        shared.budget.set_limit(shares.dirty_limit);
        if shared.is_over_limit() {
            shared.commit_queue.note_dirty(true);
        }
    }
    let now = shared.cache.capacity();
    // Resizing touches each copy, so a difference of an eighth is tolerated.
    let differs = match is_exact {
        true => shares.cache != now,
        false => shares.cache < now / 8 * 7 || shares.cache / 8 * 7 > now,
    };
    if !differs {
        return Evicted::default();
    }
    shared.cache.resize(shares.cache, |id| shared.table.lock(id))
}

/// Returns the bytes that the spool can take while the process stays away from its memory limit.
/// `None`: there is no limit, or no monitor.
fn at_most(shared: &Shared, config: &Config) -> Option<u64> {
    shared.monitor.get()?.share(config.memory_budget, shared.accounted_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_fails_after_a_panic_of_the_thread() {
        let balancer = MemoryBalancer::new(64 << 20);
        let died = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _end = CloseOnExit(&balancer);
                panic!("of this test");
            });
            thread.join().is_err()
        });
        assert!(died);
        assert!(
            balancer.clear().try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed)
        );
    }
}
