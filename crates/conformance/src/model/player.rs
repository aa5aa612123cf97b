//! Plays a history on the spool and on the reference spool, and compares them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use futures_lite::future;
use tidespool_core::{InDoubt, NotFound, Spool, SpoolCallerDeadlineExceeded, SpoolEntry, SpoolId, TooLarge};

use super::{Operation, SLOTS};
use crate::Factory;
use crate::reference::{ReferenceSpool, ReferenceStorage};
use crate::{ids, payload, wait};

/// Both spools, and the ids.
pub(super) struct Player {
    pub(super) factory: Box<dyn Factory>,
    pub(super) spool: Arc<dyn Spool>,
    reference: ReferenceSpool,
    ids: Vec<SpoolId>,
    /// The version of the next store.
    version: u64,
    /// The index was lost: calls may fail until it is rebuilt.
    pub(super) index_lost: bool,
}

/// Plays `history`. `Err` describes the step at which the two differ, and the difference.
pub(super) fn play(factory: Box<dyn Factory>, history: &[Operation]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let whole = async {
        let mut player = Player::new(factory).await?;
        for (step, operation) in history.iter().enumerate() {
            let done = player.step(*operation).await;
            done.with_context(|| format!("step {} ({operation:?})", step + 1))?;
        }
        player.compare_everything().await.context("at the end")?;
        player.step(Operation::Reopen).await.context("restart at the end")?;
        player.compare_everything().await.context("after a restart at the end")?;
        player.spool.shutdown().await.context("shutdown at the end")
    };
    let result = runtime.block_on(async { tokio::time::timeout(wait::PATIENCE, whole).await });
    runtime.shutdown_background();
    match result {
        Ok(done) => done.map_err(|err| format!("{err:#}")),
        Err(_) => Err(format!("hangs: not done after {:?}", wait::PATIENCE)),
    }
}

impl Player {
    async fn new(factory: Box<dyn Factory>) -> Result<Self> {
        let spool = factory.open().await.context("open")?;
        let storage = ReferenceStorage::default();
        let reference = ReferenceSpool::open_with_limit(&storage, factory.max_message_size());
        let ids = ids::assorted(Utc::now() - TimeDelta::hours(1), SLOTS.into());
        Ok(Self { factory, spool, reference, ids, version: 1, index_lost: false })
    }

    async fn step(&mut self, operation: Operation) -> Result<()> {
        match operation {
            Operation::Store { slot, size, force_sync } => {
                self.store_both(self.id(slot), size.bytes(), force_sync).await
            }
            Operation::StoreTooLate { slot, force_sync } => {
                self.store_too_late(self.id(slot), force_sync).await
            }
            Operation::StoreTooLarge { slot } => self.store_too_large(self.id(slot)).await,
            Operation::StoreDropped { slot, then_remove } => {
                self.store_dropped(self.id(slot), then_remove).await
            }
            Operation::Load { slot } => self.compare_load(self.id(slot)).await,
            Operation::Remove { slot } => self.remove_both(self.id(slot)).await,
            Operation::Enumerate => self.compare_lists(Utc::now() + TimeDelta::days(1)).await,
            Operation::EnumerateBefore { slot } => {
                let start = self.id(slot).created().unwrap_or(DateTime::<Utc>::MIN_UTC);
                self.compare_lists(start).await
            }
            Operation::Cleanup => self.retry_if_index_lost(|| self.spool.cleanup()).await,
            Operation::Compact => self.retry_if_index_lost(|| self.spool.compact()).await,
            Operation::AdviseLowMemory => self.spool.advise_low_memory().await.map(drop),
            Operation::Reopen => self.reopen(|_| ()).await,
            Operation::LoseIndex { when, how } => self.lose_index(when, how).await,
        }
    }

    fn id(&self, slot: u8) -> SpoolId {
        self.ids[usize::from(slot) % self.ids.len()]
    }

    async fn store_both(&mut self, id: SpoolId, len: usize, force_sync: bool) -> Result<()> {
        let data = payload::shared(id, self.version, len);
        self.version += 1;
        self.retry_if_index_lost(|| self.spool.store(id, data.clone(), force_sync, None)).await?;
        self.reference.store(id, data, force_sync, None).await?;
        self.compare_load(id).await
    }

    async fn remove_both(&self, id: SpoolId) -> Result<()> {
        self.spool.remove(id).await?;
        self.reference.remove(id).await?;
        self.compare_load(id).await
    }

    async fn store_too_late(&self, id: SpoolId, force_sync: bool) -> Result<()> {
        let now = Instant::now();
        let past = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        let data = payload::shared(id, self.version, 100);
        self.when_healthy().await?;
        match self.spool.store(id, data, force_sync, Some(past)).await {
            Ok(()) => bail!("stored despite its past deadline"),
            Err(err) if err.is::<InDoubt>() => {
                Err(err.context("in doubt, though the message was never written"))
            }
            Err(err) if err.root_cause().is::<SpoolCallerDeadlineExceeded>() => self.compare_load(id).await,
            Err(err) => Err(err.context("an unexpected error")),
        }
    }

    async fn store_too_large(&self, id: SpoolId) -> Result<()> {
        let size = usize::try_from(self.factory.max_message_size())? + 1;
        self.when_healthy().await?;
        match self.spool.store(id, Arc::new(vec![1; size].into_boxed_slice()), false, None).await {
            Ok(()) => bail!("stored despite its size"),
            Err(err) if err.root_cause().is::<TooLarge>() => self.compare_load(id).await,
            Err(err) => Err(err.context("an unexpected error")),
        }
    }

    /// The dropped store may or may not take effect; the call after it must.
    async fn store_dropped(&mut self, id: SpoolId, then_remove: bool) -> Result<()> {
        let data = payload::shared(id, self.version, 3000);
        self.version += 1;
        drop(future::poll_once(self.spool.store(id, data, true, None)).await);
        if then_remove { self.remove_both(id).await } else { self.store_both(id, 1000, false).await }
    }

    /// Shuts the spool down and opens it again. `between` runs in between.
    pub(super) async fn reopen(&mut self, between: impl Fn(&dyn Factory)) -> Result<()> {
        self.spool.shutdown().await.context("shutdown")?;
        self.drop_spool();
        between(self.factory.as_ref());
        self.spool = self.factory.open().await.context("open after an orderly shutdown")?;
        Ok(())
    }

    /// Drops the spool before it is opened again: nothing may keep it open.
    pub(super) fn drop_spool(&mut self) {
        self.spool = Arc::new(ReferenceSpool::open(&ReferenceStorage::default()));
    }

    pub(super) async fn compare_everything(&self) -> Result<()> {
        for &id in &self.ids {
            self.compare_load(id).await?;
        }
        self.compare_lists(Utc::now() + TimeDelta::days(1)).await
    }

    async fn compare_load(&self, id: SpoolId) -> Result<()> {
        let expected = self.reference.load(id).await.ok();
        let found = match self.retry_if_index_lost(|| self.spool.load(id)).await {
            Ok(data) => Some(data),
            Err(err) if err.root_cause().is::<NotFound>() => None,
            Err(err) => return Err(err.context(format!("load of {id}"))),
        };
        ensure!(found == expected, "load of {id}: {}", difference(id, found.as_deref(), expected.as_deref()));
        Ok(())
    }

    async fn compare_lists(&self, start: DateTime<Utc>) -> Result<()> {
        let expected = list(&self.reference, start).await?;
        let found = list(self.spool.as_ref(), start).await?;
        for id in expected.keys().chain(found.keys()) {
            let (found, expected) = (found.get(id), expected.get(id));
            ensure!(
                found == expected,
                "enumerate before {start}, message {id}: {}",
                difference(*id, found.map(Vec::as_slice), expected.map(Vec::as_slice))
            );
        }
        Ok(())
    }
}

async fn list(spool: &dyn Spool, start: DateTime<Utc>) -> Result<BTreeMap<SpoolId, Vec<u8>>> {
    let (sender, receiver) = async_channel::bounded(16);
    spool.enumerate(sender, start)?;
    let mut found = BTreeMap::new();
    while let Ok(entry) = receiver.recv().await {
        match entry {
            SpoolEntry::Item { id, data } => {
                ensure!(found.insert(id, data).is_none(), "message {id} was enumerated twice");
            }
            SpoolEntry::Corrupt { id, error } => bail!("message {id} was enumerated as damaged: {error}"),
        }
    }
    Ok(found)
}

fn difference(id: SpoolId, found: Option<&[u8]>, expected: Option<&[u8]>) -> String {
    let describe = |data: Option<&[u8]>| match data.map(|data| (payload::read(id, data), data.len())) {
        None => "nothing".to_owned(),
        Some((Ok(payload::Seen { version: Some(version), len }), _)) => {
            format!("version {version}, {len} bytes")
        }
        Some((Ok(_), len)) => format!("{len} bytes"),
        Some((Err(err), _)) => err.to_string(),
    };
    format!("found {}, expected {}", describe(found), describe(expected))
}
