//! The threads that run beside the calls, apart from the commit path and the checkpoint.
//!
//! * `balancer` – divides the memory budget among the parts of the spool.
//! * `relief` – gives memory back: for the pressure monitor and for `advise_low_memory`.
//! * `health` – samples health, and admits waiting stores when they become due.
//! * `probe` – asks the disk for free space and missing files.
//! * `readers` – read from disk in place of the callers' threads.

pub(super) mod balancer;
pub(super) mod health;
pub(super) mod probe;
pub(super) mod readers;
pub(super) mod relief;
