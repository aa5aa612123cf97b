//! RocksDB: with the defaults and calls of KumoMTA ([`Kumo`]), and tuned ([`Tuned`]).

mod kumo;
mod tuned;

use std::path::Path;
use std::sync::Arc;

use ::rocksdb::{
    BottommostLevelCompaction, CompactOptions, DB, Error, IteratorMode, Options, WaitForCompactOptions,
};
use anyhow::Result;
use tidespool_core::{Locked, SpoolId};

pub(crate) use kumo::Kumo;
pub(crate) use tuned::Tuned;

use super::error::EngineError;
use super::write::id_of;

/// The settings that matter, for reports.
pub(super) const KUMO_SETTINGS: &str = kumo::SETTINGS;
pub(super) const TUNED_SETTINGS: &str = tuned::SETTINGS;

/// The database of both; the name is for errors.
pub(super) struct Rocks {
    name: &'static str,
    db: DB,
}

impl Rocks {
    fn open(name: &'static str, options: &Options, dir: &Path) -> Result<Arc<Self>> {
        match DB::open(options, dir) {
            Ok(db) => Ok(Arc::new(Self { name, db })),
            // RocksDB has no error kind for a held lock, only a text.
            Err(err) if err.to_string().contains("lock") => {
                Err(Locked { path: dir.to_owned(), pid: None }.into())
            }
            Err(err) => Err(EngineError::at(name, "opening")(err).into()),
        }
    }

    fn at(&self, doing: &'static str) -> impl FnOnce(Error) -> EngineError {
        EngineError::at(self.name, doing)
    }

    fn walk(&self, visit: &mut dyn FnMut(SpoolId, Vec<u8>) -> bool) -> Result<()> {
        for entry in self.db.iterator(IteratorMode::Start) {
            let (key, data) = entry.map_err(self.at("reading"))?;
            if let Some(id) = id_of(&key)
                && !visit(id, data.into_vec())
            {
                break;
            }
        }
        Ok(())
    }

    /// Writes memtables to tables, when the spool is advised to free memory.
    fn flush(&self) -> Result<()> {
        self.db.flush_wal(true).map_err(self.at("syncing"))?;
        Ok(self.db.flush().map_err(self.at("flushing"))?)
    }

    fn compact(&self) -> Result<()> {
        self.flush()?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.db.compact_range_opt::<&[u8], &[u8]>(None, None, &options);
        Ok(self.db.wait_for_compact(&WaitForCompactOptions::default()).map_err(self.at("compacting"))?)
    }

    /// Makes the log durable. The next open replays it, as with KumoMTA.
    fn close(&self) -> Result<()> {
        self.db.flush_wal(true).map_err(self.at("syncing"))?;
        self.db.cancel_all_background_work(true);
        Ok(())
    }
}
