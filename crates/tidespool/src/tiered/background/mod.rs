//! The background threads, other than those of the commit path and the checkpointer.
//!
//! * `balancer` – divides the memory budget among the parts of the spool.
//! * `relief` – frees memory for the pressure monitor and for `advise_low_memory`.
//! * `health` – samples health, and admits waiting stores when they become due.
//! * `probe` – checks free space and missing files, and tests the disk.

pub(super) mod balancer;
pub(super) mod health;
pub(super) mod probe;
pub(super) mod relief;
