//! A store with two spools that looks like one spool, so that every campaign runs on two.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool::storage::Storage;
use tidespool::{Config, RecoveryReport, StatsSnapshot, Tidespool, TieredSpool};
use tidespool_core::{Spool, SpoolEntry, SpoolId};

/// A store with the spools `even` and `odd`. A message is in the one of its id's lowest bit.
#[derive(Debug)]
pub struct TwoSpools {
    store: Tidespool,
    spools: [TieredSpool; 2],
}

impl TwoSpools {
    /// Opens the store, and makes both spools.
    ///
    /// # Errors
    ///
    /// Those of [`Tidespool::open`] and [`Tidespool::spool`].
    pub async fn open(config: Config) -> Result<Self> {
        Self::of(Tidespool::open(config).await?)
    }

    /// As [`open`](Self::open), on another storage.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub async fn open_on(config: Config, storage: Arc<dyn Storage>) -> Result<Self> {
        Self::of(Tidespool::open_on(config, storage).await?)
    }

    fn of(store: Tidespool) -> Result<Self> {
        let spools = [store.spool("even")?, store.spool("odd")?];
        Ok(Self { store, spools })
    }

    /// The spool of a message.
    #[must_use]
    pub fn spool_of(&self, id: SpoolId) -> &TieredSpool {
        &self.spools[usize::from(id.as_bytes()[15] & 1)]
    }

    /// The store.
    #[must_use]
    pub fn as_store(&self) -> &Tidespool {
        &self.store
    }

    /// The statistics of both.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.store.stats()
    }

    /// The report of the opening.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        self.store.recovery()
    }
}

#[async_trait]
impl Spool for TwoSpools {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        self.spool_of(id).load(id).await
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        self.spool_of(id).store(id, data, force_sync, deadline).await
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        self.spool_of(id).remove(id).await
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        let [even, odd] = &self.spools;
        // If the second call fails, the caller gets the error, and drops the receiver.
        even.enumerate(sender.clone(), start_time)?;
        odd.enumerate(sender, start_time)
    }

    async fn cleanup(&self) -> Result<()> {
        self.spools[0].cleanup().await
    }

    async fn shutdown(&self) -> Result<()> {
        self.store.shutdown().await
    }

    async fn advise_low_memory(&self) -> Result<isize> {
        self.spools[1].advise_low_memory().await
    }

    async fn compact(&self) -> Result<()> {
        self.spools[1].compact().await
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        self.spools[0].unhealthy_reason()
    }
}
