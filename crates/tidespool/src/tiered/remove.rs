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
    let elided = shard.pending.take(&id);
    let logged = shard.must_log_removal(&id);
    // Not in the index, it is in sled: its bytes on disk are free when sled was told.
    let filed = logged && shard.index.get(&id).is_none();
    if logged {
        let dirty = Arc::new(Dirty::tombstone(shared.budget.admit_removal()));
        let ticket = Ticket { version: shared.table.next_version(), at: Instant::now(), id };
        shard.pending.insert(ticket, dirty);
    }
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
