//! Frees memory under memory pressure, and implements `advise_low_memory`.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures_lite::future;
use tidespool_core::Closed;
use tidespool_pressure::{Level, Relief};
use tokio::sync::oneshot::Receiver;

use crate::tiered::state::Shared;

/// The longest wait for the balancer or for a flush. Meanwhile the monitor can't check memory or
/// other spools.
const PATIENCE: Duration = Duration::from_millis(300);

/// The spool's interface to the pressure monitor.
pub(in crate::tiered) struct SpoolRelief(pub(in crate::tiered) Arc<Shared>);

impl Relief for SpoolRelief {
    fn relieve(&self, level: Level, excess_bytes: u64) -> isize {
        let shared = &self.0;
        let until = Instant::now() + PATIENCE;
        shared.balancer.press(shared.accounted_bytes(), excess_bytes);
        let Some(first) = wait(shared, shared.balancer.settle(), until) else { return 0 };
        // Messages that are not written in time are still written afterwards.
        wait(shared, shared.commit_queue.flush(false), until);
        let last = match level {
            Level::Critical => shared.balancer.clear(),
            Level::Low | Level::Normal => shared.balancer.settle(),
        };
        let Some(last) = wait(shared, last, Instant::now() + PATIENCE) else { return 0 };
        let freed = difference(first.before, last.after);
        shared.stats.low_memory(freed);
        freed
    }

    fn accounted_bytes(&self) -> u64 {
        self.0.accounted_bytes()
    }

    fn budget_bytes(&self) -> u64 {
        self.0.config.load().memory_budget
    }

    fn level_changed(&self, level: Level) {
        *self.0.pressure_level.lock() = level;
        self.0.gate.set_critical(level == Level::Critical);
        self.0.stats.pressure_changed();
    }

    fn memory_returned(&self) -> bool {
        self.0.balancer.release()
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.0.clean_copies().bytes + self.0.budget.dirty()
    }
}

/// Blocks until a message arrives, until `until`, or until the spool closes. Not for a thread of an
/// async runtime.
pub(in crate::tiered) fn wait<T>(shared: &Shared, receiver: Receiver<T>, until: Instant) -> Option<T> {
    let received = async { receiver.await.ok() };
    let gone = async {
        shared.closing.closed().await;
        None
    };
    let mut ended = pin!(future::or(received, gone));
    // Without the spool's timer thread, which runs other callers' wakers.
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(result) = ended.as_mut().poll(&mut Context::from_waker(&waker)) {
            return result;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Makes everything durable that is dirty at the call, and drops the clean copies. Returns by how
/// many bytes the accounted memory fell. If the disk does not finish within `store_deadline`, the
/// other dirty messages stay in memory. The clean copies are dropped all the same.
pub(in crate::tiered) async fn advise_low_memory(shared: &Arc<Shared>) -> Result<isize, Closed> {
    shared.advice.share(|| run(shared.clone())).await
}

async fn run(shared: Arc<Shared>) -> Result<isize, Closed> {
    let first = shared.balancer.clear().await.map_err(|_| Closed)?;
    let flush = shared.commit_queue.flush(false);
    let flushed = async { flush.await.map_err(|_| Closed) };
    let gone = async {
        shared.closing.closed().await;
        Err(Closed)
    };
    let flushed_or_gone = pin!(future::or(flushed, gone));
    let patience = shared.config.load().store_deadline;
    if let Some(flushed) = shared.timer.bound(Instant::now() + patience, flushed_or_gone).await {
        flushed?;
    }
    // The flushed messages are clean now, and are dropped. Messages that are still dirty count.
    let last = shared.balancer.clear().await.map_err(|_| Closed)?;
    let freed = difference(first.before, last.after);
    shared.stats.low_memory(freed);
    Ok(freed)
}

fn difference(before: u64, after: u64) -> isize {
    let freed = i64::try_from(before).unwrap_or(i64::MAX).saturating_sub_unsigned(after);
    isize::try_from(freed).unwrap_or(isize::MAX)
}

#[cfg(all(test, not(feature = "pressure-monitor")))]
mod tests {
    use std::sync::Arc;

    use futures_lite::future::block_on;
    use tidespool_core::{Spool as _, SpoolId};

    use crate::{Config, PressureLevel, TieredSpool};

    #[test]
    fn memory_is_freed_on_request_without_a_monitor() {
        let dir = tempfile::tempdir().unwrap();
        let spool = block_on(TieredSpool::open(Config::new(dir.path().join("spool")))).unwrap();
        let message: Arc<Box<[u8]>> = Arc::new(vec![7; 1 << 20].into());
        block_on(spool.store(SpoolId::new(), message, true, None)).unwrap();
        assert!(block_on(spool.advise_low_memory()).unwrap() >= 1 << 19);
        let now = spool.stats().gauges;
        assert_eq!((now.cache_entries, now.pressure_level), (0, PressureLevel::Normal));
        spool.reconfigure(Config::clone(&spool.config())).unwrap();
        block_on(spool.shutdown()).unwrap();
    }
}
