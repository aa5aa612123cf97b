//! The benchmark as a command: its arguments, which it checks, and the run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;

use crate::args::PlanArgs;
use crate::builtin::Builtin;
use crate::child::fill;
use crate::engine::{Engine, Needs, Opener};
use crate::neighbour::write_beside;
use crate::output::json_line;
use crate::plan::Workload;
use crate::plot;
use crate::runner::run_one;
use crate::workloads::memory::{self, Mix};

/// The hidden argument of the child process of `open-killed`.
const FILL_ARGUMENT: &str = "--fill";

/// The hidden argument of the child process of `--neighbour`.
const BESIDE_ARGUMENT: &str = "--write-beside";

/// Measure what a spool does on this machine.
///
/// Callers are tasks that each process one message at a time, on as many worker threads as there
/// are cores. Payloads are random bytes, generated before the measurement. A tenth of the duration,
/// at most one second, is a warm-up that does not count. Latencies have a relative error of 1 %.
///
/// Disk writes are what the kernel counts for this process from the end of the warm-up to the end
/// of the clean shutdown: write_bytes less cancelled_write_bytes of /proc/self/io, the pages made
/// dirty on a block device; tmpfs counts nothing. Data still in memory at the end of the run is
/// counted when the shutdown writes it. The figure is an upper bound: if the file system keeps
/// large folios, a small change in a clean folio counts as the whole folio.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The engine to measure.
    #[arg(long, value_enum, default_value_t = Builtin::Tidespool)]
    engine: Builtin,
    #[command(flatten)]
    plan: PlanArgs,
    /// Work in a new directory inside DIR, removed at the end [default: the system's directory for
    /// temporary files].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one line of JSON, with the latency curve and the latency over time.
    #[arg(long)]
    json: bool,
    /// overload: write a chart of latency and dirty bytes over time to FILE.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// In the child process of open-killed: fill DIR according to PLAN, which is JSON, and wait to
    /// be killed.
    #[arg(long, hide = true, num_args = 2, value_names = ["DIR", "PLAN"])]
    fill: Option<Vec<String>>,
    /// In the child process of --neighbour: write to a file in DIR until standard input is closed.
    #[arg(long, hide = true, value_name = "DIR")]
    write_beside: Option<PathBuf>,
    /// memory: use a smaller budget, fewer messages and less time [default budget: 64 MiB;
    /// messages: 100000].
    #[arg(long)]
    quick: bool,
    /// memory: run only these mixes [default: all].
    #[arg(long, value_enum, value_name = "MIX")]
    mix: Vec<Mix>,
    /// In a child process of memory: run --mix in DIR.
    #[arg(long, hide = true, value_name = "DIR")]
    mix_dir: Option<PathBuf>,
}

/// Runs the benchmark that `args` ask for and writes its report to `out`.
///
/// `subcommand` is the argument that selects the benchmark in the running program, if the program
/// has other commands too. Some workloads start the program again and put it first.
///
/// # Errors
///
/// Arguments that do not fit together, and the errors of [`run_one`].
pub fn run(args: &Args, subcommand: Option<&str>, out: &mut dyn Write) -> Result<()> {
    if let Some(dir) = &args.write_beside {
        return write_beside(dir);
    }
    let opener = BuiltinOpener { engine: args.engine, subcommand };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("starting the worker threads")?;
    if let Some([dir, plan]) = args.fill.as_deref() {
        let plan = serde_json::from_str(plan).context("reading the plan")?;
        runtime.block_on(fill(&opener, &plan, dir.as_ref()))?;
        return Ok(());
    }
    if let (Some(dir), [mix]) = (&args.mix_dir, &*args.mix) {
        let mut line = Vec::new();
        runtime.block_on(memory::run_mix(*mix, &args.plan.plan(), args.quick, dir, &mut line))?;
        out.write_all(&line)?;
        return Ok(());
    }
    args.check()?;
    if args.plan.plan().workload == Workload::Memory {
        // An interrupt ends the child process. This process continues and removes its directory.
        runtime.spawn(tokio::signal::ctrl_c());
        let asked = memory::Asked {
            quick: args.quick,
            only: &args.mix,
            dir: args.dir.as_deref(),
            json: args.json,
            subcommand,
        };
        memory::run(&args.plan.plan(), &asked, out)?;
        return Ok(());
    }
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("tidespool-bench-").tempdir_in(&parent).with_context(|| {
        format!(
            "creating a directory in {}: give a directory that can be written to with --dir",
            parent.display()
        )
    })?;
    let report = runtime.block_on(run_one(&opener, args.plan.plan(), dir.path()));
    // Files in the directory must be closed before it is removed.
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
    // Last, so that an error does not lose the figures.
    if let Some(file) = &args.plot {
        out.flush()?;
        std::fs::write(file, plot::overload(&report)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Opens a built-in engine, and starts this program again to fill it.
struct BuiltinOpener<'a> {
    engine: Builtin,
    subcommand: Option<&'a str>,
}

#[async_trait]
impl Opener for BuiltinOpener<'_> {
    fn name(&self) -> &str {
        self.engine.name()
    }

    async fn open(&self, dir: &Path, needs: &Needs) -> Result<Engine> {
        self.engine.open(dir, needs).await
    }

    fn filler(&self) -> Result<Command> {
        let mut command = self.this_program()?;
        command.args(["--engine", self.engine.name(), FILL_ARGUMENT]);
        Ok(command)
    }

    fn neighbour(&self) -> Result<Command> {
        let mut command = self.this_program()?;
        command.arg(BESIDE_ARGUMENT);
        Ok(command)
    }
}

impl BuiltinOpener<'_> {
    fn this_program(&self) -> Result<Command> {
        let program = std::env::current_exe().context("looking for this program's own file")?;
        let mut command = Command::new(program);
        command.args(self.subcommand);
        Ok(command)
    }
}

impl Args {
    /// Checks what the parser cannot: whether the engine and the arguments fit together.
    fn check(&self) -> Result<()> {
        let plan = self.plan.plan();
        if self.engine.only_stores() && plan.workload != Workload::Store {
            bail!("--engine {} can only store: give --workload store, or another engine", self.engine.name());
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
            // Before the run, which takes half a minute.
            let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            if file.is_dir() || parent.is_some_and(|parent| !parent.is_dir()) {
                bail!("--plot {}: give a file in a directory that is there", file.display());
            }
        }
        if plan.neighbour && plan.workload == Workload::Memory {
            bail!("memory measures no disk: leave --neighbour out, or give another workload");
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
