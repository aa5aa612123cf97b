//! Selects and appends the records of the next batch.

use std::sync::Arc;

use super::Executor;
use super::in_flight::Taken;
use super::intake::TicketDecision;
use super::plan::{Appended, is_late};
use super::publish::{Abort, check_abort};
use crate::journal::{self, JournalChange, JournalRoom, PAGE, payload_crc};
use crate::memory::{Dirty, Ticket};
use crate::stats::Site;
use crate::storage::is_no_room;
use crate::tiered::state::Arrival;

/// Approximate limit of flushed data in a batch, in bytes.
const BATCH_BYTES: u64 = 8 << 20;

/// Limit of flushed records in a batch. A removal is small on disk, but takes about 400 bytes in
/// the tables that it passes through.
const BATCH_RECORDS: usize = 16 * 1024;

/// Limits of flushed data in a batch that a synced store waits for, in bytes and records. Each
/// record delays the store.
const JOINING: (u64, usize) = (1 << 20, 512);

impl Executor {
    /// Appends the waiting records that fit: all synced stores, and flushed data up to
    /// [`BATCH_BYTES`].
    pub(super) fn append_batch(&mut self) {
        self.intake.drop_cancelled(&self.shared.table);
        self.appended = Appended::default();
        self.find_abandoned();
        self.append_waiting();
        self.appended.aborts_left = !self.aborts.is_empty();
    }

    fn append_waiting(&mut self) {
        if self.writer.has_unwritten() {
            // Nothing is added to a batch that has to be retried.
            return;
        }
        let mut batch = Vec::new();
        if self.append_aborts() > 0 {
            // A batch of aborts has no other records: the remaining room is known when it is
            // written.
            return;
        }
        let mut room = self.writer.room(false);
        let mut is_large = false;
        // A store that arrived after another one had failed in doubt must not be durable before the
        // abort of that one.
        while self.aborts.is_empty()
            && !is_large
            && let Some(has_large) = self.take_transaction(&mut room, &mut batch)
        {
            // A large message has a segment of its own, and ends the batch: the room for later
            // records is computed anew.
            is_large = has_large;
        }
        let (bytes, records) = self.share_of_flushed(!batch.is_empty() || self.writer.is_syncing());
        let (mut taken, end) = (0, batch.len().saturating_add(records));
        while !is_large && self.intake.next_arrival().is_none() && taken < bytes && batch.len() < end {
            let Some((ticket, dirty)) = self.take_ticket(&mut room) else { break };
            taken += cost(&dirty);
            batch.push((ticket.version, Taken::Ticketed(ticket, dirty)));
        }
        if batch.is_empty() && !self.appended.waits_for_other {
            self.take_removes(&mut batch);
        }
        let has_work = !self.intake.is_empty() || !self.aborts.is_empty();
        self.appended.blocked = batch.is_empty() && has_work && !self.appended.waits_for_other;
        // A newer version of an id must be written after an older one.
        batch.sort_unstable_by_key(|(version, _)| *version);
        let mut is_cancelled = false;
        for (_, taken) in batch {
            if let Taken::Arrived(arrival) = &taken {
                // The first store decides for its transaction.
                if !arrival.part.follows {
                    is_cancelled = !arrival.state.append();
                }
                if is_cancelled {
                    // Its caller has just cancelled the store.
                    self.release_cancelled(arrival);
                    continue;
                }
            }
            self.append(taken);
        }
    }

    /// Appends the aborts that there is room for, and returns how many.
    fn append_aborts(&mut self) -> usize {
        let mut room = self.writer.room(true);
        let mut aborts = self.aborts.len();
        while aborts > 0 && !room.take(journal::cost(8) * aborts as u64 + PAGE) {
            aborts /= 2;
        }
        // A transaction is aborted as a whole.
        while aborts > 0 && self.aborts[aborts - 1].continues {
            aborts -= 1;
        }
        for Abort { id, target, continues } in self.aborts.drain(..aborts) {
            self.writer.append_part(id, JournalChange::Abort(target), continues);
            self.in_flight.push(Taken::Abort(id));
            self.shared.stats.aborted();
        }
        aborts
    }

    /// Finds the stores that their callers have abandoned, and queues their aborts. An abort need
    /// not wait until its put is durable.
    fn find_abandoned(&mut self) {
        if !self.receiver.take_abandoned() {
            return;
        }
        self.publish_completed();
        let mut is_abandoned = false;
        for (seq, taken) in self.in_flight.appended(self.writer.last_seq()) {
            let Taken::Arrived(arrival) = taken else { continue };
            // A caller may give up at this moment: the first store decides for its transaction.
            if !arrival.part.follows {
                is_abandoned = arrival.state.is_abandoned();
            }
            if is_abandoned {
                check_abort(&self.shared, arrival);
                self.aborts.push(Abort::of(arrival, seq));
                *taken = Taken::Abandoned(arrival.dirty.clone());
            }
        }
    }

    /// Returns the limits of flushed data in the next batch, in bytes and records. `joining`: a
    /// synced store waits for the batch, or a sync is under way.
    fn share_of_flushed(&self, joining: bool) -> (u64, usize) {
        match joining && self.intake.has_tickets() && !is_late(self) {
            true => JOINING,
            false => (BATCH_BYTES, BATCH_RECORDS),
        }
    }

    fn append(&mut self, taken: Taken) {
        let (id, version, dirty) = match &taken {
            Taken::Ticketed(ticket, dirty) => (ticket.id, ticket.version, dirty),
            Taken::Arrived(Arrival { id, version, dirty, .. }) => (*id, *version, dirty),
            Taken::Abandoned(_) | Taken::Abort(_) | Taken::Mark => return,
        };
        #[cfg(debug_assertions)]
        self.shared.table.lock(&id).pending.check_order(&id, |order| order.append(version));
        #[cfg(not(debug_assertions))]
        let _ = version;
        let change = dirty.data.clone().map_or(JournalChange::Remove, |data| {
            let crc = dirty.payload_crc.unwrap_or_else(|| payload_crc(&data));
            JournalChange::Put(data, crc)
        });
        let continues = matches!(&taken, Taken::Arrived(arrival) if arrival.part.continues);
        self.writer.append_part(id, change, continues);
        self.in_flight.push(taken);
    }

    /// Takes the stores of the next transaction, if all of them fit. Returns true if one of them
    /// gets a segment of its own.
    fn take_transaction(&mut self, room: &mut JournalRoom, batch: &mut Vec<(u64, Taken)>) -> Option<bool> {
        loop {
            let (mut left, mut count, mut large, mut fits) = (*room, 0, Vec::new(), true);
            for arrival in self.intake.next_transaction() {
                count += 1;
                let len = len(&arrival.dirty);
                if self.shared.needs_own_segment(len) {
                    large.push(len);
                } else {
                    fits &= left.take(cost(&arrival.dirty));
                }
            }
            if !fits {
                self.want_room();
                return None;
            }
            self.end_wanting();
            if count == 0 {
                return None;
            }
            match self.prepare_all(&large) {
                Ok(()) => {
                    *room = left;
                    // Not `extend`: most take one.
                    for arrival in self.intake.take_arrivals(count) {
                        batch.push((arrival.version, Taken::Arrived(arrival)));
                    }
                    return Some(!large.is_empty());
                }
                // A message for which the disk has no room must not block the other stores.
                Err(error) => self.refuse(count, &error),
            }
        }
    }

    /// Asks for the free segments that the next transaction needs.
    fn want_room(&mut self) {
        self.wants_room = true;
        let pool = self.shared.segments.pool();
        let dirty = self.intake.next_transaction().map(|arrival| &arrival.dirty);
        let ordinary = dirty.filter(|dirty| !self.shared.needs_own_segment(len(dirty)));
        pool.want(JournalRoom::segments_for(pool.segment_size(), ordinary.map(|dirty| cost(dirty))));
    }

    /// Ends [`want_room`](Self::want_room): the transaction fits, or its caller has given up.
    fn end_wanting(&mut self) {
        if std::mem::take(&mut self.wants_room) {
            self.shared.segments.pool().want(0);
        }
    }

    /// Creates the files for messages of these lengths, or none.
    fn prepare_all(&mut self, large: &[u64]) -> std::io::Result<()> {
        for (number, len) in large.iter().enumerate() {
            if let Err(error) = self.writer.prepare_large(*len) {
                (0..number).for_each(|_| self.writer.discard_prepared());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Refuses the next `count` stores, which are a transaction.
    fn refuse(&mut self, count: usize, error: &std::io::Error) {
        for arrival in self.intake.take_arrivals(count) {
            self.shared.table.lock(&arrival.id).pending.clear_under_way(&arrival.id);
            if arrival.part.continues {
                continue;
            }
            if is_no_room(error) {
                tracing::warn!(id = %arrival.id, %error, "no room for a message that is larger than a segment");
            } else {
                // A disk that can't write this file can't write other files, either.
                self.shared.disk_error(Site::JournalWrite, error);
            }
            arrival.state.refuse();
        }
    }

    /// Takes the next flushed version that was not replaced or removed meanwhile, if it fits.
    fn take_ticket(&mut self, room: &mut JournalRoom) -> Option<(Ticket, Arc<Dirty>)> {
        while let Some(ticket) = self.intake.next_ticket() {
            let mut shard = self.shared.table.lock(&ticket.id);
            let Some(dirty) = shard.pending.peek(&ticket) else {
                self.intake.drop_stale(&mut shard.pending);
                continue;
            };
            // A newer version of the id may be under way, and must not be written before this one.
            // When it is durable, this version need not be written. If its caller has given up,
            // this version must be written after the abort.
            if !self.in_flight.is_empty() && shard.pending.has_other_under_way(&ticket) {
                self.appended.waits_for_other = true;
                return None;
            }
            if !room.take(cost(&dirty)) {
                return None;
            }
            shard.pending.commit(&ticket);
            self.intake.take_ticket();
            return Some((ticket, dirty));
        }
        None
    }

    /// Takes removals out of turn, because no segment has room for messages. Removals may use the
    /// reserve, and they are what frees segments.
    fn take_removes(&mut self, batch: &mut Vec<(u64, Taken)>) {
        let mut room = self.writer.room(true);
        self.intake.offer_all(&self.shared.table, |ticket, dirty, pending| {
            // There is no room for a pledged version that was removed meanwhile. Its removal must
            // not be written before it, and would free room. So write only the removal.
            if let Some(elided) = pending.end_pledge_of_removed(ticket) {
                self.shared.stats.elided(1, elided.bytes());
                return TicketDecision::Dropped;
            }
            // A put has no room. A removal must not be written before an older put of its id that
            // is under way.
            if dirty.data.is_some() || pending.has_other_under_way(ticket) {
                return TicketDecision::Skipped;
            }
            // All removals have the same size: if one does not fit, no later one does.
            if !room.take(cost(&dirty)) {
                return TicketDecision::Full;
            }
            pending.commit(ticket);
            batch.push((ticket.version, Taken::Ticketed(*ticket, dirty)));
            TicketDecision::Taken
        });
    }

    /// Releases a store that was cancelled after the batch had taken it.
    fn release_cancelled(&mut self, arrival: &Arrival) {
        self.shared.table.lock(&arrival.id).pending.clear_under_way(&arrival.id);
        if self.shared.needs_own_segment(len(&arrival.dirty)) {
            self.writer.discard_prepared();
        }
    }
}

/// Returns the bytes that a version takes in the journal.
fn cost(dirty: &Dirty) -> u64 {
    journal::cost(len(dirty))
}

fn len(dirty: &Dirty) -> u64 {
    dirty.data.as_ref().map_or(0, |data| data.len() as u64)
}
