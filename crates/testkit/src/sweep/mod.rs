//! The n-th call to the disk fails, for every n.
//!
//! One run uses a small spool on a [`FaultyStorage`] in four sessions. The spool is created, used,
//! checkpointed and shut down; opened, used and cut off by a power failure; opened with recovery
//! and used; and finally opened on a working disk. A run without a fault counts the calls. Then
//! there is one run for each call and each [`Kind`] of fault. An
//! [`Oracle`](crate::oracle::Oracle), kept outside of the spool, is compared with the results that
//! callers get.
//!
//! # Layout
//!
//! * `kind` – what fails, and for how long.
//! * `script` – the calls of each session.
//! * `case` – one run: the sessions, from the first opening to the last check.
//! * `caller` – one step of a session, and the check of its result.
//! * `recovery` – after the fault: the gate, and whether everything works again without a restart.
//! * `contents` – all messages in a spool, enumerated and loaded.
//! * `panics` – whether a thread of a spool panicked.
//! * `plan` – the list of runs: all, or a sample.
//! * `report` – the results, counted, as tables or JSON.
//!
//! # What each run checks
//!
//! * A message acknowledged as synced is present, a durably removed one is absent, and a load
//!   returns the stored bytes.
//! * A store that returned an error left nothing behind, even after a restart. One that failed in
//!   doubt may be present after a crash, unless a synced store that began later was acknowledged.
//! * No panic, no hang. The error of a failed opening names the path, and the next opening
//!   succeeds.
//! * A failed write or sync of the journal shuts the gate. After the fault the gate opens, and
//!   stores, checkpoints and shutdown succeed.
//! * After a failed sync of a file, the file is never synced again.
//!
//! Power cuts are simulated: unsynced writes are reverted, all or some of their pages. sled writes
//! its files without this storage, so its writes are not reverted.

mod caller;
mod case;
mod contents;
mod kind;
mod panics;
mod plan;
mod recovery;
mod report;
mod script;

use std::sync::Arc;
use std::time::Duration;

use tidespool::storage::Storage;
use tidespool_core::Spool;
use tokio::task::JoinSet;

use crate::faults::FaultyStorage;
use crate::two_spools::TwoSpools;
use crate::wait::PATIENCE;
use case::Case;

pub use case::{Outcome, Ran};
pub use kind::Kind;
pub use plan::{Plan, Points};
pub use report::Report;

/// Wraps the spool that callers use.
pub type ShowSpool = Arc<dyn Fn(Arc<TwoSpools>) -> Arc<dyn Spool> + Send + Sync>;

/// Wraps the disk that the spool uses.
pub type ShowDisk = Arc<dyn Fn(&FaultyStorage) -> Arc<dyn Storage> + Send + Sync>;

/// What is swept. The default is the unchanged spool; tests of the sweep insert broken wrappers.
#[derive(Clone)]
pub struct Subject {
    /// Returns the spool that callers use.
    pub spool: ShowSpool,
    /// Returns the disk that the spool uses.
    pub disk: ShowDisk,
    /// How long anything may take before it counts as hanging. Far above normal times: it is not a
    /// measurement. Default = 60 s.
    pub patience: Duration,
}

impl Default for Subject {
    fn default() -> Self {
        Self { spool: Arc::new(|spool| spool), disk: Arc::new(FaultyStorage::storage), patience: PATIENCE }
    }
}

/// One fault at one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The number of the call, from 1: among all calls, writes or reads, depending on the kind.
    pub number: u64,
    /// The fault at that call.
    pub kind: Kind,
}

/// Runs without a fault, to count the calls. Violations are reported as in any other run.
pub async fn count(subject: &Subject) -> Ran {
    Case::new(subject, None).run().await
}

/// Runs with a fault at `point`.
pub async fn run_one(subject: &Subject, point: Point) -> Ran {
    Case::new(subject, Some(point)).run().await
}

/// Runs each point of `plan`, `jobs` at a time, and calls `on_run` after each.
pub async fn run_all(subject: &Subject, plan: &Plan, jobs: usize, mut on_run: impl FnMut(&Ran)) -> Report {
    let mut report = Report::new(plan);
    let mut running = JoinSet::new();
    let mut points = plan.points.iter().copied();
    loop {
        while running.len() < jobs.max(1)
            && let Some(point) = points.next()
        {
            let subject = subject.clone();
            running.spawn(async move { run_one(&subject, point).await });
        }
        match running.join_next().await {
            None => return report,
            Some(Ok(ran)) => {
                on_run(&ran);
                report.add(ran);
            }
            Some(Err(error)) => report.broken(&error.to_string()),
        }
    }
}
