//! A store: several spools in one directory. And the short way to a store with one spool.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use tidespool_core::SpoolId;

use super::calls::accept::NewMessage;
use super::calls::scan::Scan;
use super::calls::unpaired::Unpaired;
use super::calls::{accept, reconfigure, spools};
use super::lifecycle::{open, threads};
use super::open_store::OpenStore;
use super::spool::TieredSpool;
use crate::storage::{OsStorage, Storage};
use crate::store_error::{AcceptError, SpoolNameError};
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
/// [`shutdown`](Self::shutdown). If the store and all its spools are dropped without a shutdown,
/// the effect is that of a crash: at most the dirty messages are lost.
#[derive(Debug)]
pub struct Tidespool {
    pub(super) open: Arc<OpenStore>,
}

impl Tidespool {
    /// Opens the store in the directory that `config` names, and creates it if there is none. Makes
    /// the spools that [`config.spools`](field@Config::spools) names. If the disk has no room for
    /// their names, the store opens all the same, and [`spool`](Self::spool) makes them.
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
        Self::open_then(config, Arc::new(OsStorage), None, Self::with_configured_spools).await
    }

    /// Opens the store as [`open`](Self::open) does, with a memory monitor that other stores and
    /// caches of the process may share. The monitor has its own settings, so `config.pressure` is
    /// not used. The monitor keeps running after the store's shutdown.
    ///
    /// # Errors
    ///
    /// As [`Tidespool::open`], and an error if the monitor was shut down.
    pub async fn open_watched(config: Config, monitor: &PressureMonitor) -> Result<Self> {
        Self::open_then(config, Arc::new(OsStorage), Some(monitor.clone()), Self::with_configured_spools)
            .await
    }

    /// Opens the store as [`open`](Self::open) does, on another [`Storage`]. For fault injection in
    /// tests. The journal, the manifest and the syncs of the index's files use `storage`.
    ///
    /// # Errors
    ///
    /// As [`Tidespool::open`].
    pub async fn open_on(config: Config, storage: Arc<dyn Storage>) -> Result<Self> {
        Self::open_then(config, storage, None, Self::with_configured_spools).await
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

    /// Makes the spools that the settings name.
    fn with_configured_spools(self) -> Result<Self> {
        if let Err(error) = spools::make_configured(&self.open.shared) {
            let error = format!("{error:#}");
            tracing::warn!(error, "a spool in the settings could not be made: it is made when it is opened");
        }
        Ok(self)
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

    /// Stores several messages, at most 256, in spools of this store: when it returns `Ok`, all of
    /// them are on stable storage. After an error, and after a crash at any moment, all of them are
    /// stored or none, also if they replace other messages.
    ///
    /// A load or an enumeration that runs at the same moment may find some of them a moment before
    /// the others, when all of them are on stable storage.
    ///
    /// The call ends at `deadline` or after [`store_deadline`](Config::store_deadline), whichever
    /// is earlier.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> anyhow::Result<()> {
    /// # use std::sync::Arc;
    /// use tidespool::core::SpoolId;
    /// use tidespool::{Config, Tidespool};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let store = Tidespool::open(Config::new(dir.path().join("store"))).await?;
    /// let (meta, data) = (store.spool("meta")?, store.spool("data")?);
    /// let id = SpoolId::new();
    /// let (body, envelope) = (Box::from(*b"the body"), Box::from(*b"the envelope"));
    /// store.accept([(&data, id, Arc::new(body)), (&meta, id, Arc::new(envelope))], None).await?;
    /// # store.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`AcceptError`], and the errors of [`Spool::store`](tidespool_core::Spool::store). With the
    /// context [`InDoubt`](tidespool_core::InDoubt), which names one of the messages, all of them
    /// may reappear after a crash, or none.
    pub async fn accept<'a>(
        &self,
        messages: impl IntoIterator<Item = (&'a TieredSpool, SpoolId, Arc<Box<[u8]>>)>,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let messages: Result<Vec<NewMessage>, AcceptError> = messages
            .into_iter()
            .map(|(spool, id, data)| {
                let part = spool.part_in(&self.open);
                let part = part.ok_or_else(|| AcceptError::OtherStore { name: spool.name().to_owned() })?;
                Ok(NewMessage { part, id, data })
            })
            .collect();
        accept::accept(&self.open.shared, messages?, deadline).await.map_err(whole)
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

    /// Returns all counters and gauges: those of each spool, their sums, and those of the store.
    /// Takes each shard's lock for a moment: call it for monitoring, not for each message.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.open.stats()
    }

    /// The statistics in the text format of Prometheus (OpenMetrics 1.0). What is counted for each
    /// spool has the label `spool`, with its name; what the spools share has no such label.
    #[cfg(feature = "prometheus")]
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        self.open.prometheus_text()
    }
}

/// The name of the spool that [`TieredSpool::open`] opens.
const MAIN: &str = "main";

impl TieredSpool {
    /// Opens the spool in the directory that `config` names, and creates it if there is none.
    ///
    /// # Errors
    ///
    /// An `Err` loses nothing.
    ///
    /// * [`ConfigError`](crate::ConfigError): a setting is out of bounds.
    /// * [`Locked`](tidespool_core::Locked): a process has the spool open.
    /// * [`ClockNotSet`](tidespool_core::ClockNotSet): the system clock is before 1970.
    /// * [`UnsupportedFormat`](tidespool_core::UnsupportedFormat): the directory holds something
    ///   other than a spool, or a newer layout.
    /// * [`DamagedSpool`](tidespool_core::DamagedSpool): only `tidespool repair` can make the spool
    ///   usable again.
    /// * Otherwise an error with the file's path and the system's error.
    pub async fn open(config: Config) -> Result<Self> {
        Self::open_then(config, Arc::new(OsStorage), None).await
    }

    /// Opens the spool as [`open`](Self::open) does, with a memory monitor that other spools and
    /// caches of the process may share. The monitor has its own settings, so `config.pressure` is
    /// not used. The monitor keeps running after the spool's shutdown.
    ///
    /// ```
    /// use tidespool::{Config, PressureConfig, PressureMonitor, TieredSpool};
    ///
    /// #[tokio::main]
    /// async fn main() -> anyhow::Result<()> {
    /// #   use tidespool::core::Spool as _;
    /// #   let dir = tempfile::tempdir()?;
    /// #   let path = dir.path().to_owned();
    ///     let monitor = PressureMonitor::start(PressureConfig::default().memory_limit(4 << 30))?;
    ///     let meta = TieredSpool::open_watched(Config::new(path.join("meta")), &monitor).await?;
    ///     let data = TieredSpool::open_watched(Config::new(path.join("data")), &monitor).await?;
    /// #   meta.shutdown().await?;
    /// #   data.shutdown().await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`TieredSpool::open`], and an error if the monitor was shut down.
    pub async fn open_watched(config: Config, monitor: &PressureMonitor) -> Result<Self> {
        Self::open_then(config, Arc::new(OsStorage), Some(monitor.clone())).await
    }

    /// Opens the spool as [`open`](Self::open) does, on another [`Storage`]. For fault injection in
    /// tests. The journal, the manifest and the syncs of the index's files use `storage`.
    ///
    /// # Errors
    ///
    /// As [`TieredSpool::open`].
    pub async fn open_on(config: Config, storage: Arc<dyn Storage>) -> Result<Self> {
        Self::open_then(config, storage, None).await
    }

    async fn open_then(
        config: Config,
        storage: Arc<dyn Storage>,
        monitor: Option<PressureMonitor>,
    ) -> Result<Self> {
        Tidespool::open_then(config, storage, monitor, |store| store.spool(MAIN)).await
    }
}
