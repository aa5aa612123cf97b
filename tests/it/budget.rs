use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::poll_once;
use tidespool::{Config, ConfigError, Durability, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinSet;

use crate::broken::{Broken, committing};
use crate::setup::{KIB, MIB, Tiered, assert_absent, assert_holds, put, stop};

const HOUR: Duration = Duration::from_secs(3600);
const LARGE: usize = 50_000;

/// Stores `count` messages and waits until the cache holds clean copies of all.
async fn filled(spool: &TieredSpool, count: usize) -> Vec<SpoolId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(put(spool, LARGE, false).await);
    }
    spool.advise_low_memory().await.expect("advise_low_memory");
    assert_eq!(spool.stats().gauges.dirty_bytes, 0);
    for &id in &ids {
        assert_holds(spool, id, LARGE).await;
    }
    wait::until("all are in the cache", || spool.stats().gauges.cache_entries == count as u64).await;
    ids
}

fn roomy(config: Config) -> Config {
    config.journal_capacity(64 * MIB).segment_size(2 * MIB).checkpoint_after(HOUR).dirty_expire(HOUR)
}

/// The returned value equals the decrease of the gauge.
#[tokio::test(flavor = "multi_thread")]
async fn advise_low_memory_returns_the_freed_bytes() {
    let tiered = Tiered::new(roomy);
    let spool = tiered.start().await;
    let ids = filled(&spool, 200).await;
    let before = spool.stats().gauges.accounted_bytes;
    let freed = spool.advise_low_memory().await.unwrap();
    let gauges = spool.stats().gauges;
    assert_eq!(freed, isize::try_from(before - gauges.accounted_bytes).unwrap());
    assert!(freed >= 200 * isize::try_from(LARGE).unwrap(), "{freed}");
    assert_eq!((gauges.cache_entries, gauges.cache_bytes), (0, 0));
    for id in ids {
        assert_holds(spool.as_ref(), id, LARGE).await;
    }
    // With nothing to free, it returns 0.
    let spool = {
        stop(spool).await;
        tiered.start().await
    };
    assert_eq!(spool.advise_low_memory().await.unwrap(), 0);
    stop(spool).await;
}

/// If stores during the call add more than it frees, the returned value is negative.
#[tokio::test(flavor = "multi_thread")]
async fn advise_low_memory_returns_a_negative_value_if_memory_grew() {
    let broken = Broken::new(roomy);
    let spool = broken.start().await;
    put(spool.as_ref(), LARGE, false).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    let before = spool.stats().gauges.accounted_bytes;
    let asked = tokio::spawn({
        let spool = spool.clone();
        async move { spool.advise_low_memory().await }
    });
    wait::until("it waits for the disk", || broken.disk.blocked() == 1).await;
    for _ in 0..20 {
        put(spool.as_ref(), LARGE, false).await;
    }
    broken.disk.release();
    let freed = wait::bounded("the result", asked).await.unwrap().unwrap();
    let after = spool.stats().gauges.accounted_bytes;
    assert_eq!(freed, isize::try_from(before).unwrap() - isize::try_from(after).unwrap());
    assert!(freed < -15 * isize::try_from(LARGE).unwrap(), "{freed}");
    stop(spool).await;
}

/// Concurrent callers share a run or the next one, and get its result.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_of_advise_low_memory_share_a_run() {
    let broken = Broken::new(|config| roomy(config).segment_size(256 * KIB));
    let spool = broken.start().await;
    put(spool.as_ref(), LARGE, false).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    let runs = || spool.stats().low_memory_calls;
    let before = runs();
    let first = tokio::spawn({
        let spool = spool.clone();
        async move { spool.advise_low_memory().await }
    });
    wait::until("the first run waits for the disk", || broken.disk.blocked() == 1).await;
    // One poll queues the request.
    let mut callers: Vec<_> = (0..30).map(|_| spool.advise_low_memory()).collect();
    for caller in &mut callers {
        assert!(poll_once(caller).await.is_none());
    }
    // A run that began earlier must not complete a later request.
    put(spool.as_ref(), LARGE, false).await;
    broken.disk.release();
    wait::bounded("the first", first).await.unwrap().unwrap();
    let mut results = Vec::new();
    for caller in callers {
        results.push(wait::bounded("a caller", caller).await.unwrap());
    }
    assert_eq!(runs() - before, 2);
    assert!(results.iter().all(|freed| *freed == results[0]), "{results:?}");
    stop(spool).await;
}

/// A dropped call does not cancel the run for other callers.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_does_not_cancel_the_others() {
    let broken = Broken::new(|config| roomy(config).segment_size(256 * KIB));
    let spool = broken.start().await;
    put(spool.as_ref(), LARGE, false).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    let first = tokio::spawn({
        let spool = spool.clone();
        async move { spool.advise_low_memory().await }
    });
    wait::until("the first run waits for the disk", || broken.disk.blocked() == 1).await;
    first.abort();
    let second = tokio::spawn({
        let spool = spool.clone();
        async move { spool.advise_low_memory().await }
    });
    assert!(first.await.unwrap_err().is_cancelled());
    broken.disk.release();
    wait::bounded("the second", second).await.unwrap().unwrap();
    assert_eq!(spool.stats().gauges.dirty_bytes, 0);
    stop(spool).await;
}

/// A lowered budget drops old clean copies and keeps the newest. A raised budget keeps all.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_budget_keeps_the_newest_copies() {
    let tiered = Tiered::new(roomy);
    let spool = tiered.start().await;
    let ids = filled(&spool, 230).await;
    let gone_before = spool.stats().cache_evicted_entries;
    let change = |budget: u64| Config::clone(&spool.config()).memory_budget(budget).dirty_limit(2 * MIB);
    spool.reconfigure(change(12 * MIB)).unwrap();
    wait::until("the budget is kept", || {
        let gauges = spool.stats().gauges;
        gauges.memory_budget == 12 * MIB && gauges.accounted_bytes <= 12 * MIB
    })
    .await;
    // Dropped copies are counted after the remaining ones were moved to the new cache.
    wait::until("the copies are counted", || {
        let stats = spool.stats();
        let gone = stats.cache_evicted_entries - gone_before;
        gone > 0 && gone + stats.gauges.cache_entries == ids.len() as u64
    })
    .await;
    let entries = spool.stats().gauges.cache_entries;
    assert!(entries > 20, "{entries}");
    spool.reconfigure(change(64 * MIB)).unwrap();
    wait::until("the cache has grown", || spool.stats().gauges.cache_capacity > 36 * MIB).await;
    wait::until("all are moved", || spool.stats().gauges.cache_entries == entries).await;
    for id in ids {
        assert_holds(spool.as_ref(), id, LARGE).await;
    }
    stop(spool).await;
}

/// A change so small that most copies could stay. The cache size changes nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_change_of_the_budget_changes_the_cache() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    let capacity = || spool.stats().gauges.cache_capacity;
    let before = capacity();
    for (mib, ordering) in [(36, Ordering::Greater), (32, Ordering::Equal), (30, Ordering::Less)] {
        spool.reconfigure(Config::clone(&spool.config()).memory_budget(mib * MIB)).unwrap();
        wait::until("the cache follows", || capacity().cmp(&before) == ordering).await;
    }
    stop(spool).await;
}

/// Clean copies are moved while their messages are replaced and removed. Loads always return the
/// newest version.
#[tokio::test(flavor = "multi_thread")]
async fn no_stale_copy_survives_a_change_of_the_budget() {
    // The index drops removed messages at once, so only the cache could return them.
    let tiered =
        Tiered::new(|config| config.dirty_expire(Duration::from_millis(20)).checkpoint_after(Duration::ZERO));
    let spool = tiered.start().await;
    // Enough copies for the move to take a while.
    for _ in 0..15_000 {
        put(spool.as_ref(), 100, false).await;
    }
    let changing = tokio::spawn({
        let spool = spool.clone();
        async move {
            for turn in 0..60_u64 {
                let budget = if turn % 2 == 0 { 10 * MIB } else { 64 * MIB };
                let config = Config::clone(&spool.config()).memory_budget(budget).dirty_limit(4 * MIB);
                spool.reconfigure(config).unwrap();
                let kept = move |capacity: u64| (capacity > 16 * MIB) == (budget > 16 * MIB);
                wait::until("the cache follows", || kept(spool.stats().gauges.cache_capacity)).await;
                spool.cleanup().await.unwrap();
            }
        }
    });
    let mut callers = JoinSet::new();
    for caller in 0..4_u64 {
        let spool = spool.clone();
        let changing = changing.abort_handle();
        callers.spawn(async move {
            let mut messages: Vec<(SpoolId, Option<u64>)> =
                (0..500).map(|_| (SpoolId::new(), None)).collect();
            let mut version = caller;
            while !changing.is_finished() {
                for (id, current) in &mut messages {
                    // The message as the previous round left it. Many copies have been moved since.
                    match *current {
                        Some(version) => {
                            let data = spool.load(*id).await.unwrap();
                            payload::assert_is(*id, version, 200, &data);
                        }
                        None => assert_absent(spool.as_ref(), *id).await,
                    }
                    version += 4;
                    if version % 3 == 0 {
                        spool.remove(*id).await.unwrap();
                        *current = None;
                    } else {
                        let data = payload::shared(*id, version, 200);
                        let stored = spool.store(*id, data, version % 40 < 4, None).await;
                        stored.unwrap_or_else(|error| {
                            panic!("{error:#}: {:?}, {:?}", spool.unhealthy_reason(), spool.stats())
                        });
                        *current = Some(version);
                    }
                }
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    changing.await.unwrap();
    stop(spool).await;
}

/// Invalid settings are rejected as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_settings_change_nothing() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    let before = spool.config();
    let other = |change: fn(Config) -> Config| change(Config::clone(&before).store_deadline(HOUR));
    let invalid = [
        other(|config| config.memory_budget(1)),
        other(|config| config.dirty_limit(31 * MIB)),
        other(|config| config.journal_capacity(MIB - 1)),
    ];
    for config in invalid {
        let error = spool.reconfigure(config).unwrap_err();
        assert!(matches!(error, ConfigError::Invalid { .. }), "{error}");
    }
    let fixed = [
        ("path", other(|config| config.path("/elsewhere".into()))),
        ("segment_size", other(|config| config.segment_size(512 * KIB))),
        ("read_threads", other(|config| config.read_threads(7))),
        ("ballast", other(|config| config.ballast(5 * MIB))),
    ];
    for (name, config) in fixed {
        let error = spool.reconfigure(config).unwrap_err();
        assert!(matches!(&error, ConfigError::Fixed { setting, .. } if *setting == name), "{error}");
    }
    assert_eq!(spool.config(), before);
    stop(spool).await;
}

/// Each kind of setting takes effect without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn settings_take_effect_on_the_running_spool() {
    let tiered = Tiered::new(|config| config.dirty_expire(HOUR).checkpoint_after(HOUR));
    let spool = tiered.start().await;
    let changed = |change: &dyn Fn(Config) -> Config| {
        spool.reconfigure(change(Config::clone(&spool.config()))).unwrap();
    };
    // Times: messages that were to wait for an hour are written now, and later ones soon.
    put(spool.as_ref(), LARGE, false).await;
    changed(&|config| config.dirty_expire(Duration::from_millis(20)));
    wait::until("it is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    let id = put(spool.as_ref(), LARGE, false).await;
    wait::until("the next one is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    // The minimum age for a checkpoint.
    assert_eq!(spool.stats().checkpoints, 0);
    changed(&|config| config.checkpoint_after(Duration::ZERO));
    spool.cleanup().await.unwrap();
    wait::until("it is checkpointed", || spool.stats().gauges.index_entries == 0).await;
    assert_holds(spool.as_ref(), id, LARGE).await;
    // Limits.
    changed(&|config| config.max_message_size(KIB));
    let data = payload::shared(SpoolId::new(), 1, 2_000);
    let error = spool.store(SpoolId::new(), data, false, None).await.unwrap_err();
    assert!(error.root_cause().is::<tidespool_core::TooLarge>(), "{error:#}");
    // Durability.
    changed(&|config| config.durability(Durability::Synced).dirty_expire(HOUR));
    put(spool.as_ref(), 100, false).await;
    wait::until("it is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    // The journal.
    changed(&|config| config.journal_capacity(32 * MIB));
    assert_eq!(spool.config().journal_capacity, 32 * MIB);
    stop(spool).await;
}

/// A full journal grows when its capacity is raised. With a lower capacity it removes files.
#[tokio::test(flavor = "multi_thread")]
async fn the_journal_follows_a_changed_capacity() {
    let tiered = Tiered::new(|config| config.journal_capacity(MIB).checkpoint_after(HOUR));
    let spool = tiered.start().await;
    let ids = filled(&spool, 10).await;
    let grown = |spool: &Arc<TieredSpool>| spool.stats().gauges.journal_bytes;
    let config = Config::clone(&spool.config());
    spool.reconfigure(config.clone().journal_capacity(16 * MIB)).unwrap();
    let mut more = Vec::new();
    for _ in 0..100 {
        more.push(put(spool.as_ref(), LARGE, true).await);
    }
    assert!(grown(&spool) > 4 * MIB, "{}", grown(&spool));
    for id in ids.iter().chain(&more) {
        spool.remove(*id).await.unwrap();
    }
    spool.reconfigure(config).unwrap();
    spool.compact().await.unwrap();
    wait::until("the files are removed", || grown(&spool) <= MIB).await;
    stop(spool).await;
}

/// Removals never wait. If they exceed the limit they are written, whatever the timer.
#[tokio::test(flavor = "multi_thread")]
async fn removals_alone_do_not_stay_above_the_limit() {
    let tiered = Tiered::new(|config| roomy(config).dirty_limit(MIB));
    let spool = tiered.start().await;
    let mut ids = Vec::new();
    for _ in 0..8_000 {
        ids.push(put(spool.as_ref(), 100, false).await);
    }
    spool.advise_low_memory().await.unwrap();
    assert_eq!(spool.stats().gauges.dirty_bytes, 0);
    for id in ids {
        spool.remove(id).await.unwrap();
    }
    wait::until("they are durable", || spool.stats().gauges.dirty_bytes <= MIB).await;
    stop(spool).await;
}

/// While it waits for a hanging disk, stores, loads and removes of other callers continue in
/// memory.
#[tokio::test(flavor = "multi_thread")]
async fn advise_low_memory_blocks_no_store() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let before = put(spool.as_ref(), 5_000, true).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    put(spool.as_ref(), 5_000, false).await;
    let advising = {
        let spool = spool.clone();
        tokio::spawn(async move { spool.advise_low_memory().await })
    };
    wait::until("it waits for the disk", || broken.disk.blocked() == 1).await;
    for _ in 0..100 {
        let id = put(spool.as_ref(), 5_000, false).await;
        assert_holds(spool.as_ref(), id, 5_000).await;
        spool.remove(id).await.expect("remove");
    }
    assert_holds(spool.as_ref(), before, 5_000).await;
    assert!(!advising.is_finished());
    broken.disk.heal();
    wait::bounded("advising", advising).await.unwrap().expect("advise_low_memory");
    stop(spool).await;
}
