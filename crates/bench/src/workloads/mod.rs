//! The workloads, one in each file. Each opens the engine, because some reopen it, and shuts it
//! down.

mod backlog;
mod drain_young;
mod enumerate;
mod lifecycle;
mod load;
mod load_cold;
mod mail;
pub(crate) mod memory;
mod mixed;
mod open;
mod open_killed;
mod overload;
mod resave;
mod scale;
mod store;
#[cfg(test)]
mod tests;

use anyhow::{Result, bail};

use crate::plan::Workload;
use crate::run::{Measured, Run};

/// Runs the workload of the plan.
pub(crate) async fn run(run: &Run<'_>) -> Result<Measured> {
    match run.plan.workload {
        Workload::Store => store::run(run).await,
        Workload::Lifecycle => lifecycle::run(run).await,
        Workload::Load | Workload::LoadShared => load::run(run).await,
        Workload::LoadCold => load_cold::run(run).await,
        Workload::Mail => mail::run(run).await,
        Workload::Resave => resave::run(run).await,
        Workload::Backlog => backlog::run(run).await,
        Workload::DrainYoung => drain_young::run(run).await,
        Workload::Enumerate => enumerate::run(run).await,
        Workload::OpenClean => open::run(run).await,
        Workload::OpenKilled => open_killed::run(run).await,
        Workload::Mixed => mixed::run(run).await,
        Workload::Scale => scale::run(run).await,
        Workload::Memory => {
            bail!("memory runs its mixes in processes of their own: only `tidespool bench` can do it")
        }
        Workload::Overload => overload::run(run).await,
    }
}
