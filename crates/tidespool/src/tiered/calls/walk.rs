//! The walk over all messages of a spool, which `enumerate`, `list` and `unpaired` share. It runs
//! on a thread of its own.
//!
//! It visits the messages in memory first, then the other messages in the index on disk. A message
//! only moves down, from memory into that index, so none is missed. The ids found in memory are
//! remembered, so none is visited twice. Their number is bounded by the journal's capacity, as the
//! index is.
//!
//! Messages are taken a few hundred at a time. No scan of the index is open while an entry waits to
//! be received.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_channel::{Sender, TrySendError};
use chrono::{DateTime, Utc};
use futures_lite::future;
use parking_lot::Mutex;
use tidespool_core::Closed;

use super::lookup::{Located, LookupError, Tier, index_failed, locate};
use crate::checkpoint::place_of_record;
use crate::index::{Key, KeyRange, Record};
use crate::journal::{NewestRecord, RecordPlace};
use crate::message_id::MessageId;
use crate::tiered::state::{NotRead, Shared, SpoolPart};

/// Messages per step.
pub(super) const STEP: usize = 256;

/// First and longest pause after a transient read error.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The shortest time without progress after which a walk counts as hanging. Longer than the pause
/// between two attempts.
pub(in crate::tiered) const SHORTEST_HANG: Duration = RETRY.1.saturating_mul(2);

/// What a walk does with the messages that it finds.
pub(in crate::tiered) trait Visitor: Sized + Send + 'static {
    /// What is sent to the receiver at once.
    type Sent: Send + 'static;

    /// Payloads are read. The messages in memory are then visited in the order of their places on
    /// disk, and those that are left out as too new are counted and logged.
    const READS_PAYLOADS: bool;

    /// Sends the messages of a step. `exits` is the count from before they were found in the index
    /// on disk. `None`: they were found in memory.
    fn visit(walk: &Walk<Self>, step: Vec<(MessageId, Body)>, exits: Option<u64>) -> Result<(), Stopped>;
}

/// One walk.
pub(in crate::tiered) struct Walk<V: Visitor> {
    pub(in crate::tiered) shared: Arc<Shared>,
    pub(in crate::tiered) spool: Arc<SpoolPart>,
    pub(in crate::tiered) start_time: DateTime<Utc>,
    pub(in crate::tiered) visitor: V,
    pub(in crate::tiered) sender: Sender<V::Sent>,
    /// For a receiver that has to know how the walk ended. Such a walk also ends with its spool.
    pub(in crate::tiered) state: Option<Arc<ScanState>>,
}

/// Why a walk ended early.
#[derive(Debug)]
pub(in crate::tiered) enum Stopped {
    ReceiverGone,
    /// The spool or the store is closing.
    Closed,
    /// The disk or the index failed for too long.
    Failed(io::Error),
}

/// What the thread of a walk reports to the receiver, beside the messages.
#[derive(Debug, Default)]
pub(in crate::tiered) struct ScanState {
    /// Counts the steps of the walk.
    steps: AtomicU64,
    /// `None` until the end, and after a panic.
    ended: Mutex<Option<Result<(), Stopped>>>,
}

impl ScanState {
    pub(super) fn note_progress(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets the result of the walk, before its sender is dropped.
    pub(in crate::tiered) fn end(&self, result: Result<(), Stopped>) {
        *self.ended.lock() = Some(result);
    }

    /// The number of steps so far.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// The result of a walk whose sender was dropped.
    pub(super) fn result(&self) -> anyhow::Result<()> {
        match self.ended.lock().take() {
            Some(Ok(())) => Ok(()),
            Some(Err(Stopped::Closed | Stopped::ReceiverGone)) => Err(Closed.into()),
            Some(Err(Stopped::Failed(error))) => Err(error.into()),
            None => Err(io::Error::other("a thread of the spool has died: see the log").into()),
        }
    }
}

impl<V: Visitor> Walk<V> {
    /// Visits all messages, and reports the end to the receiver.
    pub(in crate::tiered) fn run_scan(self) {
        let ended = self.run();
        if let Some(state) = &self.state {
            state.end(ended);
        }
    }

    /// Visits all messages.
    pub(super) fn run(&self) -> Result<(), Stopped> {
        let InMemoryIds { seen, newer, in_journal } = self.ids_in_memory();
        for step in in_journal.chunks(STEP) {
            self.check_open()?;
            let found = step.iter().map(|(id, newest)| (*id, newest.map_or(Body::Unknown, Body::Indexed)));
            V::visit(self, found.collect(), None)?;
        }
        drop(in_journal);
        for range in KeyRange::created_before(self.spool.number, self.start_time) {
            let mut left = range;
            loop {
                self.check_open()?;
                let exits = self.exits();
                let records = self.next_records(&left)?;
                let Some((last, _)) = records.last() else { break };
                left = left.after(last);
                let found = records
                    .into_iter()
                    .map(|(key, record)| (key.message(), Body::At(place_of_record(&record))));
                V::visit(self, found.filter(|(id, _)| !seen.contains(id)).collect(), Some(exits))?;
            }
        }
        if V::READS_PAYLOADS { self.report_newer(&newer) } else { Ok(()) }
    }

    fn check_open(&self) -> Result<(), Stopped> {
        self.note_progress();
        let ends_with_spool = self.state.is_some();
        match self.sender.is_closed() {
            true => Err(Stopped::ReceiverGone),
            false if self.shared.closing.is_closed() => Err(Stopped::Closed),
            false if ends_with_spool && self.spool.check_open().is_err() => Err(Stopped::Closed),
            false => Ok(()),
        }
    }

    fn note_progress(&self) {
        if let Some(state) = &self.state {
            state.note_progress();
        }
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
                self.note_progress();
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

    /// Collects the ids in memory at the start of the walk.
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
        if V::READS_PAYLOADS {
            order.sort_unstable_by_key(|(_, newest)| newest.and_then(|newest| newest.place).map(position));
        }
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
                Err(NotRead::Panicked(error)) => Err(error),
            }
        })?;
        read.map_err(|Closed| Stopped::Closed)
    }

    /// Returns how many ids have moved from the index in memory to that on disk.
    fn exits(&self) -> u64 {
        self.shared.table.shards().fold(0, |sum, shard| sum.wrapping_add(shard.exits))
    }

    /// True if no id has moved to disk since the count was `exits`: a message that is not in memory
    /// now is then unchanged there.
    pub(super) fn is_disk_unchanged(&self, exits: Option<u64>) -> bool {
        exits.is_none_or(|exits| exits == self.exits())
    }

    /// True if memory has no version that is newer than `body`.
    pub(super) fn is_newest(&self, id: &MessageId, body: &Body) -> bool {
        let shard = self.shared.table.lock(id);
        let indexed = shard.index.get(id).map(|newest| newest.seq);
        let as_found = match body {
            Body::Indexed(newest) => indexed == Some(newest.seq),
            Body::At(_) => indexed.is_none(),
            Body::Unknown => false,
        };
        as_found && shard.pending.get(id).is_none()
    }

    /// Looks a message up in all tiers, without its payload.
    pub(super) fn locate(&self, id: &MessageId) -> Result<Option<Located>, Stopped> {
        self.retry(|| locate(&self.shared, id).map_err(cause_of))
    }

    /// Repeats `attempt` until it succeeds: a transient error must neither hide a message nor be
    /// reported as damage. Ends the walk early after `Config::enumerate_wait` without progress.
    pub(super) fn retry<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> Result<T, Stopped> {
        let mut pause = RETRY.0;
        let (mut rebuilt, mut since) = (self.shared.rebuilding.progress(), Instant::now());
        loop {
            let error = match attempt() {
                Ok(done) => {
                    self.note_progress();
                    return Ok(done);
                }
                Err(error) => error,
            };
            let now = self.shared.rebuilding.progress();
            if now != rebuilt {
                (rebuilt, since) = (now, Instant::now());
            }
            if since.elapsed() >= self.shared.config.load().enumerate_wait() {
                tracing::error!(%error, "an enumeration ends early: the messages that it left out stay in the spool");
                return Err(Stopped::Failed(error));
            }
            tracing::warn!(%error, "an enumeration waits for the disk");
            self.check_open()?;
            if self.shared.closing.wait(pause) {
                return Err(Stopped::Closed);
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Sends to the receiver. Returns false if it had to wait for the receiver.
    pub(super) fn send(&self, entry: V::Sent) -> Result<bool, Stopped> {
        let entry = match self.sender.try_send(entry) {
            Ok(()) => return Ok(true),
            Err(TrySendError::Closed(_)) => return Err(Stopped::ReceiverGone),
            Err(TrySendError::Full(entry)) => entry,
        };
        let sent = async { self.sender.send(entry).await.map_err(|_| Stopped::ReceiverGone) };
        let closing = async {
            self.shared.closing.closed().await;
            Err(Stopped::Closed)
        };
        future::block_on(future::or(sent, closing))?;
        self.note_progress();
        Ok(false)
    }
}

/// The I/O error behind a failed lookup.
pub(super) fn cause_of(error: LookupError) -> io::Error {
    match error {
        LookupError::Io(error) | LookupError::Rebuilding(error) => error,
        LookupError::Corrupt(what) => io::Error::new(io::ErrorKind::InvalidData, what),
    }
}

/// Reads the first records in `range`, at most [`STEP`].
fn scan_step(shared: &Shared, range: &KeyRange) -> io::Result<Vec<(Key, Record)>> {
    let mut records = Vec::with_capacity(STEP);
    let scanned = shared.disk_index.scan(std::slice::from_ref(range), &mut |key, record| {
        records.push((key, record));
        records.len() < STEP
    });
    match scanned {
        Ok(()) => Ok(records),
        Err(error) => {
            index_failed(shared, &error);
            Err(io::Error::other(error.to_string()))
        }
    }
}

/// The ids in memory at the start of a walk.
struct InMemoryIds {
    /// All ids that are to be visited.
    seen: Ids,
    /// The ids that are newer than the start time and were in the spool before this opening.
    newer: Ids,
    /// All of `seen` with their entries in the index. If payloads are read, in the order of their
    /// places in the journal.
    in_journal: Vec<(MessageId, Option<NewestRecord>)>,
}

type Ids = HashSet<MessageId, foldhash::fast::RandomState>;

/// Where the newest version of a message was found.
pub(in crate::tiered) enum Body {
    /// In the journal.
    Indexed(NewestRecord),
    /// At this place, by the index on disk.
    At(RecordPlace),
    /// In memory, dirty.
    Unknown,
}

impl Body {
    pub(super) fn place(&self) -> Option<RecordPlace> {
        match self {
            Self::Indexed(newest) => newest.place,
            Self::At(place) => Some(*place),
            Self::Unknown => None,
        }
    }

    /// Bytes to be read.
    pub(super) fn len(&self) -> u64 {
        self.place().map_or(0, |place| u64::from(place.len))
    }

    /// What a lookup would return if this is the newest version. `None`: a lookup is needed.
    pub(super) fn located(&self) -> Option<Located> {
        let tier = match self {
            Self::Indexed(_) => Tier::Journal,
            Self::At(_) => Tier::Checkpointed,
            Self::Unknown => return None,
        };
        self.place().map(|_| Located { size: self.len(), tier })
    }
}

/// The key that sorts places in the order in which they are on disk.
pub(super) const fn position(place: RecordPlace) -> (u64, u64) {
    (place.generation, place.offset)
}
