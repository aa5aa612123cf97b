//! `tidespool-peers compare`: compares engines.
//!
//! # Layout
//!
//! * `matrix` – the runs and their order; `wording` – plans as text; `child` – a run in a process
//!   of its own;
//! * `summary` – medians, spread and ratios;
//! * `table`, `record`, `html` with `chart` – the output: text, JSON, a page.

mod chart;
mod child;
mod html;
mod machine;
mod matrix;
mod record;
mod summary;
mod table;
mod wording;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tidespool_bench::{Interrupted, Report, Size, Workload, parse_duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::child::Failed;
use self::matrix::{Case, Choice, Turn};
use self::record::{Comparison, RunRecord};
use crate::engines::Peer;

/// Compare engines on this machine.
///
/// Each run is a process of its own. Rounds are interleaved: A B C A B C …. The output has the
/// median over the rounds, with the minimum and the maximum. A ratio above 1 means that tidespool
/// is better.
///
/// Without --quick this takes hours: the command prints the estimate before it starts. --workload,
/// --engine, --size and --concurrency reduce it. A failed run is reported in one line and the
/// others continue; the exit code is then 1.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run a part of the matrix in about three minutes: one round of 1 s runs.
    #[arg(long)]
    quick: bool,
    /// Run only these workloads. May be repeated, or separated by commas, like the next three.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORKLOAD")]
    workload: Vec<Workload>,
    /// Run only these engines.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ENGINE")]
    engine: Vec<Peer>,
    /// Use these payload bytes instead of those of the matrix: 16384, 16KiB, or mix.
    #[arg(long, value_delimiter = ',', value_name = "BYTES")]
    size: Vec<Size>,
    /// Use these numbers of callers instead of those of the matrix, 1 to 65536.
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    concurrency: Vec<u32>,
    /// Run only synced cases, or only those without a sync.
    #[arg(long, value_name = "true|false")]
    force_sync: Option<bool>,
    /// Run only cases beside a neighbour, a process that writes to the same disk, or only the
    /// others.
    #[arg(long, value_name = "true|false")]
    neighbour: Option<bool>,
    /// Number of rounds of each case, 1 to 100 [default: 3, with --quick 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Duration of a run, for workloads without a fixed amount of work [default: 5, with --quick
    /// 1].
    #[arg(long, value_name = "SECS", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Work in new directories inside DIR, removed after each run [default: the system's directory
    /// for temporary files].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write the full result, with every single run, to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a self-contained page with tables and latency curves to FILE.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the runs and their estimated time, without running them.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let cases = matrix::cases(&args.choice());
    if cases.is_empty() {
        bail!("nothing is left to run: no such engine does such a workload, or it was not compiled in");
    }
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 3 });
    let turns = matrix::turns(&cases, rounds);
    announce(&cases, &turns)?;
    if args.dry_run {
        return Ok(());
    }
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::metadata(&dir)
        .with_context(|| format!("looking at {}: give a directory with --dir", dir.display()))?;
    args.check_outputs()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let machine = machine::describe(&dir);
    let (runs, interrupted) = runtime.block_on(run_all(&cases, &turns, &dir))?;
    let comparison = Comparison::new(machine, &cases, runs);
    table::print(&mut std::io::stdout().lock(), &comparison)?;
    args.write_outputs(&comparison)?;
    let failed = comparison.runs.iter().filter(|run| run.report.is_none()).count();
    if interrupted {
        return Err(Interrupted.into());
    }
    if failed > 0 {
        bail!("{failed} of {} runs failed, see above", comparison.runs.len());
    }
    Ok(())
}

impl Args {
    fn choice(&self) -> Choice {
        Choice {
            quick: self.quick,
            workloads: self.workload.clone(),
            engines: self.engine.clone(),
            sizes: self.size.clone(),
            callers: self.concurrency.iter().filter_map(|&callers| usize::try_from(callers).ok()).collect(),
            force_sync: self.force_sync,
            neighbour: self.neighbour,
            duration: self.duration,
        }
    }

    /// Checks before the runs, which take hours, that the files can be written. Existing content is
    /// kept.
    fn check_outputs(&self) -> Result<()> {
        for path in [&self.json, &self.html].into_iter().flatten() {
            let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
            opened.with_context(|| format!("opening {} for writing", path.display()))?;
        }
        Ok(())
    }

    fn write_outputs(&self, comparison: &Comparison) -> Result<()> {
        let write = |path: &Path, text: String| {
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
        };
        if let Some(path) = &self.json {
            write(path, serde_json::to_string_pretty(comparison)?)?;
        }
        if let Some(path) = &self.html {
            write(path, html::page(comparison)?)?;
        }
        Ok(())
    }
}

/// Prints the number of runs and their estimated time.
fn announce(cases: &[Case], turns: &[Turn]) -> Result<()> {
    let took = |turn: &Turn| cases.get(turn.case).map_or(Duration::ZERO, |case| matrix::estimate(&case.plan));
    let total: Duration = turns.iter().map(took).sum();
    let minutes = total.as_secs().div_ceil(60);
    let time =
        if minutes < 120 { format!("{minutes} min") } else { format!("{} hours", minutes.div_ceil(60)) };
    writeln!(
        std::io::stderr(),
        "{} runs of {} cases: about {time}, more on a slow disk; Ctrl-C ends it and shows what is there",
        turns.len(),
        cases.len(),
    )?;
    Ok(())
}

/// Runs all turns, one after the other. Returns `true` if they were interrupted.
async fn run_all(cases: &[Case], turns: &[Turn], dir: &Path) -> Result<(Vec<RunRecord>, bool)> {
    let (interrupt, mut stop) = watch::channel(false);
    let (mut ctrl_c, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut runs = Vec::new();
    let work = async {
        for (n, turn) in turns.iter().enumerate() {
            let Some(case) = cases.get(turn.case) else { continue };
            let run = run_one(case, *turn, dir, &mut stop).await;
            if matches!(run, Err(Failed::Interrupted)) {
                return Ok(true);
            }
            report_progress(n + 1, turns.len(), turn, case, &run)?;
            runs.push(RunRecord::new(*turn, case, run));
        }
        Ok(false)
    };
    let listen = async {
        tokio::select! { _ = ctrl_c.recv() => {}, _ = term.recv() => {} }
        let _ = interrupt.send(true);
        std::future::pending::<()>().await;
    };
    let interrupted: Result<bool> = tokio::select! { done = work => done, () = listen => Ok(true) };
    Ok((runs, interrupted?))
}

/// Runs in a directory of its own, which is removed even after an error.
async fn run_one(case: &Case, turn: Turn, dir: &Path, stop: &mut child::Stop) -> Result<Report, Failed> {
    if *stop.borrow() {
        return Err(Failed::Interrupted);
    }
    let limit = matrix::estimate(&case.plan) * 20 + Duration::from_secs(600);
    let io = |doing| move |err| Failed::Io { doing, err };
    let dir = tempfile::Builder::new().prefix("tidespool-compare-").tempdir_in(dir);
    let dir = dir.map_err(io("creating a directory"))?;
    let report = child::run(&wording::arguments(turn.engine, &case.plan), dir.path(), limit, stop).await;
    let removed = dir.close().map_err(io("removing the directory of the run"));
    let report = report?;
    removed?;
    Ok(report)
}

/// Prints one line for each run on standard error: the progress, and the error of a failed run.
fn report_progress(
    n: usize,
    of: usize,
    turn: &Turn,
    case: &Case,
    run: &Result<Report, Failed>,
) -> Result<()> {
    let (engine, title) = (turn.engine.name(), wording::title(&case.plan));
    let what = match run {
        Ok(report) => {
            format!("{:.0}/s, p50 {:.1} µs, p99 {:.1} µs", report.ops_per_s, report.p50_us, report.p99_us)
        }
        Err(err) => format!("FAILED: {err}"),
    };
    Ok(writeln!(std::io::stderr(), "[{n}/{of}] {engine}: {title}: {what}")?)
}
