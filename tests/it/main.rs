//! The integration tests: one binary, so that everything is linked once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod broken; // the small spools of `setup`, on a disk that breaks as told
mod machine; // the disk of a machine that was started again, or that maps no files
mod setup; // small spools in directories of their own, and the calls that most tests are made of

mod backlog; // more than the journal holds, and its room given back
mod budget; // memory budgets that are kept and changed, and memory given back
mod concurrent; // many callers on a few ids, with restarts in between: every load is explained
mod conformance; // every promise that can be seen from outside, in each durability
mod crash_images; // the directory as a crash at each step would leave it, opened again
mod crash_log; // what a process that dies had acknowledged, and what may happen to the file that keeps it
mod crash_log_inspect; // a crash log as `inspect` and `salvage` see it: as an opening does
mod damage; // files that were changed, truncated or deleted behind the spool's back
mod damage_trials; // any file of a spool damaged in any way: opened, verified, repaired
mod enumerate; // enumeration while everything moves
mod faults; // a disk that fails, hangs or is full
mod health; // the gate of a whole spool: what shuts it, whom it lets in, what opens it again
mod lifecycle; // opening, locking, paths, modes, formats
mod limits; // room, deadlines, sizes
mod lost_files; // files deleted, moved, replaced or cut short under a running spool
mod lost_sled; // sled's files lost, damaged or exchanged at any point: nothing changes but time
mod messages; // what an error says, with its first text
mod model; // random operations and restarts against the reference
mod order; // what is on stable storage before what, and what is never in the cache alone
mod overload; // more comes than the disk takes: who waits, who is refused, and what is given back
mod paths; // directories that can't be a spool's, and odd ones that can
mod pipeline; // the next batch is written while the one before it is synced, and what fails then
mod pressure; // a machine that runs short of memory, as told by files that the test writes
mod reopen; // what an opening counts, and what it takes for granted
mod repair; // what is whole in a damaged spool, saved into a new one; and what opening makes of such damage
mod repair_losses; // what repair says of what is gone, and which version it takes for the newest
mod runtimes; // callers on any executor, or on none
mod sweep; // the n-th call to the disk fails, for some n
mod upkeep; // cleanup, compact and their like beside the traffic, shared by callers, and cut short by a shutdown
mod versions; // the newest version of an id stays the newest, whatever is stored beside it
