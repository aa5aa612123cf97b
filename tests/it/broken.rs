use std::sync::Arc;
use std::time::{Duration, Instant};

use tidespool::{Config, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::faults::{Fault, FaultyStorage};
use tidespool_testkit::payload;
use tokio::task::JoinHandle;

use crate::setup::{Tiered, assert_holds, enumerate, stop};

/// Larger than `separate_above`: these stay in segments.
pub(crate) const LARGE: usize = 20_000;
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Of a slow disk: a sync that nothing else ends.
pub(crate) const SLOW: Duration = Duration::from_millis(100);

/// A spool on a storage that breaks as told.
pub(crate) struct Broken {
    pub(crate) tiered: Tiered,
    pub(crate) disk: FaultyStorage,
}

impl Drop for Broken {
    /// A test that fails while the disk hangs shall end: its runtime waits for the calls that hang.
    fn drop(&mut self) {
        self.disk.heal();
    }
}

impl Broken {
    pub(crate) fn new(adjust: impl FnOnce(Config) -> Config) -> Self {
        Self { tiered: Tiered::new(adjust), disk: FaultyStorage::new() }
    }

    pub(crate) async fn start(&self) -> Arc<TieredSpool> {
        let opened = TieredSpool::open_on(self.tiered.config.clone(), self.disk.storage()).await;
        Arc::new(opened.expect("open"))
    }

    /// After a shutdown or a crash, on a disk that works: exactly these messages, and nothing to report.
    pub(crate) async fn assert_reopens_with(&self, messages: &[(SpoolId, usize)]) {
        self.disk.heal();
        let spool = self.start().await;
        assert_eq!(spool.recovery().damage, []);
        for &(id, len) in messages {
            assert_holds(spool.as_ref(), id, len).await;
        }
        assert_eq!(enumerate(spool.as_ref()).await.len(), messages.len());
        stop(spool).await;
    }
}

/// Only what the threads do that write the journal: segments are prepared on another.
pub(crate) fn committing(fault: Fault) -> Fault {
    fault.only(|moment| {
        moment.name.ends_with(".seg") && (is_thread("tidespool-commit") || is_thread("tidespool-sync"))
    })
}

pub(crate) fn is_thread(name: &str) -> bool {
    std::thread::current().name() == Some(name)
}

/// A store that goes on by itself.
pub(crate) fn begin(
    spool: &Arc<TieredSpool>,
    id: SpoolId,
    version: u64,
    len: usize,
    deadline: Option<Duration>,
) -> JoinHandle<anyhow::Result<()>> {
    let (spool, deadline) = (spool.clone(), deadline.map(|wait| Instant::now() + wait));
    tokio::spawn(async move { spool.store(id, payload::shared(id, version, len), true, deadline).await })
}

/// A compaction that goes on by itself.
pub(crate) fn begin_compact(spool: &Arc<TieredSpool>) -> JoinHandle<anyhow::Result<()>> {
    let spool = spool.clone();
    tokio::spawn(async move { spool.compact().await })
}
