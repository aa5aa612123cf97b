//! The thread that samples health, beside the path.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::health::{Latch, Sample};

/// Runs until the spool closes. Nothing here waits for the disk.
pub(super) fn watch(shared: &Arc<Shared>) {
    let mut config = shared.config.load_full();
    let mut latch = Latch::new(&config);
    let mut syncs = (0, 0);
    loop {
        let now = Instant::now();
        if !Arc::ptr_eq(&config, &shared.config.load()) {
            config = shared.config.load_full();
            latch.reconfigure(&config);
        }
        let probe = match latch.wants_probe(now) {
            true => shared.probe.ask(),
            false => {
                shared.probe.forget();
                None
            }
        };
        if let Some(transition) = latch.observe(now, &sample(shared, probe)) {
            shared.gate.follow(transition);
        }
        let now = shared.stats.syncs();
        let (count, sum_us): (u64, u64) = (now.0 - syncs.0, now.1 - syncs.1);
        shared.filing.note_sync(sum_us.checked_div(count).map(Duration::from_micros));
        syncs = now;
        if shared.closing.wait(config.health.sample_interval) {
            return;
        }
    }
}

fn sample(shared: &Shared, probe: Option<bool>) -> Sample {
    let errors = shared.stats.errors();
    let pool = shared.segments.pool();
    Sample {
        dirty_fraction: shared.budget.dirty() as f64 / shared.budget.limit().max(1) as f64,
        oldest_dirty_age: shared.oldest_dirty_age(),
        no_free_segment: pool.free() <= crate::journal::RESERVED
            && pool.headroom() <= crate::journal::RESERVED,
        checkpoint_stall: shared.filing.stalled_for(),
        journal_errors: errors.journal_writes,
        sled_errors: errors.filing,
        sled_is_out: !shared.durable.is_open(),
        read_errors: errors.reads,
        damage: errors.corrupt,
        low_space: shared.probe.has_low_space(),
        dead_worker: shared.worker_dead.load(Ordering::Relaxed),
        probe,
    }
}
