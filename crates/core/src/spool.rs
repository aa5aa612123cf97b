use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::{SpoolEntry, SpoolId};

/// A message spool. Object-safe: servers hold an `Arc<dyn Spool>`.
///
/// # Errors
///
/// Each method returns an `anyhow::Error` of which the root cause is a type that can be matched: one of this crate's
/// errors, or `std::io::Error`.
#[async_trait]
pub trait Spool: Send + Sync {
    /// The bytes of the message `id`.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::NotFound) where there is no such message; [`Corrupt`](crate::Corrupt) where its bytes are
    /// damaged; an I/O error where reading failed, which says nothing about the message.
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>>;

    /// Removes the message `id`. An id that is not there is `Ok`.
    async fn remove(&self, id: SpoolId) -> Result<()>;

    /// Writes the message `id`, or replaces it.
    ///
    /// With `force_sync`, `Ok` means that it is on stable storage. `deadline` bounds the wait for room and for the
    /// disk; a spool may wait up to one second longer for the answer of a disk that has the
    /// message. An `Err` leaves nothing behind: the message is not there, or its earlier version
    /// still is. The one exception carries the context [`InDoubt`](crate::InDoubt): a crash may
    /// bring that message back.
    ///
    /// # Errors
    ///
    /// [`SpoolUnhealthyError`](crate::SpoolUnhealthyError),
    /// [`SpoolCallerDeadlineExceeded`](crate::SpoolCallerDeadlineExceeded),
    /// [`SpoolBackpressureTimeout`](crate::SpoolBackpressureTimeout), [`TooLarge`](crate::TooLarge),
    /// [`Closed`](crate::Closed).
    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()>;

    /// Sends a [`SpoolEntry`] for each message created before `start_time` to `sender`, in no specified order.
    ///
    /// Returns at once; the entries follow from elsewhere, and the end is the sender being dropped. Messages
    /// without a creation time are always sent. Use a bounded channel.
    ///
    /// Where a disk fails for too long, the last entry is an [early end](SpoolEntry::EARLY_END).
    ///
    /// A message whose id is newer than `start_time` is left out, also where only the clock was
    /// ahead when the id was minted. A spool that keeps messages over a restart should report such
    /// messages: they are delivered only by an enumeration with a later `start_time`.
    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()>;

    /// Periodic maintenance: call it every few minutes. `Ok` means that it was done, not cut short
    /// by a shutdown.
    async fn cleanup(&self) -> Result<()>;

    /// Refuses new messages, makes everything durable and stops. Safe to call more than once.
    async fn shutdown(&self) -> Result<()>;

    /// Makes dirty data durable and drops caches. Returns the number of bytes saved, negative where the flush made
    /// the total grow.
    async fn advise_low_memory(&self) -> Result<isize>;

    /// Flushes everything and compacts the storage, for diagnostics and tests. The default does nothing.
    ///
    /// # Errors
    ///
    /// Whatever is found damaged on the way.
    async fn compact(&self) -> Result<()> {
        Ok(())
    }

    /// `None` while the spool is healthy, else why it should get no new messages: a bland text that may be shown to
    /// clients. Cheap: no I/O, no lock, no allocation. A spool that is shut down, or shutting down,
    /// has a reason. The default is always healthy.
    fn unhealthy_reason(&self) -> Option<&'static str> {
        None
    }
}
