//! `store`: checks size and health, waits for room, then stores in memory or commits the message.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_lite::future;
use tidespool_core::{
    Closed, InDoubt, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId, SpoolUnhealthyError,
    TooLarge,
};

use crate::crash_log::Written;
use crate::journal::payload_crc;
use crate::memory::{Dirty, Lane, Permit, Ticket};
use crate::stats::Refusal;
use crate::tiered::state::{Arrival, CommitQueue, CommitState, NoOutcome, Outcome, Part, Shared, SpoolPart};
use crate::timer::{Timer, WithDeadline};
use crate::{BacklogRefusal, Durability, HealthCause};

/// How much longer than its deadline a store waits for the disk's result, if its record is
/// appended.
///
/// It returns that result. Without a result the store fails in doubt. If the message is committed
/// at the end of this time, the store waits without a limit for the outcome, which the committer
/// sends next.
///
/// One second is five times the slowest of 100 000 `fdatasync` calls of 20 KiB beside eight busy
/// loops at load 13 (2 cores, ext4: p99.9 25 ms, slowest 188 ms). It also leaves time for several
/// retries of a failed commit, after pauses of 10, 20, 40 … ms.
pub(super) const ANSWER_GRACE: Duration = Duration::from_secs(1);

pub(in crate::tiered) async fn store(
    shared: &Shared,
    spool: &SpoolPart,
    id: SpoolId,
    data: Arc<Box<[u8]>>,
    force_sync: bool,
    deadline: Option<Instant>,
) -> Result<()> {
    let len = data.len() as u64;
    // Only the creation of the file shows whether the disk has room for a segment of its own. So a
    // message that needs one waits for its commit at every durability level.
    let level = match shared.needs_own_segment(len) || force_sync {
        true => Durability::Synced,
        false => spool.hot_settings.durability(),
    };
    match try_store(shared, spool, id, data, level, deadline).await {
        Ok(synced) => {
            spool.stats.stored(len, synced);
            Ok(())
        }
        Err(refused) => {
            spool.stats.store_refused(refused.counted_as());
            Err(refused.into())
        }
    }
}

/// Why a store failed. Unless it is in doubt, the store has left nothing behind.
pub(super) enum Refused {
    Unhealthy,
    Closed,
    TooLarge(TooLarge),
    Late(Late),
    /// The disk may have the record of this id. The reason is never `InDoubt` itself.
    InDoubt(SpoolId, Box<Self>),
}

/// The deadline that has passed: the caller's or the spool's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    Caller,
    Spool,
}

impl Refused {
    pub(super) fn counted_as(&self) -> Refusal {
        match self {
            Self::Unhealthy => Refusal::Unhealthy,
            Self::Closed => Refusal::Closed,
            Self::TooLarge(_) => Refusal::TooLarge,
            Self::Late(Late::Caller) => Refusal::CallerDeadline,
            Self::Late(Late::Spool) => Refusal::Backpressure,
            Self::InDoubt(_, reason) => reason.counted_as(),
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
            Refused::InDoubt(id, reason) => Self::from(*reason).context(InDoubt { id }),
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
pub(super) struct Deadline<'a> {
    pub(super) at: Instant,
    pub(super) whose: Late,
    /// Enforces the deadline.
    timer: &'a Timer,
}

impl<'a> Deadline<'a> {
    pub(super) fn new(shared: &'a Shared, spool: &SpoolPart, caller: Option<Instant>, now: Instant) -> Self {
        let (own, timer) = (now + spool.hot_settings.store_deadline(), &shared.timer);
        match caller {
            Some(at) if at <= own => Self { at, whose: Late::Caller, timer },
            _ => Self { at: own, whose: Late::Spool, timer },
        }
    }

    /// Returns the output of `work`, or `None` at the deadline.
    pub(super) fn bound<W: Future + Unpin>(&self, work: W) -> WithDeadline<'a, W> {
        self.timer.bound(self.at, work)
    }

    pub(super) fn passed(&self) -> Refused {
        Refused::Late(self.whose)
    }
}

/// Stores the message. Returns true if it is on stable storage, false if it is dirty in memory.
async fn try_store(
    shared: &Shared,
    spool: &SpoolPart,
    id: SpoolId,
    data: Arc<Box<[u8]>>,
    level: Durability,
    caller: Option<Instant>,
) -> Result<bool, Refused> {
    spool.check_open()?;
    let synced = level == Durability::Synced;
    let size = data.len() as u64;
    check_size(spool, id, size)?;
    if let Some(refused) = refusal(shared, synced) {
        return Err(refused);
    }
    let now = Instant::now();
    let deadline = Deadline::new(shared, spool, caller, now);
    if deadline.at <= now {
        return Err(Refused::Late(deadline.whose));
    }
    let permit = admit(shared, spool, size, synced, now, deadline).await?;
    // At the level `memory`, most messages are removed before the checksum is needed.
    let crc = (level != Durability::Memory).then(|| payload_crc(&data));
    let written = match (level, crc) {
        (Durability::Process, Some(crc)) => shared.protection.write(spool.message(id), &data, crc),
        _ => None,
    };
    let dirty = Arc::new(Dirty::put(data, crc, permit));
    let is_enough = level == Durability::Memory || written.is_some();
    if is_enough && put_in_memory(shared, spool, id, &dirty, written)? {
        return Ok(false);
    }
    if !synced {
        shared.stats.unprotected();
    }
    commit(shared, spool, id, dirty, deadline).await.map(|()| true)
}

pub(super) fn check_size(spool: &SpoolPart, id: SpoolId, size: u64) -> Result<(), Refused> {
    let limit = spool.hot_settings.max_message_size();
    if size > limit { Err(Refused::TooLarge(TooLarge { id, size, limit })) } else { Ok(()) }
}

/// Returns why the health gate refuses this store. `None`: the gate admits it.
#[inline]
pub(super) fn refusal(shared: &Shared, synced: bool) -> Option<Refused> {
    if shared.gate.is_open() { None } else { refusal_of_shut_gate(shared, synced) }
}

#[cold]
fn refusal_of_shut_gate(shared: &Shared, synced: bool) -> Option<Refused> {
    let is_refused = match shared.gate.cause() {
        // Under memory pressure the budget makes stores wait.
        None | Some(HealthCause::Pressure) => false,
        Some(HealthCause::ShutDown) => return Some(Refused::Closed),
        Some(HealthCause::Backlog) => {
            synced || shared.config.load().health.backlog_refusal == BacklogRefusal::All
        }
        Some(HealthCause::Broken | HealthCause::Space) => true,
    };
    is_refused.then_some(Refused::Unhealthy)
}

/// Waits for room for `size` bytes.
pub(super) async fn admit(
    shared: &Shared,
    spool: &SpoolPart,
    size: u64,
    synced: bool,
    now: Instant,
    deadline: Deadline<'_>,
) -> Result<Permit, Refused> {
    if let Some(permit) = shared.budget.try_admit(size, lane_of(synced)) {
        return Ok(permit);
    }
    // Boxed because it is rare: this keeps the future of every store small.
    let permit = Box::pin(wait_for_room(shared, spool, size, synced, now, deadline)).await?;
    // The gate may have shut during the wait.
    match refusal(shared, synced) {
        Some(refused) => Err(refused),
        None => Ok(permit),
    }
}

const fn lane_of(synced: bool) -> Lane {
    if synced { Lane::Disk } else { Lane::Memory }
}

/// Waits until the health gate refuses this store, and returns the reason.
async fn refused_by_gate(shared: &Shared, synced: bool) -> Refused {
    let mut changes = shared.gate.states();
    loop {
        if let Some(refused) = refusal(shared, synced) {
            return refused;
        }
        if changes.changed().await.is_err() {
            return future::pending().await;
        }
    }
}

/// Waits in the queue for room in the dirty limit. Dropping the future gives up the place in the
/// queue. The store holds nothing else during the wait.
async fn wait_for_room(
    shared: &Shared,
    spool: &SpoolPart,
    size: u64,
    synced: bool,
    now: Instant,
    deadline: Deadline<'_>,
) -> Result<Permit, Refused> {
    let lane = lane_of(synced);
    if shared.budget.cannot_meet(size, lane, deadline.at.saturating_duration_since(now)) {
        return Err(Refused::Late(deadline.whose));
    }
    let waiter = shared.budget.wait(size, lane);
    let room = async { waiter.admitted().await.map_err(|_| Refused::Closed) };
    let closing = async {
        shared.closing.closed().await;
        Err(Refused::Closed)
    };
    let shut = async { Err(refused_by_gate(shared, synced).await) };
    let turn = std::pin::pin!(future::or(room, future::or(closing, shut)));
    let got = deadline.bound(turn).await;
    spool.stats.store_waited(now.elapsed());
    got.ok_or(deadline.passed())?
}

/// Inserts the message as dirty. Returns false if it has to go to the journal, because its entry in
/// the crash log could not be committed.
fn put_in_memory(
    shared: &Shared,
    spool: &SpoolPart,
    id: SpoolId,
    dirty: &Arc<Dirty>,
    written: Option<Written>,
) -> Result<bool, Refused> {
    let id = spool.message(id);
    let mut shard = shared.table.lock(&id);
    // Checked under the lock: a shutdown that begins now waits for the lock and then writes this
    // message.
    spool.check_open()?;
    let version = shared.table.next_version();
    let must_survive = written.is_some();
    let slot = written.and_then(|written| shared.protection.commit(written, version));
    if must_survive && slot.is_none() {
        return Ok(false);
    }
    let ticket = Ticket { version, at: Instant::now(), id };
    let elided = shard.pending.insert(ticket, dirty.clone(), slot);
    drop(shard);
    if let Some(elided) = elided {
        shared.stats.elided(1, elided.bytes());
    }
    let urgent = shared.is_flush_urgent();
    shared.commit_queue.note_dirty(urgent);
    if shared.budget.lacks_room() {
        shared.commit_queue.note_starved();
    }
    Ok(true)
}

/// The caller's side of a commit. Cancels or abandons the store if the future is dropped before the
/// commit.
pub(super) struct Claim<'a> {
    pub(super) id: SpoolId,
    pub(super) state: Arc<CommitState>,
    pub(super) commit_queue: &'a CommitQueue,
}

impl Claim<'_> {
    /// Cancels the store. Returns false if the record is appended, so that the disk may have it.
    fn cancel(&self) -> bool {
        self.state.cancel()
    }

    /// Abandons a store whose record is appended. Returns false if the message is stored.
    fn abandon(&self) -> bool {
        let abandoned = self.state.abandon();
        if abandoned {
            self.commit_queue.note_abandoned();
        }
        abandoned
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.cancel() {
            self.abandon();
        }
    }
}

async fn commit(
    shared: &Shared,
    spool: &SpoolPart,
    id: SpoolId,
    dirty: Arc<Dirty>,
    deadline: Deadline<'_>,
) -> Result<(), Refused> {
    let claim = Claim { id, state: Arc::default(), commit_queue: &shared.commit_queue };
    let id = spool.message(id);
    {
        let mut shard = shared.table.lock(&id);
        spool.check_open()?;
        shard.pending.set_under_way(id);
        let (state, at) = (claim.state.clone(), Instant::now());
        shared.commit_queue.arrive(|| {
            let version = shared.table.next_version();
            [Arrival { id, version, dirty, at, state, part: Part::ALONE }]
        });
    }
    match wait_for_outcome(&claim, &deadline, ANSWER_GRACE).await? {
        Outcome::Refused => Err(Refused::Late(Late::Spool)),
        Outcome::Durable => Ok(()),
    }
}

/// Waits for the committer's result until the deadline. If the record is appended, waits `grace`
/// longer.
pub(super) async fn wait_for_outcome(
    claim: &Claim<'_>,
    deadline: &Deadline<'_>,
    grace: Duration,
) -> Result<Outcome, Refused> {
    let in_time = match deadline.bound(claim.state.wait()).await {
        Some(outcome) => Some(outcome),
        None if claim.cancel() => return Err(deadline.passed()),
        None => Deadline { at: deadline.at + grace, ..*deadline }.bound(claim.state.wait()).await,
    };
    let outcome = match in_time {
        Some(outcome) => outcome,
        None if claim.abandon() => return Err(Refused::InDoubt(claim.id, Box::new(deadline.passed()))),
        // The message was committed or refused at the same moment. The outcome is the committer's
        // next step.
        None => claim.state.wait().await,
    };
    // The committer has ended, maybe between the write and the sync.
    outcome.map_err(|NoOutcome| match claim.cancel() {
        true => Refused::Closed,
        false => Refused::InDoubt(claim.id, Box::new(Refused::Closed)),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::tiered::state::commit_queue;

    const HOUR: Duration = Duration::from_secs(3600);

    /// No thread runs the timer: the deadlines here have passed, or are far away.
    static TIMER: LazyLock<Timer> = LazyLock::new(Timer::default);

    /// A store whose deadline has passed, and that may wait `grace` longer.
    fn late_store(claim: &Claim<'_>, grace: Duration) -> impl Future<Output = Result<Outcome, Refused>> {
        let deadline = Deadline { at: Instant::now(), whose: Late::Caller, timer: &TIMER };
        async move { wait_for_outcome(claim, &deadline, grace).await }
    }

    fn claim(commit_queue: &CommitQueue) -> Claim<'_> {
        Claim { id: SpoolId::new(), state: Arc::default(), commit_queue }
    }

    #[tokio::test]
    async fn a_store_that_is_not_appended_is_cancelled_at_its_deadline() {
        let (commit_queue, receiver) = commit_queue();
        let claim = claim(&commit_queue);
        let store = late_store(&claim, HOUR);
        assert!(matches!(store.await, Err(Refused::Late(Late::Caller))));
        assert!(claim.state.is_cancelled() && !receiver.take_abandoned());
    }

    /// A store failed at its deadline although the disk had its record, and the message was back
    /// after a kill. The disk's result came a moment after the deadline.
    #[tokio::test]
    async fn what_is_appended_waits_for_the_answer_a_little_longer() {
        let (commit_queue, receiver) = commit_queue();
        let claim = claim(&commit_queue);
        assert!(claim.state.append());
        let store = late_store(&claim, HOUR);
        let mut store = std::pin::pin!(store);
        assert!(future::poll_once(&mut store).await.is_none(), "it waits");
        assert!(claim.state.commit());
        claim.state.publish();
        assert!(matches!(store.await, Ok(Outcome::Durable)));
        assert!(!receiver.take_abandoned());
    }

    #[tokio::test]
    async fn a_store_without_a_result_in_that_time_fails_in_doubt() {
        let (commit_queue, receiver) = commit_queue();
        let claim = claim(&commit_queue);
        assert!(claim.state.append());
        let store = late_store(&claim, Duration::ZERO);
        let error = anyhow::Error::from(store.await.err().unwrap());
        assert!(error.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{error:#}");
        assert_eq!(error.downcast_ref(), Some(&InDoubt { id: claim.id }));
        assert!(claim.state.is_abandoned() && receiver.take_abandoned());
    }

    /// The message was committed at the moment at which the caller would have given up.
    #[tokio::test]
    async fn a_committed_store_waits_for_its_result_without_a_limit() {
        let (commit_queue, _receiver) = commit_queue();
        let claim = claim(&commit_queue);
        assert!(claim.state.append() && claim.state.commit());
        let store = late_store(&claim, Duration::ZERO);
        let mut store = std::pin::pin!(store);
        assert!(future::poll_once(&mut store).await.is_none());
        claim.state.publish();
        assert!(matches!(store.await, Ok(Outcome::Durable)));
    }

    #[tokio::test]
    async fn after_the_end_of_the_committer_only_an_appended_store_is_in_doubt() {
        let (commit_queue, _receiver) = commit_queue();
        for appended in [false, true] {
            let claim = claim(&commit_queue);
            if appended {
                assert!(claim.state.append());
            }
            let deadline = Deadline { at: Instant::now() + HOUR, whose: Late::Caller, timer: &TIMER };
            claim.state.end();
            let outcome = wait_for_outcome(&claim, &deadline, HOUR).await;
            let error = anyhow::Error::from(outcome.err().unwrap());
            assert!(error.root_cause().is::<Closed>(), "{error:#}");
            assert_eq!(error.is::<InDoubt>(), appended, "{error:#}");
        }
    }

    #[test]
    fn dropping_the_future_cancels_or_abandons_the_store() {
        let (commit_queue, receiver) = commit_queue();
        let waiting = claim(&commit_queue);
        let state = waiting.state.clone();
        drop(waiting);
        assert!(state.is_cancelled() && !receiver.take_abandoned());
        let appended = claim(&commit_queue);
        let state = appended.state.clone();
        assert!(state.append());
        drop(appended);
        assert!(state.is_abandoned() && receiver.take_abandoned() && !receiver.take_abandoned());
    }
}
