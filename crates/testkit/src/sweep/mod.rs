//! The n-th call to the disk fails, for every n.
//!
//! One small spool lives four lives on a [`FaultyStorage`]: it is made, worked on, filed, shut down; opened, worked on
//! and cut off; opened with recovery; and at last opened on a disk that works. Without a fault this tells how many calls there are. Then it is
//! lived once for each of them and each [`Kind`] of fault, and a book that is kept outside of the spool is compared with what callers see.
//!
//! # Layout
//!
//! * `kind` – what breaks, and for how long.
//! * `script` – what is asked of the spool in each life.
//! * `book` – what was asked for and answered, and so what there must be. Pure.
//! * `case` – one run: the lives, from the first opening to the last look.
//! * `caller` – one step of a life, and what its answer may be.
//! * `recovery` – after the fault: the gate, and that all is well again without a restart.
//! * `look` – everything that a spool holds, enumerated and loaded.
//! * `panics` – whether a thread of a spool panicked.
//! * `plan` – which runs there are: all, or a sample.
//! * `report` – what came of them, counted, and as tables or JSON.
//!
//! # What a run holds the spool to
//!
//! * What was acknowledged as synced is there, what was durably removed is not, and what is loaded is what was stored.
//! * A store that was answered with an error has left nothing behind, not after a restart either.
//!   One that failed in doubt may be found after a crash, unless a synced store that began later
//!   was acknowledged.
//! * No panic, no hang. An opening that fails names the path, and the next one succeeds.
//! * A failed write or sync of the journal shuts the gate. When the fault is over the gate opens, and stores, filing and shutdown succeed.
//! * No file is synced again after a sync of it failed.
//!
//! The power cuts are simulated: what was written and not synced is gone, or some of its pages are. sled writes its files itself: of these nothing is taken.

mod book;
mod caller;
mod case;
mod kind;
mod look;
mod panics;
mod plan;
mod recovery;
mod report;
mod script;

use std::sync::Arc;
use std::time::Duration;

use tidespool::TieredSpool;
use tidespool::storage::Storage;
use tidespool_core::Spool;
use tokio::task::JoinSet;

use crate::faults::FaultyStorage;
use crate::wait::PATIENCE;
use case::Case;

pub use case::{Outcome, Ran};
pub use kind::Kind;
pub use plan::{Plan, Points};
pub use report::Report;

/// Puts something between a spool and its callers.
pub type ShowSpool = Arc<dyn Fn(Arc<TieredSpool>) -> Arc<dyn Spool> + Send + Sync>;

/// Puts something between a disk and the spool on it.
pub type ShowDisk = Arc<dyn Fn(&FaultyStorage) -> Arc<dyn Storage> + Send + Sync>;

/// What is swept. The default is the spool as it is; tests of the sweep put something broken in between.
#[derive(Clone)]
pub struct Subject {
    /// What callers get to see of the spool.
    pub spool: ShowSpool,
    /// What the spool gets to see of the disk.
    pub disk: ShowDisk,
    /// How long anything may take before it is called a hang. Far above what is normal: it is no measurement. Default = 60 s.
    pub patience: Duration,
}

impl Default for Subject {
    fn default() -> Self {
        Self { spool: Arc::new(|spool| spool), disk: Arc::new(FaultyStorage::storage), patience: PATIENCE }
    }
}

/// One fault, at one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Which call, from 1: of all, or of the writes or reads, as the kind counts.
    pub number: u64,
    /// What happens to it.
    pub kind: Kind,
}

/// Lives without a fault: how many calls there are. Violations are in the result as in any other.
pub async fn count(subject: &Subject) -> Ran {
    Case::new(subject, None).live().await
}

/// Lives with a fault at `point`.
pub async fn run_one(subject: &Subject, point: Point) -> Ran {
    Case::new(subject, Some(point)).live().await
}

/// Lives once for each point of `plan`, `jobs` at a time; `tell` hears of each.
pub async fn run_all(subject: &Subject, plan: &Plan, jobs: usize, mut tell: impl FnMut(&Ran)) -> Report {
    let mut report = Report::new(plan);
    let mut under_way = JoinSet::new();
    let mut points = plan.points.iter().copied();
    loop {
        while under_way.len() < jobs.max(1)
            && let Some(point) = points.next()
        {
            let subject = subject.clone();
            under_way.spawn(async move { run_one(&subject, point).await });
        }
        match under_way.join_next().await {
            None => return report,
            Some(Ok(ran)) => {
                tell(&ran);
                report.add(ran);
            }
            Some(Err(error)) => report.broken(&error.to_string()),
        }
    }
}
