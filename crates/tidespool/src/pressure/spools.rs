//! The spools that a monitor watches.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::level::Level;
use super::room::Together;

/// What can give memory back. Called from the monitor's thread, which does nothing else meanwhile.
pub(crate) trait Relief: Send + Sync {
    /// Gives back memory: about `excess_bytes`, or all that can go at [`Level::Critical`]. Returns, within about a
    /// second, the bytes by which the accounted memory fell, negative where it grew.
    fn relieve(&self, level: Level, excess_bytes: u64) -> isize;

    /// The bytes that could be given back: by this an excess is shared among several spools.
    fn reclaimable_bytes(&self) -> u64;

    /// Its memory that counts against its budget, and the budget, in bytes. Must not wait for anything.
    fn accounted_of(&self) -> (u64, u64);

    /// The level changed. Comes before the first `relieve` at that level.
    fn level_changed(&self, level: Level);

    /// There is room again after there was pressure: grow by a small step towards the size of before. True if there is
    /// more to grow: then this comes again, after a pause.
    fn memory_returned(&self) -> bool;
}

/// Steps of growth that a spool gets at once when nobody watches any more: more than there can be.
const ALL_STEPS: usize = 1_000;

/// The list of them.
#[derive(Debug, Default)]
pub(super) struct Spools {
    list: Mutex<List>,
    /// A call has ended.
    call_ended: Condvar,
}

#[derive(Debug, Default)]
struct List {
    entries: Vec<Member>,
    next_id: u64,
    /// The entry that the monitor's thread calls now.
    in_call: Option<u64>,
}

/// One spool.
struct Member {
    id: u64,
    /// The monitor keeps no spool alive.
    relief: Weak<dyn Relief>,
    /// The level that it was told last.
    told: Level,
    /// It may be smaller than it was.
    may_grow: bool,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("id", &self.id).field("told", &self.told).finish_non_exhaustive()
    }
}

impl Spools {
    /// Adds one. It is told the level at the next look, unless that is normal.
    pub(super) fn enter(&self, relief: &Arc<dyn Relief>) -> u64 {
        let mut list = self.list.lock();
        let id = list.next_id;
        list.next_id += 1;
        let relief = Arc::downgrade(relief);
        list.entries.push(Member { id, relief, told: Level::Normal, may_grow: false });
        id
    }

    /// Takes one off. It is not called any more, but a call may be under way: see [`wait_for_call`](Self::wait_for_call).
    pub(super) fn leave(&self, id: u64) {
        self.list.lock().entries.retain(|entry| entry.id != id);
    }

    /// Waits until the spool that left is not inside of a call, at most until `by`. False if it still is.
    pub(super) fn wait_for_call(&self, id: u64, by: Instant) -> bool {
        let mut list = self.list.lock();
        while list.in_call == Some(id) && !self.call_ended.wait_until(&mut list, by).timed_out() {}
        list.in_call != Some(id)
    }

    /// Tells everybody the level who was told another one.
    pub(super) fn tell(&self, level: Level) {
        for id in self.ids(|entry| entry.told != level) {
            self.call(id, |relief| relief.level_changed(level));
            self.update(id, |entry| {
                entry.told = level;
                entry.may_grow |= level != Level::Normal;
            });
        }
    }

    /// What they have, and what they were promised.
    pub(super) fn together(&self) -> Together {
        let ids = self.ids(|_| true);
        let each = ids.into_iter().filter_map(|id| self.call(id, |relief| relief.accounted_of()));
        each.fold(Together::default(), |sum, (accounted, budget)| Together {
            accounted: sum.accounted.saturating_add(accounted),
            budgets: sum.budgets.saturating_add(budget),
        })
    }

    /// What all of them together could give back.
    pub(super) fn reclaimable_bytes(&self) -> Vec<(u64, u64)> {
        let ids = self.ids(|_| true);
        let bytes = |id| self.call(id, |relief| relief.reclaimable_bytes()).map(|bytes| (id, bytes));
        ids.into_iter().filter_map(bytes).collect()
    }

    /// Asks each for its share of `excess`, by what it has to give (as `reclaimable` says). Returns what all of them
    /// have freed.
    pub(super) fn relieve(&self, level: Level, excess: u64, reclaimable: &[(u64, u64)]) -> isize {
        let weights: Vec<u64> = reclaimable.iter().map(|(_, bytes)| *bytes).collect();
        let shares = reclaimable.iter().zip(share(excess, &weights));
        let asked = shares.filter(|(_, share)| *share > 0);
        let freed =
            asked.filter_map(|((id, _), share)| self.call(*id, |relief| relief.relieve(level, share)));
        freed.fold(0, isize::saturating_add)
    }

    /// Lets everybody grow by a step who was under pressure. True if somebody has more to grow.
    pub(super) fn grow(&self) -> bool {
        let ids = self.ids(|entry| entry.may_grow);
        ids.into_iter().fold(false, |more, id| {
            let may_grow = self.call(id, |relief| relief.memory_returned()).unwrap_or(false);
            self.update(id, |entry| entry.may_grow = may_grow);
            more | may_grow
        })
    }

    /// Nobody watches any more: the level is normal, and everything has its full size.
    pub(super) fn release(&self) {
        self.tell(Level::Normal);
        for _ in 0..ALL_STEPS {
            if !self.grow() {
                return;
            }
        }
    }

    /// Those that `wanted` picks; those that are gone are forgotten.
    fn ids(&self, wanted: impl Fn(&Member) -> bool) -> Vec<u64> {
        let mut list = self.list.lock();
        list.entries.retain(|entry| entry.relief.strong_count() > 0);
        list.entries.iter().filter(|entry| wanted(entry)).map(|entry| entry.id).collect()
    }

    /// `None` where it has left or is gone. The list is not locked during the call, so that others can come and leave.
    fn call<T>(&self, id: u64, f: impl FnOnce(&dyn Relief) -> T) -> Option<T> {
        let mut list = self.list.lock();
        let relief = list.entries.iter().find(|entry| entry.id == id)?.relief.upgrade()?;
        list.in_call = Some(id);
        drop(list);
        let _end = EndOfCall(self);
        Some(f(&*relief))
    }

    fn update(&self, id: u64, f: impl FnOnce(&mut Member)) {
        if let Some(entry) = self.list.lock().entries.iter_mut().find(|entry| entry.id == id) {
            f(entry);
        }
    }
}

/// Ends a call, also by a panic: nobody may wait for it for ever.
struct EndOfCall<'a>(&'a Spools);

impl Drop for EndOfCall<'_> {
    fn drop(&mut self) {
        self.0.list.lock().in_call = None;
        self.0.call_ended.notify_all();
    }
}

/// Shares `excess` in proportion to `weights`, each part rounded up. Where nobody has any weight, all get the same: what
/// they could do is not in it.
fn share(excess: u64, weights: &[u64]) -> Vec<u64> {
    let total: u128 = weights.iter().copied().map(u128::from).sum();
    let equal = excess.div_ceil(weights.len().max(1) as u64);
    let part = |weight: &u64| match total {
        0 => equal,
        _ => {
            let part = (u128::from(excess) * u128::from(*weight)).div_ceil(total);
            u64::try_from(part).unwrap_or(u64::MAX)
        }
    };
    weights.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_excess_is_shared_in_proportion() {
        assert_eq!(share(100, &[300, 100]), [75, 25]);
        assert_eq!(share(100, &[300, 0]), [100, 0]);
        assert_eq!(share(100, &[0, 0, 0]), [34, 34, 34]);
        assert_eq!(share(1, &[u64::MAX, u64::MAX]), [1, 1]);
        assert!(share(5, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn all_shares_together_are_what_was_asked_for(
            excess in any::<u64>(), weights in prop::collection::vec(any::<u64>(), 1..10),
        ) {
            let shares = share(excess, &weights);
            let sum: u128 = shares.iter().copied().map(u128::from).sum();
            let rounding = weights.len() as u128;
            prop_assert!(sum >= u128::from(excess) && sum < u128::from(excess) + rounding);
        }
    }
}
