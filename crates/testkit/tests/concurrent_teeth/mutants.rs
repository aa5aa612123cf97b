use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tidespool_conformance::Factory;
use tidespool_conformance::reference::{ReferenceSpool, ReferenceStorage};
use tidespool_core::{Spool, SpoolCallerDeadlineExceeded, SpoolEntry, SpoolId};
use tidespool_testkit::concurrent::{Expected, Subject};
use tidespool_testkit::oracle::{DurabilityLevel, Promise};
use tokio::task::yield_now;

type Data = Arc<Box<[u8]>>;

/// The fault of a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    None,
    StaleCacheFill,
    LateWriteBack,
    FailedStoreStays,
    DroppedStoreHappensLate,
    EarlierVersion,
    Mixture,
    LateRemove,
    EnumerationMisses,
    EnumerationRepeats,
    ShutdownLoses,
    ShutdownBringsBack,
    DropLosesTheSynced,
    DropLosesTheOlder,
    DropBringsBackTheReplaced,
}

/// The storage of a mutant, with the state that its fault needs.
pub(crate) struct MutantStorage(Arc<Notes>);

struct Notes {
    mutant: Mutant,
    storage: ReferenceStorage,
    /// Cached copies.
    cache: Mutex<BTreeMap<SpoolId, Data>>,
    /// The version before the newest.
    earlier: Mutex<BTreeMap<SpoolId, Data>>,
    /// Messages that were read and will be written back.
    read: Mutex<BTreeMap<SpoolId, Data>>,
    /// Stores whose futures were dropped while queued.
    queue: Mutex<Vec<Late>>,
    /// Held during a call and the update of the fields below, if both must agree after a drop.
    agreeing: tokio::sync::Mutex<()>,
    /// The ids whose newest version is unsynced, and those whose newest version is synced, in the
    /// order of the stores.
    unsynced: Mutex<Vec<SpoolId>>,
    synced: Mutex<Vec<SpoolId>>,
    /// The newest durable version of each id.
    durable: Mutex<BTreeMap<SpoolId, Data>>,
    removed: Mutex<BTreeMap<SpoolId, Data>>,
    calls: AtomicU64,
    was_shut_down: AtomicBool,
}

impl MutantStorage {
    pub(crate) fn new(mutant: Mutant) -> Self {
        Self(Arc::new(Notes {
            mutant,
            storage: ReferenceStorage::default(),
            cache: Mutex::default(),
            earlier: Mutex::default(),
            read: Mutex::default(),
            queue: Mutex::default(),
            agreeing: tokio::sync::Mutex::default(),
            unsynced: Mutex::default(),
            synced: Mutex::default(),
            durable: Mutex::default(),
            removed: Mutex::default(),
            calls: AtomicU64::new(0),
            was_shut_down: AtomicBool::new(true),
        }))
    }
}

#[async_trait]
impl Factory for MutantStorage {
    async fn open(&self) -> Result<Arc<dyn Spool>> {
        let notes = &self.0;
        let inner = ReferenceSpool::open_with_limit(&notes.storage, u64::MAX);
        let was_shut_down = notes.was_shut_down.swap(false, Ordering::SeqCst);
        notes.cache.lock().clear();
        let (unsynced, synced) = (take(&notes.unsynced), take(&notes.synced));
        let removed = take(&notes.removed);
        let earlier = notes.earlier.lock().clone();
        match (notes.mutant, was_shut_down) {
            (Mutant::ShutdownLoses, true) => remove(&inner, unsynced.last().or(synced.last())).await?,
            (Mutant::ShutdownBringsBack, true) => put(&inner, removed).await?,
            (Mutant::DropLosesTheSynced, false) => remove(&inner, synced.last()).await?,
            // Loses the older half.
            (Mutant::DropLosesTheOlder, false) => {
                let lost = &unsynced[..unsynced.len() / 2];
                remove(&inner, lost).await?;
                let durable = notes.durable.lock().clone();
                put(&inner, durable.into_iter().filter(|(id, _)| lost.contains(id))).await?;
            }
            (Mutant::DropBringsBackTheReplaced, false) => {
                let replaced = synced.into_iter().filter_map(|id| Some((id, earlier.get(&id)?.clone())));
                put(&inner, replaced).await?;
            }
            _ => {}
        }
        let spool = MutantSpool { inner, notes: notes.clone() };
        for id in unsynced {
            spool.is_durable_now(id).await;
        }
        Ok(Arc::new(spool))
    }
}

/// Larger messages survive a drop.
const LARGE: usize = 60_000;

impl Subject for MutantStorage {
    fn expected(&self) -> Expected {
        let hour = Duration::from_secs(3600);
        let promise = Promise { level: DurabilityLevel::Memory, dirty_expire: hour, slack: hour };
        Expected { promise, large: LARGE }
    }
}

fn take<T: Default>(from: &Mutex<T>) -> T {
    std::mem::take(&mut *from.lock())
}

async fn remove(inner: &ReferenceSpool, ids: impl IntoIterator<Item = &SpoolId> + Send) -> Result<()> {
    let ids: Vec<SpoolId> = ids.into_iter().copied().collect();
    for id in ids {
        inner.remove(id).await?;
    }
    Ok(())
}

async fn put(inner: &ReferenceSpool, all: impl IntoIterator<Item = (SpoolId, Data)>) -> Result<()> {
    let all: Vec<(SpoolId, Data)> = all.into_iter().collect();
    for (id, data) in all {
        inner.store(id, data, true, None).await?;
    }
    Ok(())
}

struct MutantSpool {
    inner: ReferenceSpool,
    notes: Arc<Notes>,
}

/// A store whose future was dropped.
struct Late {
    id: SpoolId,
    data: Data,
    /// Another store or remove of the id completed since. Only then is it wrong if this store takes
    /// effect.
    is_overtaken: bool,
}

/// Queues a store whose future is dropped.
struct Queued<'a>(&'a Notes, Option<(SpoolId, Data)>);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let late = self.1.take().map(|(id, data)| Late { id, data, is_overtaken: false });
        self.0.queue.lock().extend(late);
    }
}

impl MutantSpool {
    fn is(&self, mutant: Mutant) -> bool {
        self.notes.mutant == mutant
    }

    /// Locks for one mutant only: the others need the races that the lock prevents.
    async fn agreeing(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        match self.notes.mutant {
            Mutant::DropLosesTheOlder => Some(self.notes.agreeing.lock().await),
            _ => None,
        }
    }

    /// Returns true for each `n`-th call.
    fn each(&self, n: u64) -> bool {
        self.notes.calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(n)
    }

    async fn upkeep(&self) -> Result<()> {
        if self.is(Mutant::LateWriteBack) {
            let read = take(&self.notes.read);
            // Leaves time for a removal.
            pause().await;
            put(&self.inner, read).await?;
        }
        Ok(())
    }

    async fn all_is_durable_now(&self) {
        let _agreeing = self.agreeing().await;
        for id in take(&self.notes.unsynced) {
            self.is_durable_now(id).await;
            self.notes.synced.lock().push(id);
        }
    }

    async fn is_durable_now(&self, id: SpoolId) {
        if let Ok(data) = self.inner.load(id).await {
            self.notes.durable.lock().insert(id, Arc::new(data.into_boxed_slice()));
        }
    }

    fn note_overtaken(&self, id: SpoolId) {
        self.notes.queue.lock().iter_mut().filter(|late| late.id == id).for_each(|late| {
            late.is_overtaken = true;
        });
    }

    /// Records the order of the stores, with each id once.
    fn note_store(&self, id: SpoolId, is_durable: bool) {
        let (mut unsynced, mut synced) = (self.notes.unsynced.lock(), self.notes.synced.lock());
        unsynced.retain(|other| *other != id);
        synced.retain(|other| *other != id);
        if is_durable {
            synced.push(id);
        } else {
            unsynced.push(id);
        }
        self.notes.removed.lock().remove(&id);
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Spool for MutantSpool {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        let late: Vec<Late> =
            self.notes.queue.lock().extract_if(.., |late| late.id == id && late.is_overtaken).collect();
        put(&self.inner, late.into_iter().map(|late| (late.id, late.data))).await?;
        if let Some(copy) = self.notes.cache.lock().get(&id) {
            return Ok(copy.to_vec());
        }
        let mut data = self.inner.load(id).await?;
        match self.notes.mutant {
            Mutant::StaleCacheFill => {
                pause().await;
                self.notes.cache.lock().insert(id, Arc::new(data.clone().into_boxed_slice()));
            }
            Mutant::EarlierVersion if self.each(3) => {
                if let Some(earlier) = self.notes.earlier.lock().get(&id) {
                    data = earlier.to_vec();
                }
            }
            Mutant::Mixture => {
                pause().await;
                let later = self.inner.load(id).await?;
                let half = data.len().min(later.len()) / 2;
                data.truncate(half);
                data.extend_from_slice(&later[half..]);
            }
            Mutant::LateWriteBack => {
                self.notes.read.lock().insert(id, Arc::new(data.clone().into_boxed_slice()));
            }
            _ => {}
        }
        Ok(data)
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        let _agreeing = self.agreeing().await;
        if let Ok(data) = self.inner.load(id).await {
            self.notes.removed.lock().insert(id, Arc::new(data.into_boxed_slice()));
        }
        self.notes.cache.lock().remove(&id);
        self.notes.unsynced.lock().retain(|other| *other != id);
        self.notes.synced.lock().retain(|other| *other != id);
        self.notes.durable.lock().remove(&id);
        if self.is(Mutant::LateRemove) {
            let storage = self.notes.storage.clone();
            tokio::spawn(async move {
                pause().await;
                ReferenceSpool::open(&storage).remove(id).await
            });
            return Ok(());
        }
        self.inner.remove(id).await?;
        self.note_overtaken(id);
        Ok(())
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Data,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let mut queued = Queued(&self.notes, None);
        if self.is(Mutant::DroppedStoreHappensLate) {
            queued.1 = Some((id, data.clone()));
        }
        // Yield like a store that waits for its commit.
        for _ in 0..4 {
            yield_now().await;
        }
        queued.1 = None;
        drop(queued);
        if deadline.is_some() && self.is(Mutant::FailedStoreStays) {
            self.inner.store(id, data, force_sync, None).await?;
            return Err(SpoolCallerDeadlineExceeded.into());
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(SpoolCallerDeadlineExceeded.into());
        }
        let _agreeing = self.agreeing().await;
        if let Ok(earlier) = self.inner.load(id).await {
            self.notes.earlier.lock().insert(id, Arc::new(earlier.into_boxed_slice()));
        }
        let is_durable = force_sync || data.len() > LARGE;
        self.inner.store(id, data.clone(), force_sync, None).await?;
        self.notes.cache.lock().remove(&id);
        self.note_store(id, is_durable);
        self.note_overtaken(id);
        if is_durable {
            self.notes.durable.lock().insert(id, data);
        }
        Ok(())
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        let (is_short, is_long) = (self.is(Mutant::EnumerationMisses), self.is(Mutant::EnumerationRepeats));
        // The enumeration after a restart has a longer channel. It is left correct, because it
        // would detect these faults in another way.
        let is_after_restart = sender.capacity() == Some(64);
        if is_after_restart || (!is_short && !is_long) {
            return self.inner.enumerate(sender, start_time);
        }
        let (through, received) = async_channel::bounded(8);
        self.inner.enumerate(through, start_time)?;
        tokio::spawn(async move {
            let mut number = 0_u64;
            while let Ok(entry) = received.recv().await {
                number += 1;
                let times = match number.is_multiple_of(5) {
                    true if is_short => 0,
                    true => 2,
                    false => 1,
                };
                for _ in 0..times {
                    if sender.send(entry.clone()).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(())
    }

    async fn cleanup(&self) -> Result<()> {
        self.inner.cleanup().await?;
        self.upkeep().await
    }

    async fn shutdown(&self) -> Result<()> {
        self.notes.was_shut_down.store(true, Ordering::SeqCst);
        self.inner.shutdown().await
    }

    async fn advise_low_memory(&self) -> Result<isize> {
        let freed = self.inner.advise_low_memory().await?;
        self.all_is_durable_now().await;
        Ok(freed)
    }

    async fn compact(&self) -> Result<()> {
        self.inner.compact().await?;
        self.all_is_durable_now().await;
        self.upkeep().await
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        None
    }
}

/// Lets other tasks run, so that the race happens often enough.
async fn pause() {
    for _ in 0..20 {
        yield_now().await;
    }
}
