//! A small, correct in-memory spool, which other spools are compared with.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Result;
use async_channel::{Receiver, Sender};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_lite::future;
use parking_lot::Mutex;
use tidespool_core::{
    Closed, NotFound, Spool, SpoolCallerDeadlineExceeded, SpoolEntry, SpoolId, SpoolUnhealthyError, TooLarge,
};

/// The storage of a [`ReferenceSpool`]. It outlives the spool, like a directory.
#[derive(Debug, Clone, Default)]
pub struct ReferenceStorage(Arc<Mutex<Messages>>);

type Messages = BTreeMap<SpoolId, Arc<Box<[u8]>>>;

/// The reference spool. As simple as the promises allow: one map, one lock.
#[derive(Debug)]
pub struct ReferenceSpool {
    storage: ReferenceStorage,
    max_message_size: u64,
    unhealthy: Mutex<Option<&'static str>>,
    /// `None` after the shutdown.
    running: Mutex<Option<Running>>,
}

/// The state of an open spool.
#[derive(Debug)]
struct Running {
    /// The threads of enumerations. Finished ones are joined when the next one starts.
    enumerators: Vec<JoinHandle<()>>,
    /// Carries no messages: dropping it ends all enumerations.
    stop: Sender<()>,
    stopped: Receiver<()>,
}

impl ReferenceSpool {
    /// The default size limit of a message, in bytes: 64 MiB.
    pub const MAX_MESSAGE_SIZE: u64 = 64 * 1024 * 1024;

    /// Opens a spool on `storage`.
    #[must_use]
    pub fn open(storage: &ReferenceStorage) -> Self {
        Self::open_with_limit(storage, Self::MAX_MESSAGE_SIZE)
    }

    /// Opens a spool on `storage` which rejects messages of more than `max_message_size` bytes.
    #[must_use]
    pub fn open_with_limit(storage: &ReferenceStorage, max_message_size: u64) -> Self {
        let (stop, stopped) = async_channel::bounded(1);
        Self {
            storage: storage.clone(),
            max_message_size,
            unhealthy: Mutex::new(None),
            running: Mutex::new(Some(Running { enumerators: Vec::new(), stop, stopped })),
        }
    }

    /// Makes the spool unhealthy for this reason, or healthy with `None`.
    pub fn set_unhealthy(&self, reason: Option<&'static str>) {
        *self.unhealthy.lock() = reason;
    }

    fn check_open(&self) -> Result<(), Closed> {
        if self.running.lock().is_some() { Ok(()) } else { Err(Closed) }
    }

    fn stop(&self) {
        let Some(Running { enumerators, stop, stopped: _ }) = self.running.lock().take() else { return };
        drop(stop);
        for enumerator in enumerators {
            enumerator.join().expect("an enumeration panicked");
        }
    }
}

impl Drop for ReferenceSpool {
    fn drop(&mut self) {
        self.stop();
    }
}

#[async_trait]
impl Spool for ReferenceSpool {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        self.check_open()?;
        let data = self.storage.0.lock().get(&id).cloned().ok_or(NotFound { id })?;
        Ok(data.to_vec())
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        self.check_open()?;
        self.storage.0.lock().remove(&id);
        Ok(())
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        _force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        self.check_open()?;
        let size = data.len() as u64;
        if size > self.max_message_size {
            return Err(TooLarge { id, size, limit: self.max_message_size }.into());
        }
        if self.unhealthy.lock().is_some() {
            return Err(SpoolUnhealthyError.into());
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(SpoolCallerDeadlineExceeded.into());
        }
        self.storage.0.lock().insert(id, data);
        Ok(())
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        let mut running = self.running.lock();
        let running = running.as_mut().ok_or(Closed)?;
        let (over, going): (Vec<_>, Vec<_>) =
            running.enumerators.drain(..).partition(JoinHandle::is_finished);
        running.enumerators = going;
        for enumerator in over {
            enumerator.join().expect("an enumeration panicked");
        }
        let storage = self.storage.clone();
        let stopped = running.stopped.clone();
        let thread = std::thread::Builder::new().name("reference-enumerate".into());
        running.enumerators.push(thread.spawn(move || walk(&storage, &sender, &stopped, start_time))?);
        Ok(())
    }

    async fn cleanup(&self) -> Result<()> {
        Ok(self.check_open()?)
    }

    async fn shutdown(&self) -> Result<()> {
        self.stop();
        Ok(())
    }

    async fn advise_low_memory(&self) -> Result<isize> {
        self.check_open()?;
        Ok(0)
    }

    async fn compact(&self) -> Result<()> {
        Ok(self.check_open()?)
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        match self.check_open() {
            Ok(()) => *self.unhealthy.lock(),
            Err(Closed) => Some("the spool is shut down"),
        }
    }
}

/// Sends the messages in the order of their ids. The lock is not held while sending.
fn walk(
    storage: &ReferenceStorage,
    sender: &Sender<SpoolEntry>,
    stopped: &Receiver<()>,
    start: DateTime<Utc>,
) {
    let mut after = Bound::Unbounded;
    loop {
        let next =
            storage.0.lock().range((after, Bound::Unbounded)).next().map(|(id, data)| (*id, data.clone()));
        let Some((id, data)) = next else { return };
        after = Bound::Excluded(id);
        if id.created().is_some_and(|created| created >= start) {
            continue;
        }
        let send = async { sender.send(SpoolEntry::Item { id, data: data.to_vec() }).await.is_ok() };
        let stop = async { stopped.recv().await.is_ok() };
        let sent = future::block_on(future::or(stop, send));
        if !sent {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unhealthy_spool_rejects_stores_and_nothing_else() {
        let spool = ReferenceSpool::open(&ReferenceStorage::default());
        let (kept, refused) = (SpoolId::new(), SpoolId::new());
        spool.store(kept, Arc::new(Box::from(*b"kept")), false, None).await.unwrap();
        spool.set_unhealthy(Some("no room"));
        assert_eq!(spool.unhealthy_reason(), Some("no room"));
        let err = spool.store(refused, Arc::new(Box::from(*b"x")), true, None).await.unwrap_err();
        assert!(err.root_cause().is::<SpoolUnhealthyError>());
        assert!(spool.load(refused).await.unwrap_err().root_cause().is::<NotFound>());
        assert_eq!(spool.load(kept).await.unwrap(), b"kept");
        spool.remove(kept).await.unwrap();
        spool.set_unhealthy(None);
        spool.store(refused, Arc::new(Box::from(*b"x")), true, None).await.unwrap();
    }
}
