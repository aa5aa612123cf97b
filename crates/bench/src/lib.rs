//! The benchmark of Tidespool: what a spool does on this machine. Other engines are measured alike
//! with this library.
//!
//! An engine is what an [`Opener`] opens; [`run_one`] runs a [`Plan`] on it and returns a [`Report`]. [`PlanArgs`] are the
//! arguments of a plan on a command line, [`Builtin`] the engines that are built in. The benchmark as
//! a whole is a [`command`], which `tidespool bench` and `tidespool-bench` run.
//!
//! # Layout
//!
//! * `plan`, `args`, `size` – what is asked; `report` – what was found;
//! * `engine` – what is measured; `builtin` – the tiered spool, [`LocalDiskSpool`], or the raw journal (`raw_journal`);
//! * `runner` – from the plan to the report; `run` – what a workload works with and measures;
//! * `interrupt` – how a run is stopped early; `figures` – rates, ratios and rounding;
//! * `workloads` – what the callers do, one workload a file;
//! * `callers`, `payload`, `latency` – what workloads share: tasks and their clock, messages, what is recorded;
//! * `set`, `live` – messages that are stored and gone through; messages with a lifetime;
//! * `disk`, `progress` – room, use and syncs of the disk; how far a long phase is;
//! * `child` – the process that is killed;
//! * `chart`, `plot` – lines as SVG; a run as a picture;
//! * `proc` – what the kernel says of this process;
//! * [`output`] – tables, exit codes and the line of an error, as in `tidespool`.

mod args;
mod builtin;
mod callers;
pub mod chart;
mod child;
pub mod command;
mod disk;
mod engine;
mod figures;
mod interrupt;
mod latency;
mod live;
mod local_disk;
pub mod output;
mod payload;
mod plan;
mod plot;
mod proc;
mod progress;
mod raw_journal;
mod report;
mod run;
mod runner;
mod set;
mod size;
mod workloads;

use std::ffi::OsString;
use std::io::{BufWriter, Write as _};
use std::process::ExitCode;

use clap::Parser;

pub use self::args::PlanArgs;
pub use self::builtin::Builtin;
pub use self::child::fill;
pub use self::engine::{Engine, Needs, Opener};
pub use self::interrupt::Interrupted;
pub use self::local_disk::LocalDiskSpool;
pub use self::plan::{DEFAULT_JOURNAL_CAPACITY, Drain, Lifetime, Plan, Size, Workload};
pub use self::raw_journal::RawJournal;
pub use self::report::{Moment, Report, Second};
pub use self::runner::run_one;

const PROGRAM: &str = "tidespool-bench";

#[derive(Debug, Parser)]
#[command(name = PROGRAM, version)]
struct Cli {
    #[command(flatten)]
    args: command::Args,
}

/// Runs `tidespool-bench` with `args`, the name of the program first, and returns its exit code.
///
/// The codes are those of [`output::exit_code`]. An error is one line on standard error.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(err) => return output::usage(PROGRAM, &err),
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let result = command::run(&cli.args, None, &mut out);
    // Also after an error: the output before it is useful.
    let flushed = out.flush();
    output::exit_code(PROGRAM, result.map(|()| ExitCode::SUCCESS), flushed)
}
