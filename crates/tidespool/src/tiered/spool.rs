//! One spool of a store.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool_core::{Spool, SpoolEntry, SpoolId};

use super::background::relief;
use super::calls::enumerate::Payloads;
use super::calls::list::{Listed, Listing};
use super::calls::scan::Scan;
use super::calls::walk::Walk;
use super::calls::{load, maintain, reconfigure, remove, store};
use super::open_store::OpenStore;
use super::state::SpoolPart;
use crate::health::SHUT_DOWN;
use crate::whole_text::whole;
use crate::{Config, ConfigError, HealthCause, RecoveryReport, StatsSnapshot, watch};

/// The tiered spool. See the [crate's documentation](crate) for what it promises.
///
/// It is one spool of a store: [`Tidespool::spool`](crate::Tidespool::spool).
/// [`open`](Self::open) is the short way to a store with one spool, which has the name `main`.
///
/// Share it as `Arc<TieredSpool>` or `Arc<dyn Spool>`. End it with [`Spool::shutdown`]. Dropping it
/// without a shutdown has the effect of a crash: at most the dirty messages are lost.
pub struct TieredSpool {
    store: Arc<OpenStore>,
    part: Arc<SpoolPart>,
}

impl TieredSpool {
    pub(super) fn new(store: Arc<OpenStore>, part: Arc<SpoolPart>) -> Self {
        Self { store, part }
    }

    /// `None`: the spool is of another store.
    pub(super) fn part_in(&self, store: &Arc<OpenStore>) -> Option<Arc<SpoolPart>> {
        Arc::ptr_eq(&self.store, store).then(|| self.part.clone())
    }

    /// The name of the spool.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.part.name
    }

    /// The findings and actions of the opening, for all spools of the store.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.store.report
    }

    /// Loads a message without copying its bytes.
    ///
    /// # Errors
    ///
    /// As [`Spool::load`].
    pub async fn load_shared(&self, id: SpoolId) -> Result<Arc<Box<[u8]>>> {
        load::load_shared(&self.store.shared, &self.part, id).await.map_err(whole)
    }

    /// Removes a message, and returns when its removal is on stable storage: no power cut brings it
    /// back. [`remove`](Spool::remove) returns earlier, when the removal survives the death of the
    /// process, and needs no disk write of its own.
    ///
    /// The removal shares a commit with the waiting stores. The commit also writes everything that
    /// is dirty.
    ///
    /// The call ends at `deadline` or after [`store_deadline`](Config::store_deadline), whichever
    /// is earlier.
    ///
    /// # Errors
    ///
    /// [`SpoolCallerDeadlineExceeded`](tidespool_core::SpoolCallerDeadlineExceeded) or
    /// [`SpoolBackpressureTimeout`](tidespool_core::SpoolBackpressureTimeout) at the deadline,
    /// [`Closed`](tidespool_core::Closed) at a shutdown. The message is removed in these cases,
    /// too: the removal is written as soon as the disk accepts writes.
    pub async fn remove_synced(&self, id: SpoolId, deadline: Option<Instant>) -> Result<()> {
        self.remove_all(&[id], deadline).await
    }

    /// Removes several messages as [`remove_synced`](Self::remove_synced) does, in one commit. The
    /// removals are not one transaction: a crash before this returns may keep some of the messages.
    ///
    /// # Errors
    ///
    /// As [`remove_synced`](Self::remove_synced).
    pub async fn remove_all(&self, ids: &[SpoolId], deadline: Option<Instant>) -> Result<()> {
        remove::remove_synced(&self.store.shared, &self.part, ids, deadline).await.map_err(whole)
    }

    /// Returns every message that was created before `start_time` and exists during the whole scan
    /// exactly once, with its payload, as [`enumerate`](Spool::enumerate) sends it. Unlike a
    /// channel that just closes, the stream ends with an `Err` if it was cut short: see [`Scan`].
    ///
    /// Messages without a creation time are always returned. At most 16 messages and 2 MiB, or one
    /// larger message, are read ahead.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> anyhow::Result<()> {
    /// # use tidespool::{Config, TieredSpool, chrono, core::Spool as _, core::SpoolEntry};
    /// # let dir = tempfile::tempdir()?;
    /// let spool = TieredSpool::open(Config::new(dir.path().join("spool"))).await?;
    /// let mut messages = spool.stream(chrono::Utc::now())?;
    /// while let Some(entry) = messages.next().await {
    ///     match entry? {
    ///         SpoolEntry::Item { id, data } => println!("{id}: {} bytes", data.len()),
    ///         SpoolEntry::Corrupt { id, error } => println!("{id}: {error}"),
    ///     }
    /// }
    /// // Only here is a message that did not come known to be absent.
    /// # spool.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Closed`](tidespool_core::Closed), or an I/O error if the scan can't begin: no thread can
    /// be started, or 64 scans and enumerations are running
    /// ([`WouldBlock`](std::io::ErrorKind::WouldBlock)). Later errors are items.
    pub fn stream(&self, start_time: DateTime<Utc>) -> Result<Scan<SpoolEntry>> {
        /// Entries that wait to be received.
        const QUEUE: usize = 16;
        self.store.scan(&self.part, start_time, Payloads, QUEUE, |entry| vec![entry]).map_err(whole)
    }

    /// Returns every message that was created before `start_time` and exists during the whole scan
    /// exactly once, with its size and tier and without its payload, in no specified order. No
    /// payload is read. Size and tier are those at a moment during the scan.
    ///
    /// Messages without a creation time are always returned. Memory holds about 100 bytes for each
    /// message of the spool that is not checkpointed, as during [`stream`](Self::stream).
    ///
    /// # Errors
    ///
    /// As [`stream`](Self::stream).
    pub fn list(&self, start_time: DateTime<Utc>) -> Result<Scan<Listed>> {
        /// Steps of the list that wait to be received, of 256 messages each.
        const QUEUE: usize = 4;
        self.store.scan(&self.part, start_time, Listing, QUEUE, |listed| listed).map_err(whole)
    }

    /// The current settings.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.store.shared.config.load_full()
    }

    /// Changes the settings of the running spool. An error changes none of them.
    ///
    /// The settings take effect at the next call, with these exceptions:
    ///
    /// * A lower memory budget or dirty limit is reached within a second on a disk that works, as
    ///   far as both indexes are below it.
    /// * A lower `journal_capacity` is reached when enough of the journal is checkpointed.
    /// * A spool's `cache_weight` changes within a second.
    /// * sled's part of `memory_budget` changes at the next opening.
    /// * The size of the crash log changes when the log is made again: at the next opening, or
    ///   after its loss.
    /// * `pressure` applies to the spool's own monitor, not to a shared one.
    /// * `path`, `segment_size`, `read_threads` and `ballast` can't be changed.
    ///
    /// The call blocks on a query of the file system's size.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> anyhow::Result<()> {
    /// # use tidespool::{Config, TieredSpool, core::Spool as _};
    /// # let dir = tempfile::tempdir()?;
    /// let spool = TieredSpool::open(Config::new(dir.path().join("spool"))).await?;
    /// let config = Config::clone(&spool.config()).memory_budget(512 << 20);
    /// spool.reconfigure(config)?;
    /// # spool.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] for a setting out of bounds, [`ConfigError::Fixed`] for a setting
    /// that can't be changed, [`ConfigError::Closed`] after the shutdown.
    pub fn reconfigure(&self, config: Config) -> Result<(), ConfigError> {
        reconfigure::reconfigure(&self.store.shared, config)
    }

    /// Subscribes to [`unhealthy_reason`](Spool::unhealthy_reason): `changed().await` returns when
    /// the reason has changed, and fails when the spool is gone.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> anyhow::Result<()> {
    /// # use tidespool::{Config, TieredSpool, core::Spool as _};
    /// # let dir = tempfile::tempdir()?;
    /// let spool = TieredSpool::open(Config::new(dir.path().join("spool"))).await?;
    /// let mut health = spool.health_changes();
    /// tokio::select! {
    ///     changed = health.changed() => match *health.borrow_and_update() {
    ///         Some(reason) => println!("no new messages: {reason}"),
    ///         None => println!("new messages are welcome again"),
    ///     },
    ///     () = async {} => {}
    /// }
    /// # spool.shutdown().await
    /// # }
    /// ```
    #[must_use]
    pub fn health_changes(&self) -> watch::Receiver<Option<&'static str>> {
        self.store.shared.gate.reasons()
    }

    /// What is wrong with the spool, also if `unhealthy_reason` does not report it. `None` while it
    /// is healthy. As cheap as [`unhealthy_reason`](Spool::unhealthy_reason): one atomic read.
    ///
    /// [`reported_causes`](crate::HealthConfig::reported_causes) selects what `unhealthy_reason`
    /// reports. [`StatsSnapshot`] has the exact [`HealthSignal`](crate::HealthSignal).
    #[must_use]
    pub fn health_cause(&self) -> Option<HealthCause> {
        self.store.shared.gate.cause()
    }

    /// Returns the counters of this spool, and the counters and gauges of its store. Takes each
    /// shard's lock for a moment: call it for monitoring, not for each message.
    ///
    /// [`Tidespool::stats`](crate::Tidespool::stats) has the counters of all spools.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.store.shared.snapshot(std::slice::from_ref(&self.part))
    }

    /// The statistics of the whole store in the text format of Prometheus (OpenMetrics 1.0), as
    /// [`Tidespool::prometheus_text`](crate::Tidespool::prometheus_text) returns them. A server
    /// with several spools exports the text of one of them, and has the counters of each with the
    /// label `spool`.
    #[cfg(feature = "prometheus")]
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        self.store.prometheus_text()
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Spool for TieredSpool {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        let data = self.load_shared(id).await?;
        // The bytes are copied only if the pending table or the cache holds the message, too.
        Ok(Arc::try_unwrap(data).map_or_else(|data| data.to_vec(), <[u8]>::into_vec))
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        remove::remove(&self.store.shared, &self.part, id).await.map_err(whole)
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        store::store(&self.store.shared, &self.part, id, data, force_sync, deadline).await.map_err(whole)
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        self.part.check_open()?;
        let (shared, spool) = (self.store.shared.clone(), self.part.clone());
        let walk = Walk { shared, spool, start_time, visitor: Payloads, sender, state: None };
        self.store.workers.enumerate(move || walk.enumerate()).map_err(whole)
    }

    async fn cleanup(&self) -> Result<()> {
        maintain::cleanup(&self.store.shared, &self.part).await.map_err(whole)
    }

    async fn shutdown(&self) -> Result<()> {
        self.part.close();
        let others = self.store.shared.spools.all();
        if others.iter().any(|part| part.is_in_use()) {
            return maintain::leave(&self.store.shared).await.map_err(whole);
        }
        self.store.shutdown().await
    }

    async fn advise_low_memory(&self) -> Result<isize> {
        self.part.check_open()?;
        Ok(relief::advise_low_memory(&self.store.shared).await?)
    }

    async fn compact(&self) -> Result<()> {
        maintain::compact(&self.store.shared, &self.part).await.map_err(whole)
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        if self.part.check_open().is_err() { Some(SHUT_DOWN) } else { self.store.shared.gate.reason() }
    }
}

impl std::fmt::Debug for TieredSpool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TieredSpool")
            .field("path", &self.store.shared.config.load().path)
            .field("name", &self.part.name)
            .finish_non_exhaustive()
    }
}
