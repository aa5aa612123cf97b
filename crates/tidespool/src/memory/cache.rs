//! Clean copies in moka. Every copy is also durable, so an entry may be evicted at any time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::message_id::MessageId;

/// Memory of an entry in moka beside the message's bytes. Measured, and reported by users of moka.
const ENTRY_OVERHEAD: u64 = 376;

/// After this many copies a resize lets moka free the memory of those removed.
const CARRIED_AT_ONCE: usize = 256;

type Inner = Cache<MessageId, CachedCopy, foldhash::fast::RandomState>;

/// A clean copy and its age.
#[derive(Debug, Clone)]
struct CachedCopy {
    data: Arc<Box<[u8]>>,
    /// The [`CleanCache::age`] at insertion. Coarse, so that reading it is cheap.
    since: u32,
}

/// The clean cache. A moka cache cannot change its size, so a resize replaces it and carries the
/// newest copies over.
#[derive(Debug)]
pub(crate) struct CleanCache {
    inner: ArcSwap<SizedCache>,
    /// Incremented by each upkeep.
    age: AtomicU32,
}

#[derive(Debug)]
struct SizedCache {
    cache: Inner,
    capacity: u64,
    /// During a resize: the cache that copies are carried over from. Changes apply to it as well.
    previous: Option<Inner>,
}

impl SizedCache {
    /// Returns a copy that is not carried over yet.
    #[cold]
    fn carried(&self, id: &MessageId) -> Option<Arc<Box<[u8]>>> {
        self.previous.as_ref()?.get(id).map(|copy| copy.data)
    }
}

/// Number and size of dropped copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub(crate) entries: u64,
    /// Including the overhead.
    pub(crate) bytes: u64,
}

impl CleanCache {
    /// `capacity`: bytes, including overhead.
    pub(crate) fn new(capacity: u64) -> Self {
        let inner = SizedCache { cache: build(capacity), capacity, previous: None };
        Self { inner: ArcSwap::from_pointee(inner), age: AtomicU32::new(0) }
    }

    pub(crate) fn get(&self, id: &MessageId) -> Option<Arc<Box<[u8]>>> {
        let inner = self.inner.load();
        match inner.cache.get(id) {
            Some(copy) => Some(copy.data),
            None => inner.carried(id),
        }
    }

    /// Inserts or replaces a clean copy. Call it under the lock that orders the id's changes.
    pub(crate) fn insert(&self, id: MessageId, data: Arc<Box<[u8]>>) {
        let inner = self.inner.load();
        if let Some(previous) = &inner.previous {
            previous.invalidate(&id);
        }
        // A message above an eighth of the capacity would evict too much: reading it is cheaper.
        if cost(&data) <= inner.capacity / 8 {
            inner.cache.insert(id, CachedCopy { data, since: self.age.load(Ordering::Relaxed) });
        } else {
            inner.cache.invalidate(&id);
        }
    }

    /// Removes a copy. Call it under the lock that orders the id's changes.
    pub(crate) fn remove(&self, id: &MessageId) {
        let inner = self.inner.load();
        inner.cache.invalidate(id);
        if let Some(previous) = &inner.previous {
            previous.invalidate(id);
        }
    }

    /// Drops every copy at once. Must not run concurrently with itself or [`resize`](Self::resize).
    pub(crate) fn clear(&self) -> Evicted {
        let before = self.inner.load().cache.clone();
        let capacity = self.capacity();
        self.put(SizedCache { cache: build(capacity), capacity, previous: None });
        size(&before)
    }

    /// Changes the capacity, and keeps the newest copies that fit. Returns what was dropped.
    /// `lock` takes the lock that orders an id's changes; it is held while its result lives.
    pub(crate) fn resize<L>(&self, capacity: u64, lock: impl Fn(&MessageId) -> L) -> Evicted {
        let before = self.inner.load().cache.clone();
        let was = size(&before);
        let cache = build(capacity);
        self.put(SizedCache { cache: cache.clone(), capacity, previous: Some(before.clone()) });
        let mut newest = NewestCopies::of(&before, capacity);
        for (number, (id, copy)) in before.iter().enumerate() {
            if newest.takes(&copy) {
                let _order = lock(&id);
                // If it was removed or replaced meanwhile, it is no longer here.
                if let Some(copy) = before.remove(&*id) {
                    cache.insert(*id, copy);
                }
            } else {
                before.invalidate(&*id);
            }
            // Free the memory of the removed copies for the next ones.
            if number % CARRIED_AT_ONCE == 0 {
                before.run_pending_tasks();
            }
        }
        self.put(SizedCache { cache: cache.clone(), capacity, previous: None });
        let is = size(&cache);
        Evicted { entries: was.entries.saturating_sub(is.entries), bytes: was.bytes.saturating_sub(is.bytes) }
    }

    fn put(&self, next: SizedCache) {
        self.inner.store(Arc::new(next));
    }

    /// Runs moka's pending tasks. Without it, removed entries keep their memory and counts lag.
    pub(crate) fn upkeep(&self) {
        self.inner.load().cache.run_pending_tasks();
        self.age.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes including overhead, as of the last upkeep.
    pub(crate) fn bytes(&self) -> u64 {
        self.inner.load().cache.weighted_size()
    }

    /// Number of messages, as of the last upkeep.
    pub(crate) fn entries(&self) -> u64 {
        self.inner.load().cache.entry_count()
    }

    /// The current capacity in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.inner.load().capacity
    }
}

/// The contents, after moka's pending tasks.
fn size(cache: &Inner) -> Evicted {
    cache.run_pending_tasks();
    Evicted { entries: cache.entry_count(), bytes: cache.weighted_size() }
}

/// Selects the newest copies that fit together.
struct NewestCopies {
    /// Copies newer than this are taken, and copies of this age while there is room.
    boundary: u32,
    room: u64,
    capacity: u64,
}

impl NewestCopies {
    fn of(cache: &Inner, capacity: u64) -> Self {
        let mut by_age = BTreeMap::<u32, u64>::new();
        for (_, copy) in cache {
            *by_age.entry(copy.since).or_default() += cost(&copy.data);
        }
        let mut room = capacity;
        for (&age, &bytes) in by_age.iter().rev() {
            if bytes > room {
                return Self { boundary: age, room, capacity };
            }
            room -= bytes;
        }
        Self { boundary: 0, room: u64::MAX, capacity }
    }

    fn takes(&mut self, copy: &CachedCopy) -> bool {
        let cost = cost(&copy.data);
        if copy.since < self.boundary || cost > self.capacity / 8 {
            return false;
        }
        if copy.since > self.boundary {
            return true;
        }
        let fits = cost <= self.room;
        self.room -= if fits { cost } else { 0 };
        fits
    }
}

/// The least recently used copy is evicted: the newest messages of a spool are usually loaded next.
/// A full cache with moka's other policy, TinyLFU, rejects most new messages.
fn build(capacity: u64) -> Inner {
    Cache::builder()
        .max_capacity(capacity)
        .weigher(|_, copy: &CachedCopy| u32::try_from(cost(&copy.data)).unwrap_or(u32::MAX))
        .eviction_policy(EvictionPolicy::lru())
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
    fn it_respects_its_capacity_and_keeps_the_newest() {
        let cache = CleanCache::new(100_000);
        let ids: Vec<MessageId> = (0..1000).map(|_| MessageId::random()).collect();
        for id in &ids {
            cache.insert(*id, message(1000));
            cache.upkeep();
        }
        assert!(cache.bytes() <= 100_000, "{}", cache.bytes());
        assert!(cache.get(ids.last().unwrap()).is_some());
        assert!(cache.get(&ids[0]).is_none());
    }

    fn filled(count: usize) -> (CleanCache, Vec<MessageId>) {
        let cache = CleanCache::new(1 << 20);
        let ids: Vec<MessageId> = (0..count).map(|_| MessageId::random()).collect();
        for (n, id) in ids.iter().enumerate() {
            cache.insert(*id, message(1000));
            if n % 10 == 9 {
                cache.upkeep();
            }
        }
        cache.upkeep();
        (cache, ids)
    }

    #[test]
    fn clearing_frees_everything_and_returns_how_much() {
        let cache = CleanCache::new(1 << 20);
        let (id, data) = (MessageId::random(), message(1000));
        cache.insert(id, data.clone());
        assert_eq!(cache.clear(), Evicted { entries: 1, bytes: 1000 + ENTRY_OVERHEAD });
        assert!(cache.get(&id).is_none());
        assert_eq!(Arc::strong_count(&data), 1, "freed, not only invisible");
    }

    #[test]
    fn a_smaller_cache_keeps_the_newest_copies() {
        let (cache, ids) = filled(200);
        let room = 55 * (1000 + ENTRY_OVERHEAD);
        let evicted = cache.resize(room, |_| ());
        assert_eq!((cache.capacity(), cache.entries()), (room, 55));
        assert_eq!(evicted, Evicted { entries: 145, bytes: 145 * (1000 + ENTRY_OVERHEAD) });
        // Ten copies have the same age. Some of those at the boundary are kept.
        assert!(ids[150..].iter().all(|id| cache.get(id).is_some()));
        assert!(ids[..140].iter().all(|id| cache.get(id).is_none()));
    }

    #[test]
    fn a_cache_that_is_large_enough_keeps_all_copies() {
        let (cache, ids) = filled(200);
        for capacity in [2 << 20, 1 << 20] {
            assert_eq!(cache.resize(capacity, |_| ()), Evicted::default());
            assert_eq!(cache.capacity(), capacity);
            assert!(ids.iter().all(|id| cache.get(id).is_some()));
        }
    }

    /// `lock` is called for an id just before it is carried over, so it simulates a change then.
    #[test]
    fn changes_during_a_resize_are_kept() {
        let (cache, ids) = filled(30);
        let (removed, replaced) = (ids[3], ids[7]);
        cache.resize(2 << 20, |id| {
            if *id == removed {
                cache.remove(&removed);
            } else if *id == replaced {
                cache.insert(replaced, message(5));
            }
        });
        assert!(cache.get(&removed).is_none());
        assert_eq!(cache.get(&replaced).unwrap().len(), 5);
        assert_eq!(cache.entries(), 29);
    }

    #[test]
    fn copies_are_found_during_a_resize() {
        let (cache, ids) = filled(30);
        cache.resize(2 << 20, |_| assert!(ids.iter().all(|id| cache.get(id).is_some())));
    }

    #[test]
    fn a_message_too_large_for_the_cache_is_not_inserted() {
        let cache = CleanCache::new(100_000);
        let id = MessageId::random();
        cache.insert(id, message(10));
        cache.insert(id, message(50_000));
        assert!(cache.get(&id).is_none(), "its earlier version is removed as well");
    }
}
