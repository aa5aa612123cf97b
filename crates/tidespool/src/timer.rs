//! Deadlines of futures, on a thread of the spool.
//!
//! A caller may use any executor, or `block_on` of any crate. A tokio timer would panic outside of
//! a tokio runtime, and inside of one without a time driver.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use slab::Slab;

/// Wakes futures at their deadlines. One thread calls [`run`](Self::run).
#[derive(Debug, Default)]
pub(crate) struct Timer {
    state: Mutex<TimerState>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct TimerState {
    /// The futures that wait. Bounded by the callers: each entry belongs to a future, which removes
    /// the entry when it is dropped.
    waiting: Slab<Waiting>,
    /// The deadlines of all entries, the earliest first. Those of entries that were removed stay
    /// until they pass, or until they are the most: most futures end long before their deadlines.
    deadlines: BinaryHeap<Reverse<Due>>,
    last: u64,
    /// When the thread wakes without a notification. `None`: it waits for one.
    wakes_at: Option<Instant>,
    is_closed: bool,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    waker: Waker,
}

/// The deadline of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    entry: EntryKey,
}

/// The place of an entry. A place is used again, with another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct EntryKey {
    number: u64,
    place: usize,
}

impl TimerState {
    fn add(&mut self, at: Instant, waker: Waker) -> EntryKey {
        self.last += 1;
        let number = self.last;
        let entry = EntryKey { number, place: self.waiting.insert(Waiting { number, waker }) };
        self.deadlines.push(Reverse(Due { at, entry }));
        if self.deadlines.len() > 64 + 2 * self.waiting.len() {
            let waiting = &self.waiting;
            self.deadlines.retain(|Reverse(due)| is_waiting(waiting, due.entry));
        }
        entry
    }

    /// Removes the entry. `None`: the timer has removed it.
    fn remove(&mut self, entry: EntryKey) -> Option<Waker> {
        is_waiting(&self.waiting, entry).then(|| self.waiting.remove(entry.place).waker)
    }

    /// Removes the first entry whose deadline has passed.
    fn take_due(&mut self, now: Instant) -> Option<Waker> {
        while let Some(Reverse(due)) = self.deadlines.peek().copied().filter(|due| due.0.at <= now) {
            self.deadlines.pop();
            if let Some(waker) = self.remove(due.entry) {
                return Some(waker);
            }
        }
        None
    }
}

fn is_waiting(waiting: &Slab<Waiting>, entry: EntryKey) -> bool {
    waiting.get(entry.place).is_some_and(|waiting| waiting.number == entry.number)
}

impl Timer {
    /// Completes with the result of `work`, or with `None` if `deadline` passes first. Adds no
    /// entry if `work` is ready at once.
    ///
    /// After [`close`](Self::close), every deadline counts as passed.
    pub(crate) fn bound<W: Future + Unpin>(&self, deadline: Instant, work: W) -> WithDeadline<'_, W> {
        WithDeadline { work, until: self.until(deadline) }
    }

    /// Completes when `deadline` has passed, or when the timer is closed.
    pub(crate) fn until(&self, deadline: Instant) -> Until<'_> {
        Until { timer: self, deadline, entry: None }
    }

    /// The thread's body: wakes futures until the timer is closed.
    pub(crate) fn run(&self) {
        // Also closes after a panic: otherwise the waiting futures would never complete.
        let _close = Close(self);
        let mut due = Vec::new();
        let mut state = self.state.lock();
        while !state.is_closed {
            let now = Instant::now();
            while let Some(waker) = state.take_due(now) {
                due.push(waker);
            }
            if !due.is_empty() {
                drop(state);
                due.drain(..).for_each(Waker::wake);
                state = self.state.lock();
                continue;
            }
            state.wakes_at = state.deadlines.peek().map(|due| due.0.at);
            match state.wakes_at {
                Some(at) => drop(self.wake.wait_until(&mut state, at)),
                None => self.wake.wait(&mut state),
            }
        }
    }

    /// Ends the thread. Completes every waiting future, and each future that waits later.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let mut waiting = std::mem::take(&mut state.waiting);
        state.deadlines.clear();
        drop(state);
        self.wake.notify_all();
        waiting.drain().for_each(|waiting| waiting.waker.wake());
    }
}

struct Close<'a>(&'a Timer);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The future of [`Timer::bound`]. Not an `async fn`, to keep it small: each store's future
/// contains it.
#[derive(Debug)]
pub(crate) struct WithDeadline<'a, W> {
    work: W,
    until: Until<'a>,
}

impl<W: Future + Unpin> Future for WithDeadline<'_, W> {
    type Output = Option<W::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match Pin::new(&mut self.work).poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => Pin::new(&mut self.until).poll(context).map(|()| None),
        }
    }
}

/// The future of [`Timer::until`].
#[derive(Debug)]
pub(crate) struct Until<'a> {
    timer: &'a Timer,
    deadline: Instant,
    /// `None`: there is no entry yet.
    entry: Option<EntryKey>,
}

impl Future for Until<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.entry.is_none() && self.deadline <= Instant::now() {
            return Poll::Ready(());
        }
        let timer = self.timer;
        let mut state = timer.state.lock();
        if state.is_closed {
            return Poll::Ready(());
        }
        let Some(entry) = self.entry else {
            self.entry = Some(state.add(self.deadline, context.waker().clone()));
            // Usually false: stores of one spool have equal timeouts, so the new deadline is the
            // latest.
            let is_earlier = state.wakes_at.is_none_or(|at| self.deadline < at);
            if is_earlier {
                state.wakes_at = Some(self.deadline);
            }
            drop(state);
            if is_earlier {
                timer.wake.notify_one();
            }
            return Poll::Pending;
        };
        match state.waiting.get_mut(entry.place).filter(|waiting| waiting.number == entry.number) {
            Some(waiting) if waiting.waker.will_wake(context.waker()) => Poll::Pending,
            Some(waiting) => {
                let before = std::mem::replace(&mut waiting.waker, context.waker().clone());
                drop(state);
                // Dropped outside of the lock: the waker may own the last reference to a task that
                // contains another `Until`, which locks in its `drop`.
                drop(before);
                Poll::Pending
            }
            // Only the timer removes an entry whose future still exists.
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Until<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            let waker = self.timer.state.lock().remove(entry);
            // Outside of the lock, as above.
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use futures_lite::future::{block_on, pending, poll_once, ready};

    use super::*;

    const SOON: Duration = Duration::from_millis(5);
    const HOUR: Duration = Duration::from_secs(3600);

    fn with_thread(test: impl FnOnce(&Arc<Timer>)) {
        let timer = Arc::<Timer>::default();
        let running = timer.clone();
        let thread = thread::spawn(move || running.run());
        test(&timer);
        timer.close();
        thread.join().unwrap();
    }

    fn waiting(timer: &Timer) -> usize {
        timer.state.lock().waiting.len()
    }

    #[test]
    fn ready_work_returns_at_once_without_an_entry() {
        let timer = Timer::default();
        assert_eq!(block_on(timer.bound(Instant::now(), pending::<()>())), None, "it has passed already");
        assert_eq!(block_on(timer.bound(Instant::now() + HOUR, ready(7))), Some(7));
        assert_eq!(timer.state.lock().last, 0);
    }

    #[test]
    fn deadlines_pass_in_order_and_not_early() {
        with_thread(|timer| {
            let start = Instant::now();
            // The later deadline is added first, so the thread has to be notified of the earlier
            // one.
            let mut late = Box::pin(timer.bound(start + HOUR, pending::<()>()));
            assert!(block_on(poll_once(&mut late)).is_none());
            for n in [3, 1, 2] {
                let deadline = start + SOON * n;
                assert_eq!(block_on(timer.bound(deadline, pending::<()>())), None);
                assert!(Instant::now() >= deadline);
            }
            assert_eq!(waiting(timer), 1);
            drop(late);
            assert_eq!(waiting(timer), 0);
            assert_eq!(block_on(timer.bound(start, pending::<()>())), None, "a deadline in the past");
        });
    }

    #[test]
    fn equal_deadlines_all_pass() {
        with_thread(|timer| {
            let deadline = Instant::now() + SOON;
            thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| assert_eq!(block_on(timer.bound(deadline, pending::<()>())), None));
                }
            });
            assert_eq!(waiting(timer), 0);
        });
    }

    #[test]
    fn a_dropped_future_leaves_no_entry() {
        let timer = Timer::default();
        for _ in 0..3 {
            let mut waits = Box::pin(timer.bound(Instant::now() + HOUR, pending::<()>()));
            assert!(block_on(poll_once(&mut waits)).is_none());
            assert!(block_on(poll_once(&mut waits)).is_none());
            assert_eq!(waiting(&timer), 1);
        }
        assert_eq!(waiting(&timer), 0);
    }

    #[test]
    fn the_deadlines_of_dropped_futures_are_bounded_and_a_used_place_keeps_its_own() {
        let timer = Timer::default();
        let start = Instant::now() + HOUR;
        let wait = |n| {
            let mut waits = Box::pin(timer.bound(start + SOON * n, pending::<()>()));
            assert!(block_on(poll_once(&mut waits)).is_none());
            waits
        };
        drop(wait(0));
        // It has the place of the one before.
        let mut first = wait(1_000);
        for n in 1..10_000 {
            drop(wait(n));
            let state = timer.state.lock();
            let left = (state.deadlines.len(), state.waiting.capacity());
            assert!(left.0 <= 64 + 2 * 2 && left.1 <= 4, "{left:?}");
        }
        assert!(timer.state.lock().take_due(start + SOON * 999).is_none(), "not before its own deadline");
        assert!(timer.state.lock().take_due(start + SOON * 1_000).is_some());
        assert_eq!(block_on(poll_once(&mut first)), Some(None));
    }

    /// No caller may wait for ever after the thread has ended.
    #[test]
    fn after_close_no_future_waits_and_ready_work_still_returns() {
        with_thread(|timer| {
            let (sent, started) = std::sync::mpsc::channel();
            let closing = timer.clone();
            let waits = thread::spawn(move || {
                let mut waits = Box::pin(closing.bound(Instant::now() + HOUR, pending::<()>()));
                assert!(block_on(poll_once(&mut waits)).is_none());
                sent.send(()).unwrap();
                block_on(waits)
            });
            started.recv().unwrap();
            timer.close();
            assert_eq!(waits.join().unwrap(), None);
            assert_eq!(block_on(timer.bound(Instant::now() + HOUR, pending::<()>())), None);
            assert_eq!(block_on(timer.bound(Instant::now(), ready(7))), Some(7));
        });
    }
}
