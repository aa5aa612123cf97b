//! The only module that combines all tiers: memory, journal and index.
//!
//! # Layout
//!
//! * `store` – [`Tidespool`]. `spool` – [`TieredSpool`]: each method leads to a file of `calls`.
//!   `open_store` – what both share.
//! * `calls` – one file per call: `store`, `accept`, `load`, `remove`, `enumerate`, `list`,
//!   `unpaired`, `maintain` (`cleanup`, `compact`), `spools`, `reconfigure`.
//! * `commit` – group commit: one write and one sync for many callers.
//! * `lifecycle` – opening, threads, shutdown.
//! * `background` – memory balancer, relief of memory pressure, health, disk probe.
//! * `state` – the state that the callers and threads of one spool share. All others work on it.

mod background;
mod calls;
mod commit;
mod lifecycle;
mod open_store;
mod spool;
mod state;
mod store;

pub use calls::list::{Listed, ListedTier};
pub use calls::scan::Scan;
use serde::Serialize;
pub use spool::TieredSpool;
pub use store::Tidespool;

use crate::damage::Damage;

/// Reports what the opening of a spool found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The index is being rebuilt from the segments while the spool serves calls. The last run did
    /// not shut down, or the index files have changed since. A rebuild loses nothing.
    pub rebuilds_index: bool,
    /// Journal records that were replayed.
    pub records: u64,
    /// Acknowledged stores and removals that were not on stable storage when the process died, and
    /// that were restored from the crash log. They are on stable storage now, unless the disk did
    /// not write them within `store_deadline`.
    pub replayed: u64,
    /// Records of a torn tail that were cut. None of them was acknowledged as synced.
    pub torn: u64,
    /// Lost messages whose ids are unknown: records that are missing from the journal, and messages
    /// in missing segments. Losses that a rebuild of the index finds are counted later, in
    /// [`StatsSnapshot::lost`](crate::StatsSnapshot::lost).
    pub lost: u64,
    /// All damage that was found, with the message's id where it is known.
    pub damage: Vec<Damage>,
}
