//! The integration tests. One binary, so that everything is linked once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod broken; // the small spools of `setup`, on a storage with injected faults
mod machine; // a storage with a given boot id, and one whose files cannot be mapped
mod setup; // small spools in their own directories, and helpers for most tests

mod accept; // several messages in one transaction: all are stored, or none, also after a crash
mod backlog; // a backlog larger than the journal, and its space reclaimed
mod budget; // memory budgets: kept, changed at run time, and returned memory
mod concurrent; // many callers on a few ids, with restarts: every load must be explained
mod conformance; // the conformance suite, in each durability
mod crash_images; // the directory as a crash at each step leaves it, reopened
mod crash_log; // messages acknowledged before a kill, and faults of the crash log
mod crash_log_inspect; // `inspect` and `salvage` read a crash log as `open` does
mod damage; // files that were changed, truncated or deleted while the spool was closed
mod damage_trials; // random damage to any file: opened, verified, repaired
mod enumerate; // enumeration beside stores, removals and checkpoints
mod faults; // disks that fail, hang or are full
mod generations; // clean copies: young ones, older ones in the cache, and their way from one to the other
mod health; // the health gate of a whole spool: what shuts it, which calls pass, what opens it
mod lifecycle; // opening, locking, paths, modes, formats
mod limits; // limits of dirty bytes, deadlines, message sizes
mod lost_files; // files deleted, moved, replaced or truncated under a running spool
mod lost_sled; // sled's files lost, damaged or exchanged at any point: no message is lost
mod messages; // the text of errors
mod model; // random operations and restarts, compared with the reference model
mod order; // the order of writes to stable storage
mod overload; // more stores than the disk can take: waiting, rejection, recovery
mod paths; // paths that cannot be a spool's directory, and unusual paths that can
mod pipeline; // a batch is written while the previous one is synced, with faults
mod pressure; // memory pressure, simulated with files that the test writes
mod reopen; // when an opening keeps the index and when it rebuilds it
mod repair; // a damaged spool repaired into a new one, and opened
mod repair_losses; // what repair reports as lost, and which version it takes as the newest
mod runtimes; // callers on any executor, or without one
mod scan; // `stream` and `list`: complete, or ended by an error
mod spool_ext; // the conveniences of every spool
mod spool_settings; // statistics and settings of each spool in a store with two
mod spools; // several spools of one store: names, ids, removal, shutdown, shared commits
mod sweep; // some runs of `fault-sweep`: the n-th call to the disk fails
mod unpaired; // messages of one spool without a partner in another one
mod upkeep; // cleanup and compact: beside traffic, shared by callers, and interrupted by a shutdown
mod versions; // the newest version of an id stays the newest beside other stores
