//! Clean copies, in moka. Everything here is also durable: an entry may vanish at any time.

use std::sync::Arc;

use arc_swap::ArcSwap;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tidespool_core::SpoolId;

/// What moka takes for an entry beside the message's bytes (measured by its authors' users and by us at about this).
const ENTRY_OVERHEAD: u64 = 304;

type Inner = Cache<SpoolId, Arc<Box<[u8]>>, foldhash::fast::RandomState>;

/// The clean cache. Its moka is replaced as a whole to change its size: that frees at once.
#[derive(Debug)]
pub(crate) struct CleanCache {
    inner: ArcSwap<Sized>,
    /// When there is no pressure, in bytes.
    full_capacity: u64,
    lru: bool,
}

#[derive(Debug)]
struct Sized {
    cache: Inner,
    capacity: u64,
}

impl CleanCache {
    /// `capacity`: bytes, overhead included. `lru`: least recently used first, else TinyLFU.
    pub(crate) fn new(capacity: u64, lru: bool) -> Self {
        let inner = Sized { cache: build(capacity, lru), capacity };
        Self { inner: ArcSwap::from_pointee(inner), full_capacity: capacity, lru }
    }

    pub(crate) fn get(&self, id: &SpoolId) -> Option<Arc<Box<[u8]>>> {
        self.inner.load().cache.get(id)
    }

    /// Takes a clean copy in, in place of an earlier one. Call it under the lock that orders the id's changes.
    pub(crate) fn insert(&self, id: SpoolId, data: Arc<Box<[u8]>>) {
        let inner = self.inner.load();
        // A message that would push out an eighth of the rest is cheaper to read again.
        if cost(&data) <= inner.capacity / 8 {
            inner.cache.insert(id, data);
        } else {
            inner.cache.invalidate(&id);
        }
    }

    pub(crate) fn remove(&self, id: &SpoolId) {
        self.inner.load().cache.invalidate(id);
    }

    /// Drops every copy, at once; says how many there were and how many bytes they took.
    pub(crate) fn clear(&self) -> (u64, u64) {
        self.resize(self.capacity())
    }

    /// Drops every copy and goes on with half the capacity, down to an eighth of the full one.
    pub(crate) fn shrink(&self) -> (u64, u64) {
        self.resize((self.capacity() / 2).max(self.full_capacity / 8))
    }

    /// Doubles the capacity, up to the full one. The copies go with the old cache: they were few.
    pub(crate) fn grow(&self) {
        if self.capacity() < self.full_capacity {
            self.resize((self.capacity() * 2).min(self.full_capacity));
        }
    }

    fn resize(&self, capacity: u64) -> (u64, u64) {
        let next = Sized { cache: build(capacity, self.lru), capacity };
        let before = self.inner.swap(Arc::new(next));
        before.cache.run_pending_tasks();
        (before.cache.entry_count(), before.cache.weighted_size())
    }

    /// Does what moka put off: without it, removed entries keep their memory and the counts lag.
    pub(crate) fn upkeep(&self) {
        self.inner.load().cache.run_pending_tasks();
    }

    /// Bytes, overhead included, as of the last upkeep.
    pub(crate) fn bytes(&self) -> u64 {
        self.inner.load().cache.weighted_size()
    }

    /// Messages, as of the last upkeep.
    pub(crate) fn entries(&self) -> u64 {
        self.inner.load().cache.entry_count()
    }

    /// The most bytes it may take now.
    pub(crate) fn capacity(&self) -> u64 {
        self.inner.load().capacity
    }
}

fn build(capacity: u64, lru: bool) -> Inner {
    Cache::builder()
        .max_capacity(capacity)
        .weigher(|_, data: &Arc<Box<[u8]>>| u32::try_from(cost(data)).unwrap_or(u32::MAX))
        .eviction_policy(if lru { EvictionPolicy::lru() } else { EvictionPolicy::tiny_lfu() })
        .build_with_hasher(foldhash::fast::RandomState::default())
}

fn cost(data: &[u8]) -> u64 {
    data.len() as u64 + ENTRY_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Arc<Box<[u8]>> {
        Arc::new(vec![7; len].into_boxed_slice())
    }

    #[test]
    fn it_keeps_to_its_capacity_and_keeps_the_newest() {
        let cache = CleanCache::new(100_000, true);
        let ids: Vec<SpoolId> = (0..1000).map(|_| SpoolId::new()).collect();
        for id in &ids {
            cache.insert(*id, message(1000));
            cache.upkeep();
        }
        assert!(cache.bytes() <= 100_000, "{}", cache.bytes());
        assert!(cache.get(ids.last().unwrap()).is_some());
        assert!(cache.get(&ids[0]).is_none());
    }

    #[test]
    fn clearing_frees_everything_and_tells_how_much() {
        let cache = CleanCache::new(1 << 20, true);
        let (id, data) = (SpoolId::new(), message(1000));
        cache.insert(id, data.clone());
        assert_eq!(cache.clear(), (1, 1000 + ENTRY_OVERHEAD));
        assert!(cache.get(&id).is_none());
        assert_eq!(Arc::strong_count(&data), 1, "freed, not only hidden");
    }

    #[test]
    fn it_shrinks_and_grows_within_its_bounds() {
        let cache = CleanCache::new(800_000, true);
        for _ in 0..10 {
            cache.shrink();
        }
        assert_eq!(cache.capacity(), 100_000);
        cache.grow();
        assert_eq!(cache.capacity(), 200_000);
        for _ in 0..10 {
            cache.grow();
        }
        assert_eq!(cache.capacity(), 800_000);
    }

    #[test]
    fn a_message_too_large_for_the_cache_is_not_taken() {
        let cache = CleanCache::new(100_000, true);
        let id = SpoolId::new();
        cache.insert(id, message(10));
        cache.insert(id, message(50_000));
        assert!(cache.get(&id).is_none(), "nor does it leave its earlier version there");
    }
}
