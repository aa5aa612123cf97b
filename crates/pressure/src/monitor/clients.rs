//! The clients that are registered with a monitor.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::room::Totals;
use crate::{Level, Relief};

/// Maximum number of growth steps when monitoring ends. More than any client needs.
const ALL_STEPS: usize = 1_000;

/// The list of registered clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    list: Mutex<List>,
    call_ended: Condvar,
}

#[derive(Debug, Default)]
struct List {
    entries: Vec<Client>,
    next_id: u64,
    /// The client that the monitor's thread calls now.
    in_call: Option<u64>,
}

/// One registered client.
struct Client {
    id: u64,
    /// Weak: the monitor keeps no client alive.
    relief: Weak<dyn Relief>,
    /// The level of the last notification.
    notified: Level,
    /// The client may be below its full size.
    may_grow: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Client");
        debug.field("id", &self.id).field("notified", &self.notified).finish_non_exhaustive()
    }
}

impl Clients {
    /// Adds a client. The next sample notifies it of the level, unless the level is normal.
    pub(super) fn enter(&self, relief: &Arc<dyn Relief>) -> u64 {
        let mut list = self.list.lock();
        let id = list.next_id;
        list.next_id += 1;
        let relief = Arc::downgrade(relief);
        list.entries.push(Client { id, relief, notified: Level::Normal, may_grow: false });
        id
    }

    /// Removes a client. No new call begins, but one may be in progress: see
    /// [`wait_for_call`](Self::wait_for_call).
    pub(super) fn leave(&self, id: u64) {
        self.list.lock().entries.retain(|entry| entry.id != id);
    }

    /// Waits until no call of the removed client runs, at most until `by`. False if one still does.
    pub(super) fn wait_for_call(&self, id: u64, by: Instant) -> bool {
        let mut list = self.list.lock();
        self.call_ended.wait_while_until(&mut list, |list| list.in_call == Some(id), by);
        list.in_call != Some(id)
    }

    /// Notifies each client of the level, if its last notification differs.
    pub(super) fn notify(&self, level: Level) {
        for id in self.ids(|entry| entry.notified != level) {
            self.call(id, |relief| relief.level_changed(level));
            self.update(id, |entry| {
                entry.notified = level;
                entry.may_grow |= level != Level::Normal;
            });
        }
    }

    /// The accounted memory and the budgets of all clients.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for id in self.ids(|_| true) {
            self.call(id, |relief| {
                totals.accounted = totals.accounted.saturating_add(relief.accounted_bytes());
                totals.budgets = totals.budgets.saturating_add(relief.budget_bytes());
            });
        }
        totals
    }

    /// The reclaimable bytes of each client, by its id.
    pub(super) fn reclaimable_bytes(&self) -> Vec<(u64, u64)> {
        let ids = self.ids(|_| true);
        let bytes = |id| self.call(id, |relief| relief.reclaimable_bytes()).map(|bytes| (id, bytes));
        ids.into_iter().filter_map(bytes).collect()
    }

    /// Asks each client for its share of `excess`, in proportion to its `reclaimable` bytes.
    /// Returns the total that was freed.
    pub(super) fn relieve(&self, level: Level, excess: u64, reclaimable: &[(u64, u64)]) -> isize {
        let weights: Vec<u64> = reclaimable.iter().map(|(_, bytes)| *bytes).collect();
        let shares = reclaimable.iter().zip(share(excess, &weights));
        let asked = shares.filter(|(_, share)| *share > 0);
        let freed =
            asked.filter_map(|((id, _), share)| self.call(*id, |relief| relief.relieve(level, share)));
        freed.fold(0, isize::saturating_add)
    }

    /// Lets each client that was under pressure grow by a step. True if any has more to grow.
    pub(super) fn grow(&self) -> bool {
        let ids = self.ids(|entry| entry.may_grow);
        ids.into_iter().fold(false, |more, id| {
            let may_grow = self.call(id, |relief| relief.memory_returned()).unwrap_or(false);
            self.update(id, |entry| entry.may_grow = may_grow);
            more | may_grow
        })
    }

    /// Called when monitoring ends: sets the level to normal, and restores the full sizes.
    pub(super) fn release(&self) {
        self.notify(Level::Normal);
        for _ in 0..ALL_STEPS {
            if !self.grow() {
                return;
            }
        }
    }

    /// The ids of the clients that `wanted` accepts. Removes dropped clients from the list.
    fn ids(&self, wanted: impl Fn(&Client) -> bool) -> Vec<u64> {
        let mut list = self.list.lock();
        list.entries.retain(|entry| entry.relief.strong_count() > 0);
        list.entries.iter().filter(|entry| wanted(entry)).map(|entry| entry.id).collect()
    }

    /// Calls a client. `None` if it was removed or dropped. The list is not locked during the call,
    /// so that others can register and leave.
    fn call<T>(&self, id: u64, f: impl FnOnce(&dyn Relief) -> T) -> Option<T> {
        let mut list = self.list.lock();
        let relief = list.entries.iter().find(|entry| entry.id == id)?.relief.upgrade()?;
        list.in_call = Some(id);
        drop(list);
        let _end = EndOfCall(self);
        Some(f(&*relief))
    }

    fn update(&self, id: u64, f: impl FnOnce(&mut Client)) {
        if let Some(entry) = self.list.lock().entries.iter_mut().find(|entry| entry.id == id) {
            f(entry);
        }
    }
}

/// Marks the end of a call, also after a panic, so that no thread waits for it forever.
struct EndOfCall<'a>(&'a Clients);

impl Drop for EndOfCall<'_> {
    fn drop(&mut self) {
        self.0.list.lock().in_call = None;
        self.0.call_ended.notify_all();
    }
}

/// Divides `excess` in proportion to `weights`, each share rounded up. If every weight is zero, the
/// shares are equal: a client may be able to free more than it reported.
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
    fn an_excess_is_divided_in_proportion() {
        assert_eq!(share(100, &[300, 100]), [75, 25]);
        assert_eq!(share(100, &[300, 0]), [100, 0]);
        assert_eq!(share(100, &[0, 0, 0]), [34, 34, 34]);
        assert_eq!(share(1, &[u64::MAX, u64::MAX]), [1, 1]);
        assert!(share(5, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn the_shares_add_up_to_the_excess(
            excess in any::<u64>(), weights in prop::collection::vec(any::<u64>(), 1..10),
        ) {
            let shares = share(excess, &weights);
            let sum: u128 = shares.iter().copied().map(u128::from).sum();
            let rounding = weights.len() as u128;
            prop_assert!(sum >= u128::from(excess) && sum < u128::from(excess) + rounding);
        }
    }
}
