//! `accept`: stores several messages in one transaction. All of them are durable, or none.
//!
//! The records of a transaction have consecutive numbers, and all but the last state that it
//! continues. A replay applies all of them or none. One sync covers all of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use tidespool_core::SpoolId;

use super::store::{
    ANSWER_GRACE, Claim, Deadline, Late, Refused, admit, check_size, refusal, wait_for_outcome,
};
use crate::journal::{cost, payload_crc};
use crate::memory::{Dirty, Permit};
use crate::message_id::MessageId;
use crate::store_error::AcceptError;
use crate::tiered::state::{Arrival, Outcome, Part, Shared, SpoolPart};

/// The most messages of a transaction. Its aborts, too, must fit into the smallest segment.
const MAX_MESSAGES: usize = 256;

/// A message to be stored.
pub(in crate::tiered) struct NewMessage {
    pub(in crate::tiered) part: Arc<SpoolPart>,
    pub(in crate::tiered) id: SpoolId,
    pub(in crate::tiered) data: Arc<Box<[u8]>>,
}

impl NewMessage {
    fn message(&self) -> MessageId {
        self.part.message(self.id)
    }

    fn len(&self) -> u64 {
        self.data.len() as u64
    }
}

/// Stores all messages, or none.
pub(in crate::tiered) async fn accept(
    shared: &Shared,
    mut messages: Vec<NewMessage>,
    deadline: Option<Instant>,
) -> Result<()> {
    check_list(&messages)?;
    check_sum(shared, &messages)?;
    // Large messages last: the room of the others is then known before any file is made for one.
    messages.sort_by_key(|message| shared.needs_own_segment(message.len()));
    match try_accept(shared, &messages, deadline).await {
        Ok(()) => {
            messages.iter().for_each(|message| message.part.stats.stored(message.len(), true));
            Ok(())
        }
        Err(refused) => {
            for message in &messages {
                message.part.stats.store_refused(refused.counted_as());
            }
            Err(refused.into())
        }
    }
}

fn check_list(messages: &[NewMessage]) -> Result<(), AcceptError> {
    if messages.len() > MAX_MESSAGES {
        return Err(AcceptError::TooMany { count: messages.len(), limit: MAX_MESSAGES });
    }
    let mut seen = HashSet::with_capacity(messages.len());
    match messages.iter().find(|message| !seen.insert(message.message())) {
        Some(NewMessage { part, id, .. }) => Err(AcceptError::Twice { name: part.name.to_string(), id: *id }),
        None => Ok(()),
    }
}

/// Part of the journal that a transaction may take, one in so many: its segments must become free
/// beside those of other messages.
const SHARE: u64 = 3;

/// The messages that share segments must fit into the journal.
fn check_sum(shared: &Shared, messages: &[NewMessage]) -> Result<(), AcceptError> {
    let small = messages.iter().map(NewMessage::len).filter(|len| !shared.needs_own_segment(*len));
    let (bytes, limit) = (small.map(cost).sum(), shared.config.load().journal_capacity / SHARE);
    if bytes > limit { Err(AcceptError::TooLarge { bytes, limit }) } else { Ok(()) }
}

async fn try_accept(
    shared: &Shared,
    messages: &[NewMessage],
    caller: Option<Instant>,
) -> Result<(), Refused> {
    let Some(first) = messages.first() else { return Ok(()) };
    for NewMessage { part, id, data } in messages {
        part.check_open()?;
        check_size(part, *id, data.len() as u64)?;
    }
    if let Some(refused) = refusal(shared, true) {
        return Err(refused);
    }
    let now = Instant::now();
    let deadline = Deadline::new(shared, &first.part, caller, now);
    if deadline.at <= now {
        return Err(deadline.passed());
    }
    let size = Permit::len_of_all(messages.iter().map(NewMessage::len));
    // One permit: a caller that waits for room must not hold any.
    let mut permit = admit(shared, &first.part, size, true, now, deadline).await?;
    let dirty = messages.iter().map(|message| {
        let crc = Some(payload_crc(&message.data));
        Arc::new(Dirty::put(message.data.clone(), crc, permit.split(message.len())))
    });
    commit(shared, messages, dirty.collect(), deadline).await
}

/// Waits until the messages are durable.
async fn commit(
    shared: &Shared,
    messages: &[NewMessage],
    dirty: Vec<Arc<Dirty>>,
    deadline: Deadline<'_>,
) -> Result<(), Refused> {
    let Some(last) = messages.last() else { return Ok(()) };
    let claim = Claim { id: last.id, state: Arc::default(), commit_queue: &shared.commit_queue };
    let mut unsent = Some(dirty);
    while let Some(dirty) = unsent.take() {
        unsent = arrive(shared, messages, dirty, &claim)?;
        if unsent.is_some() {
            match deadline.bound(shared.commit_queue.flush(false)).await {
                Some(Ok(())) => {}
                Some(Err(_)) => return Err(Refused::Closed),
                None => return Err(deadline.passed()),
            }
        }
    }
    match wait_for_outcome(&claim, &deadline, ANSWER_GRACE).await? {
        Outcome::Refused => Err(Refused::Late(Late::Spool)),
        Outcome::Durable => Ok(()),
    }
}

/// Sends the messages to the committer. Returns them if one of them has a version in memory that is
/// not durable.
///
/// The crash log may have that version. After a crash between the sync of the transaction and its
/// publication, that version would replace the one of the transaction, and the others would stay.
fn arrive(
    shared: &Shared,
    messages: &[NewMessage],
    dirty: Vec<Arc<Dirty>>,
    claim: &Claim<'_>,
) -> Result<Option<Vec<Arc<Dirty>>>, Refused> {
    let ids: Vec<MessageId> = messages.iter().map(NewMessage::message).collect();
    let mut shards = shared.table.lock_all(ids.iter());
    for message in messages {
        message.part.check_open()?;
    }
    if ids.iter().any(|id| shards.get(id).is_some_and(|shard| shard.pending.get(id).is_some())) {
        return Ok(Some(dirty));
    }
    for id in &ids {
        if let Some(shard) = shards.get(id) {
            shard.pending.set_under_way(*id);
        }
    }
    let (count, at) = (ids.len(), Instant::now());
    shared.commit_queue.arrive(|| {
        let first = shared.table.next_versions(count as u64);
        ids.into_iter().zip(dirty).zip(first..).enumerate().map(move |(number, ((id, dirty), version))| {
            let (state, part) = (claim.state.clone(), Part::of(number, count));
            Arrival { id, version, dirty, at, state, part }
        })
    });
    Ok(None)
}
