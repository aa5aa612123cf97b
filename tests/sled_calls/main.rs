//! sled's own system calls fail: single ones during an opening, and bursts in a running spool. No
//! message may be lost or restored, and no load may return an earlier version.
//!
//! A test starts this binary again as a child, with the library of `crates/iofault` preloaded. The
//! library fails selected calls on paths that contain `/sled/`. The child reports its requests and
//! their results as events. The parent passes them to an oracle, which checks them, and then the
//! result of an opening without faults.
//!
//! Environment:
//!
//! * `TIDESPOOL_SLED_CALLS` – `all`: each call of an opening in turn, and 40 trials of each kind of
//!   burst. A number: this many points per test. Default = 16 per opening and 2 per kind of burst,
//!   chosen by the seed.
//! * `TIDESPOOL_SLED_CALLS_SEED` – chooses the points and the work of the children. Every run
//!   prints it. The order of calls between the threads of a child is not reproduced.
//! * `TIDESPOOL_SLED_CALLS_ONLY` – one point of `opening`, as a violation prints it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod child; // the parent's side of a child
mod control; // selects the calls that fail, and counts calls
mod event; // the events of a child, one per line
#[path = "../../crates/iofault/src/layout.rs"]
#[allow(dead_code, reason = "the preloaded library uses the rest")]
mod layout; // the control file, shared with the library
mod library; // builds the library to preload
mod oracle; // requests and results, and the states that they allow
mod setup; // settings, initial spools, the check of an opening without faults
mod tasks; // the child's side: make and open
mod traffic; // the child's side: callers, and bursts of failing calls beside them

mod bursts; // many consecutive calls fail in a running spool
mod opening; // each call of an opening fails in turn
mod probe; // the library fails the selected calls
