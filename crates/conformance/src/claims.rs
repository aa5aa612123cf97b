//! The features that a spool may not support.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Result, bail};
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool_core::{Spool, SpoolEntry, SpoolId};

/// A feature beyond store, load and remove, which a spool may not support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// A store with `force_sync` returns when the message is on stable storage.
    Syncs,
    /// `enumerate` sends every message.
    Enumerates,
    /// Messages are present when the spool is opened again.
    Persists,
    /// If a caller drops a store, the store completes before any later call of that caller, or
    /// never.
    OrdersDropped,
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Syncs => "stores with force_sync",
            Self::Enumerates => "enumeration",
            Self::Persists => "messages that outlive the spool",
            Self::OrdersDropped => "the order of stores that were dropped",
        })
    }
}

/// The first claim that a case needed and the spool does not make.
#[derive(Debug, Clone, Default)]
pub(crate) struct Needed(Arc<OnceLock<Claim>>);

impl Needed {
    /// Records `claim` and returns the text of the error.
    pub(crate) fn note(&self, claim: Claim) -> String {
        let first = self.0.get_or_init(|| claim);
        format!("not claimed: {first}")
    }

    pub(crate) fn first(&self) -> Option<Claim> {
        self.0.get().copied()
    }
}

/// Records and rejects each call that goes beyond the claims of the spool. So a case is skipped
/// only if it really needs an unclaimed feature, without a hand-written list.
pub(crate) struct ClaimsFilter {
    inner: Arc<dyn Spool>,
    unclaimed: Vec<Claim>,
    needed: Needed,
}

impl ClaimsFilter {
    pub(crate) fn new(inner: Arc<dyn Spool>, unclaimed: Vec<Claim>, needed: Needed) -> Self {
        Self { inner, unclaimed, needed }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Spool for ClaimsFilter {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        self.inner.load(id).await
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        self.inner.remove(id).await
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if force_sync && self.unclaimed.contains(&Claim::Syncs) {
            bail!(self.needed.note(Claim::Syncs));
        }
        let guard = self.unclaimed.contains(&Claim::OrdersDropped).then(|| DropRecorder(&self.needed));
        let stored = self.inner.store(id, data, force_sync, deadline).await;
        std::mem::forget(guard);
        stored
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        if self.unclaimed.contains(&Claim::Enumerates) {
            bail!(self.needed.note(Claim::Enumerates));
        }
        self.inner.enumerate(sender, start_time)
    }

    async fn cleanup(&self) -> Result<()> {
        self.inner.cleanup().await
    }

    async fn shutdown(&self) -> Result<()> {
        self.inner.shutdown().await
    }

    async fn advise_low_memory(&self) -> Result<isize> {
        self.inner.advise_low_memory().await
    }

    async fn compact(&self) -> Result<()> {
        self.inner.compact().await
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        self.inner.unhealthy_reason()
    }
}

/// Records that the future that owns it was dropped before its end.
struct DropRecorder<'a>(&'a Needed);

impl Drop for DropRecorder<'_> {
    fn drop(&mut self) {
        self.0.note(Claim::OrdersDropped);
    }
}
