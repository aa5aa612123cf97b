use std::path::Path;
use std::time::Duration;

use tidespool::{Config, HealthConfig, MinFree, PressureConfig, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::payload;

pub(crate) const KIB: u64 = 1024;
pub(crate) const MIB: u64 = 1024 * KIB;

/// Lengths of messages in bytes: some stay in the segments, some go into sled.
pub(crate) const SIZES: [usize; 4] = [300, 20_000, 900, 5_000];

/// A spool so small that segments fill, recycle and are checkpointed within a test.
pub(crate) fn config(path: &Path) -> Config {
    Config::new(path)
        .memory_budget(32 * MIB)
        .dirty_limit(2 * MIB)
        .dirty_expire(Duration::from_millis(50))
        .store_deadline(Duration::from_secs(60))
        .max_message_size(2 * MIB)
        .segment_size(256 * KIB)
        .journal_capacity(4 * MIB)
        .checkpoint_after(Duration::from_millis(100))
        .ballast(64 * KIB)
        .pressure(PressureConfig::default().enabled(false))
        .health(
            HealthConfig::default()
                .min_free(MinFree::Bytes(0))
                .backlog_latch_after(Duration::from_secs(3600))
                .hard_unlatch_after(Duration::from_millis(10))
                .sample_interval(Duration::from_millis(10)),
        )
}

/// Runs `body` on a runtime with two threads, and a blocking thread that stays.
pub(crate) fn block_on(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_keep_alive(Duration::from_secs(3600))
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        body.await;
    });
}

pub(crate) async fn open(path: &Path) -> TieredSpool {
    TieredSpool::open(config(path)).await.unwrap_or_else(|err| panic!("{}: {err:#}", path.display()))
}

/// Stores one message of each size.
pub(crate) async fn put_some(spool: &dyn Spool, force_sync: bool) -> Vec<(SpoolId, usize)> {
    let mut stored = Vec::new();
    for len in SIZES {
        let id = SpoolId::new();
        spool.store(id, payload::shared(id, 1, len), force_sync, None).await.expect("store");
        stored.push((id, len));
    }
    stored
}

pub(crate) async fn assert_holds(spool: &dyn Spool, stored: &[(SpoolId, usize)]) {
    for &(id, len) in stored {
        let data = spool.load(id).await.unwrap_or_else(|err| panic!("{id}: {err:#}"));
        payload::assert_is(id, 1, len, &data);
    }
}

/// `path` and everything below it.
pub(crate) fn walk(path: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![path.to_owned()];
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            found.extend(walk(&entry.unwrap().path()));
        }
    }
    found
}
