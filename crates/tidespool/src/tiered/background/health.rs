//! The health thread: samples health, and admits waiting stores when they become due.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tidespool_pressure::Registration;

use crate::HealthSignal;
use crate::health::{HealthGate, HealthSample, Latch, Transition};
use crate::journal::RESERVED;
use crate::tiered::state::Shared;

/// Runs the thread until the spool closes. It never waits for the disk.
// Not inlined, as `keep`: `benches/cost` excludes both by name, because they run by the clock.
#[inline(never)]
pub(in crate::tiered) fn watch(shared: &Arc<Shared>) {
    let _death = ShutGateOnPanic(&shared.gate);
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
        shared.checkpoint_requests.note_sync(sum_us.checked_div(count).map(Duration::from_micros));
        syncs = now;
        let next = Instant::now() + config.health.sample_interval;
        if shared.budget.attend(next, || shared.commit_queue.note_starved()) {
            return;
        }
    }
}

/// Shuts the gate for good if the health thread panics. Only this thread checks for panics.
struct ShutGateOnPanic<'a>(&'a HealthGate);

impl Drop for ShutGateOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.follow(Transition::Shut(HealthSignal::DeadWorker));
        }
    }
}

fn sample(shared: &Shared, probe: Option<bool>) -> HealthSample {
    let errors = shared.stats.errors();
    let pool = shared.segments.pool();
    let free = pool.free();
    // Stores use the active segment only while another one is reserved for removals.
    let go_on = free >= RESERVED && pool.active_has_room();
    HealthSample {
        dirty_fraction: shared.budget.dirty() as f64 / shared.budget.limit().max(1) as f64,
        oldest_dirty_age: shared.oldest_dirty_age(),
        no_free_segment: free <= RESERVED && pool.headroom() <= RESERVED && !go_on,
        no_room_for_segment: pool.is_blocked(),
        checkpoint_stall: shared.checkpoint_requests.stalled_for(),
        journal_errors: errors.journal_writes,
        sled_errors: errors.checkpoint,
        sled_is_out: !shared.disk_index.is_whole(),
        read_errors: errors.reads,
        // A single error may be the loss of many messages.
        damage: errors.corrupt.saturating_add(errors.lost),
        lost_files: errors.lost_files,
        files_are_lost: !shared.presence.is_complete(),
        low_space: shared.probe.has_low_space(),
        dead_worker: shared.worker_dead.load(Ordering::Relaxed)
            || shared.monitor.get().is_some_and(Registration::has_died),
        probe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The death of the health thread set a flag that only this thread reads, so the gate never
    /// shut.
    #[test]
    fn a_panic_of_the_health_thread_shuts_the_gate() {
        let gate = HealthGate::new(&[]);
        drop(ShutGateOnPanic(&gate));
        assert!(gate.is_open());
        let died = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let _death = ShutGateOnPanic(&gate);
                panic!("on purpose");
            });
            watch.join()
        });
        assert!(died.is_err());
        assert_eq!(gate.signal(), Some(HealthSignal::DeadWorker));
    }
}
