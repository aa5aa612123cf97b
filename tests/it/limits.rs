use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidespool::{Config, TieredSpool};
use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinSet;

use crate::setup::{KIB, MIB, Tiered, assert_absent, assert_holds, disk_bytes, enumerate, put, stop};

const HOUR: Duration = Duration::from_secs(3600);

/// Settings with much less space than the callers need.
fn crowded(config: Config) -> Config {
    // A segment holds the largest of these messages. Larger ones would need a new file first.
    config.dirty_limit(MIB).segment_size(2 * MIB).journal_capacity(16 * MIB)
}

/// Dirty bytes stay within their limit, however many callers store, and every caller succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_a_small_dirty_limit() {
    let tiered = Tiered::new(crowded);
    let spool = tiered.start().await;
    let done = Arc::new(AtomicBool::new(false));
    let watch = tokio::spawn({
        let (spool, done) = (spool.clone(), done.clone());
        async move {
            while !done.load(Ordering::Relaxed) {
                let gauges = spool.stats().gauges;
                assert!(gauges.dirty_bytes <= gauges.dirty_limit, "{gauges:?}");
                tokio::task::yield_now().await;
            }
        }
    });
    let mut callers = JoinSet::new();
    for n in 0..64 {
        let spool = spool.clone();
        callers.spawn(async move {
            let mut stored = Vec::new();
            for turn in 0..10 {
                let len = 40_000 + n * 1000 + turn;
                stored.push((put(spool.as_ref(), len, n % 8 == 0).await, len));
            }
            stored
        });
    }
    let mut stored = Vec::new();
    while let Some(caller) = callers.join_next().await {
        stored.extend(caller.unwrap());
    }
    done.store(true, Ordering::Relaxed);
    watch.await.unwrap();
    for (id, len) in stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    stop(spool).await;
}

/// Stores until one is rejected. Every rejection must be an `E` and must leave no message behind.
async fn push_until_refused<E>(spool: Arc<TieredSpool>, deadline: impl Fn() -> Option<Instant>)
where
    E: std::error::Error + Send + Sync + 'static,
{
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    wait::bounded("a store is refused", async {
        while refused.is_empty() {
            let mut callers = JoinSet::new();
            for _ in 0..64 {
                let (spool, id, deadline) = (spool.clone(), SpoolId::new(), deadline());
                let data = payload::shared(id, 1, 400 * 1024);
                callers.spawn(async move { (id, spool.store(id, data, false, deadline).await) });
            }
            while let Some(caller) = callers.join_next().await {
                match caller.unwrap() {
                    (id, Ok(())) => taken.push(id),
                    (id, Err(err)) => {
                        assert!(err.root_cause().is::<E>(), "{err:#}");
                        refused.push(id);
                    }
                }
            }
            for id in taken.drain(..) {
                assert_holds(spool.as_ref(), id, 400 * 1024).await;
                spool.remove(id).await.expect("remove");
            }
        }
    })
    .await;
    for id in refused {
        assert_absent(spool.as_ref(), id).await;
    }
    assert_eq!(enumerate(spool.as_ref()).await, []);
    // A rejected store does not occupy space that later stores need.
    wait::until("everything is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    let id = SpoolId::new();
    let data = payload::shared(id, 1, 1024 * 1024);
    spool.store(id, data, false, None).await.expect("a message as large as the limit");
    stop(spool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_deadline_ends_the_wait_if_it_is_earlier() {
    let tiered = Tiered::new(|config| crowded(config).store_deadline(HOUR));
    let soon = || Some(Instant::now() + Duration::from_millis(1));
    push_until_refused::<SpoolCallerDeadlineExceeded>(tiered.start().await, soon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spools_deadline_ends_the_wait_if_it_is_earlier() {
    let tiered = Tiered::new(|config| crowded(config).store_deadline(Duration::from_millis(1)));
    let late = || Some(Instant::now() + HOUR);
    push_until_refused::<SpoolBackpressureTimeout>(tiered.start().await, late).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spools_deadline_ends_the_wait_if_the_caller_has_none() {
    let tiered = Tiered::new(|config| crowded(config).store_deadline(Duration::from_millis(1)));
    push_until_refused::<SpoolBackpressureTimeout>(tiered.start().await, || None).await;
}

/// Stores that are dropped while they wait for space release their reservation.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_stores_release_their_space() {
    let tiered = Tiered::new(crowded);
    let spool = tiered.start().await;
    for round in 0..5 {
        let mut callers = JoinSet::new();
        for n in 0..100 {
            let (spool, id) = (spool.clone(), SpoolId::new());
            let data = payload::shared(id, 1, 300 * 1024);
            callers.spawn(async move { spool.store(id, data, n % 2 == 0, None).await });
        }
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        callers.shutdown().await;
    }
    wait::until("everything is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    let id = SpoolId::new();
    let data = payload::shared(id, 1, 1024 * 1024);
    spool.store(id, data, false, Some(Instant::now() + wait::PATIENCE)).await.expect("all space is free");
    stop(spool).await;
}

/// More live messages than the journal holds: they are checkpointed, and the journal is reused.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_is_checkpointed_while_stores_wait() {
    let tiered = Tiered::new(|config| {
        config.segment_size(64 * KIB).journal_capacity(256 * KIB).checkpoint_after(HOUR)
    });
    let spool = tiered.start().await;
    let mut stored = Vec::new();
    for n in 0..600 {
        stored.push((put(spool.as_ref(), 3000 + n, n % 50 == 0).await, 3000 + n));
    }
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    stop(spool).await;
    let spool = tiered.start().await;
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    assert_eq!(enumerate(spool.as_ref()).await.len(), stored.len());
    stop(spool).await;
}

/// The message is larger than a segment, the journal and `dirty_limit`, but within
/// `max_message_size`.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_64_mib_is_kept_and_its_space_is_reclaimed() {
    const LEN: usize = 64 * 1024 * 1024;
    let tiered = Tiered::new(|config| config.max_message_size(64 * MIB));
    let spool = tiered.start().await;
    let mut stored = Vec::new();
    for force_sync in [false, true] {
        let id = put(spool.as_ref(), LEN, force_sync).await;
        assert_holds(spool.as_ref(), id, LEN).await;
        stored.push(id);
    }
    assert_eq!(spool.stats().stores_synced, 2, "each waits for the disk");
    spool.compact().await.expect("compact");
    stop(spool).await;

    let spool = tiered.start().await;
    for &id in &stored {
        assert_holds(spool.as_ref(), id, LEN).await;
        spool.remove(id).await.expect("remove");
        assert_absent(spool.as_ref(), id).await;
    }
    spool.compact().await.expect("compact");
    stop(spool).await;
    let left = disk_bytes(&tiered.path());
    assert!(left < 64 * MIB, "{left} bytes are left on disk");
    let spool = tiered.start().await;
    assert_eq!(enumerate(spool.as_ref()).await, []);
    stop(spool).await;
}

/// `load_shared` returns the same bytes as `load`, without a copy.
#[tokio::test(flavor = "multi_thread")]
async fn load_shared_returns_the_bytes_of_load() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    for len in [0, 100, 5000, 300_000] {
        let id = put(spool.as_ref(), len, false).await;
        payload::assert_is(id, 1, len, &spool.load_shared(id).await.expect("load_shared")[..]);
        spool.compact().await.expect("compact");
        spool.advise_low_memory().await.expect("advise_low_memory");
        payload::assert_is(id, 1, len, &spool.load_shared(id).await.expect("load_shared")[..]);
    }
    stop(spool).await;
}

/// A batch exceeds the free space of the journal: synced stores over larger dirty versions of the
/// same messages. The part that fits is made durable and checkpointed, and the rest follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_larger_than_the_journal_does_not_block_it() {
    let tiered = Tiered::new(|config| {
        let config = config.segment_size(64 * KIB).journal_capacity(256 * KIB).dirty_limit(MIB);
        config.checkpoint_after(HOUR).dirty_expire(Duration::from_secs(10))
    });
    let spool = tiered.start().await;
    let ids: Vec<SpoolId> = (0..15).map(|_| SpoolId::new()).collect();
    for &id in &ids {
        spool.store(id, payload::shared(id, 1, 30_000), false, None).await.expect("store");
    }
    let mut stores = JoinSet::new();
    for id in ids.clone() {
        let spool = spool.clone();
        stores.spawn(async move { spool.store(id, payload::shared(id, 2, 1000), true, None).await });
    }
    wait::bounded("all are stored", async {
        while let Some(stored) = stores.join_next().await {
            stored.unwrap().expect("a synced store");
        }
    })
    .await;
    for &id in &ids {
        payload::assert_is(id, 2, 1000, &spool.load(id).await.expect("load"));
    }
    stop(spool).await;
}

/// A synced store that waits for space causes dirty messages to be written, whatever their age.
#[tokio::test(flavor = "multi_thread")]
async fn space_is_freed_for_a_synced_store() {
    let tiered =
        Tiered::new(|config| crowded(config).dirty_expire(HOUR).store_deadline(Duration::from_secs(10)));
    let spool = tiered.start().await;
    for _ in 0..10 {
        // Each fits alone, and is too small for a flush; both together do not fit.
        put(spool.as_ref(), 600_000, false).await;
        put(spool.as_ref(), 500_000, true).await;
    }
    stop(spool).await;
}
