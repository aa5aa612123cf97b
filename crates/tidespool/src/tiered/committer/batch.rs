//! What goes into the next batch.

use std::sync::Arc;

use super::super::mailbox::{Arrival, Outcome};
use super::{Committer, Taken};
use crate::journal::{Change, PAGE, Room, footprint, payload_crc};
use crate::memory::{Dirty, Ticket};
use crate::stats::Site;

/// A batch ends at about so many bytes of flushed data.
const BATCH_BYTES: u64 = 8 << 20;

/// And so many records of it: a removal is small on disk, and about 400 bytes in the tables that it passes through.
const BATCH_RECORDS: usize = 16 * 1024;

/// Where a synced store waits for the same batch: so much flushed data joins it, and no more, for each record costs it time.
const JOINING: (u64, usize) = (1 << 20, 512);

impl Committer {
    /// Appends what waits and fits: all synced stores, and flushed data up to [`BATCH_BYTES`].
    pub(super) fn append_batch(&mut self) {
        self.drop_cancelled();
        self.waits_for_other = false;
        let mut room = self.writer.room(true);
        let mut aborts = self.aborts.len();
        while aborts > 0 && !room.take(footprint(8) * aborts as u64 + PAGE) {
            aborts /= 2;
        }
        for (id, target) in self.aborts.drain(..aborts) {
            self.writer.append(id, Change::Abort(target));
            self.taken.push_back(Taken::Abort(id));
        }
        let mut batch = Vec::new();
        if aborts > 0 {
            // They are in nobody's way, and what is left of the room is known when they are written.
            self.blocked = false;
            return;
        }
        let mut room = self.writer.room(false);
        let mut is_large = false;
        while !is_large && let Some(arrival) = self.take_arrival(&mut room) {
            // It ends its segment and the batch: what follows it is packed anew.
            is_large = self.shared.needs_own_segment(len(&arrival.dirty));
            batch.push((arrival.version, Taken::Arrived(arrival)));
        }
        let (bytes, records) = self.share_of_flushed(!batch.is_empty() || self.writer.is_syncing());
        let (mut taken, end) = (0, batch.len().saturating_add(records));
        while !is_large && self.arrivals.is_empty() && taken < bytes && batch.len() < end {
            let Some((ticket, dirty)) = self.take_ticket(&mut room) else { break };
            taken += cost(&dirty);
            batch.push((ticket.version, Taken::Ticketed(ticket, dirty)));
        }
        if batch.is_empty() && !self.waits_for_other {
            self.take_removes(&mut batch);
        }
        let is_stuck = batch.is_empty() && self.has_work() && !self.waits_for_other;
        self.blocked = is_stuck && !self.writer.has_unwritten();
        // For one id, what is newer must be written later.
        batch.sort_unstable_by_key(|(version, _)| *version);
        for (_, taken) in batch {
            self.append(taken);
        }
    }

    /// Bytes and records of flushed data that the next batch may take.
    fn share_of_flushed(&self, joining: bool) -> (u64, usize) {
        match joining && !self.backlog.is_empty() && !self.is_late() {
            true => JOINING,
            false => (BATCH_BYTES, BATCH_RECORDS),
        }
    }

    fn append(&mut self, taken: Taken) {
        let (id, at, dirty, known_crc) = match &taken {
            Taken::Ticketed(ticket, dirty) => (ticket.id, ticket.at, dirty, None),
            Taken::Arrived(arrival) => (arrival.id, arrival.at, &arrival.dirty, Some(arrival.payload_crc)),
            Taken::Shown { .. } | Taken::Abort(_) | Taken::Mark => return,
        };
        let change = dirty.data.clone().map_or(Change::Remove, |data| {
            let crc = known_crc.unwrap_or_else(|| payload_crc(&data));
            Change::Put(data, crc)
        });
        self.writer.append(id, change);
        self.oldest_taken = Some(self.oldest_taken.map_or(at, |oldest| oldest.min(at)));
        self.taken_bytes += dirty.bytes();
        self.taken.push_back(taken);
    }

    /// The next synced store, if it fits.
    fn take_arrival(&mut self, room: &mut Room) -> Option<Arrival> {
        loop {
            let front = self.arrivals.front()?;
            let is_large = self.shared.needs_own_segment(len(&front.dirty));
            if !is_large && !room.take(cost(&front.dirty)) {
                return None;
            }
            let arrival = self.arrivals.pop_front()?;
            if !is_large {
                return Some(arrival);
            }
            match self.writer.prepare_large(cost(&arrival.dirty)) {
                Ok(()) => return Some(arrival),
                // Nobody else waits for the one that is too large for the disk.
                Err(error) => self.refuse(arrival, &error),
            }
        }
    }

    fn refuse(&self, arrival: Arrival, error: &std::io::Error) {
        self.shared.table.lock(&arrival.id).pending.arrive(&arrival.id);
        if error.kind() == std::io::ErrorKind::StorageFull {
            tracing::warn!(id = %arrival.id, %error, "no room for a message that is larger than a segment");
        } else {
            // A disk that can't write this file can't write the others.
            self.shared.disk_error(Site::JournalWrite, error);
        }
        if arrival.verdict.commit() {
            // The caller may be gone.
            let _ = arrival.done.send(Outcome::Refused);
        }
    }

    /// The next flushed version that was not replaced or removed meanwhile, if it fits.
    fn take_ticket(&mut self, room: &mut Room) -> Option<(Ticket, Arc<Dirty>)> {
        while let Some(ticket) = self.backlog.front().copied() {
            let mut shard = self.shared.table.lock(&ticket.id);
            let Some(dirty) = shard.pending.peek(&ticket) else {
                // Replaced a moment ago: its place in the order is inherited.
                let replaced_at = shard.pending.replaced_at(&ticket);
                drop(shard);
                self.backlog.pop_front();
                if let Some(at) = replaced_at {
                    self.backlog.extend(self.shared.table.drain_tickets(at));
                }
                continue;
            };
            // A newer version of it may be on its way to the disk already, and must not be written before this one. When it is durable there is
            // nothing to write here; if its caller has given up, this one is to be written after its abort.
            let published = self.taken.is_empty() && self.landed.is_empty();
            if !published && shard.pending.is_under_way(&ticket.id) {
                self.waits_for_other = true;
                return None;
            }
            if !room.take(cost(&dirty)) {
                return None;
            }
            shard.pending.commit(&ticket);
            self.backlog.pop_front();
            return Some((ticket, dirty));
        }
        None
    }

    /// Where no segment is left for messages, removes are written all the same: they are what frees one.
    fn take_removes(&mut self, batch: &mut Vec<(u64, Taken)>) {
        let mut room = self.writer.room(true);
        let mut is_full = false;
        self.backlog.retain(|ticket| {
            if is_full {
                return true;
            }
            let mut shard = self.shared.table.lock(&ticket.id);
            let Some(dirty) = shard.pending.peek(ticket) else { return false };
            // An older put of the id that still waits must not be written after its removal.
            let waits = dirty.data.is_some() || shard.pending.is_under_way(&ticket.id);
            if waits {
                return true;
            }
            // All removes are of one size: with the first that does not fit, the look through a long backlog is over.
            is_full = !room.take(cost(&dirty));
            if is_full {
                return true;
            }
            shard.pending.commit(ticket);
            batch.push((ticket.version, Taken::Ticketed(*ticket, dirty)));
            false
        });
    }

    fn drop_cancelled(&mut self) {
        let table = &self.shared.table;
        self.arrivals.retain(|arrival| {
            let cancelled = arrival.verdict.is_cancelled();
            if cancelled {
                table.lock(&arrival.id).pending.arrive(&arrival.id);
            }
            !cancelled
        });
    }
}

/// Bytes of the journal that a version takes.
fn cost(dirty: &Dirty) -> u64 {
    footprint(len(dirty))
}

fn len(dirty: &Dirty) -> u64 {
    dirty.data.as_ref().map_or(0, |data| data.len() as u64)
}
