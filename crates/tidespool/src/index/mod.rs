//! The index on disk: the place of every checkpointed message.
//!
//! The index makes finding a message fast. It holds no data of its own: segments and manifest
//! define its contents, and it is rebuilt from them on any doubt.
//!
//! An index engine implements two traits: an [`IndexEngine`] opens indexes, and an [`IndexStore`]
//! is an open index. The end of this file chooses the engine, and names what else the spool needs
//! from it.
//!
//! Outside of this folder these are named after sled: `Config::sled_cache`, `Held::sled`, a health
//! signal, statistics, and a directory in `crates/cli/src/spool_dir.rs` and the testkit's `sweep`.
//! `tests/sled_calls` and `tests/it/lost_sled` test sled's system calls and the loss of its files.
//!
//! # Layout
//!
//! * [`key`], [`record`], [`tally`]: the contents of the index as bytes, and their digest. Pure.
//! * [`handle`]: the index that the spool uses: complete, being rebuilt, or absent.
//! * [`directories`]: the numbered directories of the indexes.
//! * [`error`]: the errors of an engine.
//! * [`sled`]: the engine.
//! * `memory`: an engine in memory with injected faults, for tests.

mod directories;
mod error;
mod handle;
mod key;
#[cfg(test)]
mod memory;
mod record;
mod sled;
mod tally;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub(crate) use directories::size_of_dir;
pub(crate) use error::IndexError;
pub(crate) use handle::{ClosedIndex, DiskIndex};
pub(crate) use key::{Key, KeyClass, KeyRange};
#[cfg(test)]
pub(crate) use memory::{engines, in_memory};
pub(crate) use record::Record;
pub(crate) use tally::Tally;

use crate::storage::{Storage, StorageFile};

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

/// Describes a closed index in two numbers. Indexes that differ by accident have the same
/// fingerprint with a probability of about 2⁻³². It does not protect against intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    /// The bytes of all files.
    bytes: u64,
    /// Their digest, as the engine computes it.
    digest: u64,
}

/// An index engine. It opens the indexes of one spool, one after the other.
pub(crate) trait IndexEngine: Send + Sync {
    /// Opens the index in `dir`, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// [`IndexError::Locked`] if another process or an earlier store still uses the files;
    /// [`IndexError::Unsupported`] if the file system can't hold an index; [`IndexError::Engine`]
    /// and [`IndexError::Timeout`] for damaged files and I/O errors.
    fn open(&self, dir: &Path) -> Result<Box<dyn IndexStore>, IndexError>;

    /// Describes the closed index in `dir`. Equal fingerprints mean that it is unchanged, so that
    /// it may be opened. `None` if that would last beyond `until`, or is not possible.
    fn fingerprint(&self, dir: &Path, until: Option<Instant>) -> io::Result<Option<Fingerprint>>;

    /// Waits at most `wait` until all released stores have closed. Returns how many have not.
    fn join(&self, wait: Duration) -> usize;

    /// Returns true if a store could not write or sync its last data when it was closed.
    fn closing_failed(&self) -> bool;

    /// Returns the disk space, in bytes, without which an open may fail.
    fn bytes_to_open(&self) -> u64;

    /// Returns the disk space, in bytes, without which a change of `records` records may fail.
    fn bytes_to_change(&self, records: u64) -> u64;
}

/// An open index: maps an id to a place.
///
/// All calls block, at least on disk I/O, so async threads must not call them. After an error that
/// [`poisons`](IndexError::poisons), every later call fails at once. The index is then discarded
/// and a new one is filled. A poisoned index is never opened again.
pub(crate) trait IndexStore: Send + Sync {
    /// Returns the record under `key`.
    ///
    /// # Errors
    ///
    /// An error of the engine; the bytes under the key are not a valid record.
    fn get(&self, key: &Key) -> Result<Option<Record>, IndexError>;

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
    ) -> Result<Tally, IndexError>;

    /// Visits the records in `ranges`, one range after the other, each in key order, until `visit`
    /// returns `false`.
    ///
    /// Changes may run meanwhile. A record that exists during the whole scan is visited exactly
    /// once. A record that is put, removed or replaced meanwhile is visited at most once, in a
    /// version that existed during the scan.
    fn scan(&self, ranges: &[KeyRange], visit: &mut dyn FnMut(Key, Record) -> bool)
    -> Result<(), IndexError>;

    /// Returns the file with all records, and an open descriptor of it. `None` if the engine has no
    /// such file.
    fn data_file(&self) -> Option<(PathBuf, Arc<dyn StorageFile>)>;

    /// Returns the bytes of its files, as of the last open or change.
    fn size_on_disk(&self) -> u64;

    /// Returns the estimated bytes of memory that it uses.
    fn memory_bytes(&self) -> u64;

    /// Releases the index. Every later call fails. When the calls in progress have returned, the
    /// index closes in the background: see [`IndexEngine::join`].
    fn close(&self);
}

// The engine in use: its directories in the spool's directory, what the process must provide before
// an open, and the engine itself.
pub(crate) use sled::{INDEX_DIR, TRIAL_DIR, check_clock, threads_to_start};

/// Creates the engine, with a cache of `cache_bytes` bytes. `storage` makes its files durable. Its
/// threads hold `directory` until they end, because they may still write there.
pub(crate) fn engine(
    cache_bytes: u64,
    storage: Arc<dyn Storage>,
    directory: Weak<dyn Any + Send + Sync>,
) -> Arc<dyn IndexEngine> {
    Arc::new(sled::SledEngine::new(cache_bytes, storage, directory))
}
