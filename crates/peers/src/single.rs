//! One run in this process, so that memory, allocator and the kernel's counts are those of one
//! engine.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tidespool_bench::{PlanArgs, Report, fill as fill_engine, run_one};
use tokio::runtime::Runtime;

use crate::engines::Peer;

/// Measure one engine with one workload, and print the report as one line of JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The engine to measure.
    #[arg(long, value_enum)]
    engine: Peer,
    #[command(flatten)]
    plan: PlanArgs,
    /// Work in a new directory inside DIR, removed at the end [default: the system's directory for
    /// temporary files].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Accepted for clarity: the report is always JSON.
    #[arg(long)]
    json: bool,
}

/// The child process of `open-killed`: fill DIR according to PLAN, which is JSON, and wait to be
/// killed.
#[derive(Debug, clap::Args)]
pub(crate) struct FillArgs {
    #[arg(long, value_enum)]
    engine: Peer,
    dir: PathBuf,
    plan: String,
}

/// The child process of `--neighbour`: write to a file in DIR until standard input is closed.
#[derive(Debug, clap::Args)]
pub(crate) struct BesideArgs {
    dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let report = measure(args).with_context(|| args.engine.name())?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &report)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

fn measure(args: &Args) -> Result<Report> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("tidespool-peers-").tempdir_in(&parent).with_context(|| {
        format!(
            "creating a directory in {}: give a directory that can be written to with --dir",
            parent.display()
        )
    })?;
    let runtime = runtime()?;
    let report = runtime.block_on(run_one(&args.engine, args.plan.plan(), dir.path()));
    // Files in the directory must be closed before it is removed.
    drop(runtime);
    let path = dir.path().to_owned();
    let removed = dir.close().with_context(|| format!("removing {}", path.display()));
    let report = report?;
    removed?;
    Ok(report)
}

pub(crate) fn fill(args: &FillArgs) -> Result<()> {
    let plan = serde_json::from_str(&args.plan).context("reading the plan")?;
    runtime()?.block_on(fill_engine(&args.engine, &plan, &args.dir))
}

pub(crate) fn write_beside(args: &BesideArgs) -> Result<()> {
    tidespool_bench::write_beside(&args.dir)
}

/// Creates a runtime with as many threads as there are cores, the same for all engines.
fn runtime() -> Result<Runtime> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().build().context("starting the worker threads")
}
