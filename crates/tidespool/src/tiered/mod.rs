//! The tiered spool.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool_core::{Spool, SpoolEntry, SpoolId};

use crate::{Config, StatsSnapshot};

/// The tiered spool.
#[derive(Debug)]
pub struct TieredSpool;

impl TieredSpool {
    /// Opens the spool, creating its directory where there is none.
    ///
    /// # Errors
    ///
    /// Bad settings, a locked directory, a newer format, I/O errors.
    pub async fn open(config: Config) -> Result<Self> {
        let _ = config;
        anyhow::bail!("not there yet")
    }

    /// The message without copying it.
    ///
    /// # Errors
    ///
    /// As [`Spool::load`].
    pub async fn load_shared(&self, id: SpoolId) -> Result<Arc<Box<[u8]>>> {
        let _ = id;
        anyhow::bail!("not there yet")
    }

    /// All counters and gauges, now.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        StatsSnapshot::default()
    }

    /// The statistics in Prometheus' text format.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        String::new()
    }
}

#[async_trait]
impl Spool for TieredSpool {
    async fn load(&self, _id: SpoolId) -> Result<Vec<u8>> {
        anyhow::bail!("not there yet")
    }
    async fn remove(&self, _id: SpoolId) -> Result<()> {
        anyhow::bail!("not there yet")
    }
    async fn store(
        &self,
        _id: SpoolId,
        _data: Arc<Box<[u8]>>,
        _force_sync: bool,
        _deadline: Option<Instant>,
    ) -> Result<()> {
        anyhow::bail!("not there yet")
    }
    fn enumerate(&self, _sender: Sender<SpoolEntry>, _start_time: DateTime<Utc>) -> Result<()> {
        anyhow::bail!("not there yet")
    }
    async fn cleanup(&self) -> Result<()> {
        anyhow::bail!("not there yet")
    }
    async fn shutdown(&self) -> Result<()> {
        anyhow::bail!("not there yet")
    }
    async fn advise_low_memory(&self) -> Result<isize> {
        anyhow::bail!("not there yet")
    }
}
