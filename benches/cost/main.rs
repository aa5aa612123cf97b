//! The cost of an operation in figures that are the same on every machine: instructions,
//! allocations, syncs, bytes written and read. `cargo bench --bench spool` and `tidespool bench`
//! measure time.
//!
//! ```text
//! cargo bench --bench cost                  # measures, and prints the limits too
//! cargo bench --bench cost -- "synced"      # only operations whose names contain this
//! cargo bench --bench cost -- --check       # fails if a limit is exceeded, as in .ci/run
//! cargo bench --bench cost -- --bless       # writes the measured values to limits.toml
//! ```
//!
//! Instructions need valgrind and are those of all threads. Without valgrind they are omitted, and
//! `--check` and `--bless` fail.
//!
//! # Layout
//!
//! * `operations`, `figure` – the operations, and the figures of each
//! * `perform` – performs one operation in a process of its own; `storage` and `counts` count there
//! * `measure`, `callgrind` – runs these processes, with valgrind and without
//! * `limits` – `limits.toml`, and the verdicts
//! * `report` – the table

mod callgrind;
mod counts;
mod figure;
mod limits;
mod measure;
mod operations;
mod perform;
mod report;
mod storage;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;

use limits::{Limits, Tools};
use operations::{OPERATIONS, Operation};

#[derive(Debug, Parser)]
#[command(
    name = "cost",
    about = "The cost of an operation, in figures that do not depend on the machine's speed"
)]
struct Args {
    /// Only operations whose names contain this.
    filter: Option<String>,
    /// Fail if a limit is exceeded.
    #[arg(long, conflicts_with = "bless")]
    check: bool,
    /// Write the measured values as the new limits.
    #[arg(long)]
    bless: bool,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Internal: perform this operation and print the counts.
    #[arg(long, hide = true, requires = "dir")]
    perform: Option<String>,
    /// Internal: the directory of the spool.
    #[arg(long, hide = true)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match (&args.perform, &args.dir) {
        (Some(name), Some(dir)) => perform(name, dir).map(|()| ExitCode::SUCCESS),
        _ => measure(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("cost: {error:#}");
        ExitCode::FAILURE
    })
}

/// Number of measurements for `--bless`.
const BLESS_RUNS: usize = 3;

fn perform(name: &str, dir: &Path) -> Result<()> {
    let operation = Operation::named(name).with_context(|| format!("there is no operation \"{name}\""))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let counts = runtime.block_on(perform::perform(operation, dir))?;
    print!("{}", toml::to_string(&counts)?);
    // The runtime is not shut down: the cost of that depends on the state of the spool's threads.
    std::process::exit(0)
}

fn measure(args: &Args) -> Result<ExitCode> {
    ensure!(!cfg!(debug_assertions), "measuring needs an optimised build: cargo bench --bench cost");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/cost/limits.toml");
    let operations: Vec<&Operation> = OPERATIONS
        .iter()
        .filter(|operation| args.filter.as_ref().is_none_or(|filter| operation.name.contains(filter)))
        .collect();
    if operations.is_empty() {
        println!("cost: no operation of that name");
        return Ok(ExitCode::SUCCESS);
    }
    let valgrind = measure::valgrind_version()?;
    if valgrind.is_none() {
        if args.check || args.bless {
            bail!(
                "counting instructions needs valgrind, which is not installed: apt-get install valgrind, or similar"
            );
        }
        println!("No valgrind: instructions are omitted.");
    }
    let mut limits = if path.exists() || !args.bless { Limits::read(&path)? } else { Limits::default() };
    let tools = tools(valgrind.clone());
    let comparable = args.bless || limits.measured_with.arch == tools.arch;
    if !comparable {
        println!("Instructions are omitted: their limits are for {}.", limits.measured_with.arch);
    }
    let mut measured = measure::measure(&operations, valgrind.is_some() && comparable)?;
    // A limit must hold in each run, so the highest of several runs is used.
    for _ in 1..if args.bless { BLESS_RUNS } else { 1 } {
        let again = measure::measure(&operations, true)?;
        measured.iter_mut().zip(&again).for_each(|(highest, figures)| measure::raise(highest, figures));
    }
    let measured: Vec<_> = operations.into_iter().zip(measured).collect();
    if args.bless {
        limits.measured_with = tools.clone();
        measured.iter().for_each(|(operation, figures)| limits.bless(operation, figures));
        limits.write(&path)?;
        println!("Written: {}", path.display());
    }
    let is_good = report::show(&measured, &limits, &tools);
    Ok(if is_good || !args.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tools(valgrind: Option<String>) -> Tools {
    let rustc = Command::new("rustc").arg("--version").output();
    let rustc = rustc.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    Tools { arch: std::env::consts::ARCH.to_owned(), rustc, valgrind: valgrind.unwrap_or_default() }
}
