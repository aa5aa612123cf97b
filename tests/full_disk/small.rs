use std::sync::Arc;
use std::time::{Duration, Instant};

use tidespool::{Config, HealthConfig, TieredSpool};
use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolId, SpoolUnhealthyError};
use tidespool_testkit::{payload, wait};

use crate::mount::{KINDS, Mount};
use crate::setup::{KIB, MIB, SHORT, durable, healthy, short, start_with, stop};

/// Size of the file systems in bytes: a seventh of the journal's default limit. ext4 has space for
/// two segments.
const SIZE: u64 = 150 * MIB;

/// A size in bytes that has space for two segments on either file system.
const FOR_TWO: u64 = 120 * MIB;

const LEN: u64 = 64 * KIB;

/// Number of messages. A segment holds 500.
const MOST_OF_A_SEGMENT: usize = 350;

/// More messages than fit.
const MANY: u64 = SIZE / LEN;

/// The default settings with short times.
fn config(mount: &Mount) -> Config {
    let soon = Duration::from_millis(10);
    Config::new(mount.path().join("spool"))
        .store_deadline(Duration::from_secs(1))
        .health(HealthConfig::default().hard_unlatch_after(soon).backlog_unlatch_after(soon))
}

/// An empty spool rejected mail. On a small disk with default settings, 63 MiB were stored,
/// delivered and removed. The gate stayed shut and reported that it was catching up, because the
/// segments full of removed messages were neither checkpointed nor reclaimed.
#[tokio::test(flavor = "multi_thread")]
async fn space_of_removed_messages_is_reclaimed_at_once() {
    for kind in KINDS {
        let Some(mount) = Mount::make(kind, SIZE) else { return };
        let spool = start_with(config(&mount)).await;
        assert!(spool.stats().gauges.journal_capacity < SIZE, "the capacity was not reduced to what fits");
        // Stores what fits each time, and in all more than the disk holds.
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

/// With space for two segments, one is reserved for removals. The other was never sealed when
/// everything in it was removed, because it was not full and nothing waited for space.
#[tokio::test(flavor = "multi_thread")]
async fn an_active_segment_of_mostly_removed_messages_is_sealed() {
    for kind in KINDS {
        let Some(mount) = Mount::make(kind, FOR_TWO) else { return };
        let spool = start_with(config(&mount)).await;
        let mut stored = Vec::new();
        for _ in 0..MOST_OF_A_SEGMENT {
            let id = SpoolId::new();
            let data = payload::shared(id, 1, usize::try_from(LEN).unwrap());
            match wait::bounded("a store", spool.store(id, data, false, None)).await {
                Ok(()) => stored.push(id),
                // On a slow machine the gate shuts before the last message.
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

/// Stores until the gate shuts for lack of disk space.
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
        assert!((stored.len() as u64) < MANY, "all messages fit");
        assert!(started.elapsed() < 2 * wait::PATIENCE, "the gate does not report a lack of space");
    }
    stored
}

/// Loads and removes each message.
async fn deliver(spool: &Arc<TieredSpool>, stored: Vec<SpoolId>) {
    for id in stored {
        let data = wait::bounded("a load", spool.load(id)).await.unwrap();
        payload::assert_is(id, 1, usize::try_from(LEN).unwrap(), &data);
        wait::bounded("a removal", spool.remove(id)).await.unwrap();
    }
}
