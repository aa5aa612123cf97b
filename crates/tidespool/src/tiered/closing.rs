//! The end of the spool, as something to wait for: for tasks and for threads.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

/// Set once, when the spool closes.
#[derive(Debug)]
pub(crate) struct Closing {
    closed: Mutex<bool>,
    wake: Condvar,
    /// Nothing is ever sent: closing the channel is the signal.
    sender: Sender<Infallible>,
    receiver: Receiver<Infallible>,
}

impl Closing {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = async_channel::bounded(1);
        Self { closed: Mutex::new(false), wake: Condvar::new(), sender, receiver }
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
}
