//! Publishes durable versions: first in the lower tier (the index), then out of the upper tier
//! (pending).

use std::sync::Arc;

use super::in_flight::Taken;
use crate::journal::{DurableState, Learned, NewestRecord};
use crate::memory::Dirty;
use crate::message_id::MessageId;
use crate::tiered::state::{Arrival, Shard, Shared};

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
        Self { id: arrival.id, target, continues: arrival.part.continues }
    }
}

/// Publishes a durable record. A store whose caller has to be woken is added to `published`. One
/// that its caller has abandoned needs an abort instead.
pub(super) fn publish(
    shared: &Shared,
    aborts: &mut Vec<Abort>,
    published: &mut Vec<Arrival>,
    taken: Taken,
    durable: &DurableState,
) {
    match taken {
        Taken::Ticketed(ticket, dirty) => {
            publish_version(shared, ticket.id, ticket.version, &dirty, durable.newest);
        }
        Taken::Arrived(arrival) if arrival.state.commit() => {
            // Before the caller gets its outcome: publishing drops an older version's entry from
            // the crash log, which would replace this version at the next opening.
            publish_version(shared, arrival.id, arrival.version, &arrival.dirty, durable.newest);
            published.push(arrival);
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

/// Publishes a version that is durable. Loads see a synced store from now on.
fn publish_version(shared: &Shared, id: MessageId, version: u64, dirty: &Arc<Dirty>, newest: NewestRecord) {
    let mut shard = shared.table.lock(&id);
    let learned = settle(shared, &mut shard, id, version, newest);
    let is_newest = learned != Learned::Older && !shard.pending.has(&id);
    match &dirty.data {
        Some(data) if is_newest => {
            let may_be_cached = learned == Learned::Replaced || shard.may_be_checkpointed(&id);
            shared.keep_copy(&mut shard, id, data, may_be_cached);
        }
        // An earlier clean copy must not outlive the version that replaced it.
        Some(_) => shared.drop_copy(&mut shard, &id),
        // The removal has dropped the copy, and nothing keeps one while a tombstone is pending.
        None => {}
    }
}

/// Moves a version from pending to the index.
fn settle(shared: &Shared, shard: &mut Shard, id: MessageId, version: u64, newest: NewestRecord) -> Learned {
    #[cfg(debug_assertions)]
    {
        shard.pending.check_order(&id, |order| order.publish(version));
        let before = shard.index.get(&id).map_or(0, |indexed| indexed.seq);
        debug_assert!(before < newest.seq, "record {} of {id} is published after {before}", newest.seq);
    }
    let learned = shard.index.learn(id, newest);
    shard.pending.clear_under_way(&id);
    let pledged = shard.pending.settle_pledge(&id, version);
    for elided in pledged.into_iter().chain(shard.pending.settle(&id, version)) {
        shared.stats.elided(1, elided.bytes());
    }
    learned
}
