//! `store`: size, health, room, then memory or the commit.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_lite::future;
use tidespool_core::{
    Closed, InDoubt, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId, SpoolUnhealthyError,
    TooLarge,
};
use tokio::sync::oneshot;

use super::lookup::{Stamp, fill_cache};
use crate::crash_log::Written;
use crate::journal::payload_crc;
use crate::memory::{Dirty, Lane, Permit, Ticket};
use crate::stats::Refusal;
use crate::tiered::commit::queue::{Arrival, CommitQueue, Outcome};
use crate::tiered::commit::state::CommitState;
use crate::tiered::shared::Shared;
use crate::timer::{Timer, WithDeadline};
use crate::{BacklogRefusal, Durability, HealthSignal};

/// The most by which a store may return after its deadline. A store whose record is appended waits
/// so much longer for the disk's answer, and returns it; without an answer it fails in doubt.
///
/// Five times the slowest of 100 000 `fdatasync` of 20 KiB beside eight busy loops at load 13 (2
/// cores, ext4: p99.9 25 ms, slowest 188 ms); and a commit that failed is tried again several times
/// in it, after pauses of 10, 20, 40 … ms.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

pub(in crate::tiered) async fn store(
    shared: &Shared,
    id: SpoolId,
    data: Arc<Box<[u8]>>,
    force_sync: bool,
    deadline: Option<Instant>,
) -> Result<()> {
    let len = data.len() as u64;
    // Whether the disk has room for a segment of its own is known only when the file is there. So
    // a message that needs one waits for its commit at each level.
    let level = match shared.needs_own_segment(len) || force_sync {
        true => Durability::Synced,
        false => shared.hot_settings.durability(),
    };
    match try_store(shared, id, data, level, deadline).await {
        Ok(synced) => {
            shared.stats.stored(len, synced);
            Ok(())
        }
        Err(refused) => {
            shared.stats.store_refused(refused.counted_as());
            Err(refused.into())
        }
    }
}

/// Why a store did not happen. Unless it is in doubt, nothing of it is left behind.
enum Refused {
    Unhealthy,
    Closed,
    TooLarge(TooLarge),
    Late(Late),
    /// The disk may have the record of this id. The reason is never another doubt.
    InDoubt(SpoolId, Box<Self>),
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
struct Deadline<'a> {
    at: Instant,
    whose: Late,
    /// Looks at the clock.
    timer: &'a Timer,
}

impl<'a> Deadline<'a> {
    fn new(shared: &'a Shared, caller: Option<Instant>, now: Instant) -> Self {
        let (own, timer) = (now + shared.hot_settings.store_deadline(), &shared.timer);
        match caller {
            Some(at) if at <= own => Self { at, whose: Late::Caller, timer },
            _ => Self { at: own, whose: Late::Spool, timer },
        }
    }

    /// What `work` returns, if it does before the deadline.
    fn bound<W: Future + Unpin>(&self, work: W) -> WithDeadline<'a, W> {
        self.timer.bound(self.at, work)
    }

    fn passed(&self) -> Refused {
        Refused::Late(self.whose)
    }
}

/// Returns whether the message is on stable storage.
async fn try_store(
    shared: &Shared,
    id: SpoolId,
    data: Arc<Box<[u8]>>,
    level: Durability,
    caller: Option<Instant>,
) -> Result<bool, Refused> {
    shared.check_open()?;
    let synced = level == Durability::Synced;
    let (size, limit) = (data.len() as u64, shared.hot_settings.max_message_size());
    if size > limit {
        return Err(Refused::TooLarge(TooLarge { id, size, limit }));
    }
    if let Some(refused) = refusal(shared, synced) {
        return Err(refused);
    }
    let now = Instant::now();
    let deadline = Deadline::new(shared, caller, now);
    if deadline.at <= now {
        return Err(Refused::Late(deadline.whose));
    }
    let permit = match shared.budget.try_admit(size, lane_of(synced)) {
        Some(permit) => permit,
        // Boxed, as all that seldom happens here: every store pays for the size of its future.
        None => {
            let permit = Box::pin(wait_for_room(shared, size, synced, now, deadline)).await?;
            // It may have been a while.
            if let Some(refused) = refusal(shared, synced) {
                return Err(refused);
            }
            permit
        }
    };
    // At the level `memory` most messages leave before the checksum is needed.
    let crc = (level != Durability::Memory).then(|| payload_crc(&data));
    let written = match (level, crc) {
        (Durability::Process, Some(crc)) => shared.protection.write(id, &data, crc),
        _ => None,
    };
    let dirty = Arc::new(Dirty::put(data, crc, permit));
    let is_enough = level == Durability::Memory || written.is_some();
    if is_enough && put_in_memory(shared, id, &dirty, written)? {
        return Ok(false);
    }
    if !synced {
        shared.stats.unprotected();
    }
    commit(shared, id, dirty, deadline).await.map(|()| true)
}

/// Why the gate refuses this store. `None`: it is let in.
#[inline]
fn refusal(shared: &Shared, synced: bool) -> Option<Refused> {
    if shared.gate.is_open() { None } else { refusal_of_shut_gate(shared, synced) }
}

#[cold]
fn refusal_of_shut_gate(shared: &Shared, synced: bool) -> Option<Refused> {
    // A shutdown shuts the gate, too: its callers get `Closed`.
    if shared.gate.is_closed() {
        return Some(Refused::Closed);
    }
    let is_backlog = shared.gate.cause().is_none_or(HealthSignal::is_backlog);
    let is_refused =
        !is_backlog || synced || shared.config.load().health.backlog_refusal == BacklogRefusal::All;
    is_refused.then_some(Refused::Unhealthy)
}

const fn lane_of(synced: bool) -> Lane {
    if synced { Lane::Disk } else { Lane::Memory }
}

/// Ends when the gate is shut for this one.
async fn turned_away(shared: &Shared, synced: bool) -> Refused {
    let mut changes = shared.gate.changes();
    loop {
        if let Some(refused) = refusal(shared, synced) {
            return refused;
        }
        if changes.changed().await.is_err() {
            return future::pending().await;
        }
    }
}

/// Waits for its turn and its room. It holds nothing but its place meanwhile, and that is given up when this future is dropped.
async fn wait_for_room(
    shared: &Shared,
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
    let shut = async { Err(turned_away(shared, synced).await) };
    let turn = std::pin::pin!(future::or(room, future::or(closing, shut)));
    let got = deadline.bound(turn).await;
    shared.stats.store_waited(now.elapsed());
    got.ok_or(deadline.passed())?
}

/// False if the crash log broke, which was to have it.
fn put_in_memory(
    shared: &Shared,
    id: SpoolId,
    dirty: &Arc<Dirty>,
    written: Option<Written>,
) -> Result<bool, Refused> {
    let mut shard = shared.table.lock(&id);
    // Under the lock: a shutdown that begins now waits for it, and then finds what was brought in.
    shared.check_open()?;
    let version = shared.table.next_version();
    let is_to_survive = written.is_some();
    let slot = written.and_then(|written| shared.protection.commit(written, version));
    if is_to_survive && slot.is_none() {
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

/// The caller's side of a commit. Takes the store back where the caller gives up or goes away
/// before it is committed.
struct Claim<'a> {
    id: SpoolId,
    verdict: Arc<CommitState>,
    commit_queue: &'a CommitQueue,
}

impl Claim<'_> {
    /// False if the disk may have the record.
    fn cancel(&self) -> bool {
        self.verdict.cancel()
    }

    /// False if the message is stored.
    fn abandon(&self) -> bool {
        let abandoned = self.verdict.abandon();
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
    id: SpoolId,
    dirty: Arc<Dirty>,
    deadline: Deadline<'_>,
) -> Result<(), Refused> {
    let claim = Claim { id, verdict: Arc::default(), commit_queue: &shared.commit_queue };
    let (done, mut answer) = oneshot::channel();
    let data = dirty.data.clone();
    {
        let mut shard = shared.table.lock(&id);
        shared.check_open()?;
        shard.pending.set_out(id);
        let (verdict, at) = (claim.verdict.clone(), Instant::now());
        shared.commit_queue.arrive(|| {
            let version = shared.table.next_version();
            Arrival { id, version, dirty, at, verdict, done }
        });
    }
    match answered(&claim, &deadline, ANSWER_GRACE, &mut answer).await? {
        Outcome::Refused => Err(Refused::Late(Late::Spool)),
        Outcome::Durable(seq) => {
            if let Some(data) = data {
                fill_cache(shared, id, &data, Stamp::of_record(seq));
            }
            Ok(())
        }
    }
}

/// Waits for the committer's answer until the deadline, and a little longer where the disk has the
/// record.
async fn answered(
    claim: &Claim<'_>,
    deadline: &Deadline<'_>,
    grace: Duration,
    answer: &mut oneshot::Receiver<Outcome>,
) -> Result<Outcome, Refused> {
    let in_time = match deadline.bound(&mut *answer).await {
        Some(answered) => Some(answered),
        None if claim.cancel() => return Err(deadline.passed()),
        None => Deadline { at: deadline.at + grace, ..*deadline }.bound(&mut *answer).await,
    };
    let answered = match in_time {
        Some(answered) => answered,
        None if claim.abandon() => return Err(Refused::InDoubt(claim.id, Box::new(deadline.passed()))),
        // It was stored at the same moment. It is visible when the committer answers, which is next.
        None => answer.await,
    };
    // Without an answer: the committer has ended, maybe between the write and the sync.
    answered.map_err(|_| match claim.cancel() {
        true => Refused::Closed,
        false => Refused::InDoubt(claim.id, Box::new(Refused::Closed)),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// No thread runs it: the deadlines here have passed, or are far away.
    static TIMER: LazyLock<Timer> = LazyLock::new(Timer::default);

    /// A store that is late already, as its deadline is, and whose grace is `grace`.
    fn late(
        claim: &Claim<'_>,
        grace: Duration,
    ) -> (oneshot::Sender<Outcome>, impl Future<Output = Result<Outcome, Refused>>) {
        let (done, mut answer) = oneshot::channel();
        let deadline = Deadline { at: Instant::now(), whose: Late::Caller, timer: &TIMER };
        (done, async move { answered(claim, &deadline, grace, &mut answer).await })
    }

    fn claim(commit_queue: &CommitQueue) -> Claim<'_> {
        Claim { id: SpoolId::new(), verdict: Arc::default(), commit_queue }
    }

    #[tokio::test]
    async fn at_its_deadline_a_store_that_is_not_appended_is_cancelled() {
        let commit_queue = CommitQueue::default();
        let claim = claim(&commit_queue);
        let (_done, store) = late(&claim, HOUR);
        assert!(matches!(store.await, Err(Refused::Late(Late::Caller))));
        assert!(claim.verdict.is_cancelled() && !commit_queue.take_abandoned());
    }

    /// A store got `Err` at its deadline while the disk had its record, and was found after a kill.
    /// The answer of the disk was a moment away.
    #[tokio::test]
    async fn what_is_appended_waits_for_the_answer_a_little_longer() {
        let commit_queue = CommitQueue::default();
        let claim = claim(&commit_queue);
        assert!(claim.verdict.append());
        let (done, store) = late(&claim, HOUR);
        let mut store = std::pin::pin!(store);
        assert!(future::poll_once(&mut store).await.is_none(), "it waits");
        assert!(claim.verdict.commit());
        done.send(Outcome::Durable(7)).unwrap();
        assert!(matches!(store.await, Ok(Outcome::Durable(7))));
        assert!(!commit_queue.take_abandoned());
    }

    #[tokio::test]
    async fn without_an_answer_in_that_time_it_fails_in_doubt() {
        let commit_queue = CommitQueue::default();
        let claim = claim(&commit_queue);
        assert!(claim.verdict.append());
        let (_done, store) = late(&claim, Duration::ZERO);
        let error = anyhow::Error::from(store.await.err().unwrap());
        assert!(error.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{error:#}");
        assert_eq!(error.downcast_ref(), Some(&InDoubt { id: claim.id }));
        assert!(claim.verdict.is_abandoned() && commit_queue.take_abandoned());
    }

    /// It was committed at the moment at which the caller would have given up.
    #[tokio::test]
    async fn what_is_committed_has_its_answer_however_late() {
        let commit_queue = CommitQueue::default();
        let claim = claim(&commit_queue);
        assert!(claim.verdict.append() && claim.verdict.commit());
        let (done, store) = late(&claim, Duration::ZERO);
        let mut store = std::pin::pin!(store);
        assert!(future::poll_once(&mut store).await.is_none());
        done.send(Outcome::Durable(1)).unwrap();
        assert!(matches!(store.await, Ok(Outcome::Durable(1))));
    }

    #[tokio::test]
    async fn where_the_committer_has_ended_only_what_is_appended_is_in_doubt() {
        let commit_queue = CommitQueue::default();
        for appended in [false, true] {
            let claim = claim(&commit_queue);
            if appended {
                assert!(claim.verdict.append());
            }
            let deadline = Deadline { at: Instant::now() + HOUR, whose: Late::Caller, timer: &TIMER };
            let (done, mut answer) = oneshot::channel();
            drop(done);
            let answer = answered(&claim, &deadline, HOUR, &mut answer).await;
            let error = anyhow::Error::from(answer.err().unwrap());
            assert!(error.root_cause().is::<Closed>(), "{error:#}");
            assert_eq!(error.is::<InDoubt>(), appended, "{error:#}");
        }
    }

    #[test]
    fn a_caller_that_goes_away_takes_its_store_back() {
        let commit_queue = CommitQueue::default();
        let waiting = claim(&commit_queue);
        let verdict = waiting.verdict.clone();
        drop(waiting);
        assert!(verdict.is_cancelled() && !commit_queue.take_abandoned());
        let appended = claim(&commit_queue);
        let verdict = appended.verdict.clone();
        assert!(verdict.append());
        drop(appended);
        assert!(verdict.is_abandoned() && commit_queue.take_abandoned() && !commit_queue.take_abandoned());
    }
}
