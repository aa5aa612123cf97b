//! The index on disk: the trait of an index engine, and sled as its implementation.
//!
//! The index makes finding a message fast. It holds no data of its own: segments and manifest
//! define its contents, and it is rebuilt from them on any doubt.
//!
//! # Layout
//!
//! * [`key`], [`record`], [`block`], [`tally`]: the contents of the index as bytes, and their
//!   digest. Pure.
//! * [`handle`]: the index that the spool uses: complete, being rebuilt, or absent.
//! * [`sled_store`]: sled 0.34.7, and the workarounds for it.
//! * [`packed`], [`worker`], [`files`]: batches of changes for sled; sled's own thread; its files.
//! * [`sled_lock`]: releases sled's file lock.
//! * [`support`]: tests whether a file system can hold sled.
//! * [`fingerprint`]: detects whether sled's files have changed.
//! * [`footprint`]: estimates sled's memory use.

mod block;
mod error;
mod files;
mod fingerprint;
mod footprint;
mod handle;
mod key;
mod packed;
mod record;
mod sled_lock;
mod sled_store;
mod support;
mod tally;
#[cfg(test)]
mod tests;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use error::DurableError;
pub(crate) use files::size_of as size_of_dir;
pub(crate) use handle::{ClosedIndex, DiskIndex};
pub(crate) use key::{Key, KeyClass, KeyRange};
pub(crate) use record::Record;
pub(crate) use sled_store::{SledOptions, SledStore};
pub(crate) use support::TRIAL_DIR;
pub(crate) use tally::Tally;
pub(crate) use worker::{StuckThreads, sled_threads_to_come};

use crate::storage::StorageFile;

/// One change of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexOp {
    /// The message.
    pub(crate) key: Key,
    /// The change.
    pub(crate) change: IndexChange,
}

/// A change of a message's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexChange {
    /// The record replaces an earlier one.
    Put(Record),
    /// The record is removed. If there is none, nothing is written.
    Remove,
}

/// An index engine: maps an id to a place.
///
/// All calls block, at least on disk I/O, so async threads must not call them. After an error that
/// [`poisons`](DurableError::poisons), every later call fails at once. The engine is then discarded
/// and a new one is filled. A poisoned engine is never opened again.
pub(crate) trait DurableStore: Send + Sync {
    /// Returns the record under `key`.
    ///
    /// # Errors
    ///
    /// An error of the engine; the bytes under the key are not a valid record.
    fn get(&self, key: &Key) -> Result<Option<Record>, DurableError>;

    /// Applies `ops` one after the other. Calls `replaced` for each, in order, with the previous
    /// record. Fastest with ops in key order. Returns the difference to the previous tally.
    ///
    /// Memory use is bounded for any number of ops. One `apply` runs at a time; others wait. The
    /// call makes nothing durable.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get). After an error, each op may or may not have been applied.
    fn apply(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError>;

    /// Visits the records in `ranges`, one range after the other, each in key order, until `visit`
    /// returns `false`.
    ///
    /// Changes may run meanwhile. A record that exists during the whole scan is visited exactly
    /// once. A record that is put, removed or replaced meanwhile is visited at most once, in a
    /// version that existed during the scan.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Record) -> bool,
    ) -> Result<(), DurableError>;

    /// Returns the file with all records, and an open descriptor of it. `None` if the engine has no
    /// such file.
    fn data_file(&self) -> Option<(PathBuf, Arc<dyn StorageFile>)> {
        None
    }

    /// Returns the bytes of its files, as of the last open or change.
    fn size_on_disk(&self) -> u64;

    /// Returns the estimated bytes of memory that it uses.
    fn memory_bytes(&self) -> u64;

    /// Releases the engine without waiting for it to close. Every later call fails. Calls in
    /// progress finish.
    fn let_go(&self);

    /// Releases the engine, and waits at most `wait` until it is closed.
    ///
    /// # Errors
    ///
    /// [`DurableError::Timeout`] if it did not close in time. It closes in the background.
    fn close(&self, wait: Duration) -> Result<(), DurableError>;
}
