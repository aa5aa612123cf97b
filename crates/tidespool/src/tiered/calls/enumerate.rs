//! `enumerate`: sends every live message once, on a thread of its own.
//!
//! It sends the messages in memory first, then the other messages in the index on disk. A message
//! only moves down, from memory into that index, so none is missed. The ids found in memory are
//! remembered, so none is sent twice. Their number is bounded by the journal's capacity, as the
//! index is.
//!
//! Messages are taken a few hundred at a time, and read in the order of their places on disk. A
//! message that was read ahead is sent only if it is still the newest version when the whole batch
//! has been read. Otherwise, or if the receiver is slow, the message is looked up by itself.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::{Sender, TrySendError};
use chrono::{DateTime, Utc};
use futures_lite::future;
use tidespool_core::{Closed, SpoolEntry};

use super::lookup::{InMemory, LookupError, in_memory, index_failed, on_disk};
use crate::checkpoint::place_of_record;
use crate::index::{Key, KeyRange, Record};
use crate::journal::{NewestRecord, RecordPlace};
use crate::message_id::MessageId;
use crate::tiered::state::{NotRead, Shared, SpoolPart};

/// Messages per step. No scan of the index is open while an entry waits to be received.
const STEP: usize = 256;

/// Maximum bytes that are read ahead at once. A single larger message is read whole.
const AHEAD: u64 = 2 << 20;

/// First and longest pause after a transient read error.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// One enumeration.
pub(in crate::tiered) struct Enumeration {
    pub(in crate::tiered) shared: Arc<Shared>,
    pub(in crate::tiered) spool: Arc<SpoolPart>,
    pub(in crate::tiered) sender: Sender<SpoolEntry>,
    pub(in crate::tiered) start_time: DateTime<Utc>,
}

/// The receiver is gone, the spool is closing, or an early end was sent.
struct Stopped;

impl Enumeration {
    /// Sends all messages, then drops the sender, which closes the channel.
    pub(in crate::tiered) fn run(self) {
        // The receiver gets no other notice of the end than the closed channel.
        let _ = self.send_all();
    }

    fn send_all(&self) -> Result<(), Stopped> {
        let InMemoryIds { seen, newer, in_journal } = self.ids_in_memory();
        for step in in_journal.chunks(STEP) {
            let found = step.iter().map(|(id, newest)| (*id, newest.map_or(Body::Unknown, Body::Indexed)));
            self.send_step(found.collect(), None)?;
        }
        drop(in_journal);
        for range in KeyRange::created_before(self.spool.number, self.start_time) {
            let mut left = range;
            loop {
                let exits = self.exits();
                let records = self.next_records(&left)?;
                let Some((last, _)) = records.last() else { break };
                left = left.after(last);
                let found = records
                    .into_iter()
                    .map(|(key, record)| (key.message(), Body::At(place_of_record(&record))));
                self.send_step(found.filter(|(id, _)| !seen.contains(id)).collect(), Some(exits))?;
            }
        }
        self.report_newer(&newer)
    }

    /// Counts and logs the messages that are left out although they were in the spool before this
    /// opening. The log must show them, because no other enumeration covers them. `newer`: those in
    /// the index.
    fn report_newer(&self, newer: &Ids) -> Result<(), Stopped> {
        // The messages that only the index on disk has are not remembered: their number is
        // unbounded.
        let mut messages = newer.len() as u64;
        for range in KeyRange::created_from(self.spool.number, self.start_time) {
            let mut left = range;
            loop {
                let records = self.next_records(&left)?;
                let Some((last, _)) = records.last() else { break };
                left = left.after(last);
                for (key, record) in records {
                    let is_old = record.seq < self.shared.first_seq;
                    let id = key.message();
                    if is_old && self.is_only_on_disk(&id) && !newer.contains(&id) {
                        messages += 1;
                    }
                }
            }
        }
        if messages > 0 {
            self.spool.stats.skipped_newer(messages);
            tracing::warn!(
                messages,
                start_time = %self.start_time,
                "an enumeration left out messages that were in the spool when it was opened: their ids are newer \
                 than the start time, as if the clock was ahead then; enumerate with a later start time to get them"
            );
        }
        Ok(())
    }

    /// True if memory has no version of the message, so that the version on disk is the newest.
    fn is_only_on_disk(&self, id: &MessageId) -> bool {
        let shard = self.shared.table.lock(id);
        shard.index.get(id).is_none() && shard.pending.get(id).is_none()
    }

    /// Collects the ids in memory at the start of the enumeration.
    fn ids_in_memory(&self) -> InMemoryIds {
        let (mut ids, mut newer, mut order) = (Ids::default(), Ids::default(), Vec::new());
        for shard in self.shared.table.shards() {
            let is_put =
                |(id, newest): &(MessageId, NewestRecord)| self.is_of_spool(id) && newest.place.is_some();
            for (id, newest) in shard.index.iter().filter(is_put) {
                if !self.is_wanted(&id) {
                    if newest.seq < self.shared.first_seq && shard.pending.get(&id).is_none() {
                        newer.insert(id);
                    }
                } else if ids.insert(id) {
                    order.push((id, Some(newest)));
                }
            }
            for (id, _) in shard.pending.ids().filter(|(id, is_put)| *is_put && self.is_of_spool(id)) {
                if self.is_wanted(&id) && ids.insert(id) {
                    order.push((id, None));
                }
            }
        }
        order.sort_unstable_by_key(|(_, newest)| newest.and_then(|newest| newest.place).map(position));
        InMemoryIds { seen: ids, newer, in_journal: order }
    }

    fn is_of_spool(&self, message: &MessageId) -> bool {
        message.spool() == self.spool.number
    }

    fn is_wanted(&self, message: &MessageId) -> bool {
        message.id().created().is_none_or(|created| created < self.start_time)
    }

    /// Returns the next records of the index in `range`. They are read on a reading thread: the
    /// engine caches what it reads, and the allocator does not soon reuse memory of a thread that
    /// has ended.
    fn next_records(&self, range: &KeyRange) -> Result<Vec<(Key, Record)>, Stopped> {
        let read = self.retry(|| {
            let (shared, range) = (self.shared.clone(), range.clone());
            match future::block_on(self.shared.readers.run(move || scan_step(&shared, &range))) {
                Ok(scanned) => scanned.map(Ok),
                Err(NotRead::Closed) => Ok(Err(Closed)),
                Err(NotRead::Panicked(error)) => Err(error.to_string()),
            }
        })?;
        read.map_err(|Closed| Stopped)
    }

    /// Returns how many ids have moved from the index in memory to that on disk.
    fn exits(&self) -> u64 {
        self.shared.table.shards().fold(0, |sum, shard| sum.wrapping_add(shard.exits))
    }

    /// Sends the messages of a step, in order. `exits` is the count from before they were found in
    /// disk. `None`: they were found in memory.
    fn send_step(&self, step: Vec<(MessageId, Body)>, exits: Option<u64>) -> Result<(), Stopped> {
        if self.sender.is_closed() || self.shared.closing.is_closed() {
            return Err(Stopped);
        }
        let mut step = step.into_iter().peekable();
        while step.peek().is_some() {
            let (mut some, mut bytes) = (Vec::with_capacity(STEP), 0);
            while let Some((id, body)) =
                step.next_if(|(_, body)| some.is_empty() || bytes + body.len() <= AHEAD)
            {
                bytes += body.len();
                some.push((id, body));
            }
            self.send_read_ahead(some, exits)?;
        }
        Ok(())
    }

    fn send_read_ahead(&self, some: Vec<(MessageId, Body)>, exits: Option<u64>) -> Result<(), Stopped> {
        let mut payloads = self.read_ahead(&some);
        let newest: Vec<bool> = some.iter().map(|(id, body)| self.is_newest(id, body)).collect();
        // If no id has moved to disk since, a message that is not in memory now is unchanged
        // there.
        let is_disk_unchanged = || exits.is_none_or(|exits| exits == self.exits());
        let (mut is_fresh, mut has_waited) = (is_disk_unchanged(), false);
        for (number, (id, body)) in some.into_iter().enumerate() {
            let is_newest = is_fresh && newest[number] && (!has_waited || self.is_newest(&id, &body));
            let data = match body {
                Body::Indexed(_) | Body::At(_) => payloads[number].take(),
                Body::Unknown => None,
            };
            let at_once = match data.filter(|_| is_newest) {
                Some(data) => self.send(SpoolEntry::Item { id: id.id(), data })?,
                None => {
                    self.send_message(id)?;
                    // The lookup may have waited for the disk.
                    false
                }
            };
            if !at_once {
                has_waited = true;
                is_fresh = is_fresh && is_disk_unchanged();
            }
        }
        Ok(())
    }

    /// True if memory has no version that is newer than `body`.
    fn is_newest(&self, id: &MessageId, body: &Body) -> bool {
        let shard = self.shared.table.lock(id);
        let indexed = shard.index.get(id).map(|newest| newest.seq);
        let as_found = match body {
            Body::Indexed(newest) => indexed == Some(newest.seq),
            Body::At(_) => indexed.is_none(),
            Body::Unknown => false,
        };
        as_found && shard.pending.get(id).is_none()
    }

    /// Reads the payloads with a known place in a segment, in the order of their places. `None`:
    /// the message has to be looked up by itself.
    fn read_ahead(&self, some: &[(MessageId, Body)]) -> Vec<Option<Vec<u8>>> {
        let mut order: Vec<(usize, MessageId, RecordPlace)> = some
            .iter()
            .enumerate()
            .filter_map(|(number, (id, body))| Some((number, *id, body.place()?)))
            .collect();
        order.sort_unstable_by_key(|(_, _, place)| position(*place));
        let mut payloads: Vec<Option<Vec<u8>>> = some.iter().map(|_| None).collect();
        for same in order.chunk_by(|(_, _, one), (_, _, other)| one.generation == other.generation) {
            let Some(segment) = self.shared.segments.get(same[0].2.generation) else { continue };
            let puts: Vec<(MessageId, RecordPlace)> =
                same.iter().map(|(_, id, place)| (*id, *place)).collect();
            for (payload, (number, ..)) in
                segment.read_puts(self.shared.segments.salt(), &puts).into_iter().zip(same)
            {
                payloads[*number] = payload;
            }
        }
        payloads
    }

    fn send_message(&self, message: MessageId) -> Result<(), Stopped> {
        let id = message.id();
        let entry = self.retry(|| match in_memory(&self.shared, &message) {
            InMemory::Found(data, _) => Ok(Some(SpoolEntry::Item { id, data: data.to_vec() })),
            InMemory::Removed => Ok(None),
            InMemory::Elsewhere(_) => match on_disk(&self.shared, &message) {
                Ok(found) => Ok(found.map(|found| SpoolEntry::Item { id, data: found.data })),
                Err(LookupError::Corrupt(error)) => Ok(Some(SpoolEntry::Corrupt { id, error })),
                Err(LookupError::Io(error)) => Err(error.to_string()),
                Err(LookupError::Rebuilding(error)) => Err(error.to_string()),
            },
        })?;
        match entry {
            Some(entry) => self.send(entry).map(drop),
            None => Ok(()),
        }
    }

    /// Repeats `attempt` until it succeeds: a transient error must neither hide a message nor be
    /// reported as damage. Ends the enumeration early after `Config::enumerate_wait` without
    /// progress.
    fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, Stopped> {
        let mut pause = RETRY.0;
        let (mut rebuilt, mut since) = (self.shared.rebuilding.progress(), Instant::now());
        loop {
            let error = match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let now = self.shared.rebuilding.progress();
            if now != rebuilt {
                (rebuilt, since) = (now, Instant::now());
            }
            if since.elapsed() >= self.shared.config.load().enumerate_wait() {
                tracing::error!(%error, "an enumeration ends early: the messages that it left out stay in the spool");
                self.send(SpoolEntry::early_end(&error))?;
                return Err(Stopped);
            }
            tracing::warn!(%error, "an enumeration waits for the disk");
            if self.sender.is_closed() || self.shared.closing.wait(pause) {
                return Err(Stopped);
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Sends an entry. Returns false if it had to wait for the receiver.
    fn send(&self, entry: SpoolEntry) -> Result<bool, Stopped> {
        let entry = match self.sender.try_send(entry) {
            Ok(()) => return Ok(true),
            Err(TrySendError::Closed(_)) => return Err(Stopped),
            Err(TrySendError::Full(entry)) => entry,
        };
        let sent = async { self.sender.send(entry).await.map_err(|_| Stopped) };
        let closing = async {
            self.shared.closing.closed().await;
            Err(Stopped)
        };
        future::block_on(future::or(sent, closing))?;
        Ok(false)
    }
}

/// Reads the first records in `range`, at most [`STEP`].
fn scan_step(shared: &Shared, range: &KeyRange) -> Result<Vec<(Key, Record)>, String> {
    let mut records = Vec::with_capacity(STEP);
    let scanned = shared.disk_index.scan(std::slice::from_ref(range), &mut |key, record| {
        records.push((key, record));
        records.len() < STEP
    });
    match scanned {
        Ok(()) => Ok(records),
        Err(error) => {
            index_failed(shared, &error);
            Err(error.to_string())
        }
    }
}

/// The ids in memory at the start of an enumeration.
struct InMemoryIds {
    /// All ids that are to be sent.
    seen: Ids,
    /// The ids that are newer than the start time and were in the spool before this opening.
    newer: Ids,
    /// All of `seen` with their entries in the index, in the order of their places in the journal.
    in_journal: Vec<(MessageId, Option<NewestRecord>)>,
}

type Ids = HashSet<MessageId, foldhash::fast::RandomState>;

/// Where the newest version of a message was found.
enum Body {
    /// In the journal.
    Indexed(NewestRecord),
    /// At this place, by the index on disk.
    At(RecordPlace),
    /// In memory, dirty.
    Unknown,
}

impl Body {
    fn place(&self) -> Option<RecordPlace> {
        match self {
            Self::Indexed(newest) => newest.place,
            Self::At(place) => Some(*place),
            Self::Unknown => None,
        }
    }

    /// Bytes to be read.
    fn len(&self) -> u64 {
        self.place().map_or(0, |place| u64::from(place.len))
    }
}

/// The key that sorts places in the order in which they are on disk.
const fn position(place: RecordPlace) -> (u64, u64) {
    (place.generation, place.offset)
}
