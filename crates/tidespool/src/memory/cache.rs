//! Older clean copies in moka: those that have left [`Young`]. Every copy is also durable, so an
//! entry may be evicted at any time.
//!
//! [`Young`]: super::Young

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::cache_weights::CacheWeights;
use super::copies::Copies;
use crate::message_id::MessageId;

/// Memory of an entry in moka beside the message's bytes. Measured, and reported by users of moka.
const ENTRY_OVERHEAD: u64 = 376;

/// A copy may cost at most one part in so many of the capacity.
const LARGEST_PART: u64 = 4;

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

/// A moka cache, and the bytes of its copies.
#[derive(Debug, Clone)]
struct CountedCache {
    cache: Inner,
    weights: Arc<CacheWeights>,
    /// The bytes of all copies, if the weights differ. If they do not, moka's sum of the costs is
    /// the bytes, and moka need not report each removal, which would slow all changes.
    bytes: Option<Arc<AtomicU64>>,
}

impl CountedCache {
    /// The least recently used copy is evicted: the newest messages of a spool are usually loaded
    /// next. A full cache with moka's other policy, TinyLFU, rejects most new messages.
    fn new(capacity: u64, weights: Arc<CacheWeights>) -> Self {
        let costs = weights.clone();
        // A cost above 4 GiB counts as 4 GiB, which is still more than the bytes.
        let cost = move |id: &MessageId, copy: &CachedCopy| {
            costs
                .cost(id.spool(), bytes_of(&copy.data))
                .and_then(|cost| cost.try_into().ok())
                .unwrap_or(u32::MAX)
        };
        let mut cache =
            Cache::builder().max_capacity(capacity).weigher(cost).eviction_policy(EvictionPolicy::lru());
        let bytes = (!weights.are_equal()).then(Arc::<AtomicU64>::default);
        if let Some(bytes) = bytes.clone() {
            cache = cache.eviction_listener(move |_, copy: CachedCopy, _| {
                bytes.fetch_sub(bytes_of(&copy.data), Ordering::Relaxed);
            });
        }
        Self { cache: cache.build_with_hasher(foldhash::fast::RandomState::default()), weights, bytes }
    }

    fn insert(&self, id: MessageId, copy: CachedCopy) {
        if let Some(bytes) = &self.bytes {
            bytes.fetch_add(bytes_of(&copy.data), Ordering::Relaxed);
        }
        self.cache.insert(id, copy);
    }

    fn bytes(&self) -> u64 {
        match &self.bytes {
            Some(bytes) => bytes.load(Ordering::Relaxed),
            None => self.cache.weighted_size(),
        }
    }

    /// The contents, after moka's pending tasks.
    fn settled_size(&self) -> Copies {
        self.cache.run_pending_tasks();
        Copies { entries: self.cache.entry_count(), bytes: self.bytes() }
    }
}

/// The clean cache of all spools. A moka cache cannot change its size, so a resize replaces it and
/// carries the newest copies over.
#[derive(Debug)]
pub(crate) struct CleanCache {
    inner: ArcSwap<SizedCache>,
    /// The weights of the spools. They apply from the next resize on.
    weights: ArcSwap<CacheWeights>,
    /// Incremented by each upkeep.
    age: AtomicU32,
}

#[derive(Debug)]
struct SizedCache {
    copies: CountedCache,
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

impl CleanCache {
    /// `capacity`: bytes, including overhead.
    pub(crate) fn new(capacity: u64, weights: CacheWeights) -> Self {
        let weights = Arc::new(weights);
        let copies = CountedCache::new(capacity, weights.clone());
        let inner = SizedCache { copies, capacity, previous: None };
        Self { inner: ArcSwap::from_pointee(inner), weights: ArcSwap::new(weights), age: AtomicU32::new(0) }
    }

    pub(crate) fn get(&self, id: &MessageId) -> Option<Arc<Box<[u8]>>> {
        let inner = self.inner.load();
        match inner.copies.cache.get(id) {
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
        let cost = inner.copies.weights.cost(id.spool(), bytes_of(&data));
        // A larger message would evict too much: reading it is cheaper.
        if cost.is_some_and(|cost| cost <= inner.capacity / LARGEST_PART) {
            inner.copies.insert(id, CachedCopy { data, since: self.age.load(Ordering::Relaxed) });
        } else {
            inner.copies.cache.invalidate(&id);
        }
    }

    /// Removes a copy. Call it under the lock that orders the id's changes.
    pub(crate) fn remove(&self, id: &MessageId) {
        let inner = self.inner.load();
        inner.copies.cache.invalidate(id);
        if let Some(previous) = &inner.previous {
            previous.invalidate(id);
        }
    }

    /// Sets the weights of the spools. They apply from the next [`resize`](Self::resize) or
    /// [`clear`](Self::clear) on.
    pub(crate) fn set_weights(&self, weights: CacheWeights) {
        self.weights.store(Arc::new(weights));
    }

    /// The weights of the spools that the last [`set_weights`](Self::set_weights) has set.
    pub(crate) fn weights(&self) -> Arc<CacheWeights> {
        self.weights.load_full()
    }

    /// True if a resize would apply other weights.
    pub(crate) fn has_new_weights(&self) -> bool {
        **self.weights.load() != *self.inner.load().copies.weights
    }

    /// Drops every copy at once. Must not run concurrently with itself or [`resize`](Self::resize).
    pub(crate) fn clear(&self) -> Copies {
        let before = self.inner.load().copies.clone();
        let capacity = self.capacity();
        let copies = CountedCache::new(capacity, self.weights());
        self.put(SizedCache { copies, capacity, previous: None });
        before.settled_size()
    }

    /// Changes the capacity, and keeps the newest copies that fit. Returns what was dropped.
    /// `lock` takes the lock that orders an id's changes; it is held while its result lives.
    pub(crate) fn resize<L>(&self, capacity: u64, lock: impl Fn(&MessageId) -> L) -> Copies {
        let before = self.inner.load().copies.clone();
        let was = before.settled_size();
        let before = before.cache;
        let copies = CountedCache::new(capacity, self.weights());
        self.put(SizedCache { copies: copies.clone(), capacity, previous: Some(before.clone()) });
        let mut newest = NewestCopies::of(&before, capacity, &copies.weights);
        for (number, (id, copy)) in before.iter().enumerate() {
            if newest.takes(&id, &copy) {
                let _order = lock(&id);
                // If it was removed or replaced meanwhile, it is no longer here.
                if let Some(copy) = before.remove(&*id) {
                    copies.insert(*id, copy);
                }
            } else {
                before.invalidate(&*id);
            }
            // Free the memory of the removed copies for the next ones.
            if number % CARRIED_AT_ONCE == 0 {
                before.run_pending_tasks();
            }
        }
        self.put(SizedCache { copies: copies.clone(), capacity, previous: None });
        was - copies.settled_size()
    }

    fn put(&self, next: SizedCache) {
        self.inner.store(Arc::new(next));
    }

    /// Runs moka's pending tasks. Without it, removed entries keep their memory and counts lag.
    pub(crate) fn upkeep(&self) {
        self.inner.load().copies.cache.run_pending_tasks();
        self.age.fetch_add(1, Ordering::Relaxed);
    }

    /// The contents as of the last upkeep.
    pub(crate) fn size(&self) -> Copies {
        let copies = &self.inner.load().copies;
        Copies { entries: copies.cache.entry_count(), bytes: copies.bytes() }
    }

    /// The current capacity in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.inner.load().capacity
    }
}

/// Selects the newest copies that fit together.
struct NewestCopies<'a> {
    /// Copies newer than this are taken, and copies of this age while there is room.
    boundary: u32,
    room: u64,
    capacity: u64,
    weights: &'a CacheWeights,
}

impl<'a> NewestCopies<'a> {
    fn of(cache: &Inner, capacity: u64, weights: &'a CacheWeights) -> Self {
        let mut by_age = BTreeMap::<u32, u64>::new();
        for (id, copy) in cache {
            let cost = weights.cost(id.spool(), bytes_of(&copy.data)).unwrap_or(0);
            *by_age.entry(copy.since).or_default() += cost;
        }
        let mut room = capacity;
        for (&age, &cost) in by_age.iter().rev() {
            if cost > room {
                return Self { boundary: age, room, capacity, weights };
            }
            room -= cost;
        }
        Self { boundary: 0, room: u64::MAX, capacity, weights }
    }

    fn takes(&mut self, id: &MessageId, copy: &CachedCopy) -> bool {
        let Some(cost) = self.weights.cost(id.spool(), bytes_of(&copy.data)) else { return false };
        if copy.since < self.boundary || cost > self.capacity / LARGEST_PART {
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

fn bytes_of(data: &[u8]) -> u64 {
    data.len() as u64 + ENTRY_OVERHEAD
}

#[cfg(test)]
mod tests {
    use tidespool_core::SpoolId;

    use super::*;
    use crate::message_id::SpoolNumber;

    fn message(len: usize) -> Arc<Box<[u8]>> {
        Arc::new(vec![7; len].into_boxed_slice())
    }

    #[test]
    fn it_respects_its_capacity_and_keeps_the_newest() {
        let cache = CleanCache::new(100_000, CacheWeights::default());
        let ids: Vec<MessageId> = (0..1000).map(|_| MessageId::random()).collect();
        for id in &ids {
            cache.insert(*id, message(1000));
            cache.upkeep();
        }
        assert!(cache.size().bytes <= 100_000, "{}", cache.size().bytes);
        assert!(cache.get(ids.last().unwrap()).is_some());
        assert!(cache.get(&ids[0]).is_none());
    }

    fn filled(count: usize) -> (CleanCache, Vec<MessageId>) {
        let cache = CleanCache::new(1 << 20, CacheWeights::default());
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
        let cache = CleanCache::new(1 << 20, CacheWeights::default());
        let (id, data) = (MessageId::random(), message(1000));
        cache.insert(id, data.clone());
        assert_eq!(cache.clear(), Copies { entries: 1, bytes: 1000 + ENTRY_OVERHEAD });
        assert!(cache.get(&id).is_none());
        assert_eq!(Arc::strong_count(&data), 1, "freed, not only invisible");
    }

    #[test]
    fn a_smaller_cache_keeps_the_newest_copies() {
        let (cache, ids) = filled(200);
        let room = 55 * (1000 + ENTRY_OVERHEAD);
        let evicted = cache.resize(room, |_| ());
        assert_eq!((cache.capacity(), cache.size().entries), (room, 55));
        assert_eq!(evicted, Copies { entries: 145, bytes: 145 * (1000 + ENTRY_OVERHEAD) });
        // Ten copies have the same age. Some of those at the boundary are kept.
        assert!(ids[150..].iter().all(|id| cache.get(id).is_some()));
        assert!(ids[..140].iter().all(|id| cache.get(id).is_none()));
    }

    #[test]
    fn a_cache_that_is_large_enough_keeps_all_copies() {
        let (cache, ids) = filled(200);
        for capacity in [2 << 20, 1 << 20] {
            assert_eq!(cache.resize(capacity, |_| ()), Copies::default());
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
        assert_eq!(cache.size().entries, 29);
    }

    #[test]
    fn copies_are_found_during_a_resize() {
        let (cache, ids) = filled(30);
        cache.resize(2 << 20, |_| assert!(ids.iter().all(|id| cache.get(id).is_some())));
    }

    #[test]
    fn a_message_too_large_for_the_cache_is_not_inserted() {
        let cache = CleanCache::new(100_000, CacheWeights::default());
        let id = MessageId::random();
        cache.insert(id, message(10));
        cache.insert(id, message(50_000));
        assert!(cache.get(&id).is_none(), "its earlier version is removed as well");
    }

    /// A message of another spool than [`MessageId::random`]'s.
    fn in_spool(spool: SpoolNumber) -> MessageId {
        MessageId::new(spool, SpoolId::new())
    }

    fn spools() -> [SpoolNumber; 3] {
        [1, 2, 3].map(|number| SpoolNumber::new(number).unwrap())
    }

    /// The cache of [`spools`] with these weights, and room for 100 copies of 1 000 bytes.
    fn weighed(weights: [u32; 3]) -> CleanCache {
        let weights = CacheWeights::of(spools().into_iter().zip(weights));
        CleanCache::new(100 * (1_000 + ENTRY_OVERHEAD), weights)
    }

    /// Inserts copies of 1 000 bytes, and returns their ids.
    fn fill(cache: &CleanCache, spool: SpoolNumber, count: usize) -> Vec<MessageId> {
        let ids: Vec<MessageId> = (0..count).map(|_| in_spool(spool)).collect();
        for id in &ids {
            cache.insert(*id, message(1_000));
            cache.upkeep();
        }
        ids
    }

    #[test]
    fn a_spool_fills_the_part_of_the_cache_that_its_weight_allows() {
        for (weights, entries) in [([1, 1, 1], 100), ([4, 1, 1], 25), ([4, 3, 1], 75), ([8, 0, 1], 0)] {
            let cache = weighed(weights);
            fill(&cache, spools()[1], 200);
            assert_eq!(cache.size().entries, entries, "{weights:?}");
            assert_eq!(cache.size().bytes, entries * (1_000 + ENTRY_OVERHEAD), "{weights:?}: the real bytes");
            fill(&cache, spools()[0], 200);
            assert_eq!(cache.size().entries, 100, "{weights:?}: the highest weight gets all of it");
            assert_eq!(cache.size().bytes, cache.capacity(), "{weights:?}");
        }
    }

    #[test]
    fn the_bytes_are_exact_after_any_changes() {
        let cache = weighed([5, 2, 1]);
        let ids: Vec<MessageId> = (0..90).map(|n| in_spool(spools()[n % 3])).collect();
        let held = || {
            let inner = cache.inner.load();
            inner.copies.cache.iter().map(|(_, copy)| bytes_of(&copy.data)).sum::<u64>()
        };
        // Steps through ids and lengths, so that copies are replaced, removed, evicted and refused.
        for step in 0..4_000_usize {
            let id = ids[step * 7 % ids.len()];
            match step % 11 {
                0 => cache.remove(&id),
                5 => cache.insert(id, message(20_000)),
                _ => cache.insert(id, message(step * 31 % 3_000)),
            }
            if step % 500 == 499 {
                let capacity = cache.capacity() / 10 * if step % 1_000 == 999 { 15 } else { 7 };
                cache.resize(capacity, |_| ());
            }
            if step % 50 == 49 {
                cache.upkeep();
                assert_eq!(cache.size().bytes, held(), "after step {step}");
                assert!(cache.size().bytes <= cache.capacity(), "after step {step}");
            }
        }
        let (entries, bytes) = (cache.size().entries, held());
        assert!(entries > 0);
        assert_eq!(cache.clear(), Copies { entries, bytes });
        assert_eq!((cache.size().bytes, cache.size().entries), (0, 0));
    }

    #[test]
    fn new_weights_apply_from_the_next_resize_on() {
        let cache = weighed([1, 1, 1]);
        let old = fill(&cache, spools()[1], 50);
        let new = fill(&cache, spools()[0], 50);
        assert!(!cache.has_new_weights());
        cache.set_weights(CacheWeights::of(spools().into_iter().zip([2, 1, 1])));
        assert!(cache.has_new_weights());
        assert_eq!(cache.size().entries, 100);
        let evicted = cache.resize(cache.capacity(), |_| ());
        assert!(!cache.has_new_weights());
        // The 50 new copies take half of the capacity, 25 old ones the other half.
        assert_eq!(evicted, Copies { entries: 25, bytes: 25 * (1_000 + ENTRY_OVERHEAD) });
        assert_eq!(cache.size().bytes, 75 * (1_000 + ENTRY_OVERHEAD));
        assert!(new.iter().chain(&old[25..]).all(|id| cache.get(id).is_some()));
        cache.set_weights(CacheWeights::of(spools().into_iter().zip([0, 1, 1])));
        cache.resize(cache.capacity(), |_| ());
        assert_eq!((cache.size().entries, new.iter().find(|id| cache.get(id).is_some())), (25, None));
        // Back to equal weights, with other numbers.
        cache.set_weights(CacheWeights::of(spools().into_iter().zip([7, 7, 7])));
        cache.resize(cache.capacity(), |_| ());
        assert_eq!(cache.size().bytes, 25 * (1_000 + ENTRY_OVERHEAD));
    }

    #[test]
    fn a_copy_that_costs_too_much_is_not_inserted() {
        let cache = weighed([100, 1, 1]);
        let id = in_spool(spools()[1]);
        cache.insert(id, message(1_000));
        assert!(cache.get(&id).is_none(), "it would cost all of the capacity");
        cache.insert(id, message(10));
        assert!(cache.get(&id).is_none());
        let id = in_spool(spools()[0]);
        cache.insert(id, message(1_000));
        assert!(cache.get(&id).is_some());
    }
}
