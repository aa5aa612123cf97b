//! Returned memory leaves the process. A binary of its own, so that nothing else allocates
//! meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use tidespool::{Config, HealthConfig, MinFree, PressureConfig, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::{payload, wait};

const MIB: u64 = 1 << 20;
const LARGE: usize = 16 * 1024;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Caches 200 MiB of clean copies. At least 80 % of the reported bytes must leave resident memory.
#[tokio::test(flavor = "multi_thread")]
async fn memory_freed_by_advise_low_memory_leaves_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new(dir.path().join("spool"))
        .memory_budget(640 * MIB)
        .checkpoint_after(Duration::from_secs(3600))
        .pressure(PressureConfig::default().enabled(false))
        // A store must not fail on a slow disk.
        .store_deadline(wait::PATIENCE)
        .health(
            HealthConfig::default()
                .min_free(MinFree::Bytes(0))
                .backlog_latch_after(Duration::from_secs(3600)),
        );
    let spool = TieredSpool::open(config).await.unwrap();
    let count = 200 * MIB / LARGE as u64;
    for _ in 0..count {
        let id = SpoolId::new();
        spool.store(id, payload::shared(id, 1, LARGE), false, None).await.unwrap();
    }
    wait::until("all are clean copies", || {
        let gauges = spool.stats().gauges;
        gauges.dirty_bytes == 0 && gauges.cache_entries == count
    })
    .await;
    let before = resident();
    let freed = spool.advise_low_memory().await.unwrap();
    let after = resident();
    let reported = u64::try_from(freed).unwrap();
    println!("reported: {reported}, resident: {before} before, {after} after");
    assert!(reported >= 200 * MIB, "{reported}");
    assert!(before.saturating_sub(after) >= reported / 5 * 4, "{reported} reported; {before} to {after}");
    spool.shutdown().await.unwrap();
}
