//! `remove`: out of every tier at once; a tombstone only where something could come back.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use tidespool_core::SpoolId;

use super::shared::Shared;
use crate::memory::{Dirty, Ticket};

pub(super) fn remove(shared: &Shared, id: SpoolId) -> Result<()> {
    let mut shard = shared.table.lock(&id);
    shared.check_open()?;
    let logged = shard.must_log_removal(&id);
    // Not in the index in memory, it is filed: a checkpoint of its removal frees its bytes on disk.
    let filed = logged && shard.index.get(&id).is_none();
    let elided = if logged {
        let dirty = Arc::new(Dirty::tombstone(shared.budget.admit_removal()));
        let ticket = Ticket { version: shared.table.next_version(), at: Instant::now(), id };
        // It inherits the turn of what it replaces, as a store does.
        shard.pending.insert(ticket, dirty)
    } else {
        shard.pending.take(&id)
    };
    shared.cache.remove(&id);
    drop(shard);
    if let Some(elided) = elided {
        shared.stats.elided(1, elided.bytes());
    }
    if logged {
        shared.mailbox.note_dirty(shared.is_flush_urgent());
    }
    if filed {
        shared.filing.note_removal();
    }
    shared.stats.removed();
    Ok(())
}
