//! Dirty bytes: how many there are, how many there may be, and who waits for room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

/// What a dirty message costs in memory beside its bytes: its entries in the tables, its ticket, its reference counts.
pub(crate) const DIRTY_OVERHEAD: u64 = 192;

/// Room for dirty bytes. Waiters are served in the order in which they came.
#[derive(Debug)]
pub(crate) struct Budget {
    room: Semaphore,
    limit: u64,
    dirty: AtomicU64,
    waiting: AtomicU64,
    /// Bytes a second that a commit makes durable while it is at it; 0 until measured.
    drain_rate: AtomicU64,
}

/// Room for one dirty version. It is given back when the last holder of the version lets go: not earlier, and on every path.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    room: usize,
    bytes: u64,
}

impl Budget {
    /// `limit`: bytes.
    pub(crate) fn new(limit: u64) -> Self {
        let room = usize::try_from(limit).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            room: Semaphore::new(room),
            limit,
            dirty: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            drain_rate: AtomicU64::new(0),
        }
    }

    /// Room for a message of `len` bytes, if there is some and nobody waits for it.
    pub(crate) fn try_admit(self: &Arc<Self>, len: u64) -> Option<Permit> {
        let (room, bytes) = self.price(len);
        self.room.try_acquire_many(room).ok()?.forget();
        Some(self.permit(room, bytes))
    }

    /// Waits for room for a message of `len` bytes. Dropping the future gives up its place.
    pub(crate) async fn admit(self: &Arc<Self>, len: u64) -> Permit {
        let (room, bytes) = self.price(len);
        let waiting = Waiting { budget: self, bytes };
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        // The semaphore is never closed.
        if let Ok(acquired) = self.room.acquire_many(room).await {
            acquired.forget();
        }
        drop(waiting);
        self.permit(room, bytes)
    }

    /// Room for a tombstone. Removes never wait: they are what makes room.
    pub(crate) fn admit_removal(self: &Arc<Self>) -> Permit {
        self.permit(0, DIRTY_OVERHEAD)
    }

    /// What a message takes of the semaphore, and what it counts. One that is larger than the limit takes all of it: it is alone.
    fn price(&self, len: u64) -> (u32, u64) {
        let bytes = len + DIRTY_OVERHEAD;
        (u32::try_from(bytes.min(self.limit)).unwrap_or(u32::MAX), bytes)
    }

    fn permit(self: &Arc<Self>, room: u32, bytes: u64) -> Permit {
        self.dirty.fetch_add(bytes, Ordering::Relaxed);
        Permit { budget: self.clone(), room: room as usize, bytes }
    }

    /// Dirty bytes now, overhead included.
    pub(crate) fn dirty(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed)
    }

    /// The limit, in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that stores wait to bring in.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Learns how long a commit of so many bytes took.
    pub(crate) fn note_drained(&self, bytes: u64, took: Duration) {
        // Small commits tell what a sync costs, not what the disk can do.
        if bytes < 64 * 1024 {
            return;
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let rate = bytes.saturating_mul(1_000_000) / micros;
        let before = self.drain_rate.load(Ordering::Relaxed);
        let smoothed = if before == 0 { rate } else { before / 8 * 7 + rate / 8 };
        self.drain_rate.store(smoothed.max(1), Ordering::Relaxed);
    }

    /// The measured rate, in bytes a second; 0 until something was measured.
    pub(crate) fn drain_rate(&self) -> u64 {
        self.drain_rate.load(Ordering::Relaxed)
    }
}

/// Counts a waiter out, whether it got its room or was dropped.
struct Waiting<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Permit {
    /// What it counts, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.dirty.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.room.add_permits(self.room);
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn room_comes_back_with_the_permit_and_dirty_bytes_with_it() {
        let budget = Arc::new(Budget::new(10_000));
        let first = budget.try_admit(9_000).unwrap();
        assert_eq!(budget.dirty(), 9_000 + DIRTY_OVERHEAD);
        assert!(budget.try_admit(9_000).is_none());
        drop(first);
        assert_eq!(budget.dirty(), 0);
        assert!(budget.try_admit(9_000).is_some());
    }

    #[test]
    fn a_message_over_the_limit_is_admitted_alone() {
        let budget = Arc::new(Budget::new(10_000));
        let small = budget.try_admit(1).unwrap();
        assert!(budget.try_admit(1 << 20).is_none());
        drop(small);
        let huge = budget.try_admit(1 << 20).unwrap();
        assert_eq!(budget.dirty(), (1 << 20) + DIRTY_OVERHEAD);
        assert!(budget.try_admit(0).is_none());
        drop(huge);
        assert!(budget.try_admit(0).is_some());
    }

    #[test]
    fn a_dropped_waiter_leaks_nothing_and_the_next_one_is_served() {
        let budget = Arc::new(Budget::new(10_000));
        let first = budget.try_admit(9_000).unwrap();
        let mut gone = Box::pin(budget.admit(9_000));
        let mut next = Box::pin(budget.admit(5_000));
        block_on(async {
            assert!(poll_once(&mut gone).await.is_none());
            assert!(poll_once(&mut next).await.is_none());
            assert_eq!(budget.waiting(), 14_000 + 2 * DIRTY_OVERHEAD);
            drop(first);
            drop(gone);
            assert!(poll_once(&mut next).await.is_some());
        });
        drop(next);
        assert_eq!((budget.dirty(), budget.waiting()), (0, 0));
        assert!(budget.try_admit(9_000).is_some(), "all room is back");
    }

    #[test]
    fn removals_are_counted_and_never_wait() {
        let budget = Arc::new(Budget::new(1_000));
        let _full = budget.try_admit(10_000).unwrap();
        let removal = budget.admit_removal();
        assert_eq!(removal.bytes(), DIRTY_OVERHEAD);
    }
}
