//! Publishes durable versions: first in the lower tier (the index), then out of the upper tier
//! (pending).

use std::sync::Arc;

use super::in_flight::Taken;
use crate::journal::{DurableState, NewestRecord};
use crate::memory::Dirty;
use crate::message_id::MessageId;
use crate::tiered::state::{Arrival, Outcome, Shard, Shared};

/// The abort of a put that is in the journal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Abort {
    pub(super) id: MessageId,
    /// The number of the put.
    pub(super) target: u64,
    /// The next abort is of the same transaction.
    pub(super) continues: bool,
}

impl Abort {
    pub(super) fn of(arrival: &Arrival, target: u64) -> Self {
        Self { id: arrival.id, target, continues: arrival.part.continues() }
    }
}

/// Publishes a durable record. A store that its caller has abandoned needs an abort instead.
pub(super) fn publish(shared: &Shared, aborts: &mut Vec<Abort>, taken: Taken, durable: &DurableState) {
    match taken {
        Taken::Ticketed(ticket, dirty) => {
            publish_ticketed(shared, ticket.id, ticket.version, &dirty, durable.newest);
        }
        Taken::Arrived(arrival) if arrival.state.commit() => {
            // Before the caller gets its outcome: publishing drops an older version's entry from
            // the crash log, which would replace this version at the next opening.
            publish_arrival(shared, &arrival, durable.newest);
            // The caller may have dropped its future just now. The message stays stored.
            arrival.part.answer(Outcome::Durable(durable.seq));
        }
        Taken::Arrived(arrival) => {
            check_abort(shared, &arrival);
            aborts.push(Abort::of(&arrival, durable.seq));
        }
        Taken::Abort(id) => shared.table.lock(&id).pending.clear_under_way(&id),
        Taken::Abandoned(_) | Taken::Mark => {}
    }
}

/// Debug builds check the order in which the versions of an id are written. This one is aborted.
#[cfg_attr(not(debug_assertions), expect(unused_variables, reason = "only debug builds check"))]
pub(super) fn check_abort(shared: &Shared, arrival: &Arrival) {
    #[cfg(debug_assertions)]
    shared.table.lock(&arrival.id).pending.check_order(&arrival.id, |order| order.abort(arrival.version));
}

/// Publishes a flushed version that is durable.
fn publish_ticketed(shared: &Shared, id: MessageId, version: u64, dirty: &Arc<Dirty>, newest: NewestRecord) {
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
fn publish_arrival(shared: &Shared, arrival: &Arrival, newest: NewestRecord) {
    let mut shard = shared.table.lock(&arrival.id);
    // The caller inserts the clean copy into the cache, to save time on the committer thread.
    if shard.may_have_copy(&arrival.id) {
        shared.cache.remove(&arrival.id);
    }
    settle(shared, &mut shard, arrival.id, arrival.version, newest);
}

/// Moves a version from pending to the index. Returns true if it is the newest version.
fn settle(shared: &Shared, shard: &mut Shard, id: MessageId, version: u64, newest: NewestRecord) -> bool {
    #[cfg(debug_assertions)]
    {
        shard.pending.check_order(&id, |order| order.publish(version));
        let before = shard.index.get(&id).map_or(0, |indexed| indexed.seq);
        debug_assert!(before < newest.seq, "record {} of {id} is published after {before}", newest.seq);
    }
    shard.index.learn(id, newest);
    shard.pending.clear_under_way(&id);
    let pledged = shard.pending.settle_pledge(&id, version);
    for elided in pledged.into_iter().chain(shard.pending.settle(&id, version)) {
        shared.stats.elided(1, elided.bytes());
    }
    shard.pending.get(&id).is_none() && shard.index.get(&id).is_some_and(|indexed| indexed.seq == newest.seq)
}
