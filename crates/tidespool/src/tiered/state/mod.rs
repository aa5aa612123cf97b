//! The state that the callers and the threads of one spool share. Nothing here uses the code that
//! works on it.
//!
//! # Layout
//!
//! * `shared` – all of it.
//! * `table` – the pending version, the young copy and the index entry of each id, in shards.
//! * `copies` – the clean copies of both generations.
//! * `commit_queue` – what callers send to the committer. `commit_state` – how a caller gives up.
//! * `protection` – the crash log of a running spool.
//! * `spools` – the spools of the store. `home` – the store's directory and the names in it.
//! * `hot_settings` – settings that each store reads. `free_space` – disk space that is left free.
//! * `balancer`, `probe`, `readers` – the requests to these threads.
//! * `runs` – one run of a task that several callers share. `upkeep` – those of `cleanup` and
//!   `compact`.
//! * `reports` – forwards events of the checkpointer and of the segment pool.
//! * `closing` – the signal that the spool closes, for tasks and threads.

mod balancer;
mod closing;
mod commit_queue;
mod commit_state;
mod copies;
mod free_space;
mod home;
mod hot_settings;
mod probe;
mod protection;
mod readers;
mod reports;
mod runs;
mod shared;
mod spools;
mod table;
mod upkeep;

pub(super) use balancer::{BalancedShares, MemoryBalancer};
pub(super) use commit_queue::{Arrival, CommitQueue, CommitReceiver, CommitWork, Part, Stop, commit_queue};
pub(super) use commit_state::{CommitState, NoOutcome, Outcome};
pub(super) use free_space::keep_free;
pub(super) use home::SpoolHome;
pub(super) use protection::Protection;
pub(super) use readers::NotRead;
pub(super) use reports::Reports;
pub(super) use shared::{Shared, SharedParts};
pub(super) use spools::SpoolPart;
pub(super) use table::{Shard, Table};
pub(super) use upkeep::UpkeepFailure;
