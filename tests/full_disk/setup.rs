use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tidespool::{Config, HealthConfig, MinFree, PressureConfig, TieredSpool};
use tidespool_core::{Locked, NotFound, Spool, SpoolEntry, SpoolId};
use tidespool_testkit::{payload, wait};

pub(crate) const KIB: u64 = 1024;
pub(crate) const MIB: u64 = 1024 * KIB;

/// Size of the file systems in bytes.
pub(crate) const SIZE: u64 = 64 * MIB;

/// Free bytes under which the gate shuts.
pub(crate) const MIN_FREE: u64 = 8 * MIB;

/// The reason that the gate reports then.
pub(crate) const SHORT: &str = "the spool is short of disk space";

/// Lengths of messages in bytes: some stay in the segments, some go into sled.
pub(crate) const SIZES: [usize; 4] = [300, 20_000, 900, 5_000];

/// A gate that checks free space, and nothing that depends on the speed of the machine.
fn health() -> HealthConfig {
    HealthConfig::default()
        .min_free(MinFree::Bytes(MIN_FREE))
        .backlog_latch_after(Duration::from_secs(3600))
        .hard_unlatch_after(Duration::from_millis(10))
        .sample_interval(Duration::from_millis(10))
}

/// A gate that does not check free space, so that new segments use all of it.
pub(crate) fn no_minimum() -> HealthConfig {
    health().min_free(MinFree::Bytes(0))
}

/// A spool so small that segments fill and are checkpointed within a test.
pub(crate) fn config(dir: &Path) -> Config {
    Config::new(dir.join("spool"))
        .memory_budget(32 * MIB)
        .dirty_limit(2 * MIB)
        .dirty_expire(Duration::from_millis(50))
        .store_deadline(Duration::from_secs(3))
        .max_message_size(MIB)
        .segment_size(256 * KIB)
        .journal_capacity(4 * MIB)
        .checkpoint_after(Duration::from_millis(100))
        .ballast(4 * MIB)
        .pressure(PressureConfig::default().enabled(false))
        .health(health())
}

pub(crate) async fn start(dir: &Path) -> Arc<TieredSpool> {
    start_with(config(dir)).await
}

pub(crate) async fn start_with(config: Config) -> Arc<TieredSpool> {
    // The threads of a dropped spool have to end first. On a busy machine that takes longer than
    // `open` waits.
    let opened = wait::bounded("the directory is free", async {
        loop {
            match TieredSpool::open(config.clone()).await {
                Err(err) if err.root_cause().is::<Locked>() => {}
                opened => return opened,
            }
        }
    });
    Arc::new(opened.await.unwrap_or_else(|err| panic!("open: {err:#}")))
}

pub(crate) async fn stop(spool: Arc<TieredSpool>) {
    wait::bounded("the shutdown", spool.shutdown()).await.unwrap_or_else(|err| panic!("shutdown: {err:#}"));
}

/// Waits until the gate reports too little space.
pub(crate) async fn short(spool: &TieredSpool) {
    wait::until("the gate is shut", || spool.unhealthy_reason() == Some(SHORT)).await;
}

/// Waits until the gate opens by itself.
pub(crate) async fn healthy(spool: &TieredSpool) {
    wait::until("the gate is open", || spool.unhealthy_reason().is_none()).await;
}

/// The live messages of a spool: acknowledged and not removed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live(pub(crate) BTreeMap<SpoolId, usize>);

impl Live {
    /// Stores one more message.
    pub(crate) async fn store(&mut self, spool: &TieredSpool, force_sync: bool) -> anyhow::Result<()> {
        let (id, len) = (SpoolId::new(), SIZES[self.0.len() % SIZES.len()]);
        let store = spool.store(id, payload::shared(id, 1, len), force_sync, None);
        wait::bounded("a store", store).await?;
        self.0.insert(id, len);
        Ok(())
    }

    pub(crate) async fn store_all(&mut self, spool: &TieredSpool, count: usize) {
        for n in 0..count {
            self.store(spool, n % 3 == 0).await.unwrap_or_else(|err| panic!("store {n}: {err:#}"));
        }
    }

    /// Removes every `nth` message.
    pub(crate) async fn remove(&mut self, spool: &TieredSpool, nth: usize) {
        let some: Vec<SpoolId> = self.0.keys().copied().step_by(nth).collect();
        for id in some {
            wait::bounded("a removal", spool.remove(id)).await.expect("remove");
            self.0.remove(&id);
            let err = spool.load(id).await.expect_err("it was removed");
            assert!(err.root_cause().is::<NotFound>(), "{err:#}");
        }
    }

    /// Asserts that load and enumerate return exactly these messages.
    pub(crate) async fn assert_are_all(&self, spool: &TieredSpool) {
        for (&id, &len) in &self.0 {
            let data = wait::bounded("a load", spool.load(id)).await;
            payload::assert_is(id, 1, len, &data.unwrap_or_else(|err| panic!("load of {id}: {err:#}")));
        }
        let (sender, receiver) = async_channel::bounded(64);
        spool.enumerate(sender, DateTime::<Utc>::MAX_UTC).expect("enumerate");
        let mut seen = Vec::new();
        while let Ok(entry) = wait::bounded("an enumeration", receiver.recv()).await {
            let SpoolEntry::Item { id, data } = entry else { panic!("{entry:?}") };
            payload::assert_is(
                id,
                1,
                self.0.get(&id).copied().unwrap_or_else(|| panic!("{id} is back")),
                &data,
            );
            seen.push(id);
        }
        seen.sort_unstable();
        assert_eq!(seen, self.0.keys().copied().collect::<Vec<_>>());
    }

    /// Opens a spool, and asserts that it holds exactly these messages without damage.
    pub(crate) async fn open(&self, dir: &Path) -> Arc<TieredSpool> {
        self.open_with(config(dir)).await
    }

    pub(crate) async fn open_with(&self, config: Config) -> Arc<TieredSpool> {
        let spool = start_with(config).await;
        let report = spool.recovery();
        assert!(report.damage.is_empty() && report.lost == 0, "{report:?}");
        self.assert_are_all(&spool).await;
        spool
    }
}

/// Waits until no message is dirty.
pub(crate) async fn durable(spool: &TieredSpool) {
    wait::until("everything is durable", || spool.stats().gauges.dirty_bytes == 0).await;
}
