use std::time::Duration;

use tidespool::Durability;
use tidespool_conformance::model::run;

use crate::lost_sled::alone;
use crate::setup::{KIB, MIB, Tiered};

/// Number of tests that share `TIDESPOOL_MODEL_CASES`.
const SHARES: u64 = 3;

/// A journal so small that a few operations fill segments, recycle and retain them.
fn tiny(durability: Durability) -> Tiered {
    Tiered::new(|config| {
        config
            .durability(durability)
            .segment_size(64 * KIB)
            .journal_capacity(MIB)
            .dirty_expire(Duration::from_millis(10))
            .checkpoint_after(Duration::ZERO)
    })
}

/// Runs alone, because it damages sled under a running spool: see [`alone`].
fn histories(name: &str, durability: Durability) {
    alone(&format!("{}::{name}", module_path!()), || run(SHARES, || tiny(durability)));
}

#[test]
fn memory() {
    histories("memory", Durability::Memory);
}

#[test]
fn process() {
    histories("process", Durability::Process);
}

#[test]
fn synced() {
    histories("synced", Durability::Synced);
}
