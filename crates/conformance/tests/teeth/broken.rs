use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use tidespool_conformance::Factory;
use tidespool_conformance::reference::{ReferenceSpool, ReferenceStorage};
use tidespool_core::{Closed, Spool, SpoolBackpressureTimeout, SpoolEntry, SpoolId};
use tokio::task::{JoinHandle, yield_now};

use crate::faults::Fault;

type Data = Arc<Box<[u8]>>;

/// The storage of a broken spool, with the state that its fault needs.
pub(crate) struct BrokenStorage(Arc<Notes>);

struct Notes {
    fault: Fault,
    storage: ReferenceStorage,
    /// The first version of each id.
    first: Mutex<BTreeMap<SpoolId, Data>>,
    removed: Mutex<BTreeMap<SpoolId, Data>>,
    unsynced: Mutex<BTreeSet<SpoolId>>,
    copies: Mutex<BTreeMap<SpoolId, Vec<u8>>>,
    senders: Mutex<Vec<Sender<SpoolEntry>>>,
    stores: AtomicU64,
    opened: AtomicU64,
    shut_down: AtomicBool,
    index_lost: AtomicBool,
    room: Arc<tokio::sync::Semaphore>,
}

impl BrokenStorage {
    pub(crate) fn new(fault: Fault) -> Self {
        Self(Arc::new(Notes {
            fault,
            storage: ReferenceStorage::default(),
            first: Mutex::default(),
            removed: Mutex::default(),
            unsynced: Mutex::default(),
            copies: Mutex::default(),
            senders: Mutex::default(),
            stores: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            shut_down: AtomicBool::new(false),
            index_lost: AtomicBool::new(false),
            room: Arc::new(tokio::sync::Semaphore::new(8 << 20)),
        }))
    }
}

#[async_trait]
impl Factory for BrokenStorage {
    async fn open(&self) -> Result<Arc<dyn Spool>> {
        let notes = &self.0;
        let inner = Arc::new(ReferenceSpool::open_with_limit(&notes.storage, u64::MAX));
        let reopened = notes.opened.fetch_add(1, Ordering::SeqCst) > 0;
        let was_shut_down = notes.shut_down.swap(false, Ordering::SeqCst);
        if reopened {
            let bring_back = match notes.fault {
                Fault::RestartBringsBackTheRemoved => std::mem::take(&mut *notes.removed.lock()),
                Fault::LosingTheIndexBringsBackTheRemoved if notes.index_lost.load(Ordering::SeqCst) => {
                    std::mem::take(&mut *notes.removed.lock())
                }
                Fault::RestartBringsBackTheReplaced => notes.first.lock().clone(),
                _ => BTreeMap::new(),
            };
            for (id, data) in bring_back {
                inner.store(id, data, true, None).await?;
            }
            if notes.fault == Fault::RestartLosesTheUnsynced {
                let unsynced = std::mem::take(&mut *notes.unsynced.lock());
                for id in unsynced {
                    inner.remove(id).await?;
                }
            }
            if notes.fault == Fault::ADropLosesEverything && !was_shut_down {
                return BrokenStorage::new(Fault::None).open().await;
            }
        }
        Ok(Arc::new(Broken { inner, notes: notes.clone(), enumerators: Mutex::default() }))
    }

    fn lose_index(&self, _how: u8) {
        self.0.index_lost.store(true, Ordering::SeqCst);
    }

    fn patience(&self) -> Duration {
        if self.0.fault == Fault::None { Duration::from_secs(60) } else { Duration::from_secs(2) }
    }
}

struct Broken {
    inner: Arc<ReferenceSpool>,
    notes: Arc<Notes>,
    enumerators: Mutex<Vec<JoinHandle<()>>>,
}

impl Broken {
    fn has(&self, fault: Fault) -> bool {
        self.notes.fault == fault
    }

    fn key(&self, id: SpoolId) -> SpoolId {
        let mut bytes = *id.as_bytes();
        if self.has(Fault::TheLastBitOfAnIdIsIgnored) {
            bytes[15] &= !1;
        }
        SpoolId::from_bytes(bytes)
    }

    async fn all(&self) -> Vec<(SpoolId, Vec<u8>)> {
        list(&self.inner).await
    }

    fn note_store(&self, id: SpoolId, data: &Data, force_sync: bool) {
        self.notes.first.lock().entry(id).or_insert_with(|| data.clone());
        if force_sync {
            self.notes.unsynced.lock().remove(&id);
        } else {
            self.notes.unsynced.lock().insert(id);
        }
    }

    async fn upkeep(&self) -> Result<()> {
        match self.notes.fault {
            Fault::UpkeepOfNothingFails if self.all().await.is_empty() => bail!("nothing to do"),
            Fault::UpkeepLosesLargeMessages => {
                for (id, data) in self.all().await {
                    if data.len() > 20_000 {
                        self.inner.remove(id).await?;
                    }
                }
            }
            Fault::UpkeepWritesBackWhatItRead => {
                for (id, data) in self.all().await {
                    pause().await;
                    self.inner.store(id, Arc::new(data.into_boxed_slice()), true, None).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks whether a store must be rejected. `Err` is its result.
    async fn refuse(&self, id: SpoolId, data: &Data, deadline: Option<Instant>) -> Result<()> {
        let limit = 2 * 1024 * 1024 - usize::from(self.has(Fault::TheLimitIsOneByteLess));
        if data.len() > limit {
            match self.notes.fault {
                Fault::ATooLargeMessageIsStoredAnyway => {
                    self.inner.store(id, data.clone(), true, None).await?;
                }
                Fault::ATooLargeMessageRemovesTheEarlierVersion => self.inner.remove(id).await?,
                _ => {}
            }
            let size = data.len() as u64;
            return Err(tidespool_core::TooLarge { id, size, limit: limit as u64 }.into());
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            match self.notes.fault {
                Fault::APastDeadlineStoresAnyway => self.inner.store(id, data.clone(), true, None).await?,
                Fault::APastDeadlineRemovesTheEarlierVersion => self.inner.remove(id).await?,
                Fault::APastDeadlineIsTheWrongError => return Err(SpoolBackpressureTimeout.into()),
                Fault::APastDeadlineLeavesADoubt => {
                    let late = anyhow::Error::from(tidespool_core::SpoolCallerDeadlineExceeded);
                    return Err(late.context(tidespool_core::InDoubt { id }));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Spool for Broken {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        if self.has(Fault::LoadsGoOnAfterShutdown) && self.notes.shut_down.load(Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        if self.has(Fault::LosingTheIndexLosesMessages) && self.notes.index_lost.load(Ordering::SeqCst) {
            return Err(tidespool_core::NotFound { id }.into());
        }
        if self.has(Fault::LoadsComeFromAStaleCopy)
            && let Some(copy) = self.notes.copies.lock().get(&id)
        {
            return Ok(copy.clone());
        }
        let mut data = match self.inner.load(self.key(id)).await {
            Err(err) if !err.root_cause().is::<Closed>() && self.has(Fault::AnAbsentMessageIsAnIoError) => {
                return Err(std::io::Error::from(std::io::ErrorKind::NotFound).into());
            }
            result => result?,
        };
        match self.notes.fault {
            Fault::LongMessagesLoseTheirLastByte if data.len() > 4096 => drop(data.pop()),
            Fault::LoadsAreTorn => {
                pause().await;
                let later = self.inner.load(id).await?;
                let half = data.len().min(later.len()) / 2;
                data.truncate(half);
                data.extend_from_slice(&later[half..]);
            }
            Fault::LoadsComeFromAStaleCopy => drop(self.notes.copies.lock().insert(id, data.clone())),
            _ => {}
        }
        Ok(data)
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        let earlier = self.inner.load(id).await;
        if self.has(Fault::RemovingTheUnknownFails) {
            earlier?;
        } else if let Ok(data) = earlier {
            self.notes.removed.lock().entry(id).or_insert(Arc::new(data.into_boxed_slice()));
        }
        self.notes.first.lock().remove(&id);
        self.inner.remove(self.key(id)).await
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Data,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let id = self.key(id);
        self.refuse(id, &data, deadline).await?;
        let nth = self.notes.stores.fetch_add(1, Ordering::SeqCst);
        self.note_store(id, &data, force_sync);
        match self.notes.fault {
            Fault::AnEmptyMessageIsNotStored if data.is_empty() => return Ok(()),
            Fault::TheFirstStoreCounts if self.inner.load(id).await.is_ok() => return Ok(()),
            Fault::ARemovedIdIsUsedUp if self.notes.removed.lock().contains_key(&id) => return Ok(()),
            Fault::EveryDeadlineIsOver if deadline.is_some() => {
                return Err(tidespool_core::SpoolCallerDeadlineExceeded.into());
            }
            Fault::BytesAreTakenForText => {
                let text = String::from_utf8_lossy(&data).into_owned();
                return self.inner.store(id, Arc::new(text.into_bytes().into()), force_sync, deadline).await;
            }
            Fault::EveryHundredthStoreIsMixedUp if nth % 100 == 99 => {
                let other = self.all().await.first().map_or(id, |(other, _)| *other);
                return self.inner.store(other, data, force_sync, deadline).await;
            }
            Fault::StoresAreDoneInTwoSteps => {
                let half = Arc::new(Box::from(&data[..data.len() / 2]));
                self.inner.store(id, half, force_sync, deadline).await?;
                pause().await;
            }
            Fault::DroppedStoresLeakRoom if force_sync => {
                let bytes = u32::try_from(data.len())?;
                self.notes.room.acquire_many(bytes).await?.forget();
                yield_now().await;
                self.notes.room.add_permits(data.len());
            }
            Fault::DroppedStoresHappenLate if force_sync => {
                let inner = self.inner.clone();
                let late = async move {
                    pause().await;
                    inner.store(id, data, force_sync, None).await
                };
                return tokio::spawn(late).await?;
            }
            _ => {}
        }
        self.inner.store(id, data, force_sync, deadline).await
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        if self.notes.shut_down.load(Ordering::SeqCst) {
            return if self.has(Fault::EnumerateGoesOnAfterShutdown) { Ok(()) } else { Err(Closed.into()) };
        }
        if self.has(Fault::TheSenderIsKept) {
            self.notes.senders.lock().push(sender.clone());
        }
        if self.has(Fault::OneEnumerationEndsTheOther) {
            self.enumerators.lock().drain(..).for_each(|enumerator| enumerator.abort());
        }
        let walk = walk(self.inner.clone(), self.notes.clone(), sender, start_time);
        self.enumerators.lock().push(tokio::spawn(walk));
        Ok(())
    }

    async fn cleanup(&self) -> Result<()> {
        self.inner.cleanup().await?;
        self.upkeep().await
    }

    async fn shutdown(&self) -> Result<()> {
        let again = self.notes.shut_down.swap(true, Ordering::SeqCst);
        if self.has(Fault::ASecondShutdownFails) && again {
            bail!("again?");
        }
        let enumerators = std::mem::take(&mut *self.enumerators.lock());
        for enumerator in enumerators {
            if !self.has(Fault::ShutdownWaitsForTheReceiver) {
                enumerator.abort();
            }
            drop(enumerator.await);
        }
        self.inner.shutdown().await
    }

    async fn advise_low_memory(&self) -> Result<isize> {
        let freed = self.inner.advise_low_memory().await?;
        self.upkeep().await?;
        Ok(freed)
    }

    async fn compact(&self) -> Result<()> {
        self.inner.compact().await?;
        if self.has(Fault::CompactBringsBackTheRemoved) {
            let removed = std::mem::take(&mut *self.notes.removed.lock());
            for (id, data) in removed {
                self.inner.store(id, data, true, None).await?;
            }
        }
        self.upkeep().await
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        match self.notes.fault {
            Fault::NeverHealthy => Some("never"),
            Fault::HealthyAfterShutdown => None,
            _ => self.inner.unhealthy_reason(),
        }
    }
}

/// Lets other tasks run, so that the race happens often enough.
async fn pause() {
    for _ in 0..50 {
        yield_now().await;
    }
}

async fn list(spool: &ReferenceSpool) -> Vec<(SpoolId, Vec<u8>)> {
    let (sender, receiver) = async_channel::bounded(16);
    let mut all = Vec::new();
    if spool.enumerate(sender, DateTime::<Utc>::MAX_UTC).is_ok() {
        while let Ok(SpoolEntry::Item { id, data }) = receiver.recv().await {
            all.push((id, data));
        }
    }
    all
}

/// An enumeration with all the faults.
async fn walk(
    spool: Arc<ReferenceSpool>,
    notes: Arc<Notes>,
    sender: Sender<SpoolEntry>,
    mut start: DateTime<Utc>,
) {
    let fault = notes.fault;
    match fault {
        Fault::StartTimeIsInclusive => {
            start = start.checked_add_signed(TimeDelta::nanoseconds(100)).unwrap_or(start);
        }
        Fault::RestartForgetsTimes if notes.opened.load(Ordering::SeqCst) > 1 => {
            start = DateTime::<Utc>::MAX_UTC;
        }
        _ => {}
    }
    let mut all = list(&spool).await;
    if fault == Fault::AnEmptySpoolNeverEnds && all.is_empty() {
        std::future::pending::<()>().await;
    }
    if fault == Fault::RemovedMessagesAreStillEnumerated {
        all.extend(notes.removed.lock().iter().map(|(id, data)| (*id, data.to_vec())));
    }
    let mut place = 0;
    while let Some((id, listed)) = all.get(place).cloned() {
        place += 1;
        if fault == Fault::EnumerationGoesByPosition {
            all = list(&spool).await;
        }
        let in_time = match id.created() {
            Some(created) => created < start,
            None => fault != Fault::IdsWithoutATimeAreFiltered || start == DateTime::<Utc>::MAX_UTC,
        };
        let skipped = fault == Fault::EveryTenthMessageIsNotEnumerated && place % 10 == 0;
        if !in_time || skipped {
            continue;
        }
        // Do not send messages removed since the list was made, unless that is the fault.
        let still_there = spool.load(id).await;
        let data = match (fault, still_there) {
            (Fault::EnumerationShowsOldVersions, Ok(now)) => {
                notes.first.lock().get(&id).map_or(now, |first| first.to_vec())
            }
            (Fault::RemovedMessagesAreStillEnumerated, _) => listed,
            (_, Ok(now)) => now,
            (_, Err(_)) => continue,
        };
        let twice = fault == Fault::EveryTenthMessageIsEnumeratedTwice && place % 10 == 0;
        for _ in 0..=u8::from(twice) {
            let entry = SpoolEntry::Item { id, data: data.clone() };
            if fault == Fault::ASlowReceiverMissesEntries {
                drop(sender.try_send(entry));
            } else if sender.send(entry).await.is_err() {
                return;
            }
        }
    }
}
