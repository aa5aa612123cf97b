use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tempfile::TempDir;
use tidespool::{Config, Durability, HealthConfig, MinFree, PressureConfig, TieredSpool};
use tidespool_conformance::Factory;
use tidespool_core::{Locked, NotFound, Spool, SpoolEntry, SpoolId};
use tidespool_testkit::{TwoSpools, payload, wait};

pub(crate) const KIB: u64 = 1024;
pub(crate) const MIB: u64 = 1024 * KIB;

/// Settings of a small spool: segments fill, are checkpointed and recycled within a test. They do
/// not depend on the memory and disk of the machine.
pub(crate) fn small(path: &Path) -> Config {
    Config::new(path)
        .memory_budget(32 * MIB)
        .dirty_limit(4 * MIB)
        .dirty_expire(Duration::from_millis(50))
        .store_deadline(Duration::from_secs(60))
        .max_message_size(2 * MIB)
        .segment_size(256 * KIB)
        .journal_capacity(8 * MIB)
        .checkpoint_after(Duration::from_millis(100))
        .ballast(0)
        .pressure(PressureConfig::default().enabled(false))
        .health(
            HealthConfig::default()
                .min_free(MinFree::Bytes(0))
                .backlog_latch_after(Duration::from_secs(3600))
                .hard_unlatch_after(Duration::from_millis(10))
                .backlog_unlatch_after(Duration::from_millis(10))
                .sample_interval(Duration::from_millis(10)),
        )
}

/// A temporary directory and the configuration of the spool in it.
pub(crate) struct Tiered {
    pub(crate) config: Config,
    dir: TempDir,
}

impl Tiered {
    /// Uses the settings that `adjust` derives from [`small`].
    pub(crate) fn new(adjust: impl FnOnce(Config) -> Config) -> Self {
        let dir = TempDir::new().unwrap();
        let config = adjust(small(&dir.path().join("spool")));
        Self { config, dir }
    }

    pub(crate) fn with(durability: Durability) -> Self {
        Self::new(|config| config.durability(durability))
    }

    /// The directory of the spool.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    pub(crate) async fn start(&self) -> Arc<TieredSpool> {
        Arc::new(when_free(|| TieredSpool::open(self.config.clone())).await.expect("open"))
    }
}

#[async_trait]
impl Factory for Tiered {
    async fn open(&self) -> anyhow::Result<Arc<dyn Spool>> {
        Ok(Arc::new(TwoSpools::open(self.config.clone()).await?))
    }

    fn lose_index(&self, how: u8) {
        crate::lost_sled::lose_all(&self.path(), how);
    }

    fn max_message_size(&self) -> u64 {
        self.config.max_message_size
    }
}

/// Opens a spool or a store, and retries while the directory is locked. The threads of a spool that
/// was dropped there have to end first, which on a busy machine takes longer than `open` waits.
/// Needs no runtime.
pub(crate) async fn when_free<T, F>(open: impl Fn() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let started = Instant::now();
    loop {
        match open().await {
            Err(error) if error.root_cause().is::<Locked>() => {
                assert!(started.elapsed() < wait::PATIENCE, "the directory stays locked: {error:#}");
            }
            opened => return opened,
        }
    }
}

/// Shuts the spool down.
pub(crate) async fn stop(spool: Arc<impl Spool>) {
    spool.shutdown().await.expect("shutdown");
}

/// Waits until stores are accepted: an opening that finds much damage shuts the gate for a while.
pub(crate) async fn healthy(spool: &dyn Spool) {
    wait::until("the spool is healthy again", || spool.unhealthy_reason().is_none()).await;
}

/// Stores `len` bytes under a new id.
pub(crate) async fn put(spool: &dyn Spool, len: usize, force_sync: bool) -> SpoolId {
    let id = SpoolId::new();
    spool.store(id, payload::shared(id, 1, len), force_sync, None).await.expect("store");
    id
}

pub(crate) async fn assert_holds(spool: &dyn Spool, id: SpoolId, len: usize) {
    let data = spool.load(id).await.unwrap_or_else(|err| panic!("load of {id}: {err:#}"));
    payload::assert_is(id, 1, len, &data);
}

pub(crate) async fn assert_absent(spool: &dyn Spool, id: SpoolId) {
    let err = spool.load(id).await.expect_err("the message must be absent");
    assert!(err.root_cause().is::<NotFound>(), "{err:#}");
}

/// Enumerates everything, damaged messages included, in the order of arrival.
pub(crate) async fn enumerate(spool: &dyn Spool) -> Vec<SpoolEntry> {
    enumerate_before(spool, DateTime::<Utc>::MAX_UTC).await
}

/// Enumerates the messages that were created before `start_time`.
pub(crate) async fn enumerate_before(spool: &dyn Spool, start_time: DateTime<Utc>) -> Vec<SpoolEntry> {
    let (sender, receiver) = async_channel::bounded(64);
    spool.enumerate(sender, start_time).expect("enumerate");
    let mut entries = Vec::new();
    while let Ok(entry) = receiver.recv().await {
        entries.push(entry);
    }
    entries
}

/// All files and directories below `dir`, itself included.
pub(crate) fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut place = 0;
    while let Some(path) = found.get(place).cloned() {
        place += 1;
        if path.is_dir() {
            found.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// Copies a directory with its contents. Skips files that disappear meanwhile.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    for path in walk(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        if path.is_dir() {
            std::fs::create_dir_all(target).unwrap();
        } else if let Err(err) = std::fs::copy(&path, target) {
            assert_eq!(err.kind(), std::io::ErrorKind::NotFound, "{}: {err}", path.display());
        }
    }
}

/// Total size in bytes of all files below `dir`.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    walk(dir).iter().filter(|path| path.is_file()).map(|path| path.metadata().unwrap().len()).sum()
}
