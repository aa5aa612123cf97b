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

/// Clean copies of so many messages.
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

/// What it returns is what the gauges lost.
#[tokio::test(flavor = "multi_thread")]
async fn advise_low_memory_tells_by_how_much_memory_fell() {
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
    // Nothing to give: nothing is told to be given.
    let spool = {
        stop(spool).await;
        tiered.start().await
    };
    assert_eq!(spool.advise_low_memory().await.unwrap(), 0);
    stop(spool).await;
}

/// More came in while it ran than it gave back: it says so.
#[tokio::test(flavor = "multi_thread")]
async fn advise_low_memory_tells_that_memory_grew() {
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
    let freed = wait::bounded("the answer", asked).await.unwrap().unwrap();
    let after = spool.stats().gauges.accounted_bytes;
    assert_eq!(freed, isize::try_from(before).unwrap() - isize::try_from(after).unwrap());
    assert!(freed < -15 * isize::try_from(LARGE).unwrap(), "{freed}");
    stop(spool).await;
}

/// However many ask, they share a run or the one after it: what each was told is what a run gave.
#[tokio::test(flavor = "multi_thread")]
async fn advise_low_memory_is_shared_by_all_who_ask_meanwhile() {
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
    // Each has asked when it was polled once.
    let mut callers: Vec<_> = (0..30).map(|_| spool.advise_low_memory()).collect();
    for caller in &mut callers {
        assert!(poll_once(caller).await.is_none());
    }
    // None of them is answered by a run that began before it asked.
    put(spool.as_ref(), LARGE, false).await;
    broken.disk.release();
    wait::bounded("the first", first).await.unwrap().unwrap();
    let mut told = Vec::new();
    for caller in callers {
        told.push(wait::bounded("a caller", caller).await.unwrap());
    }
    assert_eq!(runs() - before, 2);
    assert!(told.iter().all(|freed| *freed == told[0]), "{told:?}");
    stop(spool).await;
}

/// Whoever gives up asking does not keep the others from being answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_gives_up_asking_leaves_the_others_theirs() {
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

/// A lowered budget takes clean copies away and leaves the newest; a raised one leaves them all.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_changes_keeps_the_newest_copies() {
    let tiered = Tiered::new(roomy);
    let spool = tiered.start().await;
    let ids = filled(&spool, 250).await;
    let gone_before = spool.stats().cache_evicted_entries;
    let change = |budget: u64| Config::clone(&spool.config()).memory_budget(budget).dirty_limit(2 * MIB);
    spool.reconfigure(change(12 * MIB)).unwrap();
    wait::until("the budget is kept", || {
        let gauges = spool.stats().gauges;
        gauges.memory_budget == 12 * MIB && gauges.accounted_bytes <= 12 * MIB
    })
    .await;
    // What was left behind is counted when all that stays has been carried over.
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
    wait::until("all are carried over", || spool.stats().gauges.cache_entries == entries).await;
    for id in ids {
        assert_holds(spool.as_ref(), id, LARGE).await;
    }
    stop(spool).await;
}

/// So little that most of the copies would stay where they are: the cache follows all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_changes_a_little_changes_the_cache() {
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

/// Clean copies are carried over while their messages are replaced and removed: what is loaded is always the newest.
#[tokio::test(flavor = "multi_thread")]
async fn no_stale_copy_survives_a_change_of_the_budget() {
    // The index forgets at once what was removed: only the cache could remember it.
    let tiered =
        Tiered::new(|config| config.dirty_expire(Duration::from_millis(20)).checkpoint_after(Duration::ZERO));
    let spool = tiered.start().await;
    // So many that carrying them over takes its time.
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
                for (id, stands) in &mut messages {
                    // As it was left, a round ago: much has been carried over since.
                    match *stands {
                        Some(version) => {
                            let data = spool.load(*id).await.unwrap();
                            payload::assert_is(*id, version, 200, &data);
                        }
                        None => assert_absent(spool.as_ref(), *id).await,
                    }
                    version += 4;
                    if version % 3 == 0 {
                        spool.remove(*id).await.unwrap();
                        *stands = None;
                    } else {
                        let data = payload::shared(*id, version, 200);
                        let stored = spool.store(*id, data, version % 40 < 4, None).await;
                        stored.unwrap_or_else(|error| {
                            panic!("{error:#}: {:?}, {:?}", spool.unhealthy_reason(), spool.stats())
                        });
                        *stands = Some(version);
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

/// All of it, or nothing.
#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_not_allowed_change_nothing() {
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
    // Times: what waited for an hour is written now, and what comes later soon.
    put(spool.as_ref(), LARGE, false).await;
    changed(&|config| config.dirty_expire(Duration::from_millis(20)));
    wait::until("it is written", || spool.stats().gauges.dirty_bytes == 0).await;
    let id = put(spool.as_ref(), LARGE, false).await;
    wait::until("the next one, too", || spool.stats().gauges.dirty_bytes == 0).await;
    // The age of filing.
    assert_eq!(spool.stats().checkpoints, 0);
    changed(&|config| config.checkpoint_after(Duration::ZERO));
    spool.cleanup().await.unwrap();
    wait::until("it is filed", || spool.stats().gauges.index_entries == 0).await;
    assert_holds(spool.as_ref(), id, LARGE).await;
    // Limits.
    changed(&|config| config.max_message_size(KIB));
    let data = payload::shared(SpoolId::new(), 1, 2_000);
    let error = spool.store(SpoolId::new(), data, false, None).await.unwrap_err();
    assert!(error.root_cause().is::<tidespool_core::TooLarge>(), "{error:#}");
    // Durability.
    changed(&|config| config.durability(Durability::Synced).dirty_expire(HOUR));
    put(spool.as_ref(), 100, false).await;
    wait::until("it did not wait for an hour", || spool.stats().gauges.dirty_bytes == 0).await;
    // The journal.
    changed(&|config| config.journal_capacity(32 * MIB));
    assert_eq!(spool.config().journal_capacity, 32 * MIB);
    stop(spool).await;
}

/// A journal that was full takes more when it is allowed more; one that is allowed less gives files back.
#[tokio::test(flavor = "multi_thread")]
async fn the_capacity_of_the_journal_follows() {
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
    wait::until("the files are given back", || grown(&spool) <= MIB).await;
    stop(spool).await;
}

/// They never wait, but are written when they are too many, whatever the timer says.
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
    wait::until("they are written", || spool.stats().gauges.dirty_bytes <= MIB).await;
    stop(spool).await;
}

/// While it waits for a disk that hangs, nobody else waits: stores, loads and removes of other callers go on in memory.
#[tokio::test(flavor = "multi_thread")]
async fn advise_low_memory_keeps_no_store_waiting() {
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
