use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool::{Config, Durability, TieredSpool};
use tidespool_conformance::Factory;
use tidespool_core::Spool;
use tidespool_testkit::concurrent::{Coverage, Expected, Shape, Subject, run};
use tidespool_testkit::oracle::{DurabilityLevel, Promise};

use crate::setup::{KIB, MIB, Tiered};

/// Number of tests that share `TIDESPOOL_CONCURRENT_ROUNDS`.
const SHARES: u64 = 5;

const SEGMENT: u64 = 64 * KIB;

struct Small {
    tiered: Tiered,
    shape: Shape,
    open: Mutex<Weak<TieredSpool>>,
}

impl Small {
    /// A spool so small that a round fills segments, checkpoints and recycles them, and that stores
    /// wait for space.
    fn mixed(durability: Durability) -> Self {
        let adjust = |config: Config| {
            config
                .memory_budget(8 * MIB)
                .dirty_limit(MIB)
                .journal_capacity(2 * MIB)
                .dirty_expire(Duration::from_millis(20))
                .checkpoint_after(Duration::from_millis(20))
        };
        Self::new(durability, Shape::Mixed, adjust)
    }

    /// Frequent flushes and space for everything, so that only the order matters.
    fn overtaking(durability: Durability) -> Self {
        let adjust = |config: Config| {
            config
                .memory_budget(256 * MIB)
                .dirty_limit(64 * MIB)
                .journal_capacity(64 * MIB)
                .dirty_expire(Duration::from_millis(10))
                .checkpoint_after(Duration::from_secs(3600))
        };
        Self::new(durability, Shape::Overtaking, adjust)
    }

    fn new(durability: Durability, shape: Shape, adjust: impl FnOnce(Config) -> Config) -> Self {
        let common = |config: Config| adjust(config).durability(durability).segment_size(SEGMENT);
        Self { tiered: Tiered::new(common), shape, open: Mutex::default() }
    }
}

#[async_trait]
impl Factory for Small {
    async fn open(&self) -> anyhow::Result<Arc<dyn Spool>> {
        let spool = Arc::new(TieredSpool::open(self.tiered.config.clone()).await?);
        *self.open.lock() = Arc::downgrade(&spool);
        Ok(spool)
    }
}

impl Subject for Small {
    fn expected(&self) -> Expected {
        let config = &self.tiered.config;
        let level = if config.durability == Durability::Memory {
            DurabilityLevel::Memory
        } else {
            DurabilityLevel::Kill
        };
        let promise = Promise { level, dirty_expire: config.dirty_expire, slack: Duration::from_secs(5) };
        let large = usize::try_from(SEGMENT).unwrap();
        Expected { promise, large }
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn reconfigure(&self, number: u64) -> anyhow::Result<()> {
        let Some(spool) = self.open.lock().upgrade() else { return Ok(()) };
        let mut rng = SmallRng::seed_from_u64(number);
        let config = self.tiered.config.clone();
        let config = config
            .memory_budget(rng.random_range(8..16) * MIB)
            .dirty_limit(rng.random_range(1..4) * MIB)
            .journal_capacity(rng.random_range(1..5) * MIB)
            .checkpoint_after(Duration::from_millis(rng.random_range(0..40)));
        spool.reconfigure(config)?;
        Ok(())
    }
}

fn check(name: &str, subject: Small) {
    let coverage = run(name, SHARES, subject);
    let Coverage { written, found, not_found, .. } = coverage;
    assert!(written > 0 && found > 0 && not_found > 0, "there was nothing to check: {coverage:?}");
}

#[test]
fn memory() {
    check("memory", Small::mixed(Durability::Memory));
}

#[test]
fn process() {
    check("process", Small::mixed(Durability::Process));
}

#[test]
fn synced() {
    check("synced", Small::mixed(Durability::Synced));
}

/// A message larger than a segment was stored and, while the store waited for its commit, removed
/// or replaced. Both calls had returned `Ok`, a load returned `NotFound`, and a later load, or one
/// after a restart, returned the message. The removal was written before the store, because an
/// unrelated message was replaced while the batch was built.
#[test]
fn overtaken_in_memory() {
    check("overtaken in memory", Small::overtaking(Durability::Memory));
}

#[test]
fn overtaken_in_process() {
    check("overtaken in process", Small::overtaking(Durability::Process));
}
