//! The input of the next batches: due flush tickets, and stores that wait for a commit.
//!
//! Only [`Intake::refill`] adds entries, and it drains tickets before it takes arrivals. Suppose
//! the older of two versions of an id is an arrival and the newer one has a ticket here. Then the
//! arrival is here, too. The batch takes tickets only when all arrivals are
//! taken, and sorts the batch by version. So the newer version is never written first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::flushes::Drains;
use crate::memory::{Dirty, Pending, Ticket};
use crate::tiered::state::{Arrival, CommitReceiver, Table};

/// Minimum capacity that a queue keeps when it shrinks: an ordinary batch needs it again at once.
pub(super) const KEPT: usize = 4_096;

/// A ticket that is due.
#[derive(Debug, Clone, Copy)]
struct Due {
    ticket: Ticket,
    /// The number of the drain that added it.
    drain: u64,
}

#[derive(Debug, Default)]
pub(super) struct Intake {
    /// In the order of drains. Within a drain the oldest version is first.
    backlog: VecDeque<Due>,
    /// In the order of versions.
    arrivals: VecDeque<Arrival>,
    /// Number of drains so far.
    drains: u64,
    replaced: Option<Replaced>,
}

/// Versions in the backlog that were replaced before they were written.
#[derive(Debug, Clone, Copy)]
struct Replaced {
    /// The next refill drains everything that was dirty at this time, so that the replacements keep
    /// the turn of the versions that they replaced.
    at: Instant,
    /// The first drain that added one of the replaced versions.
    drain: u64,
}

/// The decision of a batch about a ticket that is offered to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TicketDecision {
    Taken,
    /// The ticket stays in the backlog. A later one may fit.
    Skipped,
    /// The ticket is dropped: the version that replaced it is written instead.
    Dropped,
    /// The ticket stays in the backlog, and no later one fits.
    Full,
}

impl Intake {
    /// Adds the tickets of everything that has been dirty since `cutoff` or longer, then all
    /// arrivals: `arrivals`, and those that are in the commit queue.
    pub(super) fn refill(
        &mut self,
        table: &Table,
        receiver: &CommitReceiver,
        arrivals: Vec<Arrival>,
        cutoff: Option<Instant>,
    ) {
        self.arrivals.extend(arrivals);
        if let Some(cutoff) = self.replaced.take().map(|replaced| replaced.at).max(cutoff) {
            self.drains += 1;
            let drain = self.drains;
            self.backlog.extend(table.drain_tickets(cutoff).into_iter().map(|ticket| Due { ticket, drain }));
        }
        // After the tickets: see the module documentation.
        self.arrivals.extend(receiver.take_arrivals());
    }

    /// The progress of the drains. Everything that was dirty when the last one began has a ticket
    /// of that drain or an earlier one.
    pub(super) fn drains(&self) -> Drains {
        Drains {
            count: self.drains,
            reached: self.backlog.front().map_or(u64::MAX, |due| due.drain),
            first_replaced: self.replaced.map(|replaced| replaced.drain),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.arrivals.is_empty() && self.backlog.is_empty()
    }

    fn note_replaced(&mut self, at: Option<Instant>, drain: u64) {
        let Some(at) = at else { return };
        let before = self.replaced.unwrap_or(Replaced { at, drain });
        self.replaced = Some(Replaced { at: before.at.max(at), drain: before.drain.min(drain) });
    }

    /// Returns when the oldest version in the intake was stored.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let tickets = self.next_ticket().map(|ticket| ticket.at);
        let arrivals = self.next_arrival().map(|arrival| arrival.at);
        [tickets, arrivals].into_iter().flatten().min()
    }

    pub(super) fn next_arrival(&self) -> Option<&Arrival> {
        self.arrivals.front()
    }

    /// The stores of the next transaction: most have one.
    pub(super) fn next_transaction(&self) -> impl Iterator<Item = &Arrival> {
        let mut is_over = false;
        self.arrivals.iter().take_while(move |arrival| {
            let was_over = std::mem::replace(&mut is_over, !arrival.part.continues);
            !was_over
        })
    }

    /// Removes and returns the first `count` arrivals.
    pub(super) fn take_arrivals(&mut self, count: usize) -> impl Iterator<Item = Arrival> {
        // Most take one, for which a drain costs more.
        (0..count).map_while(|_| self.arrivals.pop_front())
    }

    /// Drops the arrivals that their callers have cancelled.
    pub(super) fn drop_cancelled(&mut self, table: &Table) {
        let mut cancelled = false;
        self.arrivals.retain(|arrival| {
            // A caller may cancel at this moment: the first store decides for its transaction.
            if !arrival.part.follows {
                cancelled = arrival.state.is_cancelled();
            }
            if cancelled {
                table.lock(&arrival.id).pending.clear_under_way(&arrival.id);
            }
            !cancelled
        });
    }

    pub(super) fn has_tickets(&self) -> bool {
        !self.backlog.is_empty()
    }

    pub(super) fn next_ticket(&self) -> Option<Ticket> {
        self.backlog.front().map(|due| due.ticket)
    }

    pub(super) fn take_ticket(&mut self) {
        self.backlog.pop_front();
    }

    /// Offers each ticket of the backlog to a batch until the batch is full. The batch may skip
    /// tickets.
    pub(super) fn offer_all(
        &mut self,
        table: &Table,
        mut offer: impl FnMut(&Ticket, Arc<Dirty>, &mut Pending) -> TicketDecision,
    ) {
        let mut is_full = false;
        let mut replaced = Vec::new();
        self.backlog.retain(|due| {
            if is_full {
                return true;
            }
            let pending = &mut table.lock(&due.ticket.id).pending;
            let Some(dirty) = pending.peek(&due.ticket) else {
                // If an earlier version is pledged, this ticket keeps its place behind that one.
                let waits = pending.is_pledged(&due.ticket.id);
                if !waits {
                    replaced.push((pending.pledge_replacement(&due.ticket), due.drain));
                }
                return waits;
            };
            let decision = offer(&due.ticket, dirty, pending);
            is_full = decision == TicketDecision::Full;
            if decision == TicketDecision::Dropped {
                // Drain 0: every flush that waits for the version waits for its replacement,
                // whatever drain the flush waits for.
                replaced.push((pending.pledge_replacement(&due.ticket), 0));
            }
            matches!(decision, TicketDecision::Skipped | TicketDecision::Full)
        });
        replaced.into_iter().for_each(|(at, drain)| self.note_replaced(at, drain));
    }

    /// Drops the first ticket. Its version was replaced or removed.
    pub(super) fn drop_stale(&mut self, pending: &mut Pending) {
        if let Some(due) = self.backlog.pop_front() {
            self.note_replaced(pending.pledge_replacement(&due.ticket), due.drain);
        }
    }

    /// Frees memory after a burst, when less than a quarter of the backlog's capacity is used.
    pub(super) fn shrink(&mut self) {
        if self.backlog.capacity() > KEPT && self.backlog.len() < self.backlog.capacity() / 4 {
            self.backlog.shrink_to((self.backlog.len() * 2).max(KEPT));
        }
    }
}
