//! Publishes durable versions: first in the lower tier (the index), then out of the upper tier
//! (pending).

use std::sync::Arc;

use tidespool_core::SpoolId;

use super::queue::Arrival;
use crate::journal::NewestRecord;
use crate::memory::Dirty;
use crate::tiered::shared::Shared;
use crate::tiered::table::Shard;

/// Publishes a flushed version that is durable.
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
        // The removal has cleared the cache, and nothing fills it while a tombstone is pending.
        None => {}
    }
}

/// Publishes a synced store that is durable. Loads see the message from now on. The caller gets its
/// outcome afterwards.
pub(in crate::tiered) fn publish_arrival(shared: &Shared, arrival: &Arrival, newest: NewestRecord) {
    let mut shard = shared.table.lock(&arrival.id);
    // The caller inserts the clean copy into the cache, to save time on the committer thread.
    if shard.may_have_copy(&arrival.id) {
        shared.cache.remove(&arrival.id);
    }
    settle(shared, &mut shard, arrival.id, arrival.version, newest);
}

/// Moves a version from pending to the index. Returns true if it is the newest version.
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
