//! One file for each message, like the local disk spool of KumoMTA: the engine of the bench, with
//! the parts of the contract that it lacks.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Result;
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool_bench::LocalDiskSpool;
use tidespool_core::{Closed, Spool, SpoolEntry, SpoolId, TooLarge};

/// The settings that matter, for reports.
pub(super) const SETTINGS: &str = "a file for each message, as KumoMTA's local disk spool: written to a temporary file, fdatasync with force_sync, \
     renamed; directories are not synced";

/// The spool of plain files, with a size limit and a shutdown.
pub(crate) struct LocalDisk {
    files: LocalDiskSpool,
    max_message_size: u64,
    closed: AtomicBool,
}

impl LocalDisk {
    pub(crate) async fn open(dir: &Path, max_message_size: u64) -> Result<Self> {
        let files = LocalDiskSpool::open(dir).await?;
        Ok(Self { files, max_message_size, closed: AtomicBool::new(false) })
    }

    fn check_open(&self) -> Result<(), Closed> {
        if self.closed.load(Ordering::Acquire) { Err(Closed) } else { Ok(()) }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Spool for LocalDisk {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        self.check_open()?;
        self.files.load(id).await
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        self.check_open()?;
        self.files.remove(id).await
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        self.check_open()?;
        let size = data.len() as u64;
        if size > self.max_message_size {
            return Err(TooLarge { id, size, limit: self.max_message_size }.into());
        }
        self.files.store(id, data, force_sync, deadline).await
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        self.files.enumerate(sender, start_time)
    }

    async fn cleanup(&self) -> Result<()> {
        self.check_open()?;
        self.files.cleanup().await
    }

    async fn shutdown(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.files.shutdown().await
    }

    async fn advise_low_memory(&self) -> Result<isize> {
        self.check_open()?;
        self.files.advise_low_memory().await
    }

    async fn compact(&self) -> Result<()> {
        self.check_open()?;
        self.files.compact().await
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        self.files.unhealthy_reason()
    }
}
