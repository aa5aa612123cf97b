//! The end of the spool, as something to wait for: for tasks and for threads.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use parking_lot::{Condvar, Mutex};
use tidespool_core::Closed;
use tokio::sync::Notify;

/// Set once, when the spool closes.
#[derive(Debug)]
pub(crate) struct Closing {
    closed: Mutex<bool>,
    wake: Condvar,
    /// Nothing is ever sent: closing the channel is the signal.
    sender: Sender<Infallible>,
    receiver: Receiver<Infallible>,
    over: Over,
}

impl Closing {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = async_channel::bounded(1);
        Self { closed: Mutex::new(false), wake: Condvar::new(), sender, receiver, over: Over::default() }
    }

    pub(crate) fn close(&self) {
        *self.closed.lock() = true;
        self.wake.notify_all();
        self.sender.close();
    }

    /// Ends when the spool closes.
    pub(crate) async fn closed(&self) {
        let _ = self.receiver.recv().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.lock()
    }

    /// Blocks for `pause`, or until the spool closes. True if it is closed.
    pub(crate) fn wait(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut closed = self.closed.lock();
        while !*closed && !self.wake.wait_until(&mut closed, until).timed_out() {}
        *closed
    }

    /// The shutdown is over. A thread that did not end by now may never answer.
    pub(in crate::tiered) fn end(&self) {
        self.over.set();
    }

    /// Waits for what a thread does, until the shutdown is over.
    pub(in crate::tiered) async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Result<T, Closed> {
        self.over.unless_set(work).await
    }
}

/// Set once, when nobody is to wait any longer for a thread that may hang. Waiting for it allocates nothing.
#[derive(Debug, Default)]
pub(in crate::tiered) struct Over {
    is_set: AtomicBool,
    notify: Notify,
}

impl Over {
    pub(in crate::tiered) fn set(&self) {
        self.is_set.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
    }

    /// What `work` returns: also afterwards, if it is there by then.
    pub(in crate::tiered) async fn unless_set<T>(&self, work: impl Future<Output = T>) -> Result<T, Closed> {
        let over = async {
            let mut notified = pin!(self.notify.notified());
            // From here on none is missed.
            notified.as_mut().enable();
            if !self.is_set.load(Ordering::SeqCst) {
                notified.await;
            }
            Err(Closed)
        };
        future::or(async { Ok(work.await) }, over).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_counts_and_what_is_not_is_not_waited_for() {
        let over = Over::default();
        assert_eq!(future::block_on(over.unless_set(future::ready(1))).ok(), Some(1));
        let mut waiting = pin!(over.unless_set(future::pending::<()>()));
        assert!(future::block_on(future::poll_once(&mut waiting)).is_none());
        over.set();
        assert!(future::block_on(waiting).is_err());
        assert!(future::block_on(over.unless_set(future::pending::<()>())).is_err());
        assert_eq!(future::block_on(over.unless_set(future::ready(2))).ok(), Some(2));
    }
}
