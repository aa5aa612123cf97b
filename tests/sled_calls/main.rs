//! sled's own system calls fail: single ones while a spool is opened, and bursts in a running one.
//! No message is lost, comes back, or is answered with an earlier version.
//!
//! A test runs this binary again as a child, with the library of `crates/iofault` preloaded. The
//! library fails chosen calls on paths that contain `/sled/`. The child reports what it asked for
//! and what the spool answered. The parent keeps the book and judges: what the child was answered,
//! and what a clean opening finds afterwards.
//!
//! Environment:
//!
//! * `TIDESPOOL_SLED_CALLS` – `all`: each call of an opening in turn, and 40 trials of each kind of
//!   burst. A number: so many points per test. Default = 16 per opening and 2 per kind of burst,
//!   chosen by the seed.
//! * `TIDESPOOL_SLED_CALLS_SEED` – chooses the points and the children's work. Printed by every
//!   run. The order in which the threads of a child make their calls is not part of it.
//! * `TIDESPOOL_SLED_CALLS_ONLY` – one point of `opening`, as a violation prints it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod book; // what the spool was asked for and answered: the oracle
mod child; // the parent's side of a child: starting, listening, ending
mod control; // which calls fail, and how many there were
mod event; // what the child reports, one line each
#[path = "../../crates/iofault/src/layout.rs"]
#[allow(dead_code, reason = "the preloaded library uses the rest")]
mod layout; // the control file, shared with the library
mod library; // builds the library to preload
mod setup; // settings, spools to begin with, the judgement of a clean opening
mod tasks; // the child's side: make and open
mod traffic; // the child's side: callers, and bursts of failing calls beside them

mod bursts; // many calls in a row fail in a running spool
mod opening; // each call of an opening fails in turn
mod probe; // the library fails the calls that it should
