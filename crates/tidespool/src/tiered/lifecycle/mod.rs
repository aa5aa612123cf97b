//! The life of a spool: from its directory through opening and threads to its end.
//!
//! * `path`, `directory`, `format` – the directory's path, its lock, its format file.
//! * `open` – recovery and start. `replay` – brings back the changes in the crash log of a process
//!   that died.
//! * `threads` – starts every thread. `workers` – the running threads, and `shutdown`.
//! * `closing` – the end of the spool, as a condition that tasks and threads wait for.
//! * `home`, `in_place` – a directory, and files in it, that are deleted or moved while the spool
//!   runs.

pub(super) mod closing;
pub(super) mod directory;
pub(super) mod format;
pub(super) mod home;
pub(super) mod in_place;
pub(super) mod open;
pub(super) mod path;
pub(super) mod replay;
pub(super) mod threads;
pub(super) mod workers;
