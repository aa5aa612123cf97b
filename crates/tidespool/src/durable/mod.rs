//! The index of what is filed: the trait of an index engine, and sled behind it.
//!
//! The index makes finding a message fast. It is the home of nothing: what it holds is a function
//! of the segments and the manifest, and it is rebuilt from them on any doubt.
//!
//! # Layout
//!
//! * [`key`], [`record`], [`block`], [`tally`]: what the index holds, as bytes, and its digest.
//!   Pure.
//! * [`handle`]: the index that the spool uses: whole, being rebuilt, or none.
//! * [`sled_store`]: sled 0.34.7, with what it needs from us: see there.
//! * [`packed`], [`worker`], [`files`]: changes on their way to sled; its own thread; its files.
//! * [`sled_lock`]: the end of its lock.
//! * [`support`]: whether a file system can hold sled.
//! * [`fingerprint`]: whether its files are still what they were.
//! * [`footprint`]: how much memory it uses.

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
    /// Of which message.
    pub(crate) key: Key,
    /// The change.
    pub(crate) change: IndexChange,
}

/// A change of a message's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexChange {
    /// The record takes the place of an earlier one.
    Put(Record),
    /// The record is taken out. Nothing is written where there is none.
    Remove,
}

/// An index engine: id → place.
///
/// All calls block, on disk I/O at least: not for async threads. After any error that
/// [`poisons`](DurableError::poisons), every later call fails at once. The engine is thrown away then,
/// and another one is filled: it is never opened again.
pub(crate) trait DurableStore: Send + Sync {
    /// The record under `key`.
    ///
    /// # Errors
    ///
    /// The engine's; the bytes under the key are not a record of it.
    fn get(&self, key: &Key) -> Result<Option<Record>, DurableError>;

    /// Makes `ops` one after the other. For each, in order, `replaced` gets the record that stood
    /// there before. Fastest with ops in key order. Returns what to add to the tally from before.
    ///
    /// Memory stays bounded however many ops there are. One `apply` runs at a time; others wait.
    /// Nothing is durable by this.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get). Each op may have been made or not.
    fn apply(
        &self,
        ops: &mut dyn Iterator<Item = IndexOp>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError>;

    /// Visits the records in `ranges`, one range after the other, each in key order, until `visit`
    /// returns `false`.
    ///
    /// Runs beside changes: a record that is there during the whole scan is visited exactly once.
    /// One that is put, removed or replaced meanwhile is visited once at most, in a version that
    /// stood there at some moment of the scan.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Record) -> bool,
    ) -> Result<(), DurableError>;

    /// The file with all its records, and an open descriptor of it. `None` where there is no such
    /// file.
    fn data_file(&self) -> Option<(PathBuf, Arc<dyn StorageFile>)> {
        None
    }

    /// Bytes of its files, as of the last opening or change.
    fn size_on_disk(&self) -> u64;

    /// Bytes of memory that it uses, estimated.
    fn memory_bytes(&self) -> u64;

    /// Lets go of the engine, without waiting for it. Every later call fails; calls under way end
    /// as they can.
    fn let_go(&self);

    /// Lets go, and waits until it is closed, at most for `wait`.
    ///
    /// # Errors
    ///
    /// [`DurableError::Timeout`]: it did not close in time, and goes on closing by itself.
    fn close(&self, wait: Duration) -> Result<(), DurableError>;
}
