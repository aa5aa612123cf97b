//! Querying health does not allocate, whatever the result. A binary of its own, because the test
//! counts the allocations of all threads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::alloc::System;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tidespool::{Config, HealthConfig, MinFree, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::{payload, wait};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Queries between two readings of the counter.
const CALLS: usize = 10_000;

/// Readings. The spool's threads allocate now and then; if the queries did, every reading would
/// show it.
const READINGS: usize = 1_000;

/// The smallest number of allocations of a reading.
fn allocations_of_many_calls(spool: &dyn Spool) -> usize {
    let readings = (0..READINGS).map(|_| {
        let before = ALLOCATOR.stats().allocations;
        for _ in 0..CALLS {
            black_box(spool.unhealthy_reason());
        }
        ALLOCATOR.stats().allocations - before
    });
    readings.min().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn querying_health_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyStorage::new();
    let health =
        HealthConfig::default().hard_unlatch_after(Duration::from_secs(3_600)).min_free(MinFree::Bytes(0));
    let config = Config::new(dir.path().join("spool")).health(health);
    let spool: Arc<dyn Spool> = Arc::new(TieredSpool::open_on(config, disk.storage()).await.unwrap());
    assert_eq!(spool.unhealthy_reason(), None);
    assert_eq!(allocations_of_many_calls(&*spool), 0);

    disk.inject(Fault::on(Call::Sync).file(".seg"));
    let id = SpoolId::new();
    spool.store(id, payload::shared(id, 1, 100), true, None).await.unwrap();
    wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
    assert_eq!(allocations_of_many_calls(&*spool), 0);

    spool.shutdown().await.unwrap();
    assert_eq!(spool.unhealthy_reason(), Some("the spool is shut down"));
    assert_eq!(allocations_of_many_calls(&*spool), 0);
}
