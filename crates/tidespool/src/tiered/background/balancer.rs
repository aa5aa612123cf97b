//! The memory balancer thread: measures the memory of each part of the spool, and divides the
//! allowed memory among them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Config;
use crate::memory::{Copies, resident, trim};
use crate::tiered::state::{BalancedShares, MemoryBalancer, Shared};

/// The interval between two turns.
const INTERVAL: Duration = Duration::from_millis(100);

/// Minimum growth or evicted bytes before free memory is returned to the system again.
const WORTH_A_TRIM: u64 = 8 << 20;

/// Runs the thread until the spool closes.
// Not inlined, as `watch`: `benches/cost` excludes both by name, because they run by the clock.
#[inline(never)]
pub(in crate::tiered) fn keep(shared: &Arc<Shared>) {
    let _end = CloseOnExit(&shared.balancer);
    let mut heap = Heap::default();
    // Before the first turn: a limit of the system may be far below the budget.
    balance(shared);
    while let Some(requests) = shared.balancer.wait(Instant::now() + INTERVAL) {
        shared.promote_young();
        shared.cache.upkeep();
        // Only requests need the sums.
        let accounted = || if requests.is_empty() { 0 } else { shared.accounted_bytes() };
        let before = accounted();
        let mut evicted = Copies::default();
        if requests.iter().any(|request| request.clear) {
            evicted = shared.clear_copies();
        }
        let Copies { entries, bytes } = evicted + balance(shared);
        if entries > 0 {
            shared.stats.cache_evicted(entries, bytes);
        }
        shared.table.shards().for_each(|mut shard| shard.trim());
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
fn balance(shared: &Shared) -> Copies {
    let config = shared.config.load();
    let (allowance, is_exact) = shared.balancer.divide(at_most(shared, &config), config.memory_budget);
    let shares = allowance.shares(config.effective_dirty_limit(), shared.held());
    if shared.budget.limit() != shares.dirty_limit {
        shared.budget.set_limit(shares.dirty_limit);
        if shared.is_over_limit() {
            shared.commit_queue.note_dirty(true);
        }
    }
    let now = shared.clean_capacity();
    // Resizing touches each copy, so a difference of an eighth is tolerated.
    let differs = match is_exact {
        true => shares.cache != now,
        false => shares.cache < now / 8 * 7 || shares.cache / 8 * 7 > now,
    };
    if !differs && !shared.cache.has_new_weights() {
        return Copies::default();
    }
    shared.resize_copies(shares.cache)
}

/// Returns the bytes that the spool can take while the process stays away from its memory limit.
/// `None`: there is no limit, or no monitor.
fn at_most(shared: &Shared, config: &Config) -> Option<u64> {
    shared.monitor.get()?.share(config.memory_budget, shared.accounted_bytes())
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

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
