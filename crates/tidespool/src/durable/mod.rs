//! Where messages that stay are filed: the trait of the filing engine, and sled behind it.
//!
//! # Layout
//!
//! * [`key`], [`record`], [`tally`]: what is filed, as bytes, and its digest. Pure.
//! * [`handle`]: what the spool holds: the engine, or none while it is broken.
//! * [`sled_store`]: sled 0.34.7, with what it needs from us: see there.
//! * [`trip`], [`worker`], [`files`]: changes on their way to sled; its own thread; its files and their syncing.
//! * [`salvage`]: what can be read of damaged files.
//! * [`fingerprint`]: whether its files are still what they were.
//! * [`footprint`]: how much memory it uses.

mod error;
mod files;
mod fingerprint;
mod footprint;
mod handle;
mod key;
mod record;
mod salvage;
mod sled_store;
mod tally;
#[cfg(test)]
mod tests;
mod trip;
mod worker;

use std::time::Duration;

pub(crate) use error::DurableError;
pub(crate) use files::sled_helpers;
pub(crate) use fingerprint::Fingerprint;
pub(crate) use handle::{Durable, Opening};
pub(crate) use key::{Class, Key, KeyRange};
pub(crate) use record::{MAX_WHOLE, Record};
pub(crate) use sled_store::{SledOptions, SledStore};
pub(crate) use tally::Tally;
pub(crate) use worker::Strays;

/// One change of what is filed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Op {
    /// Of which message.
    pub(crate) key: Key,
    /// What happens to it.
    pub(crate) change: Change,
}

/// What happens to a message's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is filed, in place of an earlier one.
    Put(Record),
    /// It is taken out. Nothing is written where there is none.
    Remove,
}

/// A record that is filed under a key and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damaged {
    /// What is wrong with it.
    pub(crate) reason: String,
}

/// Is shown each key with its value as it stands there.
pub(crate) type Visitor<'a> = Box<dyn FnMut(Key, &[u8]) -> bool + Send + 'a>;

/// A filing engine: the durable home of each message's record.
///
/// All calls block, on disk I/O at least: not for async threads. After any [`DurableError::Engine`] or
/// [`DurableError::Timeout`] the engine is poisoned: later calls fail at once, until it is opened again.
pub(crate) trait DurableStore: Send + Sync {
    /// The record under `key`.
    ///
    /// # Errors
    ///
    /// [`DurableError::Damaged`] where there is one that cannot be read.
    fn get(&self, key: &Key) -> Result<Option<Record>, DurableError>;

    /// Makes `ops` one after the other, then makes all of them durable. For each, in order, `replaced` gets the
    /// record that stood there before; one that could not be read is given as [`Record::Damaged`]. Fastest with ops
    /// in key order.
    ///
    /// `Ok`: all of them are on stable storage, and the result is what to add to the [`tally`](Self::tally) from before.
    /// Memory stays bounded however many ops there are. One `apply` runs at a time; others wait for it.
    ///
    /// # Errors
    ///
    /// [`DurableError::TooLarge`] for a record over [`MAX_WHOLE`]; engine errors. After any error, each op may have
    /// been made or not, durable or not, whatever `replaced` was told: make them again, and take the tally anew.
    fn apply(
        &self,
        ops: &mut dyn Iterator<Item = Op>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError>;

    /// Visits what is filed in `ranges`, one after the other, each in key order, until `visit` returns `false`.
    ///
    /// Runs beside changes: what is there during the whole scan is visited exactly once; what comes, goes or is
    /// replaced meanwhile, once at most, in a version that stood there at some moment of the scan.
    ///
    /// # Errors
    ///
    /// Engine errors; [`DurableError::ForeignKeys`], after everything else was visited, if there is something that no
    /// message can be named for.
    fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Result<Record, Damaged>) -> bool,
    ) -> Result<(), DurableError>;

    /// Shows everything there is to `visitors`, each on a thread of its own: each part of the keys to one of them, in no order of parts. A
    /// visitor that returns `false` ends it for all. Beside changes it says of none of them whether it was seen.
    ///
    /// # Errors
    ///
    /// As [`DurableStore::scan`].
    fn survey(&self, visitors: &mut [Visitor<'_>]) -> Result<(), DurableError>;

    /// Counts everything there is, readable or not: a full scan.
    ///
    /// # Errors
    ///
    /// Engine errors.
    #[cfg(test)]
    fn tally(&self) -> Result<Tally, DurableError>;

    /// Is told how many records there are, by whoever counted them or took somebody's word for it.
    fn note_records(&self, records: u64);

    /// Bytes of its files, as of the last opening or change.
    fn size_on_disk(&self) -> u64;

    /// Bytes of memory that it uses, estimated.
    fn memory_bytes(&self) -> u64;

    /// Lets go of the engine, without waiting for it. Every later call fails; calls under way end as they can.
    fn let_go(&self);

    /// Lets go, and waits until it is closed, at most for `wait`.
    ///
    /// # Errors
    ///
    /// [`DurableError::Timeout`]: it did not close in time, and goes on closing by itself.
    fn close(&self, wait: Duration) -> Result<(), DurableError>;
}
