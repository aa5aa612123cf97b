//! A key-value store as a spool.
//!
//! An engine implements [`Backend`]. [`EngineSpool`] adds the parts of the contract that key-value
//! stores lack: calls after a shutdown are rejected, messages have a size limit, deadlines are
//! kept, enumerations end when the receiver is dropped, and a shutdown waits for all calls in
//! progress.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use arc_swap::ArcSwapOption;
use async_channel::{Receiver, Sender};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_lite::future;
use parking_lot::Mutex;
use tidespool_core::{Closed, NotFound, Spool, SpoolCallerDeadlineExceeded, SpoolEntry, SpoolId, TooLarge};
use tokio::runtime::Handle;

use super::Claims;
use super::error::NotOffered;

/// The payload of a message, as `store` takes it.
pub(crate) type Payload = Arc<Box<[u8]>>;

/// The settings of an engine that a caller may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// A larger message is rejected. Default = 1 GiB.
    pub max_message_size: u64,
    /// Limits caches of messages to 8 MiB, so that loads read the disk. Default = false.
    pub small_caches: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { max_message_size: 1 << 30, small_caches: false }
    }
}

impl Setup {
    /// Returns the size of a cache whose default is `bytes`.
    pub(crate) fn cache_bytes(self, bytes: u64) -> u64 {
        if self.small_caches { bytes.min(8 << 20) } else { bytes }
    }

    pub(crate) fn cache_usize(self, bytes: u64) -> usize {
        usize::try_from(self.cache_bytes(bytes)).unwrap_or(usize::MAX)
    }
}

/// A storage engine. Its methods may be called from many threads at once.
pub(crate) trait Backend: Send + Sync + Sized + 'static {
    /// The name of the engine in errors.
    const NAME: &'static str;
    /// What the engine supports. Other calls are rejected before they reach it.
    const CLAIMS: Claims = Claims::EVERYTHING;

    /// Returns the bytes of a message, or `None` if it does not exist.
    fn load(this: &Held<Self>, id: SpoolId) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send;

    /// Writes or replaces a message. With `force_sync` it is on stable storage when this returns.
    fn store(
        this: &Held<Self>,
        id: SpoolId,
        data: Payload,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Removes a message. A message that does not exist is not an error.
    fn remove(this: &Held<Self>, id: SpoolId) -> impl Future<Output = Result<()>> + Send;

    /// Passes every message to `visit`, until that returns `false`. Blocks.
    fn walk(&self, visit: &mut dyn FnMut(SpoolId, Vec<u8>) -> bool) -> Result<()>;

    /// Makes everything durable. Blocks.
    fn flush(&self) -> Result<()>;

    /// Makes everything durable and compacts the files. Blocks.
    fn compact(&self) -> Result<()> {
        self.flush()
    }

    /// Makes everything durable and closes the files. Blocks. Dropping a backend instead leaves the
    /// state of a crash.
    fn close(self) -> Result<()>;
}

/// An open backend. The last owner passes it to the shutdown.
pub(crate) struct Live<B> {
    backend: Option<B>,
    last: Sender<B>,
}

/// A shared owner of the backend.
pub(crate) type Held<B> = Arc<Live<B>>;

impl<B> Deref for Live<B> {
    type Target = B;

    #[expect(clippy::expect_used, reason = "it is taken out in drop, and nowhere else")]
    fn deref(&self) -> &B {
        self.backend.as_ref().expect("there until dropped")
    }
}

impl<B> Drop for Live<B> {
    fn drop(&mut self) {
        if let Some(backend) = self.backend.take() {
            // The receiver is gone if the spool was dropped without a shutdown: then the backend
            // ends here.
            drop(self.last.try_send(backend));
        }
    }
}

/// A [`Backend`] as a spool.
pub(crate) struct EngineSpool<B: Backend> {
    live: ArcSwapOption<Live<B>>,
    runtime: Handle,
    max_message_size: u64,
    /// Never sent to: dropping it ends all enumerations.
    stop: Mutex<Option<Sender<()>>>,
    stopped: Receiver<()>,
    /// Receives the backend when its last owner is gone.
    last: Receiver<B>,
    /// Only one shutdown runs at a time; others wait for it.
    closing: tokio::sync::Mutex<()>,
}

impl<B: Backend> EngineSpool<B> {
    /// Creates a spool over `backend`. Requires a tokio runtime.
    pub(crate) fn new(backend: B, max_message_size: u64) -> Self {
        let (sender, last) = async_channel::bounded(1);
        let (stop, stopped) = async_channel::bounded(1);
        Self {
            live: ArcSwapOption::from_pointee(Live { backend: Some(backend), last: sender }),
            runtime: Handle::current(),
            max_message_size,
            stop: Mutex::new(Some(stop)),
            stopped,
            last,
            closing: tokio::sync::Mutex::default(),
        }
    }

    fn live(&self) -> Result<Held<B>, Closed> {
        self.live.load_full().ok_or(Closed)
    }

    /// Runs `work` on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&B) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let live = self.live()?;
        self.runtime.spawn_blocking(move || work(&live)).await?
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<B: Backend> Spool for EngineSpool<B> {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        let live = self.live()?;
        Ok(B::load(&live, id).await?.ok_or(NotFound { id })?)
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        let live = self.live()?;
        B::remove(&live, id).await
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Payload,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let live = self.live()?;
        let size = data.len() as u64;
        if size > self.max_message_size {
            return Err(TooLarge { id, size, limit: self.max_message_size }.into());
        }
        if force_sync && !B::CLAIMS.syncs {
            return Err(NotOffered { engine: B::NAME, what: "stores with force_sync" }.into());
        }
        in_time(deadline)?;
        B::store(&live, id, data, force_sync, deadline).await
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        let live = self.live()?;
        if !B::CLAIMS.enumerates {
            return Err(NotOffered { engine: B::NAME, what: "enumeration" }.into());
        }
        let stopped = self.stopped.clone();
        // The task owns a share of the backend, so a shutdown waits for it.
        self.runtime.spawn_blocking(move || {
            let walked = live.walk(&mut |id, data| {
                id.created().is_some_and(|created| created >= start_time)
                    || send(&sender, &stopped, SpoolEntry::Item { id, data })
            });
            if let Err(err) = walked {
                tracing::error!("{}: the enumeration is not complete: {err:#}", B::NAME);
            }
        });
        Ok(())
    }

    async fn cleanup(&self) -> Result<()> {
        self.live()?;
        Ok(())
    }

    async fn shutdown(&self) -> Result<()> {
        let _others_wait = self.closing.lock().await;
        drop(self.live.swap(None));
        drop(self.stop.lock().take());
        match self.last.recv().await {
            Ok(backend) => self.runtime.spawn_blocking(move || backend.close()).await?,
            // An earlier shutdown has closed the backend.
            Err(_) => Ok(()),
        }
    }

    /// Makes everything durable. The freed memory is unknown.
    async fn advise_low_memory(&self) -> Result<isize> {
        self.blocking(B::flush).await?;
        Ok(0)
    }

    async fn compact(&self) -> Result<()> {
        self.blocking(B::compact).await
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        self.live.load().is_none().then_some("the spool is shut down")
    }
}

/// Returns the typed error if `deadline` has passed.
pub(crate) fn in_time(deadline: Option<Instant>) -> Result<(), SpoolCallerDeadlineExceeded> {
    match deadline {
        Some(deadline) if deadline <= Instant::now() => Err(SpoolCallerDeadlineExceeded),
        _ => Ok(()),
    }
}

/// Sends one entry, waiting for space. Returns `false` if the receiver is gone or the spool stops.
fn send(sender: &Sender<SpoolEntry>, stopped: &Receiver<()>, entry: SpoolEntry) -> bool {
    let entry = match sender.try_send(entry) {
        Ok(()) => return !stopped.is_closed(),
        Err(async_channel::TrySendError::Full(entry)) => entry,
        Err(async_channel::TrySendError::Closed(_)) => return false,
    };
    let send = async { sender.send(entry).await.is_ok() };
    let stop = async { stopped.recv().await.is_ok() };
    future::block_on(future::or(stop, send))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> SpoolEntry {
        SpoolEntry::Item { id: SpoolId::new(), data: Vec::new() }
    }

    #[test]
    fn an_enumeration_that_is_not_received_ends_with_the_spool() {
        let (sender, receiver) = async_channel::bounded(1);
        let (stop, stopped) = async_channel::bounded::<()>(1);
        assert!(send(&sender, &stopped, entry()));
        // The channel is full, and stays so.
        let waits = std::thread::spawn({
            let stopped = stopped.clone();
            move || send(&sender, &stopped, entry())
        });
        drop(stop);
        assert!(!waits.join().unwrap());
        let (sender, _other) = async_channel::bounded(1);
        assert!(!send(&sender, &stopped, entry()), "it has ended");
        drop(receiver);
    }

    #[test]
    fn an_enumeration_ends_with_its_receiver() {
        let (sender, receiver) = async_channel::bounded(1);
        let (_stop, stopped) = async_channel::bounded::<()>(1);
        drop(receiver);
        assert!(!send(&sender, &stopped, entry()));
    }
}
