//! What is durable becomes visible as durable: lower tier first, upper tier after.

use std::sync::Arc;

use tidespool_core::SpoolId;

use super::queue::Arrival;
use crate::journal::NewestRecord;
use crate::memory::Dirty;
use crate::tiered::shared::Shared;
use crate::tiered::table::Shard;

/// A flushed version is durable.
pub(in crate::tiered) fn publish_ticketed(
    shared: &Shared,
    id: SpoolId,
    version: u64,
    dirty: &Arc<Dirty>,
    newest: NewestRecord,
) {
    let mut shard = shared.table.lock(&id);
    let is_newest = settle(shared, &mut shard, id, version, newest);
    match &dirty.data {
        Some(data) if is_newest => shared.cache.insert(id, data.clone()),
        // An earlier clean copy must not outlive the version that replaced it.
        Some(_) => shared.cache.remove(&id),
        // The removal took it out, and nothing came in behind a tombstone.
        None => {}
    }
}

/// A synced store is durable: now it is visible. The caller has the committer's word already.
pub(in crate::tiered) fn publish_arrival(shared: &Shared, arrival: &Arrival, newest: NewestRecord) {
    let mut shard = shared.table.lock(&arrival.id);
    // Its caller offers the clean copy, in its own time: all others wait for this thread.
    if shard.may_have_copy(&arrival.id) {
        shared.cache.remove(&arrival.id);
    }
    settle(shared, &mut shard, arrival.id, arrival.version, newest);
}

/// True if the version is the newest one.
fn settle(shared: &Shared, shard: &mut Shard, id: SpoolId, version: u64, newest: NewestRecord) -> bool {
    #[cfg(debug_assertions)]
    {
        shard.pending.check_order(&id, |order| order.publish(version));
        let before = shard.index.get(&id).map_or(0, |indexed| indexed.seq);
        debug_assert!(before < newest.seq, "record {} of {id} is published after {before}", newest.seq);
    }
    shard.index.learn(id, newest);
    shard.pending.arrive(&id);
    let pledged = shard.pending.settle_pledge(&id, version);
    for elided in pledged.into_iter().chain(shard.pending.settle(&id, version)) {
        shared.stats.elided(1, elided.bytes());
    }
    shard.pending.get(&id).is_none() && shard.index.get(&id).is_some_and(|indexed| indexed.seq == newest.seq)
}
