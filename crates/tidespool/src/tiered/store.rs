//! `store`: size, health, room, then memory or the commit.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use futures_lite::future;
use tidespool_core::{
    Closed, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId, SpoolUnhealthyError, TooLarge,
};
use tokio::sync::oneshot;

use super::lookup::{Stamp, fill_cache};
use super::mailbox::{Arrival, Floor, Outcome, Verdict};
use super::shared::Shared;
use crate::journal::payload_crc;
use crate::memory::{Dirty, Lane, Permit, Ticket};
use crate::stats::Refusal;
use crate::{BacklogRefusal, Durability, HealthSignal};

pub(super) async fn store(
    shared: &Shared,
    id: SpoolId,
    data: Arc<Box<[u8]>>,
    force_sync: bool,
    deadline: Option<Instant>,
) -> Result<()> {
    let len = data.len() as u64;
    let mut floor = floor(shared.terms.durability(), force_sync);
    if floor.is_none() && shared.needs_own_segment(len) {
        // Whether there is room for such a file is known when it is there: not after the caller had its answer.
        floor = Some(Floor::Written);
    }
    match try_store(shared, id, data, floor, deadline).await {
        Ok(()) => {
            shared.stats.stored(len, floor == Some(Floor::Synced));
            Ok(())
        }
        Err(refused) => {
            shared.stats.store_refused(refused.counted_as());
            Err(refused.into())
        }
    }
}

/// `None`: memory is enough.
fn floor(durability: Durability, force_sync: bool) -> Option<Floor> {
    match (durability, force_sync) {
        (_, true) | (Durability::Synced, _) => Some(Floor::Synced),
        (Durability::Written, false) => Some(Floor::Written),
        (Durability::Memory, false) => None,
    }
}

/// Why a store did not happen. Nothing of it is left behind.
enum Refused {
    Unhealthy,
    Closed,
    TooLarge(TooLarge),
    Late(Late),
}

/// Whose deadline passed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Late {
    Caller,
    Spool,
}

impl Refused {
    fn counted_as(&self) -> Refusal {
        match self {
            Self::Unhealthy => Refusal::Unhealthy,
            Self::Closed => Refusal::Closed,
            Self::TooLarge(_) => Refusal::TooLarge,
            Self::Late(Late::Caller) => Refusal::CallerDeadline,
            Self::Late(Late::Spool) => Refusal::Backpressure,
        }
    }
}

impl From<Refused> for anyhow::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unhealthy => SpoolUnhealthyError.into(),
            Refused::Closed => Closed.into(),
            Refused::TooLarge(error) => error.into(),
            Refused::Late(Late::Caller) => SpoolCallerDeadlineExceeded.into(),
            Refused::Late(Late::Spool) => SpoolBackpressureTimeout.into(),
        }
    }
}

impl From<Closed> for Refused {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

/// The earlier of the caller's deadline and the spool's own.
#[derive(Clone, Copy)]
struct Deadline {
    at: Instant,
    whose: Late,
}

impl Deadline {
    fn new(shared: &Shared, caller: Option<Instant>, now: Instant) -> Self {
        let own = now + shared.terms.store_deadline();
        match caller {
            Some(at) if at <= own => Self { at, whose: Late::Caller },
            _ => Self { at: own, whose: Late::Spool },
        }
    }

    async fn bound<T>(&self, future: impl Future<Output = T>) -> Result<T, Refused> {
        tokio::time::timeout_at(self.at.into(), future).await.map_err(|_| Refused::Late(self.whose))
    }
}

async fn try_store(
    shared: &Shared,
    id: SpoolId,
    data: Arc<Box<[u8]>>,
    floor: Option<Floor>,
    caller: Option<Instant>,
) -> Result<(), Refused> {
    shared.check_open()?;
    let (size, limit) = (data.len() as u64, shared.terms.max_message_size());
    if size > limit {
        return Err(Refused::TooLarge(TooLarge { id, size, limit }));
    }
    if !shared.gate.is_open() && refuses(shared, floor) {
        return Err(Refused::Unhealthy);
    }
    let now = Instant::now();
    let deadline = Deadline::new(shared, caller, now);
    if deadline.at <= now {
        return Err(Refused::Late(deadline.whose));
    }
    let permit = match shared.budget.try_admit(size, lane_of(floor)) {
        Some(permit) => permit,
        // Boxed, as all that seldom happens here: every store pays for the size of its future.
        None => {
            let permit = Box::pin(wait_for_room(shared, size, floor, now, deadline)).await?;
            // It may have been a while.
            if !shared.gate.is_open() && refuses(shared, floor) {
                return Err(Refused::Unhealthy);
            }
            permit
        }
    };
    let dirty = Arc::new(Dirty::put(data, permit));
    match floor {
        None => put_in_memory(shared, id, dirty),
        Some(floor) => commit(shared, id, dirty, floor, deadline).await,
    }
}

/// Whether the shut gate is shut for this one.
#[cold]
fn refuses(shared: &Shared, floor: Option<Floor>) -> bool {
    let is_backlog = shared.gate.cause().is_none_or(HealthSignal::is_backlog);
    !is_backlog || floor.is_some() || shared.config.load().health.backlog_refusal == BacklogRefusal::All
}

const fn lane_of(floor: Option<Floor>) -> Lane {
    match floor {
        Some(_) => Lane::Disk,
        None => Lane::Memory,
    }
}

/// Ends when the gate is shut for this one.
async fn turned_away(shared: &Shared, floor: Option<Floor>) {
    let mut changes = shared.gate.changes();
    while shared.gate.is_open() || !refuses(shared, floor) {
        if changes.changed().await.is_err() {
            return future::pending().await;
        }
    }
}

/// Waits for its turn and its room. It holds nothing but its place meanwhile, and that is given up when this future is dropped.
async fn wait_for_room(
    shared: &Shared,
    size: u64,
    floor: Option<Floor>,
    now: Instant,
    deadline: Deadline,
) -> Result<Permit, Refused> {
    let lane = lane_of(floor);
    if shared.budget.cannot_meet(size, lane, deadline.at.saturating_duration_since(now)) {
        return Err(Refused::Late(deadline.whose));
    }
    let waiter = shared.budget.wait(size, lane);
    if lane == Lane::Disk {
        // What was only written is synced for nobody else.
        shared.mailbox.note_starved();
    }
    let room = async { waiter.admitted(|| shared.mailbox.note_starved()).await.map_err(|_| Refused::Closed) };
    let closing = async {
        shared.closing.closed().await;
        Err(Refused::Closed)
    };
    let shut = async {
        turned_away(shared, floor).await;
        Err(Refused::Unhealthy)
    };
    let got = deadline.bound(future::or(room, future::or(closing, shut))).await;
    shared.stats.store_waited(now.elapsed());
    got?
}

fn put_in_memory(shared: &Shared, id: SpoolId, dirty: Arc<Dirty>) -> Result<(), Refused> {
    let mut shard = shared.table.lock(&id);
    // Under the lock: a shutdown that begins now waits for it, and then finds what was brought in.
    shared.check_open()?;
    let ticket = Ticket { version: shared.table.next_version(), at: Instant::now(), id };
    let elided = shard.pending.insert(ticket, dirty);
    drop(shard);
    if let Some(elided) = elided {
        shared.stats.elided(1, elided.bytes());
    }
    let urgent = shared.is_flush_urgent();
    shared.mailbox.note_dirty(urgent);
    if shared.budget.lacks_room() {
        shared.mailbox.note_starved();
    }
    Ok(())
}

/// Takes the word back when the caller goes away before the committer has spoken.
struct Claim(Arc<Verdict>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

async fn commit(
    shared: &Shared,
    id: SpoolId,
    dirty: Arc<Dirty>,
    floor: Floor,
    deadline: Deadline,
) -> Result<(), Refused> {
    let claim = Claim(Arc::default());
    let (done, mut heard) = oneshot::channel();
    let data = dirty.data.clone();
    let payload_crc = data.as_ref().map_or(0, |data| payload_crc(data));
    {
        let mut shard = shared.table.lock(&id);
        shared.check_open()?;
        shard.pending.set_out(id);
        let (verdict, at) = (claim.0.clone(), Instant::now());
        shared.mailbox.arrive(|| {
            let version = shared.table.next_version();
            Arrival { id, version, dirty, payload_crc, floor, at, verdict, done }
        });
    }
    if floor == Floor::Written && shared.budget.lacks_room() {
        shared.mailbox.note_starved();
    }
    match deadline.bound(&mut heard).await {
        Ok(Ok(outcome)) => conclude(shared, id, data, outcome, Late::Spool),
        // The committer is gone without having stored it.
        Ok(Err(_)) => Err(Refused::Closed),
        Err(late) if claim.0.cancel() => Err(late),
        // It was stored at the same moment. It is visible when the committer says so, which is next.
        Err(_) => match heard.await {
            Ok(outcome) => conclude(shared, id, data, outcome, deadline.whose),
            Err(_) => Err(Refused::Closed),
        },
    }
}

fn conclude(
    shared: &Shared,
    id: SpoolId,
    data: Option<Arc<Box<[u8]>>>,
    outcome: Outcome,
    whose: Late,
) -> Result<(), Refused> {
    match (outcome, data) {
        (Outcome::Refused, _) => Err(Refused::Late(whose)),
        (Outcome::Durable(seq), Some(data)) => {
            fill_cache(shared, id, &data, Stamp::of_record(seq));
            Ok(())
        }
        (Outcome::Durable(_) | Outcome::Written, _) => Ok(()),
    }
}
