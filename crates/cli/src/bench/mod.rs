//! `tidespool bench`: what a spool does on this machine.
//!
//! # Layout
//!
//! * `engine` – what is measured: the tiered spool, [`LocalDiskSpool`], or the raw journal (`raw_journal`);
//! * `workload` – what the callers do;
//! * `measure` – latencies, and what the kernel says of this process;
//! * `report` – the JSON line and the table.

mod engine;
mod local_disk;
mod measure;
mod raw_journal;
mod report;
mod workload;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use self::local_disk::LocalDiskSpool;

use self::engine::{Engine, Kind, Settings};
use self::report::{Report, rounded};
use self::workload::{Plan, Workload};
use crate::output::{Outcome, complain, json_line};
use crate::size;

/// The longest run: a day.
const MAX_DURATION_SECS: f64 = 86_400.0;

/// The run was interrupted from outside. There is no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted: there is no report")]
pub struct Interrupted;

/// Measure what a spool does on this machine.
///
/// Callers are tasks, each with one message under way, on as many worker threads as there are cores. Payloads are random
/// bytes, made before. A tenth of the duration, at most one second, is a warm-up that does not count; latencies are kept
/// to 1 %.
///
/// Written is what the kernel counts for this process (write_bytes less cancelled_write_bytes of /proc/self/io: pages
/// made dirty on a block device; tmpfs counts nothing) from the end of the warm-up to the end of the orderly shutdown,
/// so that what is still in memory at the end of the run is counted when it is drained. It is an upper bound: where a
/// file system keeps large folios, a small change in a folio that was clean counts as all of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure.
    #[arg(long, value_enum, default_value_t = Kind::Tidespool)]
    engine: Kind,
    /// What the callers do.
    #[arg(long, value_enum, default_value_t = Workload::Store)]
    workload: Workload,
    /// Payload bytes of a message, 1 to 1GiB: 16384, or 16KiB.
    #[arg(long, value_name = "BYTES", default_value = "16KiB", value_parser = size::parse_payload)]
    size: usize,
    /// Callers at a time, 1 to 65536.
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    concurrency: u32,
    /// How long to run, the warm-up included. Fractions are understood.
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = parse_duration)]
    duration: Duration,
    /// Each store returns only when its message is on stable storage. Nothing changes for `load`.
    #[arg(long)]
    force_sync: bool,
    /// Work in a new directory inside DIR, removed at the end [default: the system's directory for temporary files].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// One JSON object on one line.
    #[arg(long)]
    json: bool,
    /// The spool's memory budget, only for --engine tidespool [default: the spool's own].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    memory_budget: Option<u64>,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(secs) if secs > 0.0 && secs <= MAX_DURATION_SECS => Ok(Duration::from_secs_f64(secs)),
        _ => Err(format!("expected seconds, more than 0 and at most {MAX_DURATION_SECS}")),
    }
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<Outcome> {
    args.check()?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new()
        .prefix("tidespool-bench-")
        .tempdir_in(&parent)
        .with_context(|| format!("creating a directory in {}: give one with --dir", parent.display()))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("starting the worker threads")?;
    let clock_us = measure::clock_overhead_us()?;
    let report = runtime.block_on(measure(args, dir.path()));
    // Nothing may still have a file open in the directory when it goes.
    drop(runtime);
    let path = dir.path().to_owned();
    let removed = dir.close().with_context(|| format!("removing {}", path.display()));
    let report = report?;
    removed?;
    if args.json {
        json_line(out, &report)?;
    } else {
        report.table(out, clock_us)?;
    }
    Ok(Outcome::Fine)
}

impl Args {
    /// What the parser cannot see: how the arguments fit together.
    fn check(&self) -> Result<()> {
        if self.engine == Kind::RawJournal && self.workload != Workload::Store {
            bail!("--engine raw-journal can only store: give --workload store, or another engine");
        }
        if self.engine != Kind::Tidespool && self.memory_budget.is_some() {
            bail!("--memory-budget is a setting of the spool: give --engine tidespool, or leave it out");
        }
        Ok(())
    }

    fn settings(&self) -> Settings {
        Settings {
            kind: self.engine,
            size: self.size,
            concurrency: self.callers(),
            force_sync: self.force_sync,
            memory_budget: self.memory_budget,
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            workload: self.workload,
            size: self.size,
            concurrency: self.callers(),
            force_sync: self.force_sync,
            duration: self.duration,
            memory_budget: self.memory_budget,
        }
    }

    fn callers(&self) -> usize {
        usize::try_from(self.concurrency).unwrap_or(usize::MAX)
    }
}

/// Opens the engine, runs the workload, shuts the engine down whatever happened, and reports.
async fn measure(args: &Args, dir: &Path) -> Result<Report> {
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = tokio::spawn(watch_for_interrupts(Arc::clone(&stop), dir.to_owned()));
    measure::reset_peak_rss();
    let engine = Arc::new(Engine::open(args.settings(), dir).await?);
    let measured = workload::run(&engine, args.plan(), &stop).await;
    let interrupted = measured.is_ok() && stop.load(Ordering::Relaxed);
    let closed = engine.shutdown().await;
    let measured = measured?;
    closed?;
    watcher.abort();
    if interrupted {
        return Err(Interrupted.into());
    }
    let written = measure::disk_write_bytes()?.saturating_sub(measured.disk_write_bytes_before);
    let ops = measured.latency.count();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let (count, size) = (ops as f64, args.size as f64);
    let ops_per_s = if measured.seconds > 0.0 { count / measured.seconds } else { 0.0 };
    Ok(Report {
        engine: args.engine,
        workload: args.workload,
        size: args.size,
        concurrency: args.callers(),
        force_sync: args.force_sync,
        seconds: rounded(measured.seconds),
        ops,
        ops_per_s: rounded(ops_per_s),
        mb_per_s: rounded(ops_per_s * size / 1e6),
        p50_us: rounded(measured.latency.quantile_us(0.5)),
        p99_us: rounded(measured.latency.quantile_us(0.99)),
        p999_us: rounded(measured.latency.quantile_us(0.999)),
        max_us: rounded(measured.latency.max_us()),
        disk_write_bytes: written,
        peak_rss_bytes: measure::peak_rss_bytes()?,
    })
}

/// The first interrupt ends the run in order; the second one ends the process.
async fn watch_for_interrupts(stop: Arc<AtomicBool>, dir: PathBuf) {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler an interrupt just ends the process.
        return;
    }
    stop.store(true, Ordering::Relaxed);
    if tokio::signal::ctrl_c().await.is_ok() {
        complain(&format!("interrupted twice: {} is left behind, remove it", dir.display()));
        std::process::exit(130);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds() {
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("0.2"), Ok(Duration::from_millis(200)));
        for text in ["", "0", "-1", "5s", "NaN", "inf", "1e9"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }
}
