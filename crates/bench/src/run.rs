//! One run, from the plan to the report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::callers::{Done, Stop};
use crate::engine::{Engine, Needs, Opener};
use crate::latency::{Latency, clock_overhead_us};
use crate::output::complain;
use crate::payload::Pool;
use crate::plan::{Plan, Size, Workload};
use crate::proc;
use crate::report::{CLOCK_OVERHEAD, Moment, Report, Second, rounded};
use crate::workloads;

/// Begins the line on standard error after a second interrupt, whichever program runs the benchmark.
const PROGRAM: &str = "tidespool";

/// Where an engine cannot tell when everything is durable, or when its background work is done: nothing more has been
/// written for this long.
pub(crate) const QUIET: Duration = Duration::from_millis(1_500);

/// The run was interrupted from outside. There is no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted: there is no report")]
pub struct Interrupted;

/// Runs a plan on the engine of `opener` in `dir`, an empty directory, and leaves the engine's files there.
///
/// One run a process: peak memory and disk writes are the process's. The first Ctrl-C ends the run in order, the second
/// one ends the process.
///
/// # Errors
///
/// [`Interrupted`]; the engine's first error; an engine that cannot do what the workload asks; a disk without the room.
pub async fn run_one(opener: &dyn Opener, plan: Plan, dir: &Path) -> Result<Report> {
    let stop = Stop::default();
    let watcher = tokio::spawn(watch_for_interrupts(stop.clone(), dir.to_owned()));
    let report = run_until(opener, plan, dir, stop).await;
    watcher.abort();
    report
}

/// The same without a handler of signals: `stop` ends it.
pub(crate) async fn run_until(opener: &dyn Opener, mut plan: Plan, dir: &Path, stop: Stop) -> Result<Report> {
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
    let measured = workloads::run(&run).await;
    if measured.is_ok() && run.stop.is_set() {
        return Err(Interrupted.into());
    }
    let mut measured = measured?;
    measured.extra.insert(CLOCK_OVERHEAD.to_owned(), clock_us);
    report(&run, measured)
}

/// What a workload has to work with.
pub(crate) struct Run<'a> {
    pub(crate) opener: &'a dyn Opener,
    pub(crate) plan: Arc<Plan>,
    pub(crate) pool: Arc<Pool>,
    /// For what the workload itself writes.
    pub(crate) dir: PathBuf,
    /// The engine's own.
    pub(crate) engine_dir: PathBuf,
    pub(crate) stop: Stop,
    /// See `set::settle`.
    pub(crate) quiet: Duration,
}

impl Run<'_> {
    /// Opens the engine as `needs` says, lets `work` use it, and shuts it down whatever happened.
    pub(crate) async fn with<T>(
        &self,
        needs: &Needs,
        work: impl AsyncFnOnce(&Arc<Engine>) -> Result<T>,
    ) -> Result<T> {
        self.with_in(&self.engine_dir, needs, work).await
    }

    /// The same with the engine in `dir`, which is made.
    pub(crate) async fn with_in<T>(
        &self,
        dir: &Path,
        needs: &Needs,
        work: impl AsyncFnOnce(&Arc<Engine>) -> Result<T>,
    ) -> Result<T> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let engine = self.open_in(dir, needs).await?;
        let result = work(&engine).await;
        let closed = engine.shutdown().await;
        let result = result?;
        closed?;
        Ok(result)
    }

    pub(crate) async fn open(&self, needs: &Needs) -> Result<Arc<Engine>> {
        self.open_in(&self.engine_dir, needs).await
    }

    async fn open_in(&self, dir: &Path, needs: &Needs) -> Result<Arc<Engine>> {
        let name = self.opener.name();
        let opened = self.opener.open(dir, needs).await;
        opened.map(Arc::new).with_context(|| format!("opening {name}"))
    }
}

/// What a workload found.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) ops: u64,
    /// Payload bytes of these.
    pub(crate) bytes: u64,
    pub(crate) latency: Latency,
    pub(crate) series: Option<Vec<Second>>,
    pub(crate) written: Written,
    pub(crate) extra: BTreeMap<String, f64>,
    pub(crate) moments: Vec<Moment>,
}

/// Bytes written to disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Written {
    /// From when the kernel's count was this until after the shutdown.
    Since(u64),
    /// So many.
    Bytes(u64),
}

impl From<Done> for Measured {
    fn from(done: Done) -> Self {
        Self {
            seconds: done.seconds,
            ops: done.latency.count(),
            bytes: done.bytes,
            latency: done.latency,
            series: Some(done.series),
            written: Written::Since(done.disk_write_bytes_before),
            extra: BTreeMap::new(),
            moments: Vec::new(),
        }
    }
}

impl Measured {
    pub(crate) fn extra(&mut self, name: impl Into<String>, value: f64) {
        self.extra.insert(name.into(), rounded(value));
    }

    /// The same for bytes and counts.
    pub(crate) fn extra_count(&mut self, name: impl Into<String>, value: u64) {
        self.extra(name, ratio(value, 1));
    }

    /// Once the engine is shut down: what the operations cost on disk.
    pub(crate) fn extra_bytes_per_message(&mut self) -> Result<()> {
        let written = self.disk_write_bytes()?;
        self.extra("bytes_per_message", ratio(written, self.ops));
        Ok(())
    }

    /// Another part of the same work, which came after this one.
    pub(crate) fn append(&mut self, next: Self) -> Result<()> {
        self.seconds += next.seconds;
        self.ops += next.ops;
        self.bytes += next.bytes;
        self.latency.add(&next.latency)?;
        if let (Some(series), Some(next)) = (&mut self.series, next.series) {
            let begins = series.last().map_or(0, |last| last.second + 1);
            series.extend(next.into_iter().map(|at| Second { second: begins + at.second, ..at }));
        }
        Ok(())
    }

    /// Bytes written to disk until now, which is after the shutdown.
    pub(crate) fn disk_write_bytes(&self) -> Result<u64> {
        match self.written {
            Written::Since(before) => Ok(proc::disk_write_bytes()?.saturating_sub(before)),
            Written::Bytes(bytes) => Ok(bytes),
        }
    }
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

/// `count` per `units`; 0 where there are none.
#[expect(clippy::cast_precision_loss, reason = "counts and bytes of a run are far below 2^53")]
pub(crate) fn per(count: u64, units: f64) -> f64 {
    if units > 0.0 { count as f64 / units } else { 0.0 }
}

/// `count` for each of `of`; 0 where there are none.
#[expect(clippy::cast_precision_loss, reason = "bytes and counts of a run are far below 2^53")]
pub(crate) fn ratio(count: u64, of: u64) -> f64 {
    per(count, of as f64)
}

/// The first interrupt ends the run in order; the second one ends the process.
async fn watch_for_interrupts(stop: Stop, dir: PathBuf) {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler an interrupt just ends the process.
        return;
    }
    stop.set();
    if tokio::signal::ctrl_c().await.is_ok() {
        complain(PROGRAM, &format!("interrupted twice: {} is left behind, remove it", dir.display()));
        std::process::exit(130);
    }
}
