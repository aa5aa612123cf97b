//! RocksDB tuned for a spool.
//!
//! * BlobDB: values from 1 KiB are written to blob files, which compactions do not move; its
//!   garbage collection frees removed messages.
//! * The log is recycled, so a synced write changes no metadata; RocksDB preallocates it by
//!   default.
//! * Write buffers are large, so short-lived messages never leave them; writes are pipelined; there
//!   are background jobs.
//! * One thread gathers synced writes into one batch. RocksDB would group them itself, but only
//!   those of threads that wait inside it. Other writes run on the thread of the caller, unless
//!   they must follow a waiting one. When tokio's blocking threads made synced writes with
//!   RocksDB's own grouping, throughput was a fifth to a third (`run --engine rocksdb-tuned
//!   --workload store --force-sync --duration 2`, 64 callers, 16 KiB, 3 interleaved pairs on two
//!   busy cores and ext4).
//! * A load tries memory first, on the thread of the caller, then the disk on a blocking thread.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ::rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, Error, ErrorKind, Options, ReadOptions, ReadTier,
    WriteBatch, WriteOptions,
};
use anyhow::Result;
use tidespool_core::SpoolId;

use super::super::committer::{Committer, Sink};
use super::super::error::EngineError;
use super::super::spool::{Backend, Held, Payload, Setup};
use super::super::write::Write;
use super::Rocks;

const NAME: &str = "rocksdb-tuned";
const CACHE_BYTES: u64 = 128 << 20;
const WRITE_BUFFER_BYTES: usize = 128 << 20;
const BLOB_FILE_BYTES: u64 = 256 << 20;

pub(super) const SETTINGS: &str = "RocksDB 11.8 tuned: BlobDB from 1 KiB with GC, no compression, WAL recycled (4), write buffers 4 x 128 MiB, \
     pipelined writes, 4 background jobs, bytes_per_sync 1 MiB, cache 128 MiB for blocks and blobs; synced writes \
     batched on one thread, loads ask memory first";

/// An open database. The committer is dropped first.
pub(crate) struct Tuned {
    committer: Committer<Write>,
    rocks: Arc<Rocks>,
}

impl Tuned {
    /// Opens the database in `dir`. Blocks.
    pub(crate) fn open(dir: &Path, setup: Setup) -> Result<Self> {
        let rocks = Rocks::open(NAME, &options(setup), dir)?;
        let committer = Committer::start(NAME, Batches(Arc::clone(&rocks)))?;
        Ok(Self { committer, rocks })
    }

    /// Looks a message up in memory: returns it, `None` if it does not exist, or `Err` if the disk
    /// must be read.
    fn get_from_memory(&self, id: SpoolId) -> Result<Option<Vec<u8>>, Error> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        self.rocks.db.get_opt(id.as_bytes(), &options)
    }
}

fn options(setup: Setup) -> Options {
    let cache = Cache::new_lru_cache(setup.cache_usize(CACHE_BYTES));
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&cache);
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_keep_log_file_num(10);
    options.set_compression_type(DBCompressionType::None);
    options.set_block_based_table_factory(&table);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(1_024);
    options.set_blob_file_size(BLOB_FILE_BYTES);
    options.set_blob_compression_type(DBCompressionType::None);
    options.set_enable_blob_gc(true);
    options.set_blob_gc_age_cutoff(0.5);
    options.set_blob_gc_force_threshold(0.5);
    options.set_blob_cache(&cache);
    options.set_recycle_log_file_num(4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(4);
    options.set_enable_pipelined_write(true);
    options.set_allow_concurrent_memtable_write(true);
    options.set_max_background_jobs(4);
    options.set_bytes_per_sync(1 << 20);
    options
}

fn batch_of(writes: &[Write]) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for write in writes {
        match write.value() {
            Some(data) => batch.put(write.key(), data),
            None => batch.delete(write.key()),
        }
    }
    batch
}

/// The state of the committer thread.
struct Batches(Arc<Rocks>);

impl Sink for Batches {
    type Job = Write;

    fn apply(&mut self, batch: &[Write], sync: bool) -> Result<(), EngineError> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.0.db.write_opt(batch_of(batch), &options).map_err(self.0.at("writing"))
    }

    /// The write has synced already.
    fn sync(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

impl Backend for Tuned {
    const NAME: &'static str = NAME;

    async fn load(this: &Held<Self>, id: SpoolId) -> Result<Option<Vec<u8>>> {
        match this.get_from_memory(id) {
            Err(err) if err.kind() == ErrorKind::Incomplete => {}
            found => return Ok(found.map_err(this.rocks.at("reading"))?),
        }
        let held = Arc::clone(this);
        let read = move || Ok(held.rocks.db.get(id.as_bytes()).map_err(held.rocks.at("reading"))?);
        tokio::task::spawn_blocking(read).await?
    }

    async fn store(
        this: &Held<Self>,
        id: SpoolId,
        data: Payload,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if !force_sync && this.committer.is_idle() {
            let written = this.rocks.db.put(id.as_bytes(), &**data);
            return Ok(written.map_err(this.rocks.at("writing"))?);
        }
        this.committer.commit(Write::put(id, data), force_sync, deadline).await
    }

    async fn remove(this: &Held<Self>, id: SpoolId) -> Result<()> {
        if this.committer.is_idle() {
            return Ok(this.rocks.db.delete(id.as_bytes()).map_err(this.rocks.at("removing"))?);
        }
        this.committer.commit(Write::remove(id), false, None).await
    }

    fn walk(&self, visit: &mut dyn FnMut(SpoolId, Vec<u8>) -> bool) -> Result<()> {
        self.rocks.walk(visit)
    }

    fn flush(&self) -> Result<()> {
        self.rocks.flush()
    }

    fn compact(&self) -> Result<()> {
        self.rocks.compact()
    }

    fn close(mut self) -> Result<()> {
        self.committer.stop()?;
        self.rocks.close()
    }
}
