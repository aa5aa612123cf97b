//! Settings changed on a running spool.

use std::sync::Arc;

use crate::checkpoint::CheckpointSettings;
use crate::tiered::lifecycle::open::keep_free;
use crate::tiered::shared::Shared;
use crate::{Config, ConfigError};

/// Takes in `next` as a whole, or not at all.
pub(in crate::tiered) fn reconfigure(shared: &Shared, mut next: Config) -> Result<(), ConfigError> {
    next.validate()?;
    let path = &shared.config.load().path;
    // The file that the settings came from names the directory as it did for `open`.
    if next.path == shared.opened_as || std::fs::canonicalize(&next.path).is_ok_and(|other| other == *path) {
        next.path.clone_from(path);
    }
    // The file system is asked before anybody could wait for this.
    let keep_free = keep_free(&next, &*shared.storage);
    // Of two at a time, one comes after the other in everything.
    let _one = shared.reconfiguring.lock();
    // Under the lock: a shutdown waits for it. After that the files may be somebody else's.
    shared.check_open().map_err(|_| ConfigError::Closed)?;
    let before = shared.config.load_full();
    before.validate_change(&next)?;
    if let Some(monitor) = shared.monitor.get() {
        monitor.reconfigure(next.pressure.clone())?;
    }
    let next = Arc::new(next);
    shared.config.store(next.clone());
    // The others look at the settings each time they need them; these have their own copies.
    shared.hot_settings.set(&next);
    shared.checkpoint_settings.store(Arc::new(checkpoint_settings(&next)));
    shared.segments.pool().set_bounds(next.journal_capacity, keep_free);
    shared.checkpoint_requests.kick();
    // Whoever set a timer by the old settings sets it anew. Nobody waits for it.
    drop(shared.commit_queue.flush(false));
    shared.balancer.set_budget(next.memory_budget);
    tracing::info!("the settings were changed");
    Ok(())
}

/// What the checkpoint thread needs of the settings.
pub(in crate::tiered) fn checkpoint_settings(config: &Config) -> CheckpointSettings {
    CheckpointSettings { checkpoint_after: config.checkpoint_after }
}
