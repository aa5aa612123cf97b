//! `reconfigure`: changes the settings of a running spool.

use std::sync::Arc;

use crate::checkpoint::CheckpointSettings;
use crate::tiered::state::{Shared, keep_free};
use crate::{Config, ConfigError};

/// Applies all settings in `next`, or on an error none.
pub(in crate::tiered) fn reconfigure(shared: &Shared, mut next: Config) -> Result<(), ConfigError> {
    next.validate()?;
    let path = &shared.config.load().path;
    // A path that differs in spelling only is not a change: the settings file may still have the
    // path as it was passed to `open`.
    if next.path == shared.opened_as || std::fs::canonicalize(&next.path).is_ok_and(|other| other == *path) {
        next.path.clone_from(path);
    }
    // Query the file system before taking the lock: the query may block.
    let keep_free = keep_free(&next, &*shared.storage);
    // Serializes concurrent calls.
    let _one = shared.reconfiguring.lock();
    // Checked under the lock, because a shutdown waits for it. After a shutdown the files may
    // belong to another process.
    shared.check_open().map_err(|_| ConfigError::Closed)?;
    let before = shared.config.load_full();
    before.validate_change(&next)?;
    if let Some(monitor) = shared.monitor.get() {
        monitor.reconfigure(&next.pressure)?;
    }
    let next = Arc::new(next);
    shared.config.store(next.clone());
    // These components keep copies of settings. The health thread refreshes its own copy before its
    // next sample. All others read `shared.config` on each use.
    shared.spools.set_config(&next);
    // Before the balancer's turn.
    shared.set_cache_weights();
    shared.gate.report(&next.health.reported_causes);
    let checkpoint_settings = CheckpointSettings { checkpoint_after: next.checkpoint_after };
    shared.checkpoint_settings.store(Arc::new(checkpoint_settings));
    shared.segments.pool().set_bounds(next.journal_capacity, keep_free);
    shared.checkpoint_requests.kick();
    // The flush makes the committer set its timers by the new settings. The result is not needed.
    drop(shared.commit_queue.flush(false));
    shared.balancer.set_budget(next.memory_budget);
    tracing::info!("the settings were changed");
    Ok(())
}
