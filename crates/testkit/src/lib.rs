//! Tests for spools, beyond the cases of [`tidespool_conformance`]: faults, crashes and races.
//!
//! # Layout
//!
//! * [`concurrent`] – many callers on a few ids, with restarts in between. One order of the calls
//!   must explain every load. Works on any [`Spool`](tidespool_core::Spool).
//! * [`crash`] – a `kill -9` test: a child that uses the spool, a parent that keeps the log, and a
//!   check that compares the log with the recovered messages. Works on any spool.
//! * [`faults`] – a storage that injects faults, for spools that are built on
//!   [`tidespool::storage`].
//! * [`oracle`] – what may and what must be present after a crash, by the writes and their results.
//! * [`sweep`] – lets each call to the disk fail in turn, and compares the results that callers get
//!   with a record kept outside of the spool.
//! * [`TwoSpools`] – a store with two spools that looks like one spool: the campaigns run on it.
//!
//! # What it is not
//!
//! Not for use outside of tests: it panics if a spool breaks a promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken promise ends the test")]

pub mod concurrent;
pub mod crash;
pub mod faults;
pub mod oracle;
pub mod sweep;
mod two_spools;

pub use two_spools::TwoSpools;

/// Used by nearly every test of a spool, with and without faults.
pub use tidespool_conformance::{env, ids, payload, wait};
