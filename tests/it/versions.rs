use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_lite::future::poll_once;
use tidespool::{Config, TieredSpool};
use tidespool_core::{NotFound, Spool, SpoolId};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinSet;

use crate::setup::{MIB, Tiered, stop};

/// Callers of [`Flood`], and messages per caller.
const CALLERS: usize = 4;
const MESSAGES: usize = 64;
/// Length in bytes. A batch of these is larger than the committer syncs itself.
const FLOOD_LEN: usize = 4 << 10;
/// Concurrent pairs, and rounds.
const AT_ONCE: usize = 6;
const TURNS: usize = 20;

/// Callers that replace messages until [`stop`](Self::stop), so that many flush tickets are
/// replaced while a batch is built.
struct Flood {
    stop: Arc<AtomicBool>,
    callers: JoinSet<()>,
}

impl Flood {
    fn start(spool: &Arc<TieredSpool>) -> Self {
        let (stop, mut callers) = (Arc::<AtomicBool>::default(), JoinSet::new());
        for _ in 0..CALLERS {
            let (spool, stop) = (spool.clone(), stop.clone());
            callers.spawn(async move {
                let ids: Vec<SpoolId> = (0..MESSAGES).map(|_| SpoolId::new()).collect();
                let mut version = 0;
                while !stop.load(Ordering::Relaxed) {
                    version += 1;
                    for &id in &ids {
                        let data = payload::shared(id, version, FLOOD_LEN);
                        spool.store(id, data, false, None).await.expect("the flood's store");
                        if version % 2 == 0 {
                            spool.remove(id).await.expect("the flood's removal");
                        }
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        Self { stop, callers }
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("the flood");
        }
    }
}

/// The call that follows a store which waits for its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    Remove,
    Replace,
}

/// The first store of a pair.
#[derive(Debug, Clone, Copy)]
struct First {
    len: usize,
    force_sync: bool,
}

/// Frequent flushes, and space for everything: no store waits for space.
fn busy(config: Config) -> Config {
    config
        .dirty_expire(Duration::from_millis(10))
        .checkpoint_after(Duration::from_secs(3600))
        .journal_capacity(64 * MIB)
        .memory_budget(256 * MIB)
        .dirty_limit(64 * MIB)
}

/// Describes the result of a load that is not the newest version. `None` if it is the newest.
async fn other_than_newest(spool: &dyn Spool, id: SpoolId, second: Second) -> Option<String> {
    let (found, newest) = (spool.load(id).await, payload::make(id, 2, FLOOD_LEN));
    match (found, second) {
        (Err(err), Second::Remove) if err.root_cause().is::<NotFound>() => None,
        (Ok(data), Second::Replace) if data == newest => None,
        (Ok(data), _) => Some(format!("{second:?}: {} bytes", data.len())),
        (Err(err), _) => Some(format!("{second:?}: {err:#}")),
    }
}

async fn assert_newest(spool: &dyn Spool, pairs: &[(SpoolId, Second)], when: &str) {
    let mut wrong = Vec::new();
    for &(id, second) in pairs {
        wrong.extend(other_than_newest(spool, id, second).await);
    }
    assert_eq!(wrong, [""; 0], "{when}: {} of {}", wrong.len(), pairs.len());
}

/// Starts a store that waits for its commit, and makes the second call meanwhile.
async fn pair(spool: Arc<TieredSpool>, first: First, second: Second) -> SpoolId {
    let id = SpoolId::new();
    let mut store = Box::pin(spool.store(id, payload::shared(id, 1, first.len), first.force_sync, None));
    // The store waits now or is already durable. The second call is newer either way.
    let stored = poll_once(&mut store).await;
    match second {
        Second::Remove => spool.remove(id).await.expect("remove"),
        Second::Replace => {
            let data = payload::shared(id, 2, FLOOD_LEN);
            spool.store(id, data, false, None).await.expect("replace");
        }
    }
    match stored {
        Some(stored) => stored.expect("store"),
        None => wait::bounded("the first store", store).await.expect("store"),
    }
    id
}

/// Runs pairs beside a flood, then loads all, restarts, and loads all again.
async fn the_second_stays_the_newest(tiered: &Tiered, first: First) {
    let spool = tiered.start().await;
    let flood = Flood::start(&spool);
    let mut pairs = Vec::new();
    for _ in 0..TURNS {
        let mut at_once = JoinSet::new();
        for second in [Second::Remove, Second::Replace].repeat(AT_ONCE / 2) {
            let spool = spool.clone();
            at_once.spawn(async move { (pair(spool, first, second).await, second) });
        }
        pairs.extend(at_once.join_all().await);
    }
    flood.stop().await;
    wait::until("everything is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    assert_newest(spool.as_ref(), &pairs, &format!("{first:?}, quiet")).await;
    stop(spool).await;
    let spool = tiered.start().await;
    assert_newest(spool.as_ref(), &pairs, &format!("{first:?}, restarted")).await;
    stop(spool).await;
}

/// A message larger than a segment was stored and, while the store waited for its commit, removed.
/// Both returned `Ok`. A load returned `NotFound`, a later one and every restart returned the
/// message. An unrelated message was saved again while the batch was built, so the tickets were
/// drained a second time, after the arrivals. The removal went into this batch and the older store
/// into the next one. The tests cover each kind of store that waits for its commit, and
/// replacements.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_large_message_stays_removed_or_replaced() {
    let first = First { len: 300 << 10, force_sync: false };
    the_second_stays_the_newest(&Tiered::new(busy), first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_synced_message_stays_removed_or_replaced() {
    let first = First { len: FLOOD_LEN, force_sync: true };
    the_second_stays_the_newest(&Tiered::new(busy), first).await;
}
