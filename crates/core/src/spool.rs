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
/// Each method returns an `anyhow::Error`. Its root cause is a type that can be matched: an error
/// of this crate, or `std::io::Error`.
#[async_trait]
pub trait Spool: Send + Sync {
    /// Returns the bytes of the message `id`.
    ///
    /// # Errors
    ///
    /// * [`NotFound`](crate::NotFound): there is no such message.
    /// * [`Corrupt`](crate::Corrupt): the bytes of the message are damaged.
    /// * An I/O error: the read failed. The message may be intact.
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>>;

    /// Removes the message `id`. Returns `Ok` if there is no such message.
    ///
    /// # Errors
    ///
    /// [`SpoolBackpressureTimeout`](crate::SpoolBackpressureTimeout): the removal had to wait for
    /// the disk for too long. It took effect, and is written later. [`Closed`](crate::Closed).
    async fn remove(&self, id: SpoolId) -> Result<()>;

    /// Writes the message `id`, or replaces it.
    ///
    /// With `force_sync`, `Ok` means that the message is on stable storage. `deadline` bounds the
    /// wait for space and for the disk. If the message was already handed to the disk, a spool may
    /// wait up to one second longer for the result. An `Err` leaves nothing behind: the message is
    /// absent, or its earlier version is still there. The one exception has the context
    /// [`InDoubt`](crate::InDoubt): after a crash, the message may be present.
    ///
    /// # Errors
    ///
    /// [`SpoolUnhealthyError`](crate::SpoolUnhealthyError),
    /// [`SpoolCallerDeadlineExceeded`](crate::SpoolCallerDeadlineExceeded),
    /// [`SpoolBackpressureTimeout`](crate::SpoolBackpressureTimeout),
    /// [`TooLarge`](crate::TooLarge), [`Closed`](crate::Closed).
    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()>;

    /// Sends a [`SpoolEntry`] for each message created before `start_time` to `sender`, in no
    /// specified order.
    ///
    /// Returns immediately. The entries are sent in the background, and `sender` is dropped after
    /// the last one. Messages without a creation time are always sent. Use a bounded channel.
    ///
    /// If the disk fails for too long, the last entry is an [early end](SpoolEntry::EARLY_END).
    ///
    /// A message whose id is newer than `start_time` is left out, even if the clock was merely
    /// ahead when the id was minted. A spool that keeps messages over a restart should report such
    /// messages: only an enumeration with a later `start_time` sends them.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::Closed), or an I/O error if the enumeration cannot begin, for example
    /// because too many run. Errors after the beginning are entries.
    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()>;

    /// Runs periodic maintenance: call it every few minutes. `Ok` means that the maintenance was
    /// completed, not cut short by a shutdown.
    ///
    /// # Errors
    ///
    /// An I/O error: a later run may succeed. [`Closed`](crate::Closed).
    async fn cleanup(&self) -> Result<()>;

    /// Rejects new messages, makes all data durable and stops. Safe to call more than once.
    ///
    /// # Errors
    ///
    /// An error that says what could not be made durable or did not stop. The spool is shut down
    /// as far as it can be.
    async fn shutdown(&self) -> Result<()>;

    /// Makes dirty data durable and drops caches. Returns the number of bytes freed; the number is
    /// negative if the flush increased the total.
    ///
    /// # Errors
    ///
    /// An I/O error: some data is still dirty. [`Closed`](crate::Closed).
    async fn advise_low_memory(&self) -> Result<isize>;

    /// Flushes all data and compacts the storage, for diagnostics and tests. The default does
    /// nothing.
    ///
    /// # Errors
    ///
    /// An error for any damage that it finds, an I/O error, or [`Closed`](crate::Closed).
    async fn compact(&self) -> Result<()> {
        Ok(())
    }

    /// Returns why the spool should get no new messages, or `None` while it is healthy.
    ///
    /// The text has no internal details and may be shown to clients. The call is cheap: no I/O, no
    /// lock, no allocation. A spool that is shut down or shutting down returns a reason. The
    /// default is always `None`.
    fn unhealthy_reason(&self) -> Option<&'static str> {
        None
    }
}
