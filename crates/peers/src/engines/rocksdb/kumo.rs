//! RocksDB with the defaults and the calls of KumoMTA.
//!
//! * Options are those of RocksDB with Snappy, static level sizes, 10 log files of a day each, and
//!   deletion of obsolete files every 6 hours.
//! * A write runs on the calling (async) thread with `no_slowdown`. If RocksDB returns that it
//!   would wait, the write is retried after 0.5 ms, then after twice as long each time up to 50 ms,
//!   until 30 s or the deadline have passed. `sync` is `force_sync`; a removal is never synced.
//! * A load runs on a blocking thread.
//!
//! Source of the facts: `crates/spool/src/rocks.rs` in the repository of KumoMTA.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, ErrorKind, LogLevel, Options, WriteBatch, WriteOptions,
};
use anyhow::Result;
use tidespool_core::{SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId};

use super::super::spool::{Backend, Held, Payload, Setup};
use super::super::write::Write;
use super::Rocks;

const NAME: &str = "rocksdb";
/// KumoMTA's default of `store_deadline`.
const STORE_DEADLINE: Duration = Duration::from_secs(30);
const BACKOFF_FIRST: Duration = Duration::from_micros(500);
const BACKOFF_LONGEST: Duration = Duration::from_millis(50);

pub(super) const SETTINGS: &str = "RocksDB 11.8 as KumoMTA sets it up: default options, Snappy, sync = force_sync; writes on the calling thread with \
     no_slowdown, loads on blocking threads";

/// An open database.
pub(crate) struct Kumo(Arc<Rocks>);

impl Kumo {
    /// Opens the database in `dir`. Blocks.
    pub(crate) fn open(dir: &Path, setup: Setup) -> Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_use_fsync(false);
        options.set_keep_log_file_num(10);
        options.set_paranoid_checks(false);
        options.set_level_compaction_dynamic_level_bytes(false);
        options.set_compression_type(DBCompressionType::Snappy);
        options.set_log_level(LogLevel::Info);
        options.set_log_file_time_to_roll(86_400);
        options.set_delete_obsolete_files_period_micros(6 * 3_600 * 1_000_000);
        if setup.small_caches {
            let mut table = BlockBasedOptions::default();
            table.set_block_cache(&Cache::new_lru_cache(setup.cache_usize(u64::MAX)));
            options.set_block_based_table_factory(&table);
        }
        Ok(Self(Rocks::open(NAME, &options, dir)?))
    }

    /// Returns `false` if RocksDB would wait.
    fn try_write(&self, write: &Write, sync: bool) -> Result<bool> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        options.set_no_slowdown(true);
        let mut batch = WriteBatch::default();
        match write.value() {
            Some(data) => batch.put(write.key(), data),
            None => batch.delete(write.key()),
        }
        match self.0.db.write_opt(batch, &options) {
            Ok(()) => Ok(true),
            Err(err) if err.kind() == ErrorKind::Incomplete => Ok(false),
            Err(err) => Err(self.0.at("writing")(err).into()),
        }
    }

    async fn write(&self, write: Write, sync: bool, deadline: Option<Instant>) -> Result<()> {
        if self.try_write(&write, sync)? {
            return Ok(());
        }
        let own = Instant::now() + STORE_DEADLINE;
        let mut backoff = BACKOFF_FIRST;
        loop {
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Err(SpoolCallerDeadlineExceeded.into());
            }
            if own <= now {
                return Err(SpoolBackpressureTimeout.into());
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_LONGEST);
            if self.try_write(&write, sync)? {
                return Ok(());
            }
        }
    }
}

impl Backend for Kumo {
    const NAME: &'static str = NAME;

    async fn load(this: &Held<Self>, id: SpoolId) -> Result<Option<Vec<u8>>> {
        let held = Arc::clone(this);
        let read = move || Ok(held.0.db.get(id.as_bytes()).map_err(held.0.at("reading"))?);
        tokio::task::spawn_blocking(read).await?
    }

    async fn store(
        this: &Held<Self>,
        id: SpoolId,
        data: Payload,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        this.write(Write::put(id, data), force_sync, deadline).await
    }

    async fn remove(this: &Held<Self>, id: SpoolId) -> Result<()> {
        this.write(Write::remove(id), false, None).await
    }

    fn walk(&self, visit: &mut dyn FnMut(SpoolId, Vec<u8>) -> bool) -> Result<()> {
        self.0.walk(visit)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn compact(&self) -> Result<()> {
        self.0.compact()
    }

    fn close(self) -> Result<()> {
        self.0.close()
    }
}
