//! `enumerate`: every live message once, on a thread of its own.
//!
//! First the ids that memory knows, then what sled has beside them. A message can only move down, from memory into sled, so none is
//! missed; those seen in memory are remembered, so none comes twice. What is remembered is bounded as the index is: by the
//! journal's capacity.
//!
//! Both are taken a few hundred at a time, and read in the order in which they stand on disk. What was read so is sent only if it is still the newest
//! version when all of it has been read; if not, or if the receiver lets it wait, each message is looked up by itself.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::{Sender, TrySendError};
use chrono::{DateTime, Utc};
use futures_lite::future;
use tidespool_core::{Closed, SpoolEntry, SpoolId};

use super::lookup::{InMemory, LookupError, in_memory, index_failed, on_disk};
use crate::checkpoint::place_of_record;
use crate::durable::{Key, KeyRange, Record};
use crate::journal::{NewestRecord, RecordPlace};
use crate::tiered::background::readers::NotRead;
use crate::tiered::shared::Shared;

/// Messages taken at once. No scan of sled is open while an entry waits to be received.
const STEP: usize = 256;

/// Of those, so many bytes are read ahead at once; more only where a single message has more.
const AHEAD: u64 = 2 << 20;

/// First and longest pause after a read error that may pass.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// One enumeration.
pub(in crate::tiered) struct Enumeration {
    pub(in crate::tiered) shared: Arc<Shared>,
    pub(in crate::tiered) sender: Sender<SpoolEntry>,
    pub(in crate::tiered) start_time: DateTime<Utc>,
}

/// The receiver is gone, the spool is closing, or an early end was sent.
struct Stopped;

impl Enumeration {
    /// Sends everything. The end is the sender being dropped.
    pub(in crate::tiered) fn run(self) {
        // However it ends, there is nobody to tell but the receiver, who sees the channel closed.
        let _ = self.send_all();
    }

    fn send_all(&self) -> Result<(), Stopped> {
        let Known { seen, newer, in_journal } = self.ids_in_memory();
        for step in in_journal.chunks(STEP) {
            let found = step.iter().map(|(id, newest)| (*id, newest.map_or(Body::Unknown, Body::Indexed)));
            self.send_step(found.collect(), None)?;
        }
        drop(in_journal);
        for range in KeyRange::created_before(self.start_time) {
            let mut left = range;
            loop {
                let exits = self.exits();
                let records = self.next_records(&left)?;
                let Some((last, _)) = records.last() else { break };
                left = left.after(last);
                let found =
                    records.into_iter().map(|(key, record)| (key.id(), Body::At(place_of_record(&record))));
                self.send_step(found.filter(|(id, _)| !seen.contains(id)).collect(), Some(exits))?;
            }
        }
        self.report_newer(&newer)
    }

    /// Counts what is left out though it was in the spool before this opening, and logs the number.
    /// The log must show it: no other enumeration asks for these messages. `newer`: those that the
    /// index names.
    fn report_newer(&self, newer: &Ids) -> Result<(), Stopped> {
        // Those that only sled has are not remembered: there may be any number of them.
        let mut messages = newer.len() as u64;
        for range in KeyRange::created_from(self.start_time) {
            let mut left = range;
            loop {
                let records = self.next_records(&left)?;
                let Some((last, _)) = records.last() else { break };
                left = left.after(last);
                for (key, record) in records {
                    let is_old = record.seq < self.shared.first_seq;
                    let id = key.id();
                    if is_old && self.is_only_filed(&id) && !newer.contains(&id) {
                        messages += 1;
                    }
                }
            }
        }
        if messages > 0 {
            self.shared.stats.skipped_newer(messages);
            tracing::warn!(
                messages,
                start_time = %self.start_time,
                "an enumeration left out messages that were there before the spool was opened: their ids are newer than its start time, as after a \
                 clock that was ahead; enumerate with a later start time to get them"
            );
        }
        Ok(())
    }

    /// Nothing in memory is newer than what is in sled.
    fn is_only_filed(&self, id: &SpoolId) -> bool {
        let shard = self.shared.table.lock(id);
        shard.index.get(id).is_none() && shard.pending.get(id).is_none()
    }

    /// What is in memory when the enumeration begins.
    fn ids_in_memory(&self) -> Known {
        let (mut ids, mut newer, mut order) = (Ids::default(), Ids::default(), Vec::new());
        for shard in self.shared.table.shards() {
            for (id, newest) in shard.index.iter().filter(|(_, newest)| newest.place.is_some()) {
                if !self.is_wanted(&id) {
                    if newest.seq < self.shared.first_seq && shard.pending.get(&id).is_none() {
                        newer.insert(id);
                    }
                } else if ids.insert(id) {
                    order.push((id, Some(newest)));
                }
            }
            for (id, _) in shard.pending.ids().filter(|(_, is_put)| *is_put) {
                if self.is_wanted(&id) && ids.insert(id) {
                    order.push((id, None));
                }
            }
        }
        order.sort_unstable_by_key(|(_, newest)| newest.and_then(|newest| newest.place).map(position));
        Known { seen: ids, newer, in_journal: order }
    }

    fn is_wanted(&self, id: &SpoolId) -> bool {
        id.created().is_none_or(|created| created < self.start_time)
    }

    /// What sled has next in `range`. Read on a reading thread: sled keeps what it reads, and memory that was taken on a thread which then ends is
    /// not used again for long.
    fn next_records(&self, range: &KeyRange) -> Result<Vec<(Key, Record)>, Stopped> {
        let read = self.patiently(|| {
            let (shared, range) = (self.shared.clone(), range.clone());
            match future::block_on(self.shared.readers.run(move || scan_step(&shared, &range))) {
                Ok(scanned) => scanned.map(Ok),
                Err(NotRead::Closed) => Ok(Err(Closed)),
                Err(NotRead::Panicked(error)) => Err(error.to_string()),
            }
        })?;
        read.map_err(|Closed| Stopped)
    }

    /// How many ids have left the index for sled.
    fn exits(&self) -> u64 {
        self.shared.table.shards().fold(0, |sum, shard| sum.wrapping_add(shard.exits))
    }

    /// Sends these, in their order. `exits` is from before they were found in sled; `None`: they were found in memory.
    fn send_step(&self, step: Vec<(SpoolId, Body)>, exits: Option<u64>) -> Result<(), Stopped> {
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

    fn send_read_ahead(&self, some: Vec<(SpoolId, Body)>, exits: Option<u64>) -> Result<(), Stopped> {
        let mut payloads = self.read_ahead(&some);
        let newest: Vec<bool> = some.iter().map(|(id, body)| self.is_newest(id, body)).collect();
        // Nothing came into sled since they were found there: what is not in memory now is in sled as it was.
        let is_filed_still = || exits.is_none_or(|exits| exits == self.exits());
        let (mut is_fresh, mut has_waited) = (is_filed_still(), false);
        for (number, (id, body)) in some.into_iter().enumerate() {
            let is_newest = is_fresh && newest[number] && (!has_waited || self.is_newest(&id, &body));
            let data = match body {
                Body::Indexed(_) | Body::At(_) => payloads[number].take(),
                Body::Unknown => None,
            };
            let at_once = match data.filter(|_| is_newest) {
                Some(data) => self.send(SpoolEntry::Item { id, data })?,
                None => {
                    self.send_message(id)?;
                    // It may have had to wait for the disk as well.
                    false
                }
            };
            if !at_once {
                has_waited = true;
                is_fresh = is_fresh && is_filed_still();
            }
        }
        Ok(())
    }

    /// Whether memory knows nothing newer.
    fn is_newest(&self, id: &SpoolId, body: &Body) -> bool {
        let shard = self.shared.table.lock(id);
        let indexed = shard.index.get(id).map(|newest| newest.seq);
        let as_found = match body {
            Body::Indexed(newest) => indexed == Some(newest.seq),
            Body::At(_) => indexed.is_none(),
            Body::Unknown => false,
        };
        as_found && shard.pending.get(id).is_none()
    }

    /// Reads the payloads that stand in segments, in the order in which they stand there. `None`: it has to be looked up by itself.
    fn read_ahead(&self, some: &[(SpoolId, Body)]) -> Vec<Option<Vec<u8>>> {
        let mut order: Vec<(usize, SpoolId, RecordPlace)> = some
            .iter()
            .enumerate()
            .filter_map(|(number, (id, body))| Some((number, *id, body.place()?)))
            .collect();
        order.sort_unstable_by_key(|(_, _, place)| position(*place));
        let mut payloads: Vec<Option<Vec<u8>>> = some.iter().map(|_| None).collect();
        for same in order.chunk_by(|(_, _, one), (_, _, other)| one.generation == other.generation) {
            let Some(segment) = self.shared.segments.get(same[0].2.generation) else { continue };
            let puts: Vec<(SpoolId, RecordPlace)> = same.iter().map(|(_, id, place)| (*id, *place)).collect();
            for (payload, (number, ..)) in
                segment.read_puts(self.shared.segments.salt(), &puts).into_iter().zip(same)
            {
                payloads[*number] = payload;
            }
        }
        payloads
    }

    fn send_message(&self, id: SpoolId) -> Result<(), Stopped> {
        let entry = self.patiently(|| match in_memory(&self.shared, &id) {
            InMemory::Found(data, _) => Ok(Some(SpoolEntry::Item { id, data: data.to_vec() })),
            InMemory::Removed => Ok(None),
            InMemory::Elsewhere(_) => match on_disk(&self.shared, &id) {
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

    /// Tries until it succeeds: an error that may pass must neither hide a message nor be reported
    /// as damage. It ends early if nothing gets on for as long as the setting `enumerate_wait`.
    fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, Stopped> {
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
            if since.elapsed() >= self.shared.config.load().enumerate_wait {
                tracing::error!(%error, "an enumeration ends early: messages are left out, and stay in the spool");
                self.send(SpoolEntry::early_end(&error))?;
                return Err(Stopped);
            }
            tracing::warn!(%error, "enumerating waits for the disk");
            if self.sender.is_closed() || self.shared.closing.wait(pause) {
                return Err(Stopped);
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Sends it. `false`: it had to wait for that.
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

/// The first records in `range`, [`STEP`] at most.
fn scan_step(shared: &Shared, range: &KeyRange) -> Result<Vec<(Key, Record)>, String> {
    let mut records = Vec::with_capacity(STEP);
    let scanned = shared.durable.scan(std::slice::from_ref(range), &mut |key, record| {
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

/// What is in memory of the messages.
struct Known {
    /// Every id that is to be sent.
    seen: Ids,
    /// Those that are newer than the start time, and were there before this opening.
    newer: Ids,
    /// All of `seen`, with the entry of each in the index, in the order in which they stand in the
    /// journal.
    in_journal: Vec<(SpoolId, Option<NewestRecord>)>,
}

type Ids = HashSet<SpoolId, foldhash::fast::RandomState>;

/// Where the newest version of a message was found.
enum Body {
    /// In the journal.
    Indexed(NewestRecord),
    /// In a retained segment.
    At(RecordPlace),
    /// Dirty.
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

    /// Bytes to be read for it.
    fn len(&self) -> u64 {
        self.place().map_or(0, |place| u64::from(place.len))
    }
}

/// What comes first on disk comes first.
const fn position(place: RecordPlace) -> (u64, u64) {
    (place.generation, place.offset)
}
