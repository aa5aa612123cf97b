//! Tests for spools. Everything here except [`faults`] and [`sweep`] works on any
//! [`Spool`](tidespool_core::Spool).
//!
//! # Layout
//!
//! * [`payload`] – messages that identify themselves, so that torn, mixed or foreign bytes are
//!   always detected.
//! * [`ids`] – ids of every kind that a spool may get.
//! * [`mod@reference`] – a small, correct in-memory spool that other spools are compared with.
//! * [`conformance`] – one named test for each promise of a spool that a caller can observe:
//!   [`conformance_tests!`].
//! * [`model`] – random operations and restarts, compared with the reference spool step by step.
//! * [`concurrent`] – many callers on a few ids, with restarts in between. One order of the calls
//!   must explain every load.
//! * [`crash`] – a `kill -9` test: a child that uses the spool, a parent that keeps the log, and a
//!   check that compares the log with the recovered messages.
//! * [`faults`] – a storage that injects faults, for spools that are built on
//!   [`tidespool::storage`].
//! * [`sweep`] – lets each call to the disk fail in turn, and compares the results that callers get
//!   with a record kept outside of the spool.
//! * [`wait`] – bounded waits for events in other threads.
//!
//! # What it is not
//!
//! Not for use outside of tests: it panics if a spool breaks a promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken promise ends the test")]

pub mod concurrent;
pub mod conformance;
pub mod crash;
pub mod faults;
pub mod ids;
pub mod model;
pub mod payload;
pub mod reference;
pub mod rng;
pub mod sweep;
pub mod wait;
