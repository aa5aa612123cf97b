use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future::poll_once;
use tidespool::{Config, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinHandle;

use crate::setup::{Tiered, assert_holds, enumerate, stop, when_free};

/// Length in bytes of a message that spans several pages of a segment.
pub(crate) const LARGE: usize = 20_000;
/// Lengths of messages that together take more than 98 % of a dirty limit of 1 MiB.
pub(crate) const NEARLY_A_MIB: [usize; 6] = [200_000, 200_000, 200_000, 200_000, 200_000, 40_000];
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Duration of a sync on a slow disk, if nothing else ends it.
pub(crate) const SLOW: Duration = Duration::from_millis(100);

/// A spool on a storage with injected faults.
pub(crate) struct Broken {
    pub(crate) tiered: Tiered,
    pub(crate) disk: FaultyStorage,
}

impl Drop for Broken {
    /// Lets a failed test end while the disk hangs: its runtime waits for the calls that hang.
    fn drop(&mut self) {
        self.disk.heal();
    }
}

impl Broken {
    pub(crate) fn new(adjust: impl FnOnce(Config) -> Config) -> Self {
        Self { tiered: Tiered::new(adjust), disk: FaultyStorage::new() }
    }

    pub(crate) async fn start(&self) -> Arc<TieredSpool> {
        let open = || TieredSpool::open_on(self.tiered.config.clone(), self.disk.storage());
        Arc::new(when_free(open).await.expect("open"))
    }

    /// Reopens on a working disk, after a shutdown or crash. Asserts exactly these messages and no
    /// damage.
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

/// Restricts a fault to the threads that write the journal. Another thread prepares segments.
pub(crate) fn committing(fault: Fault) -> Fault {
    fault.only(|moment| moment.name.ends_with(".seg") && (is_thread("tide-commit") || is_thread("tide-sync")))
}

pub(crate) fn is_thread(name: &str) -> bool {
    std::thread::current().name() == Some(name)
}

/// Spawns a synced store.
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

/// Spawns a synced store without a deadline. Requires space for it: one poll then puts it into the
/// commit queue, so it is there when this returns.
pub(crate) async fn queue(
    spool: &Arc<TieredSpool>,
    id: SpoolId,
    version: u64,
    len: usize,
) -> JoinHandle<anyhow::Result<()>> {
    let (spool, data) = (spool.clone(), payload::shared(id, version, len));
    let mut store = Box::pin(async move { spool.store(id, data, true, None).await });
    match poll_once(&mut store).await {
        None => tokio::spawn(store),
        Some(done) => tokio::spawn(async { done }),
    }
}

/// Makes the syncer thread wait for the disk with a batch of eight stores. Returns their ids and
/// the handles of their callers.
pub(crate) async fn while_the_syncer_waits(
    broken: &Broken,
    spool: &Arc<TieredSpool>,
) -> (Vec<SpoolId>, Vec<JoinHandle<anyhow::Result<()>>>) {
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    broken.disk.inject(
        Fault::on(Call::Sync).only(|moment| moment.name.ends_with(".seg") && is_thread("tide-sync")).block(),
    );
    // The first sync holds the committer until the queue has enough stores for the syncer thread.
    let first = begin(spool, SpoolId::new(), 1, 100, None);
    wait::until("the first sync hangs", || broken.disk.blocked() == 1).await;
    let ids: Vec<SpoolId> = (0..8).map(|_| SpoolId::new()).collect();
    let mut stores = Vec::new();
    for &id in &ids {
        stores.push(queue(spool, id, 1, LARGE).await);
    }
    broken.disk.release();
    wait::bounded("the first store", first).await.unwrap().expect("store");
    wait::until("the syncer's sync hangs", || broken.disk.blocked() == 1).await;
    (ids, stores)
}

/// Spawns a compaction.
pub(crate) fn begin_compact(spool: &Arc<TieredSpool>) -> JoinHandle<anyhow::Result<()>> {
    let spool = spool.clone();
    tokio::spawn(async move { spool.compact().await })
}
