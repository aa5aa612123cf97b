//! The lifecycle of a spool: opening, threads, shutdown.
//!
//! * `open` – recovery and start. `replay` – restores the changes in the crash log of a process
//!   that died.
//! * `threads` – starts every thread. `workers` – the running threads, and `shutdown`.
//! * `in_place` – detects that the directory, or files in it, are deleted or moved while the
//!   spool runs.

pub(super) mod in_place;
pub(super) mod open;
pub(super) mod replay;
pub(super) mod threads;
pub(super) mod workers;
