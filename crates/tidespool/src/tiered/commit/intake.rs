//! What waits to be written: flush tickets whose turn has come, and stores that wait for a commit.
//!
//! [`Intake::refill`] is the only way in, and it drains tickets before it takes arrivals. So of two
//! versions of one id of which the older is an arrival and the newer has a ticket here, the arrival
//! is here, too. [`Committer`](super::Committer) takes tickets only when all arrivals are taken,
//! and sorts the batch by version: the newer one is never written first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::queue::{Arrival, CommitQueue};
use crate::memory::{Dirty, Pending, Ticket};
use crate::tiered::table::Table;

/// Places in a queue that are not given back: an ordinary batch needs them again at once.
pub(super) const KEPT: usize = 4_096;

/// A ticket whose turn has come.
#[derive(Debug, Clone, Copy)]
struct Due {
    ticket: Ticket,
    /// The number of the drain that moved it here.
    drain: u64,
}

#[derive(Debug, Default)]
pub(super) struct Intake {
    /// In the order of drains. Within a drain the oldest version is first.
    backlog: VecDeque<Due>,
    /// In the order of versions.
    arrivals: VecDeque<Arrival>,
    /// Drains until now.
    drains: u64,
    replaced: Option<Replaced>,
}

/// Versions here were replaced before they were written.
#[derive(Debug, Clone, Copy)]
struct Replaced {
    /// The next refill drains what was dirty at this time, so that the versions that replaced them
    /// keep the turn.
    at: Instant,
    /// The first drain that one of them came with.
    drain: u64,
}

/// What a batch does with a ticket that it is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Taken,
    /// Not this one, but perhaps a later one.
    Passed,
    /// Neither now nor later: what replaced it is written instead.
    LetGo,
    /// Neither this one nor a later one.
    Full,
}

impl Intake {
    /// Takes in everything that has been dirty since `cutoff` or longer, and then all arrivals:
    /// those from the mail, and those that came since.
    pub(super) fn refill(
        &mut self,
        table: &Table,
        commit_queue: &CommitQueue,
        mail: Vec<Arrival>,
        cutoff: Option<Instant>,
    ) {
        self.arrivals.extend(mail);
        if let Some(cutoff) = self.replaced.take().map(|replaced| replaced.at).max(cutoff) {
            self.drains += 1;
            let drain = self.drains;
            self.backlog.extend(table.drain_tickets(cutoff).into_iter().map(|ticket| Due { ticket, drain }));
        }
        // After the tickets: see the top.
        self.arrivals.extend(commit_queue.take_arrivals());
    }

    /// Drains until now: what was dirty when the last of them began has a ticket of no later one.
    pub(super) fn drains(&self) -> u64 {
        self.drains
    }

    /// Tickets of this drain and of later ones are left; those of earlier ones are not.
    pub(super) fn reached(&self) -> u64 {
        self.backlog.front().map_or(u64::MAX, |due| due.drain)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.arrivals.is_empty() && self.backlog.is_empty()
    }

    /// The first drain of the versions here that were replaced since the last refill. The next
    /// refill has something to drain then, whatever its cutoff is.
    pub(super) fn first_replaced(&self) -> Option<u64> {
        self.replaced.map(|replaced| replaced.drain)
    }

    fn note_replaced(&mut self, at: Option<Instant>, drain: u64) {
        let Some(at) = at else { return };
        let before = self.replaced.unwrap_or(Replaced { at, drain });
        self.replaced = Some(Replaced { at: before.at.max(at), drain: before.drain.min(drain) });
    }

    /// When the oldest version here came in.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let tickets = self.next_ticket().map(|ticket| ticket.at);
        let arrivals = self.next_arrival().map(|arrival| arrival.at);
        [tickets, arrivals].into_iter().flatten().min()
    }

    pub(super) fn next_arrival(&self) -> Option<&Arrival> {
        self.arrivals.front()
    }

    pub(super) fn take_arrival(&mut self) -> Option<Arrival> {
        self.arrivals.pop_front()
    }

    /// Lets go of the arrivals whose callers gave up.
    pub(super) fn drop_cancelled(&mut self, table: &Table) {
        self.arrivals.retain(|arrival| {
            let cancelled = arrival.verdict.is_cancelled();
            if cancelled {
                table.lock(&arrival.id).pending.arrive(&arrival.id);
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

    /// Offers each ticket to a batch, whatever stands before it, until the batch is full.
    pub(super) fn offer_all(
        &mut self,
        table: &Table,
        mut offer: impl FnMut(&Ticket, Arc<Dirty>, &mut Pending) -> Answer,
    ) {
        let mut is_full = false;
        let mut replaced = Vec::new();
        self.backlog.retain(|due| {
            if is_full {
                return true;
            }
            let pending = &mut table.lock(&due.ticket.id).pending;
            let Some(dirty) = pending.peek(&due.ticket) else {
                // Where an earlier version is still to be written, it waits for its turn behind
                // that one.
                let waits = pending.is_pledged(&due.ticket.id);
                if !waits {
                    replaced.push((pending.put_off(&due.ticket), due.drain));
                }
                return waits;
            };
            let answer = offer(&due.ticket, dirty, pending);
            is_full = answer == Answer::Full;
            if answer == Answer::LetGo {
                // Every flush that waits for it waits for what replaced it, whatever its drain.
                replaced.push((pending.put_off(&due.ticket), 0));
            }
            matches!(answer, Answer::Passed | Answer::Full)
        });
        replaced.into_iter().for_each(|(at, drain)| self.note_replaced(at, drain));
    }

    /// Lets go of the first ticket, whose version was replaced or removed.
    pub(super) fn drop_stale(&mut self, pending: &mut Pending) {
        if let Some(due) = self.backlog.pop_front() {
            self.note_replaced(pending.put_off(&due.ticket), due.drain);
        }
    }

    /// Gives back the memory of a burst, when most of the backlog is empty.
    pub(super) fn give_back(&mut self) {
        if self.backlog.capacity() > KEPT && self.backlog.len() < self.backlog.capacity() / 4 {
            self.backlog.shrink_to((self.backlog.len() * 2).max(KEPT));
        }
    }
}
