//! Memory that is given back leaves the process: a binary of its own, so that nothing else takes any meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use tidespool::{Config, HealthConfig, PressureConfig, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::{payload, wait};

const MIB: u64 = 1 << 20;
const LARGE: usize = 16 * 1024;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// 200 MiB of clean copies: at least 80 % of what is reported as given back is not resident any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_advise_low_memory_gives_back_leaves_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new(dir.path().join("spool"))
        .memory_budget(640 * MIB)
        .checkpoint_after(Duration::from_secs(3600))
        .pressure(PressureConfig::default().enabled(false))
        // A slow disk must not refuse a store here.
        .store_deadline(wait::PATIENCE)
        .health(
            HealthConfig::default()
                .min_free_bytes(0)
                .min_free_fraction(0.0)
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
    let told = u64::try_from(freed).unwrap();
    println!("told: {told}, resident: {before} before, {after} after");
    assert!(told >= 200 * MIB, "{told}");
    assert!(before.saturating_sub(after) >= told / 5 * 4, "{told} told; {before} to {after}");
    spool.shutdown().await.unwrap();
}
