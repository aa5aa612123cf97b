//! Admission of dirty bytes: their number, their limit, and the stores that wait for room.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use super::queue::{Load, Queue, QueuePlace, Turn};
use super::throttle::{Lane, cannot_meet};

/// Memory of a dirty message beside its bytes: table entries, ticket and reference counts.
const DIRTY_OVERHEAD: u64 = 256;

/// Flag in [`Budget::puts`]: at least one store waits.
const WAITING: u64 = 1;

/// The budget of dirty bytes.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Twice the dirty bytes of messages, plus [`WAITING`]. So one atomic step returns room and
    /// reads whether a store waits for it.
    puts: AtomicU64,
    /// Dirty bytes of tombstones.
    removals: AtomicU64,
    /// Callers wait until there are fewer tombstones.
    slows_removals: AtomicBool,
    fewer_removals: Notify,
    limit: AtomicU64,
    /// Bytes per second that commits make durable while they run. 0 until measured.
    drain_rate: AtomicU64,
    /// Bytes of the newest commits, and the nanoseconds they took. Older commits have less weight.
    drained: AtomicU64,
    drained_in: AtomicU64,
    /// When the last commit ended, in nanoseconds since `started`.
    drained_at: AtomicU64,
    line: Mutex<WaitingLine>,
    /// Wakes the thread that is in [`attend`](Budget::attend).
    wake: Condvar,
    started: Instant,
}

/// The waiting stores. Bounded by the number of callers: each is a caller's future.
#[derive(Debug)]
struct WaitingLine {
    queue: Queue<oneshot::Sender<Permit>>,
    /// When the next waiter is due, in nanoseconds since `started`: the attending thread wakes
    /// then.
    alarm: Option<u64>,
    /// The first store lacks room.
    is_full: bool,
    /// The attending thread has not reported `is_full` yet.
    is_news: bool,
    closed: bool,
}

/// Room for one dirty version. It is returned exactly when the last holder drops the version, on
/// every path.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: u64,
    is_removal: bool,
}

impl Permit {
    /// Splits the permit for several messages with these lengths in sum. Returns one for a message
    /// of `len` bytes.
    pub(crate) fn split(&mut self, len: u64) -> Self {
        let bytes = (len + DIRTY_OVERHEAD).min(self.bytes);
        self.bytes -= bytes;
        Self { budget: self.budget.clone(), bytes, is_removal: false }
    }

    /// The length for which several messages of these lengths are admitted together.
    pub(crate) fn len_of_all(lens: impl Iterator<Item = u64>) -> u64 {
        let sum = lens.map(|len| len + DIRTY_OVERHEAD).sum::<u64>();
        sum.saturating_sub(DIRTY_OVERHEAD)
    }
}

/// The minimum sleep of the attending thread. Above the threshold a store is due every few
/// microseconds, so several are admitted together.
const TICK: Duration = Duration::from_millis(1);

impl Budget {
    /// `limit` is in bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            puts: AtomicU64::new(0),
            removals: AtomicU64::new(0),
            slows_removals: AtomicBool::new(false),
            fewer_removals: Notify::new(),
            limit: AtomicU64::new(limit),
            drain_rate: AtomicU64::new(0),
            drained: AtomicU64::new(0),
            drained_in: AtomicU64::new(0),
            drained_at: AtomicU64::new(0),
            line: Mutex::new(WaitingLine {
                queue: Queue::new(),
                alarm: None,
                is_full: false,
                is_news: false,
                closed: false,
            }),
            wake: Condvar::new(),
            started: Instant::now(),
        }
    }

    /// Returns room for a message of `len` bytes if it can be admitted without waiting.
    pub(crate) fn try_admit(self: &Arc<Self>, len: u64, lane: Lane) -> Option<Permit> {
        let bytes = len + DIRTY_OVERHEAD;
        let free = lane.free_below(self.limit()).saturating_sub(self.removals.load(Ordering::Relaxed));
        let mut puts = self.puts.load(Ordering::Relaxed);
        while puts & WAITING == 0 && (puts >> 1) + bytes <= free {
            match self.puts.compare_exchange_weak(
                puts,
                puts + (bytes << 1),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(self.permit(bytes)),
                Err(now) => puts = now,
            }
        }
        self.try_admit_in_turn(bytes, lane)
    }

    /// The slow path: the limit is near, or stores wait.
    #[cold]
    fn try_admit_in_turn(self: &Arc<Self>, bytes: u64, lane: Lane) -> Option<Permit> {
        let mut line = self.line.lock();
        loop {
            let (now, puts) = (self.now(), self.puts.load(Ordering::Acquire));
            let load = self.load(now, puts);
            let place = line.queue.place(now, bytes, self.drain_rate());
            let (turn, _) = line.queue.turn_beside(now, &load, Some((lane, place, bytes)));
            if turn != Turn::Of(lane, place) {
                return None;
            }
            if self.take(puts, bytes) {
                line.queue.let_in(now, lane, bytes, &load);
                return Some(self.permit(bytes));
            }
        }
    }

    /// Adds a message of `len` bytes to the queue. Dropping the waiter gives up its place, and
    /// returns the room if it was granted.
    pub(crate) fn wait(self: &Arc<Self>, len: u64, lane: Lane) -> Waiter {
        let bytes = len + DIRTY_OVERHEAD;
        let (served, permit) = oneshot::channel();
        let mut line = self.line.lock();
        let place = line.queue.place(self.now(), bytes, self.drain_rate());
        line.queue.join(lane, place, bytes, served);
        // Before the next check of the room: every permit dropped after that check sees the flag.
        self.puts.fetch_or(WAITING, Ordering::AcqRel);
        drop(line);
        self.serve();
        Waiter { budget: self.clone(), lane, place, permit }
    }

    /// True if a message of `len` bytes cannot be admitted within `left`. Either its slot is later,
    /// or the bytes before it take more than twice that time to drain at the measured rate.
    pub(crate) fn cannot_meet(&self, len: u64, lane: Lane, left: Duration) -> bool {
        let bytes = len + DIRTY_OVERHEAD;
        let mut line = self.line.lock();
        let now = self.now();
        let load = self.load(now, self.puts.load(Ordering::Acquire));
        if Duration::from_nanos(line.queue.until_due(now, lane, &load)) > left {
            return true;
        }
        // The bytes to drain: those over the limit once everything ahead of it is admitted.
        let to_drain =
            |ahead: u64| (load.puts + ahead + bytes.min(load.limit)).saturating_sub(load.limit).max(ahead);
        if !cannot_meet(to_drain(line.queue.bytes()), self.drain_rate(), left) {
            return false;
        }
        let place = line.queue.place(now, bytes, self.drain_rate());
        cannot_meet(to_drain(line.queue.ahead_of(place)), self.drain_rate(), left)
    }

    /// Room for a tombstone. Removals never wait here, because they free room.
    pub(crate) fn admit_removal(self: &Arc<Self>) -> Permit {
        self.removals.fetch_add(DIRTY_OVERHEAD, Ordering::Relaxed);
        Permit { budget: self.clone(), bytes: DIRTY_OVERHEAD, is_removal: true }
    }

    /// True if tombstones use more than five eighths of the limit. Removals are then slowed to the
    /// pace of the disk.
    pub(crate) fn has_many_removals(&self) -> bool {
        self.removals.load(Ordering::SeqCst) > self.limit() / 8 * 5
    }

    /// Waits until [`has_many_removals`](Self::has_many_removals) is false.
    pub(crate) async fn fewer_removals(&self) {
        let mut fewer = pin!(self.fewer_removals.notified());
        // From here on no notification is missed.
        fewer.as_mut().enable();
        self.slows_removals.store(true, Ordering::SeqCst);
        if self.has_many_removals() {
            fewer.await;
        }
    }

    /// Room for a message that was acknowledged earlier. It is granted regardless of the limit.
    pub(crate) fn admit_acknowledged(self: &Arc<Self>, len: u64) -> Permit {
        let bytes = len + DIRTY_OVERHEAD;
        self.puts.fetch_add(bytes << 1, Ordering::AcqRel);
        self.permit(bytes)
    }

    /// True if the first store in the queue lacks room. A store that brings in bytes then notifies
    /// the committer, whose last request covers only what was dirty before.
    pub(crate) fn lacks_room(&self) -> bool {
        self.puts.load(Ordering::Acquire) & WAITING != 0 && self.line.lock().is_full
    }

    /// Changes the limit, in bytes. Above it nothing is admitted until enough has drained.
    pub(crate) fn set_limit(self: &Arc<Self>, limit: u64) {
        let line = self.line.lock();
        self.limit.store(limit, Ordering::Relaxed);
        drop(line);
        self.serve();
    }

    /// The current dirty bytes, overhead included.
    pub(crate) fn dirty(&self) -> u64 {
        (self.puts.load(Ordering::Relaxed) >> 1) + self.removals.load(Ordering::Relaxed)
    }

    /// The limit, in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Bytes of the waiting stores.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u64 {
        self.line.lock().queue.bytes()
    }

    /// Records that a commit of `bytes` took `took`.
    pub(crate) fn note_drained(&self, bytes: u64, took: Duration) {
        // A small commit measures the cost of a sync, not the rate of the disk.
        if bytes < 64 * 1024 {
            return;
        }
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        // Bytes and times are averaged separately. A mean of rates would overestimate a disk that
        // alternates between fast and slow.
        let bytes = self.drained.load(Ordering::Relaxed) / 8 * 7 + bytes;
        let time = (self.drained_in.load(Ordering::Relaxed) / 8 * 7).saturating_add(took);
        self.drained.store(bytes, Ordering::Relaxed);
        self.drained_in.store(time, Ordering::Relaxed);
        self.drained_at.store(self.now(), Ordering::Relaxed);
        self.drain_rate.store(rate(bytes, time), Ordering::Relaxed);
    }

    /// The rate including the time since the last commit ended. So a pause of the disk slows
    /// admissions more and more.
    fn rate_at(&self, now: u64) -> u64 {
        let bytes = self.drained.load(Ordering::Relaxed);
        if bytes == 0 {
            return 0;
        }
        let quiet = now.saturating_sub(self.drained_at.load(Ordering::Relaxed));
        rate(bytes, self.drained_in.load(Ordering::Relaxed).saturating_add(quiet))
    }

    /// The measured rate, in bytes per second. 0 until measured.
    fn drain_rate(&self) -> u64 {
        self.drain_rate.load(Ordering::Relaxed)
    }

    /// Admits every store that is due and has room.
    fn serve(self: &Arc<Self>) {
        while let Some((waiter, permit)) = self.next_served() {
            // The waiter was dropped: its room goes to the next one.
            if let Err(mut permit) = waiter.send(permit) {
                permit.give_back();
            }
        }
    }

    fn next_served(self: &Arc<Self>) -> Option<(oneshot::Sender<Permit>, Permit)> {
        let mut line = self.line.lock();
        loop {
            let (now, puts) = (self.now(), self.puts.load(Ordering::Acquire));
            let load = self.load(now, puts);
            match line.queue.turn(now, &load) {
                (Turn::Of(lane, place), bytes) => {
                    if !self.take(puts, bytes) {
                        continue;
                    }
                    line.queue.let_in(now, lane, bytes, &load);
                    let (_, waiter) = line.queue.leave(lane, place)?;
                    (line.is_full, line.is_news) = (false, false);
                    self.note_left(&line);
                    return Some((waiter, self.permit(bytes)));
                }
                (Turn::Empty, _) => return None,
                (Turn::Later(due), _) => {
                    if line.alarm.is_none_or(|alarm| due < alarm) {
                        line.alarm = Some(due);
                        self.wake.notify_one();
                    }
                    return None;
                }
                (Turn::Full, _) => {
                    if !std::mem::replace(&mut line.is_full, true) {
                        line.is_news = true;
                        self.wake.notify_one();
                    }
                    return None;
                }
            }
        }
    }

    /// Admits waiters as they become due, until `until`. Calls `on_full` when the first in the
    /// queue lacks room. Returns true once the budget is closed.
    ///
    /// A thread of the spool runs it, so no waiter depends on another waiter's future being polled.
    pub(crate) fn attend(self: &Arc<Self>, until: Instant, on_full: impl Fn()) -> bool {
        loop {
            self.line.lock().alarm = None;
            // This sets the alarm for the next waiter.
            self.serve();
            let mut line = self.line.lock();
            if line.closed {
                return true;
            }
            if std::mem::take(&mut line.is_news) {
                drop(line);
                on_full();
                continue;
            }
            let now = Instant::now();
            if now >= until {
                return false;
            }
            let alarm = line.alarm;
            let due = alarm.map(|due| (self.started + Duration::from_nanos(due)).max(now + TICK));
            let wake_at = due.map_or(until, |due| due.min(until));
            while !line.closed && !line.is_news && line.alarm == alarm {
                if self.wake.wait_until(&mut line, wake_at).timed_out() {
                    break;
                }
            }
        }
    }

    /// Ends [`attend`](Self::attend).
    pub(crate) fn close(&self) {
        self.line.lock().closed = true;
        self.wake.notify_one();
    }

    /// Removes a store from the queue if it was not admitted.
    fn leave(self: &Arc<Self>, lane: Lane, place: QueuePlace) {
        let mut line = self.line.lock();
        if line.queue.leave(lane, place).is_none() {
            return;
        }
        (line.is_full, line.is_news) = (false, false);
        self.note_left(&line);
        drop(line);
        // It may have blocked the stores behind it.
        self.serve();
    }

    /// Clears [`WAITING`] if the queue is empty. Call it under the lock.
    fn note_left(&self, line: &WaitingLine) {
        if line.queue.is_empty() {
            self.puts.fetch_and(!WAITING, Ordering::AcqRel);
        }
    }

    /// Takes room if `puts` is unchanged. False if it has changed.
    fn take(&self, puts: u64, bytes: u64) -> bool {
        self.puts.compare_exchange(puts, puts + (bytes << 1), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn load(&self, now: u64, puts: u64) -> Load {
        Load {
            puts: puts >> 1,
            removals: self.removals.load(Ordering::Relaxed),
            limit: self.limit(),
            rate: self.rate_at(now),
        }
    }

    fn permit(self: &Arc<Self>, bytes: u64) -> Permit {
        Permit { budget: self.clone(), bytes, is_removal: false }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Bytes per second, at least one.
fn rate(bytes: u64, nanos: u64) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / u128::from(nanos.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX).max(1)
}

impl Permit {
    /// Its dirty bytes, overhead included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the room. True if a store waits.
    fn give_back(&mut self) -> bool {
        let bytes = std::mem::take(&mut self.bytes);
        if !self.is_removal {
            return self.budget.puts.fetch_sub(bytes << 1, Ordering::AcqRel) & WAITING != 0;
        }
        self.budget.removals.fetch_sub(bytes, Ordering::SeqCst);
        if self.budget.slows_removals.load(Ordering::SeqCst) && !self.budget.has_many_removals() {
            self.budget.slows_removals.store(false, Ordering::SeqCst);
            self.budget.fewer_removals.notify_waiters();
        }
        self.budget.puts.load(Ordering::Acquire) & WAITING != 0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.bytes > 0 && self.give_back() {
            self.budget.serve();
        }
    }
}

/// A place in the queue. Dropping it gives up the place, and returns the room if it was granted.
#[derive(Debug)]
pub(crate) struct Waiter {
    budget: Arc<Budget>,
    lane: Lane,
    place: QueuePlace,
    permit: oneshot::Receiver<Permit>,
}

/// The budget was dropped while a store waited. This cannot happen: each waiter holds the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WaiterGone;

impl Waiter {
    /// Waits for the room.
    pub(crate) async fn admitted(mut self) -> Result<Permit, WaiterGone> {
        (&mut self.permit).await.map_err(|_| WaiterGone)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.budget.leave(self.lane, self.place);
    }
}

#[cfg(test)]
mod tests;
