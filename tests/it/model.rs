use std::time::Duration;

use tidespool::Durability;
use tidespool_testkit::model::run;

use crate::setup::{KIB, MIB, Tiered};

/// How many tests share `TIDESPOOL_MODEL_CASES`.
const SHARES: u64 = 3;

/// So small that a history of some operations fills segments, recycles and retains them.
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

#[test]
fn memory() {
    run(SHARES, || tiny(Durability::Memory));
}

#[test]
fn written() {
    run(SHARES, || tiny(Durability::Written));
}

#[test]
fn synced() {
    run(SHARES, || tiny(Durability::Synced));
}
