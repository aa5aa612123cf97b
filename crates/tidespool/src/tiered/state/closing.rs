//! The signal that the spool closes. Tasks and threads can wait for it.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use tidespool_core::Closed;
use tokio::sync::Notify;

use crate::mailbox::Mailbox;

/// Set once, when the spool closes.
#[derive(Debug)]
pub(crate) struct Closing {
    closed: Mailbox<bool>,
    /// Nothing is ever sent. Closing the channel is the signal.
    sender: Sender<Infallible>,
    receiver: Receiver<Infallible>,
    over: Over,
}

impl Closing {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = async_channel::bounded(1);
        Self { closed: Mailbox::default(), sender, receiver, over: Over::default() }
    }

    pub(crate) fn close(&self) {
        self.closed.post(|closed| *closed = true);
        self.sender.close();
    }

    /// Waits until the spool closes.
    pub(crate) async fn closed(&self) {
        let _ = self.receiver.recv().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.lock()
    }

    /// Blocks for `pause`, or until the spool closes. Returns true if it is closed.
    pub(crate) fn wait(&self, pause: Duration) -> bool {
        self.closed.wait_for(Instant::now() + pause, |closed| *closed)
    }

    /// Signals that the shutdown is over. A thread that has not ended by now may hang forever.
    pub(in crate::tiered) fn end(&self) {
        self.over.set();
    }

    /// Waits for `work` of another thread, at most until the shutdown is over.
    pub(in crate::tiered) async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Result<T, Closed> {
        self.over.unless_set(work).await
    }
}

/// A flag that is set once, when no caller should wait any longer for a thread that may hang.
/// Waiting for it allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Over {
    is_set: AtomicBool,
    notify: Notify,
}

impl Over {
    pub(super) fn set(&self) {
        self.is_set.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
    }

    /// Returns the output of `work`. Fails if the flag is set and `work` is not ready.
    pub(super) async fn unless_set<T>(&self, work: impl Future<Output = T>) -> Result<T, Closed> {
        let over = async {
            let mut notified = pin!(self.notify.notified());
            // From here on no notification is missed.
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
    fn after_the_flag_is_set_only_ready_work_succeeds() {
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
