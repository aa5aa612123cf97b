//! What the committer waits for: synced stores, requests to flush, and the first dirty byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tidespool_core::SpoolId;
use tokio::sync::oneshot;

use super::state::CommitState;
use crate::journal::SyncEnd;
use crate::memory::Dirty;

/// What became of a store that waited for its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is on stable storage, as the record with this number.
    Durable(u64),
    /// There was no room for it.
    Refused,
}

/// A store that waits for its commit, not visible yet.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) id: SpoolId,
    pub(crate) version: u64,
    pub(crate) dirty: Arc<Dirty>,
    pub(crate) at: Instant,
    pub(crate) verdict: Arc<CommitState>,
    /// Hears what became of it.
    pub(crate) done: oneshot::Sender<Outcome>,
}

/// While a sync is under way, arrivals wait until there are so many bytes of them, or until it has ended: each write costs a page at its end.
const WORTH_A_WRITE: u64 = 256 << 10;

/// The committer's mailbox. Its arrivals are bounded by `dirty_limit`: each holds its permit.
#[derive(Debug, Default)]
pub(crate) struct CommitQueue {
    state: Mutex<QueueState>,
    wake: Condvar,
    /// Something is dirty, and the committer has set its timer.
    dirty: AtomicBool,
    /// Much of the dirty limit is used, and the committer knows.
    urgent: AtomicBool,
    /// A store waits for room, and the committer knows.
    starved: AtomicBool,
    /// A caller has abandoned a store whose record is appended.
    abandoned: AtomicBool,
}

#[derive(Debug, Default)]
struct QueueState {
    arrivals: Vec<Arrival>,
    /// Bytes of `arrivals`.
    bytes: u64,
    /// The committer waits for a sync, and is not to be woken for a few bytes.
    patient: bool,
    /// Syncs that have ended.
    synced: Vec<SyncEnd>,
    flushes: Vec<oneshot::Sender<()>>,
    kicked: bool,
    /// A segment has become free.
    room: bool,
    seal: bool,
    stop: Option<Stop>,
    /// The committer knows of `stop`.
    stop_heard: bool,
    /// The committer is gone: what is brought now is dropped, which tells whoever waits for it.
    ended: bool,
}

/// How the committer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// When everything dirty is durable, or at this time at the latest.
    Drained(Instant),
    /// Now.
    Abandon,
}

/// What was in the mailbox.
#[derive(Debug, Default)]
pub(crate) struct CommitWork {
    pub(crate) arrivals: Vec<Arrival>,
    /// Syncs that have ended, in their order.
    pub(crate) synced: Vec<SyncEnd>,
    pub(crate) flushes: Vec<oneshot::Sender<()>>,
    /// The active segment is to be sealed.
    pub(crate) seal: bool,
    pub(crate) stop: Option<Stop>,
}

impl CommitQueue {
    /// Adds a synced store. `version` is drawn under the mailbox's lock, so that the order here is the order of versions.
    pub(crate) fn arrive(&self, arrival: impl FnOnce() -> Arrival) {
        let mut state = self.state.lock();
        let arrival = arrival();
        if !state.ended {
            state.bytes += arrival.dirty.bytes();
            state.arrivals.push(arrival);
        }
        let wake = !state.is_quiet();
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// The syncer's: tells how a sync ended.
    pub(crate) fn synced(&self, end: SyncEnd) {
        self.state.lock().synced.push(end);
        self.wake.notify_one();
    }

    /// Asks for everything dirty to be made durable; the receiver hears when it is.
    pub(crate) fn flush(&self, seal: bool) -> oneshot::Receiver<()> {
        let (done, heard) = oneshot::channel();
        let mut state = self.state.lock();
        if !state.ended {
            // While the disk hangs, callers may come and give up again and again.
            state.flushes.retain(|flush| !flush.is_closed());
            state.flushes.push(done);
            state.seal |= seal;
        }
        drop(state);
        self.wake.notify_one();
        heard
    }

    /// Tells that something is dirty. One atomic read, unless it is the first since the last flush.
    pub(crate) fn note_dirty(&self, urgent: bool) {
        if !self.dirty.load(Ordering::SeqCst) || (urgent && !self.urgent.load(Ordering::SeqCst)) {
            self.dirty.store(true, Ordering::SeqCst);
            self.urgent.fetch_or(urgent, Ordering::SeqCst);
            self.kick();
        }
    }

    /// Tells that a store waits for room.
    pub(crate) fn note_starved(&self) {
        self.starved.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// A caller has abandoned a store whose record is appended: it has to be taken back.
    pub(crate) fn note_abandoned(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// For the committer: there are abandoned stores since the last call. Call it after everything
    /// that is appended next was taken: a caller sets the mark before it asks for more.
    pub(crate) fn take_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst) && self.abandoned.swap(false, Ordering::SeqCst)
    }

    /// Makes the committer look again.
    pub(crate) fn kick(&self) {
        self.state.lock().kicked = true;
        self.wake.notify_one();
    }

    /// Ends the committer. A stricter end replaces a milder one.
    pub(crate) fn stop(&self, stop: Stop) {
        let mut state = self.state.lock();
        if state.stop != Some(Stop::Abandon) {
            (state.stop, state.stop_heard) = (Some(stop), false);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The committer's: from here on the first dirty byte kicks again. Call it before looking for dirty bytes. True if a store waits for room.
    pub(crate) fn rearm(&self) -> bool {
        self.dirty.store(false, Ordering::SeqCst);
        self.urgent.store(false, Ordering::SeqCst);
        self.starved.swap(false, Ordering::SeqCst)
    }

    /// The committer's: it has set its timer.
    pub(crate) fn timer_is_set(&self) {
        self.dirty.store(true, Ordering::SeqCst);
    }

    /// The committer's: something became dirty that no timer is set for.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    /// The committer's: a store waits for room.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved.load(Ordering::SeqCst)
    }

    /// The committer's: much of the limit is dirty.
    pub(crate) fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::SeqCst)
    }

    /// The committer's: waits for mail, a kick or `until`. `syncing`: a sync is under way.
    pub(crate) fn wait(&self, until: Option<Instant>, syncing: bool) -> CommitWork {
        let mut state = self.state.lock();
        state.patient = syncing;
        while state.is_quiet() {
            match until {
                None => self.wake.wait(&mut state),
                Some(until) => {
                    if self.wake.wait_until(&mut state, until).timed_out() {
                        break;
                    }
                }
            }
        }
        state.take()
    }

    /// The committer's: waits for a sync to end, whatever else there is.
    pub(crate) fn wait_synced(&self) -> Vec<SyncEnd> {
        let mut state = self.state.lock();
        while state.synced.is_empty() {
            self.wake.wait(&mut state);
        }
        std::mem::take(&mut state.synced)
    }

    /// The committer's: the synced stores that came since.
    pub(crate) fn take_arrivals(&self) -> Vec<Arrival> {
        let mut state = self.state.lock();
        state.bytes = 0;
        std::mem::take(&mut state.arrivals)
    }

    /// When the first of the stores came that the committer has not taken yet. It takes none while it is with the disk, whatever for.
    pub(crate) fn oldest_arrival(&self) -> Option<Instant> {
        self.state.lock().arrivals.first().map(|arrival| arrival.at)
    }

    /// A segment has become free.
    pub(crate) fn room_came(&self) {
        let mut state = self.state.lock();
        (state.kicked, state.room) = (true, true);
        drop(state);
        self.wake.notify_one();
    }

    /// The committer's: waits until `until` whatever arrives, but not longer than it has for its own end; and only until a segment is free, if it is
    /// one that it waits `for_room`.
    pub(crate) fn pause(&self, until: Instant, for_room: bool) {
        let mut state = self.state.lock();
        loop {
            // One that came before this is as good.
            if std::mem::take(&mut state.room) && for_room {
                return;
            }
            let until = match state.stop {
                Some(Stop::Abandon) => return,
                Some(Stop::Drained(by)) => until.min(by),
                None => until,
            };
            if self.wake.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// The committer's last word: nothing that comes from now on is heard, and nobody waits for it.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
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
            && (self.stop.is_none() || self.stop_heard)
    }

    fn take(&mut self) -> CommitWork {
        (self.kicked, self.patient, self.bytes) = (false, false, 0);
        self.stop_heard = self.stop.is_some();
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
    fn the_first_dirty_byte_kicks_and_the_next_ones_do_not() {
        let commit_queue = CommitQueue::default();
        commit_queue.note_dirty(false);
        assert!(commit_queue.state.lock().kicked);
        commit_queue.wait(None, false);
        commit_queue.note_dirty(false);
        assert!(!commit_queue.state.lock().kicked);
        commit_queue.note_dirty(true);
        assert!(commit_queue.state.lock().kicked && commit_queue.is_urgent());
        commit_queue.wait(None, false);
        commit_queue.rearm();
        commit_queue.note_dirty(false);
        assert!(commit_queue.state.lock().kicked);
    }

    #[test]
    fn after_the_end_nobody_waits_in_vain() {
        let commit_queue = CommitQueue::default();
        let mut before = commit_queue.flush(false);
        commit_queue.end();
        let mut after = commit_queue.flush(false);
        let gone = oneshot::error::TryRecvError::Closed;
        assert_eq!(before.try_recv(), Err(gone.clone()));
        assert_eq!(after.try_recv(), Err(gone));
    }

    #[test]
    fn callers_who_gave_up_leave_nothing_behind() {
        let commit_queue = CommitQueue::default();
        let waits = commit_queue.flush(false);
        (0..10).for_each(|_| drop(commit_queue.flush(true)));
        let mail = commit_queue.wait(None, false);
        assert!(mail.flushes.len() <= 2 && mail.seal, "{mail:?}");
        drop(waits);
    }

    #[test]
    fn abandoning_is_not_taken_back() {
        let commit_queue = CommitQueue::default();
        commit_queue.stop(Stop::Abandon);
        commit_queue.stop(Stop::Drained(Instant::now()));
        assert_eq!(commit_queue.wait(None, false).stop, Some(Stop::Abandon));
    }
}
