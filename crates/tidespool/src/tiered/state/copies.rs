//! Clean copies in memory, in two generations: young ones in the table, older ones in the cache
//! (moka).
//!
//! A copy enters only under its shard's lock, and only if its version is the newest. For one id
//! there is a copy in at most one generation. So a call on a young message never touches moka.

use std::sync::Arc;

use super::shared::Shared;
use super::table::Shard;
use crate::memory::{Copies, Inserted, YoungRoom};
use crate::message_id::MessageId;

impl Shared {
    /// Keeps a clean copy of the newest version of `id`. `shard`: the locked shard of `id`.
    /// `may_be_cached`: the cache may have a copy of an earlier version.
    pub(in crate::tiered) fn keep_copy(
        &self,
        shard: &mut Shard,
        id: MessageId,
        data: &Arc<Box<[u8]>>,
        may_be_cached: bool,
    ) {
        match shard.young.insert(id, data) {
            Inserted::Replaced => {}
            Inserted::TooLarge => return self.cache.insert(id, data.clone()),
            Inserted::New | Inserted::Unwanted => {
                if may_be_cached {
                    self.cache.remove(&id);
                }
                debug_assert!(self.cache.get(&id).is_none(), "{id} has a copy in two generations");
            }
        }
        while let Some((id, data)) = shard.young.pop_excess() {
            self.cache.insert(id, data);
        }
    }

    /// Drops the clean copy of `id`, if there is one. `shard`: the locked shard of `id`.
    pub(in crate::tiered) fn drop_copy(&self, shard: &mut Shard, id: &MessageId) {
        if !shard.young.remove(id) && shard.may_be_cached(id) {
            self.cache.remove(id);
        }
    }

    /// Moves the oldest young copies to the cache if little of their room is left. An eighth is
    /// free afterwards: the next copies need not move others.
    pub(in crate::tiered) fn promote_young(&self) {
        let most = self.table.young_room().limit() / 8 * 7;
        self.table.pop_young(most, |id, data| self.cache.insert(id, data));
    }

    /// The clean copies of both generations. Those in the cache are as of the memory balancer's
    /// last turn.
    pub(in crate::tiered) fn clean_copies(&self) -> Copies {
        self.table.size().young + self.cache.size()
    }

    /// The room for clean copies, in bytes.
    pub(in crate::tiered) fn clean_capacity(&self) -> u64 {
        self.table.young_room().limit() + self.cache.capacity()
    }

    /// Drops all clean copies, and applies the weights of the spools. Only for the memory balancer.
    pub(in crate::tiered) fn clear_copies(&self) -> Copies {
        let young = self.table.shards().fold(Copies::default(), |sum, mut shard| {
            let size = shard.young.size();
            shard.young.clear();
            sum + size
        });
        self.table.weigh_young(&self.cache.weights());
        young + self.cache.clear()
    }

    /// Changes the room for clean copies to `capacity` bytes, and applies the weights of the
    /// spools. Keeps the newest copies that fit, and returns what was dropped. Only for the memory
    /// balancer.
    pub(in crate::tiered) fn resize_copies(&self, capacity: u64) -> Copies {
        let before = self.clean_copies();
        let young = YoungRoom::part_of(capacity);
        self.table.young_room().set_limit(young);
        self.table.weigh_young(&self.cache.weights());
        self.promote_young();
        self.cache.upkeep();
        let pushed_out = before - self.clean_copies();
        pushed_out + self.cache.resize(capacity - young, |id| self.table.lock(id))
    }
}
