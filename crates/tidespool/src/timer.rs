//! Deadlines of futures, on a thread of the spool.
//!
//! A caller may use any executor, or `block_on` of any crate. A tokio timer would panic outside of
//! a tokio runtime, and inside of one without a time driver.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Wakes futures at their deadlines. One thread calls [`run`](Self::run).
#[derive(Debug, Default)]
pub(crate) struct Timer {
    state: Mutex<TimerState>,
    wake: Condvar,
}

/// A deadline, and a number that makes keys with equal deadlines distinct.
type TimerKey = (Instant, u64);

#[derive(Debug, Default)]
struct TimerState {
    /// The futures that wait. Bounded by the callers: each entry belongs to a future, which removes
    /// the entry when it is dropped.
    waiting: BTreeMap<TimerKey, Waker>,
    last: u64,
    /// When the thread wakes without a notification. `None`: it waits for one.
    wakes_at: Option<Instant>,
    is_closed: bool,
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
        Until { timer: self, deadline, number: 0 }
    }

    /// The thread's body: wakes futures until the timer is closed.
    pub(crate) fn run(&self) {
        // Also closes after a panic: otherwise the waiting futures would never complete.
        let _close = Close(self);
        let mut due = Vec::new();
        let mut state = self.state.lock();
        while !state.is_closed {
            let now = Instant::now();
            while let Some(first) = state.waiting.first_entry().filter(|first| first.key().0 <= now) {
                due.push(first.remove());
            }
            if !due.is_empty() {
                drop(state);
                due.drain(..).for_each(Waker::wake);
                state = self.state.lock();
                continue;
            }
            state.wakes_at = state.waiting.first_key_value().map(|(key, _)| key.0);
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
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.wake.notify_all();
        waiting.into_values().for_each(Waker::wake);
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
    /// The number of the entry. 0: there is no entry yet.
    number: u64,
}

impl Future for Until<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.number == 0 && self.deadline <= Instant::now() {
            return Poll::Ready(());
        }
        let timer = self.timer;
        let mut state = timer.state.lock();
        if state.is_closed {
            return Poll::Ready(());
        }
        if self.number == 0 {
            state.last += 1;
            self.number = state.last;
            state.waiting.insert((self.deadline, self.number), context.waker().clone());
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
        }
        match state.waiting.get_mut(&(self.deadline, self.number)) {
            Some(waker) if waker.will_wake(context.waker()) => Poll::Pending,
            Some(waker) => {
                let before = std::mem::replace(waker, context.waker().clone());
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
        if self.number != 0 {
            let waker = self.timer.state.lock().waiting.remove(&(self.deadline, self.number));
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
