//! Runs a plan and returns its report.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::engine::Opener;
use crate::figures::{per, rounded};
use crate::interrupt::{Interrupted, Stop};
use crate::latency::clock_overhead_us;
use crate::neighbour::Neighbour;
use crate::output::complain;
use crate::payload::Pool;
use crate::plan::{Plan, Size, Workload};
use crate::proc;
use crate::report::{CLOCK_OVERHEAD, Report};
use crate::run::{Measured, QUIET, Run};
use crate::workloads;

/// Begins the line on standard error after a second interrupt, in every program.
const PROGRAM: &str = "tidespool";

/// Runs a plan on the engine of `opener` in `dir`, an empty directory. The files of the engine
/// remain there.
///
/// A process should run one plan: peak memory and disk writes are those of the process. The first
/// Ctrl-C ends the run cleanly, the second one ends the process.
///
/// # Errors
///
/// [`Interrupted`]; the first error of the engine; an engine that does not support the workload;
/// too little disk space.
pub async fn run_one(opener: &dyn Opener, plan: Plan, dir: &Path) -> Result<Report> {
    let stop = Stop::default();
    let watcher = tokio::spawn(watch_for_interrupts(stop.clone(), dir.to_owned()));
    let report = run_until(opener, plan, dir, stop).await;
    watcher.abort();
    report
}

/// Runs the plan without a signal handler; `stop` ends it.
async fn run_until(opener: &dyn Opener, mut plan: Plan, dir: &Path, stop: Stop) -> Result<Report> {
    if plan.workload == Workload::Resave {
        plan.size = Size::Metadata;
    }
    plan.concurrency = plan.concurrency.max(1);
    let clock_us = clock_overhead_us()?;
    proc::reset_peak_rss();
    let engine_dir = dir.join("engine");
    std::fs::create_dir_all(&engine_dir).with_context(|| format!("creating {}", engine_dir.display()))?;
    let run = Run {
        opener,
        pool: Pool::new(plan.size, plan.seed),
        plan: Arc::new(plan),
        dir: dir.to_owned(),
        engine_dir,
        stop,
        quiet: QUIET,
    };
    let neighbour = if run.plan.neighbour { Some(start_neighbour(&run).await?) } else { None };
    let measured = workloads::run(&run).await;
    if measured.is_ok() && run.stop.is_set() {
        return Err(Interrupted.into());
    }
    let mut measured = measured?;
    if let Some(neighbour) = neighbour {
        let mb_per_s = tokio::task::spawn_blocking(|| neighbour.finish()).await??;
        measured.extra("neighbour_mb_per_s", mb_per_s);
    }
    measured.extra.insert(CLOCK_OVERHEAD.to_owned(), clock_us);
    report(&run, measured)
}

async fn start_neighbour(run: &Run<'_>) -> Result<Neighbour> {
    let (command, dir) = (run.opener.neighbour()?, run.dir.clone());
    tokio::task::spawn_blocking(move || Neighbour::start(command, &dir)).await?
}

fn report(run: &Run<'_>, measured: Measured) -> Result<Report> {
    let disk_write_bytes = measured.disk_write_bytes()?;
    let Measured { seconds, ops, bytes, latency, series, extra, moments, .. } = measured;
    Ok(Report {
        engine: run.opener.name().to_owned(),
        workload: run.plan.workload,
        size: run.plan.size,
        concurrency: run.plan.concurrency,
        force_sync: run.plan.force_sync,
        neighbour: run.plan.neighbour,
        seconds: rounded(seconds),
        ops,
        ops_per_s: rounded(per(ops, seconds)),
        mb_per_s: rounded(per(bytes, seconds) / 1e6),
        p50_us: rounded(latency.quantile_us(0.5)),
        p99_us: rounded(latency.quantile_us(0.99)),
        p999_us: rounded(latency.quantile_us(0.999)),
        max_us: rounded(latency.max_us()),
        disk_write_bytes,
        peak_rss_bytes: proc::peak_rss_bytes()?,
        percentiles: latency.curve(),
        series,
        extra,
        moments,
    })
}

/// The first interrupt sets `stop`, the second one ends the process.
async fn watch_for_interrupts(stop: Stop, dir: PathBuf) {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler an interrupt ends the process.
        return;
    }
    stop.set();
    if tokio::signal::ctrl_c().await.is_ok() {
        complain(PROGRAM, &format!("interrupted twice: {} is left behind, remove it", dir.display()));
        std::process::exit(130);
    }
}
