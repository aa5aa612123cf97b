//! The contract of a message spool.
//!
//! A server stores a message in a spool before it accepts the message, and removes it once the
//! message is delivered. This crate defines the contract and stores nothing. A server is written
//! against [`Spool`]; an implementation, such as the `tidespool` crate, provides it.
//! The crate `tidespool-conformance` tests an implementation.
//!
//! # Layout
//!
//! * [`Spool`] – the trait: store, load, remove, enumerate, and the calls for maintenance.
//! * [`SpoolExt`] – conveniences for every spool.
//! * [`SpoolId`] – the 16-byte id of a message, minted in time order.
//! * [`SpoolEntry`] – an item that [`Spool::enumerate`] sends for each message.
//! * the errors – `err.root_cause().is::<T>()` finds each one by its type, whatever context was
//!   added around it.
//!
//! # What it is not
//!
//! Not a queue: a spool has no schedules, destinations or retries. Not a database: there are no
//! transactions over several messages.

#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

/// The crates whose types are in the signatures of [`Spool`] and [`SpoolExt`].
pub use {anyhow, async_channel, async_trait, bytes, chrono};

mod entry;
mod error;
mod ext;
mod id;
mod spool;

pub use entry::SpoolEntry;
pub use error::{
    ClockNotSet, Closed, Corrupt, DamagedSpool, InDoubt, Locked, NotFound, SpoolBackpressureTimeout,
    SpoolCallerDeadlineExceeded, SpoolUnhealthyError, TooLarge, UnsupportedFormat,
};
pub use ext::SpoolExt;
pub use id::{ParseSpoolIdError, SpoolId};
pub use spool::Spool;
