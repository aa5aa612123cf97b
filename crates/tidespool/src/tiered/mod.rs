//! The only place that knows every tier.
//!
//! # Layout
//!
//! * `calls` – one file a verb: `store`, `load`, `remove`, `enumerate`, `maintain` (`cleanup`,
//!   `compact`), `reconfigure`.
//! * `commit` – from many callers to one write and one sync, and back.
//! * `lifecycle` – directory, opening, threads, shutdown.
//! * `background` – memory balancer, relief of memory pressure, health, disk probe, readers.
//! * `shared` – the state that the callers and threads of one spool share.
//! * `table` – the pending version and the index entry of each id, in shards.
//! * `hot_settings` – settings that each store reads.
//! * `protection` – the crash log of a running spool.

mod background;
mod calls;
mod commit;
mod hot_settings;
mod lifecycle;
mod protection;
mod shared;
mod table;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tidespool_core::{Spool, SpoolEntry, SpoolId};

pub(crate) use lifecycle::directory::{Directory, lock_untouched};
pub(crate) use lifecycle::format::{FORMAT_VERSION, identify};
pub(crate) use lifecycle::path::existing;

use calls::{enumerate, load, maintain, reconfigure, remove, store};
use lifecycle::{open, threads, workers};

use crate::inspect::Damage;
use crate::storage::{OsStorage, Storage};
use crate::whole_text::{whole, whole_of};
use crate::{Config, ConfigError, PressureMonitor, StatsSnapshot};

/// The tiered spool. See the [crate's documentation](crate) for what it promises.
///
/// Share it as `Arc<TieredSpool>` or `Arc<dyn Spool>`. End it with [`Spool::shutdown`]; dropping it without is like a crash: at most what was
/// dirty is lost.
pub struct TieredSpool {
    shared: Arc<shared::Shared>,
    workers: Arc<workers::Workers>,
    report: RecoveryReport,
}

/// What opening a spool found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The index is rebuilt from the segments, beside the traffic: the last end was not orderly, or
    /// the index's files are not what they were then. Nothing is lost by it.
    pub rebuilds_index: bool,
    /// Journal records that were replayed.
    pub records: u64,
    /// Stores and removals that were acknowledged and not on stable storage when the process died,
    /// and that the crash log had. They are on stable storage now, unless the disk did not take
    /// them within `store_deadline`.
    pub replayed: u64,
    /// Records of a torn tail that were cut: never acknowledged as synced.
    pub torn: u64,
    /// Messages that are gone without their id being known: records that are missing from the
    /// journal, and messages in segments that are missing. What a rebuild of the index finds to be
    /// gone is counted when it finds it: see [`StatsSnapshot::lost`](crate::StatsSnapshot::lost).
    pub lost: u64,
    /// Everything that is wrong, by message where one can be named.
    pub damage: Vec<Damage>,
}

impl TieredSpool {
    /// Opens the spool in the directory that `config` names, and makes it where there is none.
    ///
    /// # Errors
    ///
    /// [`ConfigError`](crate::ConfigError) for settings out of bounds; [`Locked`](tidespool_core::Locked) where a process has the spool
    /// open; [`ClockNotSet`](tidespool_core::ClockNotSet) while the system's clock is before 1970;
    /// [`UnsupportedFormat`](tidespool_core::UnsupportedFormat) where the directory holds something
    /// else, or a newer layout;
    /// [`DamagedSpool`](tidespool_core::DamagedSpool) where something is so damaged that only `tidespool repair` can go on with it;
    /// otherwise an error that names the file and what the system said of it. Nothing is lost by an `Err`.
    pub async fn open(config: Config) -> Result<Self> {
        Self::open_with(config, Arc::new(OsStorage), None).await
    }

    /// The same, watched by a monitor that other spools of the process may share. `config.pressure` is not used: the
    /// monitor has settings of its own, and goes on after the spool's shutdown.
    ///
    /// # Errors
    ///
    /// As [`TieredSpool::open`]; and where the monitor was shut down.
    pub async fn open_watched(config: Config, monitor: &PressureMonitor) -> Result<Self> {
        Self::open_with(config, Arc::new(OsStorage), Some(monitor.clone())).await
    }

    /// The same on another [`Storage`] under the journal, the manifest and the syncs of sled's files, for tests that break it.
    ///
    /// # Errors
    ///
    /// As [`TieredSpool::open`].
    pub async fn open_on(config: Config, storage: Arc<dyn Storage>) -> Result<Self> {
        Self::open_with(config, storage, None).await
    }

    async fn open_with(
        config: Config,
        storage: Arc<dyn Storage>,
        monitor: Option<PressureMonitor>,
    ) -> Result<Self> {
        let path = config.path.clone();
        let opening = threads::aside(threads::names::OPEN, move || {
            let open::OpenSpool { shared, workers, report } = open::open(config, storage, monitor)?;
            // Made here: where nobody waits for it any more, it is dropped, and so abandoned.
            anyhow::Ok(Self { shared, workers: Arc::new(workers), report })
        });
        let opened = opening.await.map_err(anyhow::Error::from).flatten();
        opened.map_err(|error| whole_of(format_args!("opening the spool {}", path.display()), error))
    }

    /// What was found and done when the spool was opened.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.report
    }

    /// The message without a copy of its bytes.
    ///
    /// # Errors
    ///
    /// As [`Spool::load`].
    pub async fn load_shared(&self, id: SpoolId) -> Result<Arc<Box<[u8]>>> {
        load::load_shared(&self.shared, id).await.map_err(whole)
    }

    /// Removes a message, and returns when its removal is on stable storage: no power cut brings it
    /// back. [`remove`](Spool::remove) returns earlier, when the removal survives the death of the
    /// process, and costs no disk write of its own.
    ///
    /// It shares a commit with the stores that wait for one. What is dirty then is written with it.
    ///
    /// `deadline`: the earlier of it and [`store_deadline`](Config::store_deadline) counts.
    ///
    /// # Errors
    ///
    /// [`SpoolCallerDeadlineExceeded`](tidespool_core::SpoolCallerDeadlineExceeded) or
    /// [`SpoolBackpressureTimeout`](tidespool_core::SpoolBackpressureTimeout) at the deadline,
    /// [`Closed`](tidespool_core::Closed) at a shutdown. The message is removed then, too: its
    /// removal is written as soon as the disk takes it.
    pub async fn remove_synced(&self, id: SpoolId, deadline: Option<Instant>) -> Result<()> {
        self.remove_all(&[id], deadline).await
    }

    /// The same for several messages, in one commit. The removals are not one transaction: a crash
    /// before this returns may leave some of them.
    ///
    /// # Errors
    ///
    /// As [`remove_synced`](Self::remove_synced).
    pub async fn remove_all(&self, ids: &[SpoolId], deadline: Option<Instant>) -> Result<()> {
        remove::remove_synced(&self.shared, ids, deadline).await.map_err(whole)
    }

    /// The settings as they are now.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.shared.config.load_full()
    }

    /// Changes the settings of the running spool: all of them, or with an error none. They take effect at the next call; a lowered budget or
    /// dirty limit is reached within a second on a disk that works, as far as index and sled are below it; a lowered `journal_capacity` when enough is filed. Asks
    /// the file system for its size: not for a thread that must not wait for that.
    ///
    /// `path`, `segment_size`, `read_threads` and `ballast` can't be changed; `sled_cache` (its default, a part of `memory_budget`, too) holds from the next
    /// opening on; `pressure` is for the
    /// spool's own monitor, not for one that it shares.
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
    /// [`ConfigError::Invalid`] for settings out of bounds, [`ConfigError::Fixed`] for one that can't be changed, [`ConfigError::Closed`] after the
    /// shutdown.
    pub fn reconfigure(&self, config: Config) -> Result<(), ConfigError> {
        reconfigure::reconfigure(&self.shared, config)
    }

    /// Follows [`unhealthy_reason`](Spool::unhealthy_reason) without asking again and again: `changed().await` returns when it is another one than before. It
    /// ends with an error when the spool is gone.
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
    pub fn health_changes(&self) -> tokio::sync::watch::Receiver<Option<&'static str>> {
        self.shared.gate.changes()
    }

    /// All counters and gauges, now. Takes each shard's lock for a moment: for monitoring, not for each message.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.shared.snapshot()
    }

    /// The statistics in the text format of Prometheus (OpenMetrics 1.0).
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        crate::stats::prometheus::encode(&self.stats())
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Spool for TieredSpool {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        let data = self.load_shared(id).await?;
        // A copy is made only if somebody else (pending, the cache) holds the message too.
        Ok(Arc::try_unwrap(data).map_or_else(|data| data.to_vec(), <[u8]>::into_vec))
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        remove::remove(&self.shared, id).await.map_err(whole)
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        store::store(&self.shared, id, data, force_sync, deadline).await.map_err(whole)
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        self.shared.check_open()?;
        let enumeration = enumerate::Enumeration { shared: self.shared.clone(), sender, start_time };
        self.workers.enumerate(move || enumeration.run()).map_err(whole)
    }

    async fn cleanup(&self) -> Result<()> {
        maintain::cleanup(&self.shared).await.map_err(whole)
    }

    async fn shutdown(&self) -> Result<()> {
        if let Some(ended) = self.workers.ended() {
            return ended;
        }
        let (workers, shared) = (self.workers.clone(), self.shared.clone());
        match threads::aside(threads::names::END, move || workers.end(&shared)).await {
            Ok(ended) => ended,
            Err(error) => {
                // At a limit of threads. Blocking the caller's thread is better than losing what is
                // dirty.
                tracing::warn!(%error, "shutting down on the caller's thread");
                self.workers.end(&self.shared)
            }
        }
    }

    async fn advise_low_memory(&self) -> Result<isize> {
        self.shared.check_open()?;
        Ok(self.shared.advice.follow(&self.shared).await?)
    }

    async fn compact(&self) -> Result<()> {
        maintain::compact(&self.shared).await.map_err(whole)
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        self.shared.gate.reason()
    }
}

impl Drop for TieredSpool {
    fn drop(&mut self) {
        // After a shutdown there is nobody left to hear it.
        workers::Workers::abandon(&self.shared);
    }
}

impl std::fmt::Debug for TieredSpool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TieredSpool").field("path", &self.shared.config.load().path).finish_non_exhaustive()
    }
}
