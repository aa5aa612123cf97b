//! The contract of a message spool.
//!
//! A spool keeps messages between the moment a server says "accepted" and the moment their delivery is done.
//! This crate says what a spool is; it stores nothing. A server is written against [`Spool`]; an
//! implementation, such as the `tidespool` crate, provides it.
//!
//! # Layout
//!
//! * [`Spool`] – the nine calls: store, load, remove, enumerate and their upkeep.
//! * [`SpoolId`] – the 16-byte id of a message, minted in time order.
//! * [`SpoolEntry`] – what [`Spool::enumerate`] sends for each message.
//! * the errors – each of them is found by its type with `err.root_cause().is::<T>()`, whatever context was added
//!   around it.
//!
//! # What it is not
//!
//! Not a queue: a spool knows nothing of schedules, destinations or retries. Not a database: there are no
//! transactions over several messages.

mod entry;
mod error;
mod id;
mod spool;

pub use entry::SpoolEntry;
pub use error::{
    ClockNotSet, Closed, Corrupt, DamagedSpool, InDoubt, Locked, NotFound, SpoolBackpressureTimeout,
    SpoolCallerDeadlineExceeded, SpoolUnhealthyError, TooLarge, UnsupportedFormat,
};
pub use id::{ParseSpoolIdError, SpoolId};
pub use spool::Spool;
