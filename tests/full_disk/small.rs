use std::sync::Arc;
use std::time::{Duration, Instant};

use tidespool::{Config, HealthConfig, TieredSpool};
use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolId, SpoolUnhealthyError};
use tidespool_testkit::{payload, wait};

use crate::mount::{KINDS, Mount};
use crate::setup::{KIB, MIB, SHORT, durable, healthy, short, start_with, stop};

/// Of the file systems: a seventh of what the journal may take by default. On ext4 there is room
/// for two segments.
const SIZE: u64 = 150 * MIB;

/// Here two segments have room on either of them.
const FOR_TWO: u64 = 120 * MIB;

const LEN: u64 = 64 * KIB;

/// Messages. All of a segment is 500.
const MOST_OF_A_SEGMENT: usize = 350;

/// More messages than have room.
const MANY: u64 = SIZE / LEN;

/// Settings as they are by default, but that nothing takes long.
fn config(mount: &Mount) -> Config {
    Config::new(mount.path().join("spool"))
        .store_deadline(Duration::from_secs(1))
        .health(HealthConfig::default().unlatch_after(Duration::from_millis(10)))
}

/// An empty spool refused mail. On a small disk with default settings, 63 MiB were stored,
/// delivered and removed, and the gate stayed shut for as long as it was watched: the segments that
/// were full of removed messages were neither filed nor given back. It said that it was catching
/// up.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dead_gives_its_room_back_at_once() {
    for kind in KINDS {
        let Some(mount) = Mount::make(kind, SIZE) else { return };
        let spool = start_with(config(&mount)).await;
        assert!(spool.stats().gauges.journal_capacity < SIZE, "what fits is in force");
        // Each time it takes what fits, and in all more than the disk holds.
        let mut passed = 0;
        while passed < MANY + MANY / 4 {
            let stored = store_all_that_fits(&spool).await;
            passed += stored.len() as u64;
            deliver(&spool, stored).await;
            healthy(&spool).await;
        }
        stop(spool).await;
    }
}

/// With room for two segments, one of which is kept for removals, the other was never ended once
/// everything in it was removed: it was not full, and nothing waited for room.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_in_use_that_is_mostly_dead_is_ended() {
    for kind in KINDS {
        let Some(mount) = Mount::make(kind, FOR_TWO) else { return };
        let spool = start_with(config(&mount)).await;
        let mut stored = Vec::new();
        for _ in 0..MOST_OF_A_SEGMENT {
            let id = SpoolId::new();
            let data = payload::shared(id, 1, usize::try_from(LEN).unwrap());
            match wait::bounded("a store", spool.store(id, data, false, None)).await {
                Ok(()) => stored.push(id),
                // On a slow machine it is shut before the last.
                Err(err) if err.root_cause().is::<SpoolUnhealthyError>() => break,
                Err(err) => panic!("{err:#}"),
            }
        }
        durable(&spool).await;
        short(&spool).await;
        deliver(&spool, stored).await;
        healthy(&spool).await;
        stop(spool).await;
    }
}

/// Stores until the gate is shut for want of room on disk.
async fn store_all_that_fits(spool: &Arc<TieredSpool>) -> Vec<SpoolId> {
    let (len, started) = (usize::try_from(LEN).unwrap(), Instant::now());
    let mut stored = Vec::new();
    while spool.unhealthy_reason() != Some(SHORT) {
        let id = SpoolId::new();
        match wait::bounded("a store", spool.store(id, payload::shared(id, 1, len), true, None)).await {
            Ok(()) => stored.push(id),
            // No segment is free, or the machine is busy.
            Err(err) if err.root_cause().is::<SpoolBackpressureTimeout>() => {}
            Err(err) if err.root_cause().is::<SpoolUnhealthyError>() => {}
            Err(err) => panic!("{err:#}"),
        }
        assert!((stored.len() as u64) < MANY, "all messages have room");
        assert!(started.elapsed() < 2 * wait::PATIENCE, "the gate names no want of room");
    }
    stored
}

/// Loads each, and removes it.
async fn deliver(spool: &Arc<TieredSpool>, stored: Vec<SpoolId>) {
    for id in stored {
        let data = wait::bounded("a load", spool.load(id)).await.unwrap();
        payload::assert_is(id, 1, usize::try_from(LEN).unwrap(), &data);
        wait::bounded("a removal", spool.remove(id)).await.unwrap();
    }
}
