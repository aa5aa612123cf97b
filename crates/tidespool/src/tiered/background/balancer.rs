//! The thread that keeps memory within its bounds: it measures the parts, and gives each its share of what the spool may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::Config;
use crate::memory::{Allowance, Evicted, MemoryBound, resident, trim};
use crate::tiered::shared::Shared;

/// The parts are measured this often.
const INTERVAL: Duration = Duration::from_millis(100);

/// So many bytes more than after the last search are worth another one for pages that can go back to the system.
const WORTH_A_TRIM: u64 = 8 << 20;

/// What the thread is asked for. Its queue is as long as there are callers that wait.
#[derive(Debug)]
pub(in crate::tiered) struct MemoryBalancer {
    state: Mutex<BalancerState>,
    wake: Condvar,
    /// What the parts were brought to last.
    allowed: AtomicU64,
}

#[derive(Debug)]
struct BalancerState {
    allowance: Allowance,
    bound: MemoryBound,
    asked: Vec<BalancerRequest>,
    kicked: bool,
    /// The cache gets its very share at the next turn: nothing comes later that would bring it nearer.
    is_exact: bool,
    closed: bool,
}

#[derive(Debug)]
struct BalancerRequest {
    /// The clean copies go, all of them. If not, each part is only brought to its share.
    clear: bool,
    done: oneshot::Sender<BalancedShares>,
}

/// Accounted memory, in bytes.
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
            asked: Vec::new(),
            kicked: false,
            is_exact: false,
            closed: false,
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), allowed: AtomicU64::new(budget) }
    }

    /// Drops every clean copy, and gives what is free back to the system. An error: the spool was closed before.
    pub(in crate::tiered) fn clear(&self) -> oneshot::Receiver<BalancedShares> {
        self.ask(true)
    }

    /// Brings each part to its share now, and gives what is free back to the system. An error: the spool was closed before.
    pub(in crate::tiered) fn settle(&self) -> oneshot::Receiver<BalancedShares> {
        self.ask(false)
    }

    fn ask(&self, clear: bool) -> oneshot::Receiver<BalancedShares> {
        let (done, heard) = oneshot::channel();
        let mut state = self.state.lock();
        // Dropped here after the end, which tells whoever asked.
        if !state.closed {
            state.asked.push(BalancerRequest { clear, done });
        }
        drop(state);
        self.wake.notify_one();
        heard
    }

    /// Memory is short: so many of the accounted bytes have to go, and not to come back before [`release`](Self::release).
    pub(in crate::tiered) fn press(&self, accounted: u64, excess: u64) {
        self.state.lock().allowance.press(accounted, excess);
    }

    /// Memory has returned: allows a little more. False: it is as before.
    pub(in crate::tiered) fn release(&self) -> bool {
        let mut state = self.state.lock();
        let more = state.allowance.release();
        state.is_exact |= !more;
        drop(state);
        self.kick();
        more
    }

    /// The setting changed.
    pub(in crate::tiered) fn set_budget(&self, budget: u64) {
        let mut state = self.state.lock();
        state.allowance.set_budget(budget);
        state.is_exact = true;
        drop(state);
        self.kick();
    }

    /// Bytes that the spool may take now.
    pub(in crate::tiered) fn allowed(&self) -> u64 {
        self.allowed.load(Ordering::Relaxed)
    }

    fn kick(&self) {
        self.state.lock().kicked = true;
        self.wake.notify_one();
    }

    /// Ends the thread. What is asked is not done any more.
    pub(in crate::tiered) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.asked.clear();
        drop(state);
        self.wake.notify_one();
    }

    /// Waits for the next turn. `None`: it is over.
    fn wait(&self) -> Option<Vec<BalancerRequest>> {
        let until = Instant::now() + INTERVAL;
        let mut state = self.state.lock();
        while !state.closed && !state.kicked && state.asked.is_empty() {
            if self.wake.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.kicked = false;
        (!state.closed).then(|| std::mem::take(&mut state.asked))
    }
}

/// The thread, until the spool closes.
// Under its own name in a profile, as `watch` is: `benches/cost` leaves out what works by the
// clock.
#[inline(never)]
pub(in crate::tiered) fn keep(shared: &Arc<Shared>) {
    let _end = CloseOnExit(&shared.balancer);
    let mut heap = Heap::default();
    // A limit of the system may be far below the budget: nothing is to come near it before the first turn.
    balance(shared);
    while let Some(asked) = shared.balancer.wait() {
        shared.cache.upkeep();
        // Nobody else wants to know.
        let accounted = || if asked.is_empty() { 0 } else { shared.accounted_bytes() };
        let before = accounted();
        let mut evicted = Evicted::default();
        if asked.iter().any(|ask| ask.clear) {
            evicted = shared.cache.clear();
        }
        let resized = balance(shared);
        let (entries, bytes) = (evicted.entries + resized.entries, evicted.bytes + resized.bytes);
        if entries > 0 {
            shared.stats.cache_evicted(entries, bytes);
        }
        shared.table.shards().for_each(|mut shard| shard.pending.trim());
        // What was used of the crash log at the height of a burst.
        if !asked.is_empty() || shared.accounted_bytes() > shared.balancer.allowed() {
            shared.protection.trim();
        }
        heap.look(shared.config.load().memory_budget, !asked.is_empty() || bytes >= WORTH_A_TRIM);
        if !asked.is_empty() {
            // What came in meanwhile counts, too.
            shared.cache.upkeep();
        }
        let after = accounted();
        for ask in asked {
            // Whoever asked may be gone.
            let _ = ask.done.send(BalancedShares { before, after });
        }
    }
}

/// Nobody waits for a thread that is gone, however it went.
struct CloseOnExit<'a>(&'a MemoryBalancer);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// When the heap was last searched for what can go back to the system.
#[derive(Debug, Default)]
struct Heap {
    /// Resident bytes after that, or the least since then.
    least: u64,
}

impl Heap {
    /// Searches it if the process has grown by a good part of the budget, or if somebody asks for it.
    fn look(&mut self, budget: u64, is_asked: bool) {
        let Some(now) = resident() else { return };
        if is_asked || now > self.least + WORTH_A_TRIM.max(budget / 32) {
            trim();
            self.least = resident().unwrap_or(now);
        } else {
            self.least = self.least.min(now);
        }
    }
}

/// Gives each part its share. Says what had to leave the cache for it.
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
    let (now, lru) = (shared.cache.capacity(), config.cache_policy == crate::CachePolicy::Lru);
    // Each copy is touched for it: an eighth too much or too little is left as it is.
    let differs = match is_exact {
        true => shares.cache != now,
        false => shares.cache < now / 8 * 7 || shares.cache / 8 * 7 > now,
    };
    if !differs && shared.cache.is_lru() == lru {
        return Evicted::default();
    }
    shared.cache.resize(shares.cache, lru, |id| shared.table.lock(id))
}

/// Bytes that the spool can have without coming near to a limit that kills. `None` where there is none, or nobody watches.
fn at_most(shared: &Shared, config: &Config) -> Option<u64> {
    let room = shared.monitor.get()?.room()?;
    Some(room.share(config.memory_budget, shared.accounted_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_thread_that_died() {
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
