//! `remove`: removes a message from every tier. Writes a tombstone only if a durable version could
//! bring the message back.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tidespool_core::{Closed, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId};

use crate::Durability;
use crate::memory::{Dirty, Ticket};
use crate::tiered::state::{Shared, SpoolPart};

/// The remaining work for a removal that took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tiered) enum Removal {
    /// None: no durable version could bring the message back.
    Nothing,
    /// A tombstone is dirty. It survives the death of the process, or the durability level does not
    /// require that.
    Tombstone,
    /// A tombstone is dirty that must survive the death of the process. The crash log had no room,
    /// so it has to go to the journal at once.
    Unprotected,
}

/// Maximum delay of a removal while there are too many of them.
const SLOWED_BY: Duration = Duration::from_millis(100);

/// Removes a message, and returns when the removal is as durable as the durability level requires.
pub(in crate::tiered) async fn remove(shared: &Shared, spool: &SpoolPart, id: SpoolId) -> Result<()> {
    // The rare waits are boxed to keep the future of most removals small.
    match take_out(shared, spool, id)? {
        Removal::Tombstone if shared.budget.has_many_removals() => {
            Box::pin(slowed(shared)).await;
            Ok(())
        }
        Removal::Nothing | Removal::Tombstone => Ok(()),
        Removal::Unprotected => Box::pin(synced(shared, spool, None)).await,
    }
}

/// Delays a removal until the disk has written others, but at most [`SLOWED_BY`].
///
/// Each removal takes some hundred bytes of memory until it is written. The wait is bounded because
/// the removal has taken effect and a disk that hangs must not block the caller.
async fn slowed(shared: &Shared) {
    let fewer = pin!(shared.budget.fewer_removals());
    let _ = shared.timer.bound(Instant::now() + SLOWED_BY, fewer).await;
}

/// Removes messages, and returns when their removals are on stable storage.
pub(in crate::tiered) async fn remove_synced(
    shared: &Shared,
    spool: &SpoolPart,
    ids: &[SpoolId],
    deadline: Option<Instant>,
) -> Result<()> {
    let mut is_left = false;
    for id in ids {
        is_left |= take_out(shared, spool, *id)? != Removal::Nothing;
    }
    if is_left { synced(shared, spool, deadline).await } else { Ok(()) }
}

/// Removes a message from every tier.
pub(in crate::tiered) fn take_out(
    shared: &Shared,
    spool: &SpoolPart,
    id: SpoolId,
) -> Result<Removal, Closed> {
    let id = spool.message(id);
    let mut shard = shared.table.lock(&id);
    spool.check_open()?;
    let newest = shard.index.get(&id);
    let logged = shard.must_log_removal(&id, newest);
    // Without an entry in the index, the message may be checkpointed: a checkpoint of its removal
    // frees its bytes on disk.
    let is_checkpointed = logged && newest.is_none();
    let mut left = Removal::Nothing;
    let elided = if logged {
        let dirty = Arc::new(Dirty::tombstone(shared.budget.admit_removal()));
        let version = shared.table.next_version();
        let must_survive = spool.hot_settings.durability() != Durability::Memory;
        let written = if must_survive { shared.protection.write_removal(id) } else { None };
        let slot = written.and_then(|written| shared.protection.commit(written, version));
        left = if must_survive && slot.is_none() { Removal::Unprotected } else { Removal::Tombstone };
        // The tombstone inherits the ticket of the version that it replaces, as a store does.
        shard.pending.insert(Ticket { version, at: Instant::now(), id }, dirty, slot)
    } else {
        shard.pending.take(&id)
    };
    shared.drop_copy(&mut shard, &id);
    drop(shard);
    if let Some(elided) = elided {
        shared.stats.elided(1, elided.bytes());
    }
    if logged {
        shared.commit_queue.note_dirty(shared.is_flush_urgent());
    }
    if is_checkpointed {
        shared.checkpoint_requests.note_removal();
    }
    if left == Removal::Unprotected {
        shared.stats.unprotected();
    }
    spool.stats.removed();
    Ok(left)
}

/// Waits until everything dirty is on stable storage, in one commit with the waiting stores.
async fn synced(shared: &Shared, spool: &SpoolPart, deadline: Option<Instant>) -> Result<()> {
    const CONTEXT: &str = "the removal took effect, but is not on stable storage yet";
    let own = Instant::now() + spool.hot_settings.store_deadline();
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
