//! `tidespool bench`: what a spool does on this machine. Also the library with which other engines are measured alike.
//!
//! An engine is what an [`Opener`] opens; [`run_one`] runs a [`Plan`] on it and returns a [`Report`]. [`PlanArgs`] are the
//! arguments of a plan on a command line, [`Builtin`] the engines that `tidespool bench` knows.
//!
//! # Layout
//!
//! * `plan`, `args` – what is asked; `report` – what was found;
//! * `engine` – what is measured; `builtin` – the tiered spool, [`LocalDiskSpool`], or the raw journal (`raw_journal`);
//! * `run` – from the plan to the report;
//! * `workloads` – what the callers do, one workload a file;
//! * `callers`, `payload`, `latency` – what workloads share: tasks and their clock, messages, what is recorded;
//! * `set`, `live` – messages that are stored and gone through; messages with a lifetime;
//! * `disk`, `progress` – room, use and syncs of the disk; how far a long phase is;
//! * `child` – the process that is killed;
//! * `chart`, `plot` – lines as SVG; a run as a picture;
//! * `proc` – what the kernel says of this process.

mod args;
mod builtin;
mod callers;
pub mod chart;
mod child;
mod disk;
mod engine;
mod latency;
mod live;
mod local_disk;
mod payload;
mod plan;
mod plot;
mod proc;
mod progress;
mod raw_journal;
mod report;
mod run;
mod set;
mod workloads;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

pub use self::args::PlanArgs;
pub use self::builtin::Builtin;
pub use self::child::fill;
pub use self::engine::{Engine, Needs, Opener};
pub use self::local_disk::LocalDiskSpool;
pub use self::plan::{DEFAULT_JOURNAL_CAPACITY, Drain, Lifetime, Plan, Size, Workload};
pub use self::raw_journal::RawJournal;
pub use self::report::{Moment, Report, Second};
pub use self::run::{Interrupted, run_one};
use self::workloads::memory::{self, Mix};

use crate::output::{Outcome, json_line};

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
    #[arg(long, value_enum, default_value_t = Builtin::Tidespool)]
    engine: Builtin,
    #[command(flatten)]
    plan: PlanArgs,
    /// Work in a new directory inside DIR, removed at the end [default: the system's directory for temporary files].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// One JSON object on one line, with the latency curve and the latency over time.
    #[arg(long)]
    json: bool,
    /// overload: latency and dirty bytes over time as a picture, into FILE.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// In the child process of open-killed: fill DIR as the plan, JSON, says, and wait to be killed.
    #[arg(long, hide = true, num_args = 2, value_names = ["DIR", "PLAN"])]
    fill: Option<Vec<String>>,
    /// memory: a smaller budget, fewer messages and less time [default budget: 64 MiB; messages: 100000].
    #[arg(long)]
    quick: bool,
    /// memory: only these mixes [default: all].
    #[arg(long, value_enum, value_name = "MIX")]
    mix: Vec<Mix>,
    /// In a child process of memory: run --mix in DIR.
    #[arg(long, hide = true, value_name = "DIR")]
    mix_dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<Outcome> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("starting the worker threads")?;
    if let Some([dir, plan]) = args.fill.as_deref() {
        let plan = serde_json::from_str(plan).context("reading the plan")?;
        runtime.block_on(fill(&args.engine, &plan, dir.as_ref()))?;
        return Ok(Outcome::Fine);
    }
    if let (Some(dir), [mix]) = (&args.mix_dir, &*args.mix) {
        let mut line = Vec::new();
        runtime.block_on(memory::run_mix(*mix, &args.plan.plan(), args.quick, dir, &mut line))?;
        out.write_all(&line)?;
        return Ok(Outcome::Fine);
    }
    args.check()?;
    if args.plan.plan().workload == Workload::Memory {
        // An interrupt ends the child; this process goes on, and clears up.
        runtime.spawn(tokio::signal::ctrl_c());
        let asked =
            memory::Asked { quick: args.quick, only: &args.mix, dir: args.dir.as_deref(), json: args.json };
        memory::run(&args.plan.plan(), &asked, out)?;
        return Ok(Outcome::Fine);
    }
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("tidespool-bench-").tempdir_in(&parent).with_context(|| {
        format!(
            "creating a directory in {}: give a directory that can be written to with --dir",
            parent.display()
        )
    })?;
    let report = runtime.block_on(run_one(&args.engine, args.plan.plan(), dir.path()));
    // Nothing may still have a file open in the directory when it goes.
    drop(runtime);
    let path = dir.path().to_owned();
    let removed = dir.close().with_context(|| format!("removing {}", path.display()));
    let report = report?;
    removed?;
    if args.json {
        json_line(out, &report)?;
    } else {
        report.table(out)?;
    }
    // Last: the figures are there whatever becomes of it.
    if let Some(file) = &args.plot {
        out.flush()?;
        std::fs::write(file, plot::overload(&report))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(Outcome::Fine)
}

impl Args {
    /// What the parser cannot see: how the engine and the plan fit together.
    fn check(&self) -> Result<()> {
        let plan = self.plan.plan();
        if self.engine == Builtin::RawJournal && plan.workload != Workload::Store {
            bail!("--engine raw-journal can only store: give --workload store, or another engine");
        }
        if self.engine != Builtin::Tidespool && plan.workload == Workload::LoadShared {
            bail!("only tidespool can load without a copy: give --workload load, or --engine tidespool");
        }
        if self.engine != Builtin::Tidespool && plan.workload == Workload::Memory {
            bail!("only tidespool has a memory budget: give --engine tidespool, or another workload");
        }
        if self.engine != Builtin::Tidespool && plan.memory_budget.is_some() {
            bail!("--memory-budget is a setting of the spool: give --engine tidespool, or leave it out");
        }
        if self.plot.is_some() && plan.workload != Workload::Overload {
            bail!("--plot draws what overload measures: give --workload overload, or leave it out");
        }
        if let Some(file) = &self.plot {
            // Before a run of half a minute, and not after it.
            let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            if file.is_dir() || parent.is_some_and(|parent| !parent.is_dir()) {
                bail!("--plot {}: give a file in a directory that is there", file.display());
            }
        }
        if (self.quick || !self.mix.is_empty()) && plan.workload != Workload::Memory {
            bail!("--quick and --mix are for memory: give --workload memory, or leave them out");
        }
        if plan.force_sync && plan.workload == Workload::Overload {
            bail!("overload is about stores that are not synced: leave --force-sync out");
        }
        Ok(())
    }
}
