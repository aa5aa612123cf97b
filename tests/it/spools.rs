use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_lite::future;
use tidespool::{Durability, SpoolNameError, Tidespool, TieredSpool};
use tidespool_core::{Closed, Spool, SpoolEntry, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::{payload, wait};

use crate::setup::{Tiered, assert_absent, assert_holds, enumerate, put, when_free};

async fn open(tiered: &Tiered) -> Tidespool {
    when_free(|| Tidespool::open(tiered.config.clone())).await.expect("open")
}

fn both(store: &Tidespool) -> (TieredSpool, TieredSpool) {
    (store.spool("meta").unwrap(), store.spool("data").unwrap())
}

async fn store(spool: &TieredSpool, id: SpoolId, version: u64, len: usize, force_sync: bool) {
    spool.store(id, payload::shared(id, version, len), force_sync, None).await.expect("store");
}

async fn version(spool: &TieredSpool, id: SpoolId) -> Option<u64> {
    let data = spool.load(id).await.expect("load");
    payload::read(id, &data).expect("a payload").version
}

async fn ids(spool: &TieredSpool) -> Vec<SpoolId> {
    let entries = enumerate(spool).await.into_iter().map(|entry| match entry {
        SpoolEntry::Item { id, .. } => id,
        SpoolEntry::Corrupt { id, error } => panic!("{id}: {error}"),
    });
    let mut ids: Vec<SpoolId> = entries.collect();
    ids.sort_unstable();
    ids
}

fn name_error(error: &anyhow::Error) -> &SpoolNameError {
    error.root_cause().downcast_ref().unwrap_or_else(|| panic!("{error:#}"))
}

/// In memory, in the journal, checkpointed, and after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_in_two_spools_is_two_messages() {
    let tiered = Tiered::new(|config| config.checkpoint_after(Duration::ZERO));
    let store_of = open(&tiered).await;
    let (meta, data) = both(&store_of);
    let id = SpoolId::new();
    let only_data = put(&data, 500, true).await;
    let both_ids = [id, only_data];
    store(&meta, id, 1, 100, false).await;
    store(&data, id, 2, 3000, true).await;
    let check = async |meta: &TieredSpool, data: &TieredSpool| {
        assert_eq!((version(meta, id).await, version(data, id).await), (Some(1), Some(2)));
        assert_absent(meta, only_data).await;
        assert_eq!(ids(meta).await, [id]);
        assert_eq!(ids(data).await, both_ids);
    };
    check(&meta, &data).await;
    meta.compact().await.unwrap();
    meta.advise_low_memory().await.unwrap();
    check(&meta, &data).await;
    assert!(store_of.stats().checkpointed_records >= 3);
    store_of.shutdown().await.unwrap();
    let store_of = open(&tiered).await;
    let (meta, data) = both(&store_of);
    check(&meta, &data).await;
    // A removal in one spool leaves the message of the other one, also on disk.
    meta.remove(id).await.unwrap();
    meta.compact().await.unwrap();
    store_of.shutdown().await.unwrap();
    let store_of = open(&tiered).await;
    let (meta, data) = both(&store_of);
    assert_absent(&meta, id).await;
    assert_eq!(version(&data, id).await, Some(2));
    assert_eq!((ids(&meta).await, ids(&data).await), (vec![], both_ids.to_vec()));
    store_of.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn spools_are_made_on_first_use_listed_and_kept() {
    let tiered = Tiered::with(Durability::Process);
    let store = open(&tiered).await;
    assert!(store.spools().is_empty());
    let (meta, data) = both(&store);
    assert_eq!((meta.name(), data.name()), ("meta", "data"));
    assert_eq!(store.spools(), ["data", "meta"]);
    let id = put(&meta, 100, true).await;
    // A second handle is of the same spool.
    assert_holds(&store.spool("meta").unwrap(), id, 100).await;
    store.shutdown().await.unwrap();
    let store = open(&tiered).await;
    assert_eq!(store.spools(), ["data", "meta"]);
    assert_holds(&store.spool("meta").unwrap(), id, 100).await;
    store.shutdown().await.unwrap();
    // The short way opens one spool of the store.
    let main = tiered.start().await;
    assert_eq!(main.name(), "main");
    assert_absent(&*main, id).await;
    main.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_allowed_makes_no_spool() {
    let tiered = Tiered::with(Durability::Process);
    let store = open(&tiered).await;
    for name in ["", "Meta", "a b", "../x", "ä", &"x".repeat(33)] {
        let error = store.spool(name).unwrap_err();
        assert_eq!(*name_error(&error), SpoolNameError::NotAllowed { name: name.to_owned() });
        assert!(error.to_string().contains("1 to 32 characters"), "{error}");
    }
    assert!(store.spools().is_empty());
    for number in 0..256 {
        store.spool(&format!("spool-{number}")).unwrap();
    }
    let error = store.spool("more").unwrap_err();
    assert_eq!(*name_error(&error), SpoolNameError::TooMany { name: "more".to_owned(), limit: 256 });
    store.shutdown().await.unwrap();
    assert!(store.spool("late").unwrap_err().root_cause().is::<Closed>());
}

/// The message that keeps the spool is young, in the journal, or checkpointed.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_spool_without_messages_is_removed() {
    let tiered = Tiered::new(|config| config.checkpoint_after(Duration::ZERO));
    let store = open(&tiered).await;
    let (meta, data) = both(&store);
    let kept = put(&data, 100, true).await;
    let unknown = store.remove_spool("other").await.unwrap_err();
    assert_eq!(*name_error(&unknown), SpoolNameError::Unknown { name: "other".to_owned() });
    for step in 0..3 {
        let id = put(&meta, 100, step > 0).await;
        if step == 2 {
            meta.compact().await.unwrap();
        }
        let error = store.remove_spool("meta").await.unwrap_err();
        assert_eq!(*name_error(&error), SpoolNameError::NotEmpty { name: "meta".to_owned() }, "{step}");
        // The spool goes on.
        assert_holds(&meta, id, 100).await;
        meta.remove(id).await.unwrap();
    }
    store.remove_spool("meta").await.unwrap();
    assert_eq!(store.spools(), ["data"]);
    for error in [
        meta.load(kept).await.unwrap_err(),
        meta.store(kept, payload::shared(kept, 1, 10), false, None).await.unwrap_err(),
        meta.remove(kept).await.unwrap_err(),
    ] {
        assert!(error.root_cause().is::<Closed>(), "{error:#}");
    }
    // A new spool of the same name is another one.
    let again = store.spool("meta").unwrap();
    let id = put(&again, 100, true).await;
    assert_holds(&data, kept, 100).await;
    store.shutdown().await.unwrap();
    let store = open(&tiered).await;
    assert_eq!(store.spools(), ["data", "meta"]);
    let (meta, data) = both(&store);
    assert_eq!((ids(&meta).await, ids(&data).await), (vec![id], vec![kept]));
    store.shutdown().await.unwrap();
}

/// A removal whose future was dropped left the spool closed until the next opening of the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_whose_removal_is_dropped_stays_open() {
    let tiered = Tiered::with(Durability::Process);
    let disk = FaultyStorage::new();
    let store = Tidespool::open_on(tiered.config.clone(), disk.storage()).await.unwrap();
    let (meta, data) = both(&store);
    let id = put(&meta, 100, true).await;
    disk.inject(Fault::on(Call::Sync).file(".seg").always().block());
    // The removal of the message is not on stable storage.
    meta.remove(id).await.unwrap();
    let mut removing = Box::pin(store.remove_spool("meta"));
    assert!(future::poll_once(&mut removing).await.is_none(), "it waits for the disk");
    drop(removing);
    disk.heal();
    disk.release();
    let id = put(&meta, 100, true).await;
    assert_holds(&store.spool("meta").unwrap(), id, 100).await;
    assert_eq!(ids(&data).await, []);
    store.shutdown().await.unwrap();
}

/// Removals that are not on stable storage would bring messages back, in a spool without a name.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_spool_leaves_nothing_after_a_power_cut() {
    let tiered = Tiered::new(|config| config.dirty_expire(Duration::from_secs(3600)));
    let disk = FaultyStorage::new();
    disk.remember_unsynced();
    let store = Tidespool::open_on(tiered.config.clone(), disk.storage()).await.unwrap();
    let (meta, data) = both(&store);
    let id = put(&meta, 100, true).await;
    let kept = put(&data, 100, true).await;
    meta.remove(id).await.unwrap();
    store.remove_spool("meta").await.unwrap();
    let after = tempfile::TempDir::new().unwrap();
    crate::setup::copy_dir(&tiered.path(), &after.path().join("spool"));
    disk.unsynced().cut(&tiered.path(), &after.path().join("spool"), || false).unwrap();
    let config = tiered.config.clone().path(after.path().join("spool"));
    let cut = Tidespool::open(config).await.unwrap();
    assert_eq!(cut.spools(), ["data"]);
    assert_eq!(ids(&cut.spool("data").unwrap()).await, [kept]);
    assert!(cut.stats().gauges.index_entries <= 2, "{:?}", cut.stats().gauges);
    cut.shutdown().await.unwrap();
    store.shutdown().await.unwrap();
}

/// A server shuts its spools down one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_spool_that_is_shut_down_ends_the_store() {
    let tiered = Tiered::with(Durability::Memory);
    let store = open(&tiered).await;
    let (meta, data) = both(&store);
    drop(store);
    let first = put(&meta, 100, false).await;
    meta.shutdown().await.unwrap();
    meta.shutdown().await.unwrap();
    assert_eq!(meta.unhealthy_reason(), Some("the spool is shut down"));
    assert!(meta.load(first).await.unwrap_err().root_cause().is::<Closed>());
    // What was dirty in it is durable.
    assert_eq!(data.stats().gauges.dirty_entries, 0);
    assert_eq!(data.unhealthy_reason(), None);
    let second = put(&data, 100, false).await;
    assert_holds(&data, second, 100).await;
    data.shutdown().await.unwrap();
    data.shutdown().await.unwrap();
    meta.shutdown().await.unwrap();
    let store = open(&tiered).await;
    let (meta, data) = both(&store);
    assert_eq!((ids(&meta).await, ids(&data).await), (vec![first], vec![second]));
    let again = meta.shutdown().await;
    assert!(again.is_ok() && store.spool("meta").unwrap_err().root_cause().is::<Closed>());
    store.shutdown().await.unwrap();
    assert!(data.load(second).await.unwrap_err().root_cause().is::<Closed>());
}

/// Stores of two spools that wait together share one sync.
#[tokio::test(flavor = "multi_thread")]
async fn stores_of_two_spools_share_a_commit() {
    let tiered = Tiered::with(Durability::Process);
    let disk = FaultyStorage::new();
    let store = Tidespool::open_on(tiered.config.clone(), disk.storage()).await.unwrap();
    let (meta, data) = both(&store);
    put(&data, 10, true).await;
    // The sync of the first store hangs until all others have arrived.
    disk.inject(Fault::on(Call::Sync).file(".seg").always().block());
    let before = store.stats().sync.count;
    let stores = (0..20).map(|n| {
        let spool = if n % 2 == 0 { &meta } else { &data };
        let id = SpoolId::new();
        Box::pin(spool.store(id, payload::shared(id, 1, 200), true, None))
    });
    let mut stores: Vec<_> = stores.collect();
    for one in &mut stores {
        assert!(future::poll_once(one).await.is_none(), "it waits for the disk");
    }
    wait::until("the first sync hangs", || disk.blocked() > 0).await;
    disk.heal();
    disk.release();
    for one in stores {
        one.await.unwrap();
    }
    let syncs = store.stats().sync.count - before;
    assert!(syncs <= 3, "{syncs} syncs for 20 stores");
    assert_eq!((ids(&meta).await.len(), ids(&data).await.len()), (10, 11));
    store.shutdown().await.unwrap();
}

/// The names could not be written: nothing is lost, and the next attempt succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_change_of_the_names_can_be_repeated() {
    let tiered = Tiered::with(Durability::Process);
    let disk = FaultyStorage::new();
    let store = Tidespool::open_on(tiered.config.clone(), disk.storage()).await.unwrap();
    let meta = store.spool("meta").unwrap();
    for call in [Call::Create, Call::Write, Call::Sync, Call::Rename, Call::SyncDir] {
        let is_of_names = move |name: &str| name.contains("FORMAT") || call == Call::SyncDir;
        disk.inject(Fault::on(call).only(move |moment| is_of_names(moment.name)));
        let error = store.spool("data").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("opening the spool \"data\""), "{text}");
        assert!(text.contains(&tiered.path().join("FORMAT").display().to_string()), "{text}");
        disk.heal();
        assert_eq!(store.spools(), ["meta"], "{call:?}");
    }
    let data = store.spool("data").unwrap();
    let id = put(&data, 100, true).await;
    disk.inject(Fault::on(Call::Rename).file("FORMAT"));
    store.remove_spool("meta").await.unwrap_err();
    disk.heal();
    // It may have no name on disk, so it takes no message.
    let refused = meta.store(id, payload::shared(id, 1, 10), false, None).await.unwrap_err();
    assert!(refused.root_cause().is::<Closed>(), "{refused:#}");
    let meta = store.spool("meta").unwrap();
    let other = put(&meta, 100, true).await;
    store.shutdown().await.unwrap();
    let store = open(&tiered).await;
    let (meta, data) = both(&store);
    assert_eq!((ids(&meta).await, ids(&data).await), (vec![other], vec![id]));
    store.shutdown().await.unwrap();
}

/// A format file that is deleted while the store runs is written again, with the names.
#[tokio::test(flavor = "multi_thread")]
async fn lost_names_are_written_again() {
    let tiered = Tiered::with(Durability::Process);
    let store = open(&tiered).await;
    let (meta, _) = both(&store);
    let id = put(&meta, 100, true).await;
    std::fs::remove_file(tiered.path().join("FORMAT")).unwrap();
    meta.compact().await.unwrap();
    store.shutdown().await.unwrap();
    let store = open(&tiered).await;
    assert_eq!(store.spools(), ["data", "meta"]);
    assert_holds(&store.spool("meta").unwrap(), id, 100).await;
    store.shutdown().await.unwrap();
}

/// Each enumeration gets its own spool's messages only, before and after a start time.
#[tokio::test(flavor = "multi_thread")]
async fn an_enumeration_with_a_start_time_is_of_one_spool() {
    let tiered = Tiered::new(|config| config.checkpoint_after(Duration::ZERO));
    let store = open(&tiered).await;
    let (meta, data) = both(&store);
    let (old_meta, old_data) = (put(&meta, 10, true).await, put(&data, 10, true).await);
    meta.compact().await.unwrap();
    let start: DateTime<Utc> = SpoolId::new().created().unwrap();
    put(&meta, 10, true).await;
    put(&data, 10, false).await;
    for (spool, old) in [(&meta, old_meta), (&data, old_data)] {
        let found = crate::setup::enumerate_before(spool, start).await;
        let found: Vec<SpoolId> = found.iter().map(SpoolEntry::id).collect();
        assert_eq!(found, [old]);
    }
    store.shutdown().await.unwrap();
}
