//! The commit queue: synced stores, flush requests and notifications for the committer thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::oneshot;

use super::commit_state::CommitState;
use crate::journal::SyncEnd;
use crate::mailbox::Mailbox;
use crate::memory::Dirty;
use crate::message_id::MessageId;

/// A store that waits for its commit, not visible yet. The stores of a transaction follow each
/// other, and have one state.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) id: MessageId,
    pub(crate) version: u64,
    pub(crate) dirty: Arc<Dirty>,
    pub(crate) at: Instant,
    pub(crate) state: Arc<CommitState>,
    /// The place in its transaction.
    pub(crate) part: Part,
}

impl Arrival {
    /// Reports that the message is visible, if its transaction ends here. The caller may be gone.
    pub(crate) fn publish(&self) {
        if !self.part.continues {
            self.state.publish();
        }
    }
}

/// The caller waits no longer if the committer drops the store without an outcome.
impl Drop for Arrival {
    fn drop(&mut self) {
        if !self.part.continues {
            self.state.end();
        }
    }
}

/// The place of a store in its transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// It is not the first one.
    pub(crate) follows: bool,
    /// It is not the last one.
    pub(crate) continues: bool,
}

impl Part {
    /// The place of a store without others.
    pub(crate) const ALONE: Self = Self { follows: false, continues: false };

    /// The `number`th of `count` stores, from 0.
    pub(crate) fn of(number: usize, count: usize) -> Self {
        Self { follows: number > 0, continues: number + 1 < count }
    }
}

/// While a sync is under way, arrivals are not written before they have this many bytes or the sync
/// has ended: each write costs a page at its end.
const WORTH_A_WRITE: u64 = 256 << 10;

/// The callers' end of the commit queue. Its arrivals are bounded by `dirty_limit`: each holds a
/// permit.
#[derive(Debug)]
pub(crate) struct CommitQueue {
    state: Mailbox<QueueState>,
    /// Something is dirty, and the committer has been notified or has set its timer.
    dirty: AtomicBool,
    /// Much of the dirty limit is used, and the committer has been notified.
    urgent: AtomicBool,
    /// A store waits for room, and the committer has been notified.
    starved: AtomicBool,
    /// A caller has abandoned a store whose record is appended.
    abandoned: AtomicBool,
    /// There are arrivals that the committer has not taken. For a look without the lock.
    has_arrivals: AtomicBool,
}

/// The committer's end of the queue. When it is dropped, the queue is closed: everything in it and
/// everything that arrives later is dropped, so that no caller waits any longer.
#[derive(Debug)]
pub(crate) struct CommitReceiver(Arc<CommitQueue>);

/// Creates a commit queue.
pub(crate) fn commit_queue() -> (Arc<CommitQueue>, CommitReceiver) {
    let queue = Arc::new(CommitQueue {
        state: Mailbox::default(),
        dirty: AtomicBool::new(false),
        urgent: AtomicBool::new(false),
        starved: AtomicBool::new(false),
        abandoned: AtomicBool::new(false),
        has_arrivals: AtomicBool::new(false),
    });
    (queue.clone(), CommitReceiver(queue))
}

#[derive(Debug, Default)]
struct QueueState {
    arrivals: Vec<Arrival>,
    /// Bytes of `arrivals`.
    bytes: u64,
    /// The committer waits while a sync is under way, and must not be woken for a few bytes.
    patient: bool,
    /// Results of the syncs that have ended.
    synced: Vec<SyncEnd>,
    flushes: Vec<oneshot::Sender<()>>,
    kicked: bool,
    /// A segment has become free.
    room: bool,
    seal: bool,
    stop: Option<Stop>,
    /// The committer has taken `stop`.
    stop_seen: bool,
    /// The committer has ended: arrivals and flushes are dropped, which closes their channels.
    ended: bool,
}

/// How the committer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The committer ends when everything dirty is durable, at this time at the latest.
    Drained(Instant),
    /// The committer ends at once.
    Abandon,
}

/// The contents of the queue, taken by the committer.
#[derive(Debug, Default)]
pub(crate) struct CommitWork {
    pub(crate) arrivals: Vec<Arrival>,
    /// Results of the syncs that have ended, in their order.
    pub(crate) synced: Vec<SyncEnd>,
    pub(crate) flushes: Vec<oneshot::Sender<()>>,
    /// Seal the active segment.
    pub(crate) seal: bool,
    pub(crate) stop: Option<Stop>,
}

impl CommitQueue {
    /// Adds a synced store, or all stores of a transaction. `arrivals` assigns their versions under
    /// the queue's lock, so that arrivals are in the order of their versions.
    pub(crate) fn arrive<A: IntoIterator<Item = Arrival>>(&self, arrivals: impl FnOnce() -> A) {
        let mut state = self.state.lock();
        for arrival in arrivals() {
            if !state.ended {
                state.bytes += arrival.dirty.bytes();
                state.arrivals.push(arrival);
            }
        }
        let wake = !state.is_quiet();
        self.has_arrivals.store(true, Ordering::Release);
        drop(state);
        if wake {
            self.state.notify_one();
        }
    }

    /// Adds the result of a sync. Called by the syncer.
    pub(crate) fn synced(&self, end: SyncEnd) {
        self.state.post(|state| state.synced.push(end));
    }

    /// Requests that everything dirty is made durable. The receiver gets a message when that is
    /// done. `seal`: seal the active segment, too.
    pub(crate) fn flush(&self, seal: bool) -> oneshot::Receiver<()> {
        let (done, receiver) = oneshot::channel();
        let abandoned = self.state.post(|state| {
            if state.ended {
                return vec![done];
            }
            // While the disk hangs, callers may request flushes and give up again and again.
            let abandoned = state.flushes.extract_if(.., |flush| flush.is_closed()).collect();
            state.flushes.push(done);
            state.seal |= seal;
            abandoned
        });
        // Not under the lock: dropping a sender can run code of its receiver's task.
        drop(abandoned);
        receiver
    }

    /// Notifies the committer that something is dirty. Costs one atomic read if the committer has
    /// been notified since the last flush.
    pub(crate) fn note_dirty(&self, urgent: bool) {
        if !self.dirty.load(Ordering::SeqCst) || (urgent && !self.urgent.load(Ordering::SeqCst)) {
            self.dirty.store(true, Ordering::SeqCst);
            self.urgent.fetch_or(urgent, Ordering::SeqCst);
            self.kick();
        }
    }

    /// Notifies the committer that a store waits for room.
    pub(crate) fn note_starved(&self) {
        self.starved.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// Notifies the committer that a caller has abandoned a store whose record is appended. The
    /// committer appends an abort.
    pub(crate) fn note_abandoned(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// Notifies the committer that a segment has become free.
    pub(crate) fn segment_freed(&self) {
        self.state.post(|state| (state.kicked, state.room) = (true, true));
    }

    /// Wakes the committer for one turn.
    pub(crate) fn kick(&self) {
        self.state.post(|state| state.kicked = true);
    }

    /// Returns when the oldest store arrived that the committer has not taken yet. The committer
    /// takes none while it is blocked on the disk.
    pub(crate) fn oldest_arrival(&self) -> Option<Instant> {
        self.state.lock().arrivals.first().map(|arrival| arrival.at)
    }

    /// Takes all work, for the committer. `state` is that of this queue.
    fn take(&self, state: &mut QueueState) -> CommitWork {
        self.has_arrivals.store(false, Ordering::Relaxed);
        state.take()
    }

    /// Ends the committer. [`Stop::Abandon`] is never replaced by [`Stop::Drained`].
    pub(crate) fn stop(&self, stop: Stop) {
        self.state.post(|state| {
            if state.stop != Some(Stop::Abandon) {
                (state.stop, state.stop_seen) = (Some(stop), false);
            }
        });
    }
}

impl CommitReceiver {
    /// Waits for work, a kick or `until`, and takes all work. `syncing`: a sync is under way.
    pub(crate) fn wait(&self, until: Option<Instant>, syncing: bool) -> CommitWork {
        let work = self.0.state.wait(until, |state| {
            state.patient = syncing;
            (!state.is_quiet()).then(|| self.0.take(state))
        });
        work.unwrap_or_else(|| self.0.take(&mut self.0.state.lock()))
    }

    /// True if a synced store has arrived. Takes no lock.
    pub(crate) fn has_arrivals(&self) -> bool {
        self.0.has_arrivals.load(Ordering::Acquire)
    }

    /// Waits until a sync has ended, and takes the results. Ignores all other work.
    pub(crate) fn wait_synced(&self) -> Vec<SyncEnd> {
        let ended =
            |state: &mut QueueState| (!state.synced.is_empty()).then(|| std::mem::take(&mut state.synced));
        self.0.state.wait(None, ended).unwrap_or_default()
    }

    /// Takes the synced stores that have arrived.
    pub(crate) fn take_arrivals(&self) -> Vec<Arrival> {
        let mut state = self.0.state.lock();
        self.0.has_arrivals.store(false, Ordering::Relaxed);
        state.bytes = 0;
        std::mem::take(&mut state.arrivals)
    }

    /// True if a store was abandoned since the last call. Call it after taking everything that will
    /// be appended next: a caller sets the flag before it makes its next call.
    pub(crate) fn take_abandoned(&self) -> bool {
        self.0.abandoned.load(Ordering::SeqCst) && self.0.abandoned.swap(false, Ordering::SeqCst)
    }

    /// Resets the flags, so that the next dirty byte wakes the committer again. Call it before
    /// looking for dirty bytes. Returns true if a store waits for room.
    pub(crate) fn rearm(&self) -> bool {
        self.0.dirty.store(false, Ordering::SeqCst);
        self.0.urgent.store(false, Ordering::SeqCst);
        self.0.starved.swap(false, Ordering::SeqCst)
    }

    /// The committer has set its timer: the next dirty byte need not wake it.
    pub(crate) fn timer_is_set(&self) {
        self.0.dirty.store(true, Ordering::SeqCst);
    }

    /// True if something became dirty since the last [`rearm`](Self::rearm), or the timer is set.
    pub(crate) fn is_dirty(&self) -> bool {
        self.0.dirty.load(Ordering::SeqCst)
    }

    /// True if a store waits for room.
    pub(crate) fn is_starved(&self) -> bool {
        self.0.starved.load(Ordering::SeqCst)
    }

    /// True if much of the dirty limit is used.
    pub(crate) fn is_urgent(&self) -> bool {
        self.0.urgent.load(Ordering::SeqCst)
    }

    /// Waits until `until`, whatever arrives. Returns earlier on a new stop, at the time limit of
    /// [`Stop::Drained`], and if `for_room`, when a segment becomes free.
    pub(crate) fn pause(&self, until: Instant, for_room: bool) {
        let until = match self.0.state.lock().stop {
            Some(Stop::Drained(by)) => until.min(by),
            Some(Stop::Abandon) | None => until,
        };
        self.0.state.wait(Some(until), |state| {
            // A segment that became free before this call counts, too.
            let has_room = std::mem::take(&mut state.room) && for_room;
            (has_room || state.has_new_stop()).then_some(())
        });
    }
}

impl Drop for CommitReceiver {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ended = true;
        let left = (std::mem::take(&mut state.arrivals), std::mem::take(&mut state.flushes));
        drop(state);
        drop(left);
    }
}

impl QueueState {
    fn is_quiet(&self) -> bool {
        let few = self.arrivals.is_empty() || (self.patient && self.bytes < WORTH_A_WRITE);
        few && self.synced.is_empty()
            && self.flushes.is_empty()
            && !self.kicked
            && !self.seal
            && !self.has_new_stop()
    }

    /// The committer has not taken the stop yet.
    fn has_new_stop(&self) -> bool {
        self.stop.is_some() && !self.stop_seen
    }

    fn take(&mut self) -> CommitWork {
        (self.kicked, self.patient, self.bytes) = (false, false, 0);
        self.stop_seen = self.stop.is_some();
        CommitWork {
            arrivals: std::mem::take(&mut self.arrivals),
            synced: std::mem::take(&mut self.synced),
            flushes: std::mem::take(&mut self.flushes),
            seal: std::mem::take(&mut self.seal),
            stop: self.stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_dirty_byte_kicks() {
        let (commit_queue, receiver) = commit_queue();
        commit_queue.note_dirty(false);
        assert!(commit_queue.state.lock().kicked);
        receiver.wait(None, false);
        commit_queue.note_dirty(false);
        assert!(!commit_queue.state.lock().kicked);
        commit_queue.note_dirty(true);
        assert!(commit_queue.state.lock().kicked && receiver.is_urgent());
        receiver.wait(None, false);
        receiver.rearm();
        commit_queue.note_dirty(false);
        assert!(commit_queue.state.lock().kicked);
    }

    #[test]
    fn after_the_end_all_flushes_are_dropped() {
        let (commit_queue, receiver) = commit_queue();
        let mut before = commit_queue.flush(false);
        drop(receiver);
        let mut after = commit_queue.flush(false);
        let gone = oneshot::error::TryRecvError::Closed;
        assert_eq!(before.try_recv(), Err(gone.clone()));
        assert_eq!(after.try_recv(), Err(gone));
    }

    #[test]
    fn flushes_of_dropped_futures_are_removed() {
        let (commit_queue, receiver) = commit_queue();
        let waits = commit_queue.flush(false);
        (0..10).for_each(|_| drop(commit_queue.flush(true)));
        let work = receiver.wait(None, false);
        assert!(work.flushes.len() <= 2 && work.seal, "{work:?}");
        drop(waits);
    }

    #[test]
    fn abandon_is_not_replaced() {
        let (commit_queue, receiver) = commit_queue();
        commit_queue.stop(Stop::Abandon);
        commit_queue.stop(Stop::Drained(Instant::now()));
        assert_eq!(receiver.wait(None, false).stop, Some(Stop::Abandon));
    }
}
