//! foyer's hybrid cache, for unsynced stores and loads.
//!
//! It is a cache, not a spool: it evicts messages when it is full, syncs nothing and cannot list
//! its content. It claims nothing else here.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ::foyer::{
    BlockEngineConfig, Code, Device, DeviceBuilder, Error, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
};
use anyhow::Result;
use tidespool_core::SpoolId;

use super::Claims;
use super::error::{EngineError, NotOffered};
use super::spool::{Backend, Held, Payload, Setup};

const NAME: &str = "foyer";
const MEMORY_BYTES: u64 = 256 << 20;
const DISK_BYTES: usize = 4 << 30;

/// The settings that matter, for reports.
pub(super) const SETTINGS: &str = "foyer 0.22: hybrid cache, memory 256 MiB (LFU-like default), disk 4 GiB in blocks of 16 MiB (default), written on \
     eviction (default); no copy at insert";

/// A message in the cache: the bytes of the caller, not a copy.
#[derive(Debug, Clone)]
pub(crate) struct Message(Payload);

impl Code for Message {
    fn encode(&self, writer: &mut impl Write) -> Result<(), Error> {
        self.0.len().encode(writer)?;
        writer.write_all(&self.0).map_err(Error::io_error)
    }

    fn decode(reader: &mut impl Read) -> Result<Self, Error> {
        Ok(Self(Arc::new(Vec::<u8>::decode(reader)?.into_boxed_slice())))
    }

    fn estimated_size(&self) -> usize {
        size_of::<usize>() + self.0.len()
    }
}

/// An open cache.
pub(crate) struct Foyer {
    cache: HybridCache<u128, Message>,
}

impl Foyer {
    /// Opens the cache in `dir`.
    pub(crate) async fn open(dir: &Path, setup: Setup) -> Result<Self> {
        let device: Arc<dyn Device> = FsDeviceBuilder::new(dir)
            .with_capacity(DISK_BYTES)
            .build()
            .map_err(EngineError::at(NAME, "opening"))?;
        let cache = HybridCacheBuilder::new()
            .memory(setup.cache_usize(MEMORY_BYTES))
            .with_weighter(|_, message: &Message| 16 + message.0.len())
            .storage()
            .with_engine_config(BlockEngineConfig::new(device))
            .build()
            .await
            .map_err(EngineError::at(NAME, "opening"))?;
        Ok(Self { cache })
    }
}

fn key(id: SpoolId) -> u128 {
    u128::from_ne_bytes(*id.as_bytes())
}

impl Backend for Foyer {
    const NAME: &'static str = NAME;
    const CLAIMS: Claims = Claims { orders_dropped: true, ..Claims::NOTHING };

    async fn load(this: &Held<Self>, id: SpoolId) -> Result<Option<Vec<u8>>> {
        let found = this.cache.get(&key(id)).await.map_err(EngineError::at(NAME, "reading"))?;
        Ok(found.map(|entry| entry.value().0.to_vec()))
    }

    async fn store(
        this: &Held<Self>,
        id: SpoolId,
        data: Payload,
        _force_sync: bool,
        _deadline: Option<Instant>,
    ) -> Result<()> {
        drop(this.cache.insert(key(id), Message(data)));
        Ok(())
    }

    async fn remove(this: &Held<Self>, id: SpoolId) -> Result<()> {
        this.cache.remove(&key(id));
        Ok(())
    }

    fn walk(&self, _visit: &mut dyn FnMut(SpoolId, Vec<u8>) -> bool) -> Result<()> {
        Err(NotOffered { engine: NAME, what: "enumeration" }.into())
    }

    /// There is nothing to make durable.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn close(self) -> Result<()> {
        let closed = tokio::runtime::Handle::current().block_on(self.cache.close());
        Ok(closed.map_err(EngineError::at(NAME, "closing"))?)
    }
}
