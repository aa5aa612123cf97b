//! `remove`: out of every tier at once; a tombstone only where something could come back.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tidespool_core::{Closed, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId};

use crate::Durability;
use crate::memory::{Dirty, Ticket};
use crate::tiered::shared::Shared;

/// What is to be done about a removal that took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tiered) enum Removal {
    /// Nothing durable could bring the message back.
    Nothing,
    /// It survives the death of the process, or need not.
    Tombstone,
    /// The crash log could not take it: it has to go to the journal.
    Unprotected,
}

/// The most by which a removal is slowed where there are too many of them.
const SLOWED_BY: Duration = Duration::from_millis(100);

/// Returns when the removal survives what the durability asks for.
pub(in crate::tiered) async fn remove(shared: &Shared, id: SpoolId) -> Result<()> {
    // Boxed where it waits: every removal pays for the size of its future.
    match take_out(shared, id)? {
        Removal::Tombstone if shared.budget.has_many_removals() => {
            Box::pin(slowed(shared)).await;
            Ok(())
        }
        Removal::Nothing | Removal::Tombstone => Ok(()),
        Removal::Unprotected => Box::pin(synced(shared, None)).await,
    }
}

/// Waits for the disk, so that removals do not fill memory: each takes some hundred bytes until it
/// is written. Not for long. It has taken effect, and a disk that hangs must not stop the caller.
async fn slowed(shared: &Shared) {
    let fewer = pin!(shared.budget.fewer_removals());
    let _ = shared.timer.bound(Instant::now() + SLOWED_BY, fewer).await;
}

/// Returns when the removals are on stable storage.
pub(in crate::tiered) async fn remove_synced(
    shared: &Shared,
    ids: &[SpoolId],
    deadline: Option<Instant>,
) -> Result<()> {
    let mut is_left = false;
    for id in ids {
        is_left |= take_out(shared, *id)? != Removal::Nothing;
    }
    if is_left { synced(shared, deadline).await } else { Ok(()) }
}

/// Takes the message out of every tier.
pub(in crate::tiered) fn take_out(shared: &Shared, id: SpoolId) -> Result<Removal, Closed> {
    let mut shard = shared.table.lock(&id);
    shared.check_open()?;
    let logged = shard.must_log_removal(&id);
    // Not in the index in memory, it is filed: a checkpoint of its removal frees its bytes on disk.
    let filed = logged && shard.index.get(&id).is_none();
    let mut left = Removal::Nothing;
    let elided = if logged {
        let dirty = Arc::new(Dirty::tombstone(shared.budget.admit_removal()));
        let version = shared.table.next_version();
        let is_to_survive = shared.hot_settings.durability() != Durability::Memory;
        let written = if is_to_survive { shared.protection.write_removal(id) } else { None };
        let slot = written.and_then(|written| shared.protection.commit(written, version));
        left = if is_to_survive && slot.is_none() { Removal::Unprotected } else { Removal::Tombstone };
        // It inherits the turn of what it replaces, as a store does.
        shard.pending.insert(Ticket { version, at: Instant::now(), id }, dirty, slot)
    } else {
        shard.pending.take(&id)
    };
    shared.cache.remove(&id);
    drop(shard);
    if let Some(elided) = elided {
        shared.stats.elided(1, elided.bytes());
    }
    if logged {
        shared.commit_queue.note_dirty(shared.is_flush_urgent());
    }
    if filed {
        shared.checkpoint_requests.note_removal();
    }
    if left == Removal::Unprotected {
        shared.stats.unprotected();
    }
    shared.stats.removed();
    Ok(left)
}

/// Waits until what is dirty is on stable storage, in one commit with all that waits.
async fn synced(shared: &Shared, deadline: Option<Instant>) -> Result<()> {
    const CONTEXT: &str = "the removal took effect, and is not on stable storage yet";
    let own = Instant::now() + shared.hot_settings.store_deadline();
    let flushed = shared.commit_queue.flush(false);
    match shared.timer.bound(deadline.unwrap_or(own).min(own), flushed).await {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) => Err(Closed).context(CONTEXT),
        None if deadline.is_some_and(|deadline| deadline <= own) => {
            Err(SpoolCallerDeadlineExceeded).context(CONTEXT)
        }
        None => Err(SpoolBackpressureTimeout).context(CONTEXT),
    }
}
