//! The receiving end of a walk: a stream that ends with an error if the walk was cut short.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_channel::Receiver;
use futures_util::stream::{self, Stream, StreamExt as _};
use tidespool_core::Closed;

use super::walk::ScanState;
use crate::timer::Timer;
use crate::whole_text::whole;

/// The context of the error.
const CUT_SHORT: &str = "the scan was cut short, and leaves messages out";

/// Messages of a spool, one after the other. It ends with `None` only if it is complete.
///
/// If it was cut short, the last item is an `Err`: by a shutdown of the spool or of the store (root
/// cause [`Closed`](crate::core::Closed)), or by a disk, an index or a thread that failed (root
/// cause [`std::io::Error`]). The messages that were left out are still in the spool. So a caller
/// may act on the absence of a message only after `None`.
///
/// It is a [`Stream`], and can be read without one with [`next`](Self::next). Dropping it ends the
/// scan. A scan that is not read waits, and blocks no other call.
pub struct Scan<T> {
    /// What was received and not returned yet.
    ready: std::vec::IntoIter<T>,
    received: Pin<Box<dyn Stream<Item = Result<Vec<T>>> + Send>>,
}

impl<T: Unpin> Scan<T> {
    /// Returns the next message, or the error that cut the scan short. `None` at the end.
    pub async fn next(&mut self) -> Option<Result<T>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl<T: Unpin> Stream for Scan<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(next) = self.ready.next() {
                return Poll::Ready(Some(Ok(next)));
            }
            match ready!(self.received.as_mut().poll_next(context)) {
                Some(Ok(received)) => self.ready = received.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(whole(error)))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl<T> fmt::Debug for Scan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("ready", &self.ready.len()).finish_non_exhaustive()
    }
}

/// Returns the messages in what was received at once.
pub(in crate::tiered) type Split<S, T> = fn(S) -> Vec<T>;

/// Receives from a walk.
pub(in crate::tiered) struct ScanSource<S> {
    pub(in crate::tiered) receiver: Receiver<S>,
    pub(in crate::tiered) state: Arc<ScanState>,
    pub(in crate::tiered) timer: Arc<Timer>,
    /// The longest wait for a step of the walk.
    pub(in crate::tiered) patience: Duration,
}

impl<S: Send + 'static> ScanSource<S> {
    pub(in crate::tiered) fn into_scan<T: Send + 'static>(self, split: Split<S, T>) -> Scan<T> {
        let received = stream::unfold(Some(self), move |source| async move {
            let source = source?;
            match source.receive().await {
                Ok(Some(sent)) => Some((Ok(split(sent)), Some(source))),
                Ok(None) => None,
                // Drops the receiver, which ends the walk.
                Err(error) => Some((Err(error.context(CUT_SHORT)), None)),
            }
        });
        Scan { ready: Vec::new().into_iter(), received: Box::pin(received.fuse()) }
    }

    /// `None`: the walk is complete.
    async fn receive(&self) -> Result<Option<S>> {
        loop {
            let steps = self.state.steps();
            let deadline = Instant::now() + self.patience;
            match self.timer.bound(deadline, pin!(self.receiver.recv())).await {
                Some(Ok(sent)) => return Ok(Some(sent)),
                Some(Err(_)) => return self.state.result().map(|()| None),
                // The timer is closed at the end of the store.
                None if Instant::now() < deadline => return Err(Closed.into()),
                None if self.state.steps() != steps => {}
                None => {
                    let what = format!("the disk did not answer for {:?}", self.patience);
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what)).context("waiting for a read");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::super::walk::Stopped;
    use super::*;

    fn scan() -> (async_channel::Sender<Vec<u8>>, Arc<ScanState>, Arc<Timer>, Scan<u8>) {
        let (sender, receiver) = async_channel::bounded(4);
        let (state, timer) = (Arc::<ScanState>::default(), Arc::<Timer>::default());
        let patience = Duration::from_secs(3600);
        let source = ScanSource { receiver, state: state.clone(), timer: timer.clone(), patience };
        (sender, state, timer, source.into_scan(|sent| sent))
    }

    #[test]
    fn it_is_complete_only_if_the_walk_reports_it() {
        for (ended, cause) in [
            (Some(Ok(())), None),
            (Some(Err(Stopped::Closed)), Some("shut down")),
            (Some(Err(Stopped::Failed(io::Error::other("EIO")))), Some("EIO")),
            // The thread panicked.
            (None, Some("has died")),
        ] {
            let (sender, state, _timer, mut scan) = scan();
            sender.try_send(vec![1, 2]).unwrap();
            ended.into_iter().for_each(|ended| state.end(ended));
            drop(sender);
            assert_eq!(block_on(scan.next()).unwrap().unwrap(), 1);
            assert_eq!(block_on(scan.next()).unwrap().unwrap(), 2);
            let last = block_on(scan.next()).map(|last| last.unwrap_err().to_string());
            assert_eq!(last.is_some(), cause.is_some(), "{last:?}");
            cause.iter().for_each(|cause| assert!(last.as_ref().unwrap().contains(cause), "{last:?}"));
            assert!(block_on(scan.next()).is_none(), "nothing comes after the end");
        }
    }

    /// A thread that hangs in a read never drops its sender.
    #[test]
    fn it_ends_with_the_store_though_the_walk_hangs() {
        let (sender, _state, timer, mut scan) = scan();
        sender.try_send(vec![1]).unwrap();
        timer.close();
        assert_eq!(block_on(scan.next()).unwrap().unwrap(), 1);
        let error = block_on(scan.next()).unwrap().unwrap_err();
        assert!(error.root_cause().is::<Closed>(), "{error:#}");
        assert!(sender.is_closed(), "the walk ends");
    }
}
