//! How a spool is put to the proof. Everything here but [`faults`] and [`sweep`] works on any [`Spool`](tidespool_core::Spool).
//!
//! # Layout
//!
//! * [`payload`] – messages that tell what they are, so that torn, mixed or foreign bytes are always recognised.
//! * [`ids`] – ids of every kind that a spool may meet.
//! * [`mod@reference`] – a small, correct spool in memory: what the others are compared with.
//! * [`conformance`] – every promise of a spool that can be seen from outside, one named test each:
//!   [`conformance_tests!`].
//! * [`model`] – random operations and restarts, compared with the reference spool step by step.
//! * [`concurrent`] – many callers on a few ids, with restarts in between: one order of the calls
//!   must explain every load.
//! * [`crash`] – the two sides of a `kill -9` test: the child that works, the parent that keeps the log, and the
//!   judge that compares the log with what came back.
//! * [`faults`] – a storage that breaks as told, for the spools that are built on [`tidespool::storage`].
//! * [`sweep`] – each call to the disk fails in turn, and a book that is kept outside of the spool is compared with what callers see.
//! * [`wait`] – bounded waits for what happens elsewhere.
//!
//! # What it is not
//!
//! Not for use outside of tests: it panics where a spool breaks a promise. That is its job.

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
