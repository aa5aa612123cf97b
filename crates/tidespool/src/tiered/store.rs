//! A store: several spools in one directory.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use thiserror::Error;
use tidespool_core::SpoolId;

use super::calls::scan::{Scan, ScanSource, ScanState};
use super::calls::unpaired::Unpaired;
use super::calls::walk::{SHORTEST_HANG, Visitor, Walk};
use super::calls::{reconfigure, spools};
use super::lifecycle::{open, threads, workers};
use super::spool::TieredSpool;
use super::state::{Shared, SpoolPart};
use crate::directory::MAX_NAME;
use crate::storage::{OsStorage, Storage};
use crate::whole_text::{whole, whole_of};
use crate::{Config, ConfigError, HealthCause, PressureMonitor, RecoveryReport, StatsSnapshot, watch};

/// A store: several spools in one directory, with one journal, one memory budget and one set of
/// threads.
///
/// Stores of all spools that wait at the same time share one write and one `fdatasync`. A crash
/// takes the newest messages of all spools together: no message of one spool survives a message of
/// another spool that was acknowledged before it, at the same durability.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> anyhow::Result<()> {
/// # use std::sync::Arc;
/// use tidespool::core::{Spool, SpoolId};
/// use tidespool::{Config, Tidespool};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("store");
/// let store = Tidespool::open(Config::new(path)).await?;
/// let (meta, data) = (store.spool("meta")?, store.spool("data")?);
/// let id = SpoolId::new();
/// data.store(id, Arc::new(Box::from(*b"the body")), true, None).await?;
/// meta.store(id, Arc::new(Box::from(*b"the envelope")), true, None).await?;
/// assert_eq!(meta.load(id).await?, b"the envelope");
/// store.shutdown().await
/// # }
/// ```
///
/// Share it as `Arc<Tidespool>`, and each spool as `Arc<dyn Spool>`. End it with
/// [`shutdown`](Self::shutdown). If the store and all its spools are dropped without a shutdown, the
/// effect is that of a crash: at most the dirty messages are lost.
#[derive(Debug)]
pub struct Tidespool {
    pub(super) open: Arc<OpenStore>,
}

/// An open store. Its threads end when the last handle is dropped.
pub(super) struct OpenStore {
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Arc<workers::Workers>,
    pub(super) report: RecoveryReport,
}

/// Why there is no spool of a name, or why it can't be removed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpoolNameError {
    /// The name is not allowed.
    #[error(
        "{name:?} can't be the name of a spool: a name has 1 to {MAX_NAME} characters from a-z, 0-9, _ and -"
    )]
    NotAllowed {
        /// The name.
        name: String,
    },
    /// The store has the most spools that a store can have.
    #[error("spool {name:?} was not made: the store has {limit} spools, the most that a store can have")]
    TooMany {
        /// The name of the spool that was not made.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// The store has made the most spools that a store can make in its life.
    #[error(
        "spool {name:?} was not made: the store has made {limit} spools, the most in its life; move what it \
         holds into a new store"
    )]
    UsedUp {
        /// The name of the spool that was not made.
        name: String,
        /// The limit.
        limit: u16,
    },
    /// The store has no spool of this name.
    #[error("the store has no spool {name:?}")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The spool still has messages.
    #[error("spool {name:?} was not removed: it has messages, remove them first")]
    NotEmpty {
        /// The name.
        name: String,
    },
}

impl Tidespool {
    /// Opens the store in the directory that `config` names, and creates it if there is none.
    ///
    /// # Errors
    ///
    /// An `Err` loses nothing.
    ///
    /// * [`ConfigError`](crate::ConfigError): a setting is out of bounds.
    /// * [`Locked`](tidespool_core::Locked): a process has the store open.
    /// * [`ClockNotSet`](tidespool_core::ClockNotSet): the system clock is before 1970.
    /// * [`UnsupportedFormat`](tidespool_core::UnsupportedFormat): the directory holds something
    ///   other than a store, or a newer layout.
    /// * [`DamagedSpool`](tidespool_core::DamagedSpool): only `tidespool repair` can make the store
    ///   usable again.
    /// * Otherwise an error with the file's path and the system's error.
    pub async fn open(config: Config) -> Result<Self> {
        Self::open_then(config, Arc::new(OsStorage), None, Ok).await
    }

    /// Opens the store as [`open`](Self::open) does, with a memory monitor that other stores and
    /// caches of the process may share. The monitor has its own settings, so `config.pressure` is
    /// not used. The monitor keeps running after the store's shutdown.
    ///
    /// # Errors
    ///
    /// As [`Tidespool::open`], and an error if the monitor was shut down.
    pub async fn open_watched(config: Config, monitor: &PressureMonitor) -> Result<Self> {
        Self::open_then(config, Arc::new(OsStorage), Some(monitor.clone()), Ok).await
    }

    /// Opens the store as [`open`](Self::open) does, on another [`Storage`]. For fault injection in
    /// tests. The journal, the manifest and the syncs of the index's files use `storage`.
    ///
    /// # Errors
    ///
    /// As [`Tidespool::open`].
    pub async fn open_on(config: Config, storage: Arc<dyn Storage>) -> Result<Self> {
        Self::open_then(config, storage, None, Ok).await
    }

    /// Opens the store, and calls `then` on the thread of the opening, which may block.
    pub(super) async fn open_then<T: Send + 'static>(
        config: Config,
        storage: Arc<dyn Storage>,
        monitor: Option<PressureMonitor>,
        then: fn(Self) -> Result<T>,
    ) -> Result<T> {
        let path = config.path.clone();
        let opening = threads::aside(threads::names::OPEN, move || {
            let open::OpenSpool { shared, workers, report } = open::open(config, storage, monitor)?;
            // Created on this thread: if the caller's future was dropped, the store is dropped too,
            // and its threads end.
            then(Self { open: Arc::new(OpenStore { shared, workers: Arc::new(workers), report }) })
        });
        let opened = opening.await.map_err(anyhow::Error::from).flatten();
        opened.map_err(|error| whole_of(format_args!("opening the spool {}", path.display()), error))
    }

    /// Returns the spool of this name, and makes it if there is none. A name has 1 to 32 characters
    /// from `a-z`, `0-9`, `_` and `-`. A store has at most 256 spools.
    ///
    /// Making a spool blocks on the disk: the names of the spools are written and synced.
    ///
    /// # Errors
    ///
    /// [`SpoolNameError`], [`Closed`](tidespool_core::Closed) if this spool or the store was shut
    /// down, or an I/O error: then there may be a new spool without messages after a crash.
    pub fn spool(&self, name: &str) -> Result<TieredSpool> {
        let part = spools::open(&self.open.shared, name)
            .with_context(|| format!("opening the spool {name:?}"))
            .map_err(whole)?;
        Ok(TieredSpool::new(self.open.clone(), part))
    }

    /// Returns the names of all spools, in order.
    #[must_use]
    pub fn spools(&self) -> Vec<String> {
        self.open.shared.spools.all().iter().map(|part| part.name.to_string()).collect()
    }

    /// Removes a spool without messages, with its name. All its handles fail from then on.
    ///
    /// # Errors
    ///
    /// [`SpoolNameError::NotEmpty`], [`SpoolNameError::Unknown`],
    /// [`Closed`](tidespool_core::Closed), [`SpoolBackpressureTimeout`] if the disk did not write
    /// the removals of the messages within `store_deadline`, or an I/O error: then the spool is
    /// closed until [`spool`](Self::spool) opens it again.
    ///
    /// [`SpoolBackpressureTimeout`]: tidespool_core::SpoolBackpressureTimeout
    pub async fn remove_spool(&self, name: &str) -> Result<()> {
        let removed = spools::remove(&self.open.shared, name).await;
        removed.with_context(|| format!("removing the spool {name:?}")).map_err(whole)
    }

    /// Returns the ids of the spool `data` that were created before `created_before` and have no
    /// message of the same id in the spool `meta`: bodies whose envelope was never stored, because
    /// the process or the machine died between the two. Each is returned once, in no specified
    /// order, beside all other calls, without reading payloads. The stream ends with an `Err` if it
    /// was cut short: see [`Scan`].
    ///
    /// An id is returned only if `data` has its message and `meta` does not, at a moment during the
    /// scan and at most two ids before it is received. Choose a time that is older than any accept
    /// that may still run: an envelope that is stored later is not seen. Ids without a creation
    /// time are never returned, because their age is not known.
    ///
    /// Memory holds about 100 bytes for each message of `data` that is not checkpointed.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> anyhow::Result<()> {
    /// # use tidespool::{Config, Tidespool, chrono::{TimeDelta, Utc}, core::Spool as _};
    /// # let dir = tempfile::tempdir()?;
    /// let store = Tidespool::open(Config::new(dir.path().join("store"))).await?;
    /// let (meta, data) = (store.spool("meta")?, store.spool("data")?);
    /// let mut orphans = store.unpaired("data", "meta", Utc::now() - TimeDelta::hours(1))?;
    /// while let Some(id) = orphans.next().await {
    ///     data.remove(id?).await?;
    /// }
    /// # drop(meta);
    /// # store.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SpoolNameError::Unknown`] if a spool does not exist; otherwise as
    /// [`TieredSpool::stream`].
    pub fn unpaired(&self, data: &str, meta: &str, created_before: DateTime<Utc>) -> Result<Scan<SpoolId>> {
        /// Ids that wait to be received.
        const QUEUE: usize = 1;
        let spool_of = |name: &str| {
            let unknown = || SpoolNameError::Unknown { name: name.to_owned() };
            self.open.shared.spools.get(name).ok_or_else(unknown)
        };
        let find = || {
            self.open.shared.check_open()?;
            let (data, meta) = (spool_of(data)?, spool_of(meta)?);
            let unpaired = Unpaired { partners: meta.number };
            self.open.scan(&data, created_before, unpaired, QUEUE, |id| vec![id])
        };
        find().map_err(whole)
    }

    /// Makes everything durable, ends all spools, and joins all threads. Later calls fail with
    /// [`Closed`](tidespool_core::Closed). A second call returns the result of the first.
    ///
    /// # Errors
    ///
    /// A text that names everything that could not be done within
    /// [`shutdown_timeout`](Config::shutdown_timeout).
    pub async fn shutdown(&self) -> Result<()> {
        self.open.shutdown().await
    }

    /// The findings and actions of the opening.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.open.report
    }

    /// The current settings.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.open.shared.config.load_full()
    }

    /// Changes the settings of the running store: see
    /// [`TieredSpool::reconfigure`](TieredSpool::reconfigure).
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] for a setting out of bounds, [`ConfigError::Fixed`] for a setting
    /// that can't be changed, [`ConfigError::Closed`] after the shutdown.
    pub fn reconfigure(&self, config: Config) -> Result<(), ConfigError> {
        reconfigure::reconfigure(&self.open.shared, config)
    }

    /// Subscribes to the reason why the store is unhealthy, which is the same for all its spools:
    /// see [`TieredSpool::health_changes`].
    #[must_use]
    pub fn health_changes(&self) -> watch::Receiver<Option<&'static str>> {
        self.open.shared.gate.reasons()
    }

    /// What is wrong with the store: see [`TieredSpool::health_cause`].
    #[must_use]
    pub fn health_cause(&self) -> Option<HealthCause> {
        self.open.shared.gate.cause()
    }

    /// Returns all counters and gauges: the sums of all spools, and those of the store. Takes each
    /// shard's lock for a moment: call it for monitoring, not for each message.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.open.shared.snapshot(&self.open.shared.spools.all())
    }

    /// The statistics in the text format of Prometheus (OpenMetrics 1.0).
    #[cfg(feature = "prometheus")]
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        self.stats().prometheus_text()
    }
}

impl OpenStore {
    /// Starts a walk over the messages of a spool that were created before `start_time`. Its
    /// channel holds `capacity` sent values.
    pub(super) fn scan<V: Visitor, T: Send + 'static>(
        &self,
        spool: &Arc<SpoolPart>,
        start_time: DateTime<Utc>,
        visitor: V,
        capacity: usize,
        split: fn(V::Sent) -> Vec<T>,
    ) -> Result<Scan<T>> {
        spool.check_open()?;
        let (sender, receiver) = async_channel::bounded(capacity);
        let state = Arc::<ScanState>::default();
        let (shared, spool) = (self.shared.clone(), spool.clone());
        let source = ScanSource {
            receiver,
            state: state.clone(),
            timer: shared.timer.clone(),
            patience: shared.config.load().enumerate_wait().max(SHORTEST_HANG),
        };
        let walk = Walk { shared, spool, start_time, visitor, sender, state: Some(state) };
        self.workers.enumerate(move || walk.run_scan())?;
        Ok(source.into_scan(split))
    }

    pub(super) async fn shutdown(&self) -> Result<()> {
        if let Some(ended) = self.workers.ended() {
            return ended;
        }
        let (workers, shared) = (self.workers.clone(), self.shared.clone());
        match threads::aside(threads::names::END, move || workers.end(&shared)).await {
            Ok(ended) => ended,
            Err(error) => {
                // No thread could be created. Blocking the caller's thread is better than losing
                // dirty messages.
                tracing::warn!(%error, "shutting down on the caller's thread");
                self.workers.end(&self.shared)
            }
        }
    }
}

impl Drop for OpenStore {
    fn drop(&mut self) {
        // After a shutdown, the threads have ended and this has no effect.
        workers::Workers::abandon(&self.shared);
    }
}

impl std::fmt::Debug for OpenStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenStore").field("path", &self.shared.config.load().path).finish_non_exhaustive()
    }
}
