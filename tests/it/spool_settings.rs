use std::time::Duration;

use tidespool::{Config, Durability, SpoolConfig, Tidespool, TieredSpool};
use tidespool_core::{Spool as _, SpoolId, TooLarge};
use tidespool_testkit::{payload, wait};

use crate::setup::{KIB, MIB, Tiered, assert_absent, assert_holds, put, when_free};

/// Settings under which the journal is written only when necessary.
fn quiet(adjust: impl FnOnce(Config) -> Config) -> Tiered {
    const HOUR: Duration = Duration::from_secs(3600);
    Tiered::new(|config| adjust(config.dirty_expire(HOUR).checkpoint_after(HOUR)))
}

async fn open(tiered: &Tiered) -> Tidespool {
    when_free(|| Tidespool::open(tiered.config.clone())).await.expect("open")
}

/// The spools that each test has.
fn spools(store: &Tidespool) -> (TieredSpool, TieredSpool) {
    (store.spool("data").unwrap(), store.spool("meta").unwrap())
}

fn of(durability: Durability) -> SpoolConfig {
    SpoolConfig::default().durability(durability)
}

/// Returns the value of a metric.
fn metric(text: &str, name: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{name} in\n{text}")).parse().expect("a whole number")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_spool_has_its_own_statistics_and_the_store_has_their_sums() {
    let tiered = quiet(|config| config);
    let store = open(&tiered).await;
    let (data, meta) = spools(&store);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(put(&data, 1_000, true).await);
    }
    let id = put(&meta, 10, false).await;
    assert_absent(&meta, ids[0]).await;
    assert_holds(&meta, id, 10).await;
    for id in &ids {
        assert_holds(&data, *id, 1_000).await;
    }
    data.remove(ids[0]).await.unwrap();
    data.remove(ids[1]).await.unwrap();
    meta.remove(SpoolId::new()).await.unwrap();

    let all = store.stats();
    assert_eq!(all.spools.keys().collect::<Vec<_>>(), ["data", "meta"]);
    let (of_data, of_meta) = (&all.spools["data"], &all.spools["meta"]);
    assert_eq!(
        (of_data.stores, of_data.stores_synced, of_data.stored_bytes, of_data.removes),
        (3, 3, 3_000, 2)
    );
    assert_eq!((of_meta.stores, of_meta.stores_synced, of_meta.stored_bytes, of_meta.removes), (1, 0, 10, 1));
    assert_eq!((of_data.hits(), of_data.misses, of_meta.hits(), of_meta.misses), (3, 0, 1, 1));
    assert_eq!((all.stores, all.stores_synced, all.stored_bytes, all.removes), (4, 3, 3_010, 3));
    assert_eq!((all.hits(), all.misses), (4, 1));

    // A spool's own statistics have the same counters and the store's others.
    let own = meta.stats();
    assert_eq!((own.spools.len(), &own.spools["meta"]), (1, of_meta));
    assert_eq!((own.stores, own.stored_bytes, own.hits()), (1, 10, 1));
    assert_eq!(own.committed_records, all.committed_records);

    // The text is that of the store, whichever handle returns it.
    for text in [store.prometheus_text(), data.prometheus_text(), meta.prometheus_text()] {
        for (name, data, meta, sum) in [
            ("stored_bytes_total", 3_000, 10, all.stored_bytes),
            ("load_misses_total", 0, 1, all.misses),
            ("removes_total", 2, 1, all.removes),
        ] {
            let [found_data, found_meta] = ["data", "meta"]
                .map(|spool| metric(&text, &format!("tidespool_{name}{{spool=\"{spool}\"}}")));
            assert_eq!((found_data, found_meta, found_data + found_meta), (data, meta, sum), "{name}");
        }
        assert_eq!(metric(&text, "tidespool_stores_total{spool=\"data\",sync=\"synced\"}"), 3);
        assert_eq!(metric(&text, "tidespool_stores_total{spool=\"meta\",sync=\"synced\"}"), 0);
        assert_eq!(metric(&text, "tidespool_stores_total{spool=\"meta\",sync=\"deferred\"}"), 1);
        assert_eq!(metric(&text, "tidespool_committed_records_total"), all.committed_records);
    }
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_takes_messages_of_the_spool_with_the_durability_memory_only() {
    for (whole, data, meta) in [
        // Set for one spool, for the other, for both.
        (Durability::Process, Some(Durability::Memory), None),
        (Durability::Memory, None, Some(Durability::Process)),
        (Durability::Synced, Some(Durability::Memory), Some(Durability::Process)),
    ] {
        let set = |config: Config, name, durability: Option<Durability>| match durability {
            Some(durability) => config.spool(name, of(durability)),
            None => config,
        };
        let tiered = quiet(|config| set(set(config.durability(whole), "data", data), "meta", meta));
        let store = open(&tiered).await;
        let (data, meta) = spools(&store);
        let durable = [put(&data, 300, true).await, put(&meta, 300, true).await];
        let removed = put(&meta, 1_000, true).await;
        let kept = put(&meta, 1_000, false).await;
        meta.remove(removed).await.unwrap();
        let now = store.stats();
        assert_eq!((now.gauges.process_risk_bytes, now.gauges.process_risk_removals), (0, 0));
        assert_eq!(now.crash_log_bypassed, 0, "the crash log took it");
        let lost = put(&data, 1_000, false).await;
        data.remove(durable[0]).await.unwrap();
        let now = store.stats().gauges;
        assert!(now.process_risk_bytes >= 1_000 && now.process_risk_removals == 1, "{now:?}");
        // A drop without shutdown acts like a kill.
        drop((store, data, meta));
        let store = open(&tiered).await;
        let (data, meta) = spools(&store);
        assert_holds(&meta, durable[1], 300).await;
        assert_holds(&meta, kept, 1_000).await;
        assert_absent(&meta, removed).await;
        // The journal was not written after these changes.
        assert_absent(&data, lost).await;
        assert_holds(&data, durable[0], 300).await;
        assert_eq!(store.recovery().replayed, 2, "{:?}", store.recovery());
        store.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_store_gets_a_crash_log_when_one_spool_needs_it() {
    let tiered = quiet(|config| config.durability(Durability::Memory));
    let store = open(&tiered).await;
    let (data, meta) = spools(&store);
    assert_eq!(store.stats().gauges.crash_log_disk_bytes, 0);
    let config = store.config().as_ref().clone().spool("meta", of(Durability::Process));
    store.reconfigure(config).unwrap();
    wait::until("there is a log", || store.stats().gauges.crash_log_disk_bytes > 0).await;
    let (kept, lost) = (put(&meta, 1_000, false).await, put(&data, 1_000, false).await);
    drop((store, data, meta));
    // The next process has the old settings.
    let store = open(&tiered).await;
    let (data, meta) = spools(&store);
    assert_holds(&meta, kept, 1_000).await;
    assert_absent(&data, lost).await;
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_spool_has_its_own_limit_of_a_messages_size() {
    let tiered = quiet(|config| {
        config.max_message_size(MIB).spool("meta", SpoolConfig::default().max_message_size(4 * KIB))
    });
    let store = open(&tiered).await;
    let (data, meta) = spools(&store);
    put(&data, 5_000, false).await;
    let id = SpoolId::new();
    let store_in_meta = || meta.store(id, payload::shared(id, 1, 5_000), false, None);
    let error = store_in_meta().await.unwrap_err();
    assert_eq!(error.root_cause().downcast_ref(), Some(&TooLarge { id, size: 5_000, limit: 4 * KIB }));
    let refused = store.stats().spools.into_values().map(|spool| spool.refused_too_large);
    assert_eq!(refused.collect::<Vec<_>>(), [0, 1]);
    let config = store.config().as_ref().clone().spool("meta", SpoolConfig::default());
    store.reconfigure(config).unwrap();
    store_in_meta().await.unwrap();
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_of_weight_zero_has_no_clean_copies() {
    let tiered = quiet(|config| config.spool("data", SpoolConfig::default().cache_weight(0)));
    let store = open(&tiered).await;
    let (data, meta) = spools(&store);
    let (in_data, in_meta) = (put(&data, 1_000, true).await, put(&meta, 1_000, true).await);
    for _ in 0..2 {
        assert_holds(&data, in_data, 1_000).await;
        assert_holds(&meta, in_meta, 1_000).await;
    }
    let stats = store.stats();
    let (of_data, of_meta) = (&stats.spools["data"], &stats.spools["meta"]);
    assert_eq!((of_data.hits_young + of_data.hits_cache, of_data.hits_journal), (0, 2));
    assert_eq!((of_meta.hits_young, of_meta.hits_cache, of_meta.hits_journal), (2, 0, 0));
    // The weight of a running store is set to zero. The next turn of the balancer applies it.
    let config = store.config().as_ref().clone().spool("meta", SpoolConfig::default().cache_weight(0));
    store.reconfigure(config).unwrap();
    meta.advise_low_memory().await.unwrap();
    for _ in 0..2 {
        assert_holds(&meta, in_meta, 1_000).await;
    }
    assert_eq!(store.stats().spools["meta"].hits_journal, 2);
    assert_eq!(store.stats().gauges.cache_bytes, 0);
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_makes_the_spools_that_its_settings_name() {
    let named =
        |config: Config| config.spool("meta", SpoolConfig::default()).spool("data", of(Durability::Synced));
    let tiered = quiet(named);
    let store = open(&tiered).await;
    assert_eq!(store.spools(), ["data", "meta"]);
    // It is not in use: the shutdown of the only spool that is ends the store.
    store.spool("meta").unwrap().shutdown().await.unwrap();
    let store = open(&tiered).await;
    assert_eq!(store.spools(), ["data", "meta"], "made once, and listed after an opening");
    // Settings of a spool that does not exist apply when it is made.
    store.reconfigure(store.config().as_ref().clone().spool("late", of(Durability::Synced))).unwrap();
    assert_eq!(store.spools(), ["data", "meta"]);
    put(&store.spool("late").unwrap(), 100, false).await;
    assert_eq!(store.stats().spools["late"].stores_synced, 1);
    store.shutdown().await.unwrap();

    // The short way to a store makes its own spool only.
    let tiered = quiet(named);
    let spool = tiered.start().await;
    put(&*spool, 100, false).await;
    spool.shutdown().await.unwrap();
    let mut bare = tiered.config.clone();
    bare.spools.clear();
    let store = when_free(|| Tidespool::open(bare.clone())).await.expect("open");
    assert_eq!(store.spools(), ["main"]);
    store.shutdown().await.unwrap();
}
