use std::sync::Arc;
use std::time::Duration;

use tidespool::{Config, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::{payload, wait};

use crate::setup::{MIB, Tiered, assert_absent, assert_holds, put, stop};

const LEN: usize = 10_000;

/// Room for some hundred copies of [`LEN`] bytes in each generation. Nothing is checkpointed.
fn config(config: Config) -> Config {
    config
        .memory_budget(16 * MIB)
        .dirty_limit(MIB)
        .journal_capacity(64 * MIB)
        .segment_size(2 * MIB)
        .checkpoint_after(Duration::from_secs(3600))
}

/// Stores until copies have moved to the cache, and waits until the last move is over. The first
/// of the messages are in the cache, the last are young.
async fn with_both_generations(spool: &TieredSpool) -> Vec<SpoolId> {
    let (room, before) = (spool.stats().gauges.young_capacity, spool.stats().gauges.cache_entries);
    assert!(room > 100 * LEN as u64, "{room}");
    let mut ids = Vec::new();
    for _ in 0..room / LEN as u64 * 3 / 2 {
        ids.push(put(spool, LEN, true).await);
    }
    wait::until("no more copies move", || {
        let now = spool.stats().gauges;
        now.young_bytes <= now.young_capacity / 8 * 7 && now.cache_entries - before == ids.len() as u64
    })
    .await;
    ids
}

/// Loads the message, and returns which tier had it.
async fn tier_of(spool: &TieredSpool, id: SpoolId) -> &'static str {
    let before = spool.stats();
    assert_holds(spool, id, LEN).await;
    let now = spool.stats();
    let hits = [
        ("pending", now.hits_pending - before.hits_pending),
        ("young", now.hits_young - before.hits_young),
        ("cache", now.hits_cache - before.hits_cache),
        ("journal", now.hits_journal - before.hits_journal),
    ];
    hits.iter().find(|(_, hits)| *hits == 1).map_or("none", |(tier, _)| tier)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_young_first_and_moves_to_the_cache_when_room_is_short() {
    let tiered = Tiered::new(config);
    let spool = tiered.start().await;
    let first = put(spool.as_ref(), LEN, true).await;
    assert_eq!(tier_of(&spool, first).await, "young");
    // A flushed message, too.
    let flushed = put(spool.as_ref(), LEN, false).await;
    wait::until("it is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    assert_eq!(tier_of(&spool, flushed).await, "young");
    let ids = with_both_generations(&spool).await;
    assert_eq!(tier_of(&spool, ids[0]).await, "cache");
    assert_eq!(tier_of(&spool, ids[ids.len() - 1]).await, "young");
    let now = spool.stats().gauges;
    assert!(now.young_entries > 0 && now.young_entries < now.cache_entries, "{now:?}");
    assert!(now.young_bytes < now.cache_bytes && now.cache_bytes <= now.cache_capacity, "{now:?}");
    assert!(now.young_capacity < now.cache_capacity && now.accounted_bytes > now.cache_bytes, "{now:?}");
    stop(spool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_message_that_was_read_is_young() {
    let tiered = Tiered::new(config);
    let spool = tiered.start().await;
    let ids = with_both_generations(&spool).await;
    spool.advise_low_memory().await.unwrap();
    let now = spool.stats().gauges;
    assert_eq!((now.cache_entries, now.young_entries, now.young_bytes), (0, 0, 0));
    for id in &ids {
        assert_eq!(tier_of(&spool, *id).await, "journal");
    }
    wait::until("all are kept", || spool.stats().gauges.cache_entries == ids.len() as u64).await;
    assert_eq!(tier_of(&spool, ids[ids.len() - 1]).await, "young");
    assert_eq!(tier_of(&spool, ids[0]).await, "cache");
    stop(spool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_or_replaced_message_has_no_copy_in_either_generation() {
    let tiered = Tiered::new(config);
    let spool = tiered.start().await;
    let ids = with_both_generations(&spool).await;
    let (old, young) = (ids[0], ids[ids.len() - 1]);
    let (old_too, young_too) = (ids[1], ids[ids.len() - 2]);
    for id in [old, young] {
        assert_eq!(tier_of(&spool, id).await, if id == old { "cache" } else { "young" });
        spool.remove(id).await.unwrap();
        assert_absent(spool.as_ref(), id).await;
    }
    let entries = ids.len() as u64 - 2;
    wait::until("their copies are gone", || spool.stats().gauges.cache_entries == entries).await;
    for (id, synced) in [(old_too, true), (young_too, false)] {
        spool.store(id, payload::shared(id, 7, LEN), synced, None).await.unwrap();
        wait::until("it is durable", || spool.stats().gauges.dirty_bytes == 0).await;
        let before = spool.stats().hits_young;
        assert_eq!(spool.load(id).await.unwrap(), **payload::shared(id, 7, LEN));
        assert_eq!(spool.stats().hits_young, before + 1);
    }
    // Each has one copy, not another one in the cache.
    wait::until("the earlier copies are gone", || spool.stats().gauges.cache_entries == entries).await;
    stop(spool).await;
}

/// Copies move between the generations beside changes of their messages. Debug builds check that no
/// id has a copy in both.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_version_is_loaded_while_copies_move() {
    let tiered = Tiered::new(|small| config(small).memory_budget(8 * MIB));
    let spool = tiered.start().await;
    let callers = (0..4_u64).map(|caller| {
        let spool = Arc::clone(&spool);
        tokio::spawn(async move {
            let ids: Vec<SpoolId> = (0..100).map(|_| SpoolId::new()).collect();
            for turn in 0..2_000_u64 {
                let id = ids[usize::try_from((turn * 37 + caller) % 100).unwrap()];
                let data = payload::shared(id, turn, LEN);
                spool.store(id, Arc::clone(&data), turn % 5 == 0, None).await.unwrap();
                if turn % 3 == 0 {
                    assert_eq!(spool.load(id).await.unwrap(), **data, "turn {turn}");
                }
                if turn % 7 == 0 {
                    spool.remove(id).await.unwrap();
                    assert_absent(spool.as_ref(), id).await;
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let now = spool.stats().gauges;
    assert!(now.young_bytes <= now.young_capacity, "{now:?}");
    stop(spool).await;
}
