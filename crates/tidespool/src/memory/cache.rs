//! Clean copies, in moka. Everything here is also durable: an entry may vanish at any time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tidespool_core::SpoolId;

/// What moka takes for an entry beside the message's bytes (measured by its authors' users and by us at about this).
const ENTRY_OVERHEAD: u64 = 376;

/// Copies that are carried over before moka is asked to free what they took.
const CARRIED_AT_ONCE: usize = 256;

type Inner = Cache<SpoolId, CachedCopy, foldhash::fast::RandomState>;

/// A clean copy, and when it came.
#[derive(Debug, Clone)]
struct CachedCopy {
    data: Arc<Box<[u8]>>,
    /// The [`CleanCache::age`] at which it came in: coarse, so that telling it costs nothing.
    since: u32,
}

/// The clean cache. Its moka, which can't change its size, is replaced by another one: the newest copies are carried over.
#[derive(Debug)]
pub(crate) struct CleanCache {
    inner: ArcSwap<WeighedCopy>,
    /// Goes up with each upkeep.
    age: AtomicU32,
}

#[derive(Debug)]
struct WeighedCopy {
    cache: Inner,
    capacity: u64,
    lru: bool,
    /// What the copies are being carried over from. What changes meanwhile changes there, too.
    previous: Option<Inner>,
}

impl WeighedCopy {
    /// A copy that is still to be carried over.
    #[cold]
    fn carried(&self, id: &SpoolId) -> Option<Arc<Box<[u8]>>> {
        self.previous.as_ref()?.get(id).map(|copy| copy.data)
    }
}

/// What left the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub(crate) entries: u64,
    /// Overhead included.
    pub(crate) bytes: u64,
}

impl CleanCache {
    /// `capacity`: bytes, overhead included. `lru`: least recently used first, else TinyLFU.
    pub(crate) fn new(capacity: u64, lru: bool) -> Self {
        let inner = WeighedCopy { cache: build(capacity, lru), capacity, lru, previous: None };
        Self { inner: ArcSwap::from_pointee(inner), age: AtomicU32::new(0) }
    }

    pub(crate) fn get(&self, id: &SpoolId) -> Option<Arc<Box<[u8]>>> {
        let inner = self.inner.load();
        match inner.cache.get(id) {
            Some(copy) => Some(copy.data),
            None => inner.carried(id),
        }
    }

    /// Takes a clean copy in, in place of an earlier one. Call it under the lock that orders the id's changes.
    pub(crate) fn insert(&self, id: SpoolId, data: Arc<Box<[u8]>>) {
        let inner = self.inner.load();
        if let Some(previous) = &inner.previous {
            previous.invalidate(&id);
        }
        // A message that would push out an eighth of the rest is cheaper to read again.
        if cost(&data) <= inner.capacity / 8 {
            inner.cache.insert(id, CachedCopy { data, since: self.age.load(Ordering::Relaxed) });
        } else {
            inner.cache.invalidate(&id);
        }
    }

    /// Call it under the lock that orders the id's changes.
    pub(crate) fn remove(&self, id: &SpoolId) {
        let inner = self.inner.load();
        inner.cache.invalidate(id);
        if let Some(previous) = &inner.previous {
            previous.invalidate(id);
        }
    }

    /// Drops every copy, at once. Runs at one place at a time, as [`resize`](Self::resize).
    pub(crate) fn clear(&self) -> Evicted {
        let before = self.inner.load().cache.clone();
        let (capacity, lru) = (self.capacity(), self.is_lru());
        self.put(WeighedCopy { cache: build(capacity, lru), capacity, lru, previous: None });
        size(&before)
    }

    /// Goes on with another capacity or policy, and with the newest copies that fit; says what was left behind. `lock` takes the lock that orders
    /// an id's changes, for as long as what it returns is held.
    pub(crate) fn resize<L>(&self, capacity: u64, lru: bool, lock: impl Fn(&SpoolId) -> L) -> Evicted {
        let before = self.inner.load().cache.clone();
        let was = size(&before);
        let cache = build(capacity, lru);
        self.put(WeighedCopy { cache: cache.clone(), capacity, lru, previous: Some(before.clone()) });
        let mut newest = NewestVersion::of(&before, capacity);
        for (number, (id, copy)) in before.iter().enumerate() {
            if newest.takes(&copy) {
                let _order = lock(&id);
                // It may have been removed or replaced since: then it is not here any more.
                if let Some(copy) = before.remove(&*id) {
                    cache.insert(*id, copy);
                }
            } else {
                before.invalidate(&*id);
            }
            // What it took is free for the next.
            if number % CARRIED_AT_ONCE == 0 {
                before.run_pending_tasks();
            }
        }
        self.put(WeighedCopy { cache: cache.clone(), capacity, lru, previous: None });
        let is = size(&cache);
        Evicted { entries: was.entries.saturating_sub(is.entries), bytes: was.bytes.saturating_sub(is.bytes) }
    }

    fn put(&self, next: WeighedCopy) {
        self.inner.store(Arc::new(next));
    }

    /// Does what moka put off: without it, removed entries keep their memory and the counts lag.
    pub(crate) fn upkeep(&self) {
        self.inner.load().cache.run_pending_tasks();
        self.age.fetch_add(1, Ordering::Relaxed);
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

    /// Least recently used first, or TinyLFU.
    pub(crate) fn is_lru(&self) -> bool {
        self.inner.load().lru
    }
}

/// What is in it, after what moka put off is done.
fn size(cache: &Inner) -> Evicted {
    cache.run_pending_tasks();
    Evicted { entries: cache.entry_count(), bytes: cache.weighted_size() }
}

/// The newest copies that together fit.
struct NewestVersion {
    /// All that are younger than this, and of this age as many as there is room for.
    boundary: u32,
    room: u64,
    capacity: u64,
}

impl NewestVersion {
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

fn build(capacity: u64, lru: bool) -> Inner {
    Cache::builder()
        .max_capacity(capacity)
        .weigher(|_, copy: &CachedCopy| u32::try_from(cost(&copy.data)).unwrap_or(u32::MAX))
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

    fn filled(count: usize) -> (CleanCache, Vec<SpoolId>) {
        let cache = CleanCache::new(1 << 20, true);
        let ids: Vec<SpoolId> = (0..count).map(|_| SpoolId::new()).collect();
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
    fn clearing_frees_everything_and_tells_how_much() {
        let cache = CleanCache::new(1 << 20, true);
        let (id, data) = (SpoolId::new(), message(1000));
        cache.insert(id, data.clone());
        assert_eq!(cache.clear(), Evicted { entries: 1, bytes: 1000 + ENTRY_OVERHEAD });
        assert!(cache.get(&id).is_none());
        assert_eq!(Arc::strong_count(&data), 1, "freed, not only hidden");
    }

    #[test]
    fn a_smaller_cache_has_the_newest_of_the_larger() {
        let (cache, ids) = filled(200);
        let room = 55 * (1000 + ENTRY_OVERHEAD);
        let evicted = cache.resize(room, true, |_| ());
        assert_eq!((cache.capacity(), cache.entries()), (room, 55));
        assert_eq!(evicted, Evicted { entries: 145, bytes: 145 * (1000 + ENTRY_OVERHEAD) });
        // Ten have one age: of those on the boundary some are there.
        assert!(ids[150..].iter().all(|id| cache.get(id).is_some()));
        assert!(ids[..140].iter().all(|id| cache.get(id).is_none()));
    }

    #[test]
    fn a_larger_cache_and_one_of_another_policy_have_all() {
        let (cache, ids) = filled(200);
        for (capacity, lru) in [(2 << 20, true), (2 << 20, false), (1 << 20, false)] {
            assert_eq!(cache.resize(capacity, lru, |_| ()), Evicted::default());
            assert_eq!((cache.capacity(), cache.is_lru()), (capacity, lru));
            assert!(ids.iter().all(|id| cache.get(id).is_some()));
        }
    }

    /// What happens to an id between the swap and its turn: `lock` is called for it just then.
    #[test]
    fn what_changes_while_copies_are_carried_over_stays_changed() {
        let (cache, ids) = filled(30);
        let (removed, replaced) = (ids[3], ids[7]);
        cache.resize(2 << 20, true, |id| {
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
    fn copies_are_found_while_they_are_carried_over() {
        let (cache, ids) = filled(30);
        cache.resize(2 << 20, true, |_| assert!(ids.iter().all(|id| cache.get(id).is_some())));
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
