//! What goes into the next batch.

use std::sync::Arc;

use super::intake::Answer;
use super::queue::{Arrival, Outcome};
use super::{Committer, Taken, check_abort};
use crate::journal::{self, JournalChange, JournalRoom, PAGE, payload_crc};
use crate::memory::{Dirty, Ticket};
use crate::stats::Site;
use crate::storage::is_no_room;

/// A batch ends at about so many bytes of flushed data.
const BATCH_BYTES: u64 = 8 << 20;

/// And so many records of it: a removal is small on disk, and about 400 bytes in the tables that it passes through.
const BATCH_RECORDS: usize = 16 * 1024;

/// Where a synced store waits for the same batch: so much flushed data joins it, and no more, for each record costs it time.
const JOINING: (u64, usize) = (1 << 20, 512);

impl Committer {
    /// Appends what waits and fits: all synced stores, and flushed data up to [`BATCH_BYTES`].
    pub(super) fn append_batch(&mut self) {
        self.intake.drop_cancelled(&self.shared.table);
        (self.waits_for_other, self.blocked) = (false, false);
        self.find_abandoned();
        if self.writer.has_unwritten() {
            // While a batch has to be tried again nothing is added to it.
            return;
        }
        let mut batch = Vec::new();
        if self.append_aborts() > 0 {
            // They are in nobody's way, and what is left of the room is known when they are written.
            return;
        }
        let mut room = self.writer.room(false);
        let mut is_large = false;
        // What came after a store had failed in doubt is never durable before the abort of that
        // store.
        while self.aborts.is_empty()
            && !is_large
            && let Some(arrival) = self.take_arrival(&mut room)
        {
            // It ends its segment and the batch: what follows it is packed anew.
            is_large = self.shared.needs_own_segment(len(&arrival.dirty));
            batch.push((arrival.version, Taken::Arrived(arrival)));
        }
        let (bytes, records) = self.share_of_flushed(!batch.is_empty() || self.writer.is_syncing());
        let (mut taken, end) = (0, batch.len().saturating_add(records));
        while !is_large && self.intake.next_arrival().is_none() && taken < bytes && batch.len() < end {
            let Some((ticket, dirty)) = self.take_ticket(&mut room) else { break };
            taken += cost(&dirty);
            batch.push((ticket.version, Taken::Ticketed(ticket, dirty)));
        }
        if batch.is_empty() && !self.waits_for_other {
            self.take_removes(&mut batch);
        }
        let has_work = !self.intake.is_empty() || !self.aborts.is_empty();
        self.blocked = batch.is_empty() && has_work && !self.waits_for_other;
        // For one id, what is newer must be written later.
        batch.sort_unstable_by_key(|(version, _)| *version);
        for (_, taken) in batch {
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
        for (id, target) in self.aborts.drain(..aborts) {
            self.writer.append(id, JournalChange::Abort(target));
            self.taken.push_back(Taken::Abort(id));
            self.shared.stats.aborted();
        }
        aborts
    }

    /// Finds the stores that their callers have abandoned, durable or not: an abort need not wait
    /// until its put is durable.
    fn find_abandoned(&mut self) {
        if !self.shared.commit_queue.take_abandoned() {
            return;
        }
        self.publish_landed();
        // They are the writer's last records, one for one.
        let first = self.writer.last_seq() + 1 - self.taken.len() as u64;
        for (seq, taken) in (first..).zip(&mut self.taken) {
            let Taken::Arrived(arrival) = taken else { continue };
            if arrival.verdict.is_abandoned() {
                check_abort(&self.shared, arrival);
                self.aborts.push((arrival.id, seq));
                *taken = Taken::Abandoned(arrival.dirty.clone());
            }
        }
    }

    /// Bytes and records of flushed data that the next batch may take.
    fn share_of_flushed(&self, joining: bool) -> (u64, usize) {
        match joining && self.intake.has_tickets() && !self.is_late() {
            true => JOINING,
            false => (BATCH_BYTES, BATCH_RECORDS),
        }
    }

    fn append(&mut self, taken: Taken) {
        if let Taken::Arrived(arrival) = &taken
            && !arrival.verdict.append()
        {
            // Its caller gave up a moment ago.
            self.let_go(arrival);
            return;
        }
        let (id, version, at, dirty) = match &taken {
            Taken::Ticketed(ticket, dirty) => (ticket.id, ticket.version, ticket.at, dirty),
            Taken::Arrived(Arrival { id, version, at, dirty, .. }) => (*id, *version, *at, dirty),
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
        self.writer.append(id, change);
        self.oldest_taken = Some(self.oldest_taken.map_or(at, |oldest| oldest.min(at)));
        self.taken_bytes += dirty.bytes();
        self.taken.push_back(taken);
    }

    /// The next synced store, if it fits.
    fn take_arrival(&mut self, room: &mut JournalRoom) -> Option<Arrival> {
        loop {
            let front = self.intake.next_arrival()?;
            let is_large = self.shared.needs_own_segment(len(&front.dirty));
            if !is_large && !room.take(cost(&front.dirty)) {
                return None;
            }
            let arrival = self.intake.take_arrival()?;
            if !is_large {
                return Some(arrival);
            }
            match self.writer.prepare_large(len(&arrival.dirty)) {
                Ok(()) => return Some(arrival),
                // Nobody else waits for the one that is too large for the disk.
                Err(error) => self.refuse(arrival, &error),
            }
        }
    }

    fn refuse(&self, arrival: Arrival, error: &std::io::Error) {
        self.shared.table.lock(&arrival.id).pending.arrive(&arrival.id);
        if is_no_room(error) {
            tracing::warn!(id = %arrival.id, %error, "no room for a message that is larger than a segment");
        } else {
            // A disk that can't write this file can't write the others.
            self.shared.disk_error(Site::JournalWrite, error);
        }
        // The caller may be gone.
        let _ = arrival.done.send(Outcome::Refused);
    }

    /// The next flushed version that was not replaced or removed meanwhile, if it fits.
    fn take_ticket(&mut self, room: &mut JournalRoom) -> Option<(Ticket, Arc<Dirty>)> {
        while let Some(ticket) = self.intake.next_ticket() {
            let mut shard = self.shared.table.lock(&ticket.id);
            let Some(dirty) = shard.pending.peek(&ticket) else {
                self.intake.drop_stale(&mut shard.pending);
                continue;
            };
            // A newer version of it may be on its way to the disk already, and must not be written before this one. When it is durable there is
            // nothing to write here; if its caller has given up, this one is to be written after its abort.
            let published = self.taken.is_empty() && self.landed.is_empty();
            if !published && shard.pending.has_other_under_way(&ticket) {
                self.waits_for_other = true;
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

    /// Where no segment is left for messages, removes are written all the same: they are what frees one.
    fn take_removes(&mut self, batch: &mut Vec<(u64, Taken)>) {
        let mut room = self.writer.room(true);
        self.intake.offer_all(&self.shared.table, |ticket, dirty, pending| {
            // There is no room for it, and its removal, which must not be written before it, frees
            // some.
            if let Some(elided) = pending.end_pledge_of_removed(ticket) {
                self.shared.stats.elided(1, elided.bytes());
                return Answer::LetGo;
            }
            // An older put of the id that still waits must not be written after its removal.
            if dirty.data.is_some() || pending.has_other_under_way(ticket) {
                return Answer::Passed;
            }
            // All removes are of one size: with the first that does not fit, the look through a long backlog is over.
            if !room.take(cost(&dirty)) {
                return Answer::Full;
            }
            pending.commit(ticket);
            batch.push((ticket.version, Taken::Ticketed(*ticket, dirty)));
            Answer::Taken
        });
    }

    /// A store that was cancelled after its place in the batch was found.
    fn let_go(&mut self, arrival: &Arrival) {
        self.shared.table.lock(&arrival.id).pending.arrive(&arrival.id);
        if self.shared.needs_own_segment(len(&arrival.dirty)) {
            self.writer.discard_prepared();
        }
    }
}

/// Bytes of the journal that a version takes.
fn cost(dirty: &Dirty) -> u64 {
    journal::cost(len(dirty))
}

fn len(dirty: &Dirty) -> u64 {
    dirty.data.as_ref().map_or(0, |data| data.len() as u64)
}
