//! A value that some threads change and another waits for.

use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// State under a lock, with a notification of its changes. What is queued in it is bounded by its
/// type `T`.
#[derive(Debug, Default)]
pub(crate) struct Mailbox<T> {
    state: Mutex<T>,
    changed: Condvar,
}

impl<T> Mailbox<T> {
    pub(crate) fn new(state: T) -> Self {
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Locks the state. A change that a waiting thread must notice goes through
    /// [`post`](Self::post), or is followed by [`notify_one`](Self::notify_one).
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock()
    }

    /// Changes the state, and wakes the waiting threads.
    pub(crate) fn post<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.state.lock());
        self.changed.notify_all();
        result
    }

    /// Wakes a waiting thread after a change under [`lock`](Self::lock). Enough where only one
    /// waits.
    pub(crate) fn notify_one(&self) {
        self.changed.notify_one();
    }

    /// Blocks until `ready` returns a value, at most until `until`. Returns `None` if this time
    /// passes.
    pub(crate) fn wait<R>(
        &self,
        until: Option<Instant>,
        mut ready: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        let mut state = self.state.lock();
        loop {
            if let Some(result) = ready(&mut state) {
                return Some(result);
            }
            match until {
                None => self.changed.wait(&mut state),
                Some(until) => {
                    if self.changed.wait_until(&mut state, until).timed_out() {
                        return ready(&mut state);
                    }
                }
            }
        }
    }

    /// Blocks until `is_met` returns true, at most until `until`. Returns its last value.
    pub(crate) fn wait_for(&self, until: Instant, is_met: impl Fn(&T) -> bool) -> bool {
        self.wait(Some(until), |state| is_met(state).then_some(())).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_change_ends_the_wait_of_every_thread() {
        let mailbox = Mailbox::<u32>::default();
        thread::scope(|scope| {
            for until in [None, Some(Instant::now() + HOUR)] {
                let mailbox = &mailbox;
                scope.spawn(move || {
                    assert_eq!(mailbox.wait(until, |state| (*state == 2).then_some("two")), Some("two"));
                });
            }
            mailbox.post(|state| *state = 1);
            mailbox.post(|state| *state = 2);
        });
    }

    #[test]
    fn a_wait_ends_at_its_time() {
        let mailbox = Mailbox::new(7);
        assert!(!mailbox.wait_for(Instant::now(), |state| *state == 8));
        assert!(mailbox.wait_for(Instant::now(), |state| *state == 7), "the state counts first");
    }
}
