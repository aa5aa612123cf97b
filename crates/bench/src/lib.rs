//! The benchmark of Tidespool, and the library that measures other engines in the same way.
//!
//! An [`Opener`] opens an engine. [`run_one`] runs a [`Plan`] on it and returns a [`Report`].
//! [`PlanArgs`] are the arguments of a plan on a command line; [`Builtin`] names the built-in
//! engines. `tidespool-bench` and `tidespool bench` run [`command`].
//!
//! # Layout
//!
//! * `plan`, `args`, `size` – a run and its command line; `report` – its result;
//! * `engine` – what is measured; `builtin` – the tiered spool, [`LocalDiskSpool`], or the limit of
//!   the machine: `raw_journal`, `bare`, and the `segments` that they write to;
//! * `runner` – runs a plan; `run` – the state and the figures of a workload;
//! * `interrupt` – stops a run early; `figures` – rates, ratios and rounding;
//! * `workloads` – one file for each workload;
//! * `callers`, `payload`, `latency` – shared by workloads: tasks and their clock, messages,
//!   recorded latencies;
//! * `set`, `live` – sets of stored messages; messages with a lifetime;
//! * `disk`, `progress` – free space, disk usage and bare syncs; the progress of a long phase;
//! * `child`, `neighbour` – the process that is killed; the process that writes to the same disk;
//! * `chart`, `plot` – line charts as SVG; the chart of one run;
//! * `proc` – the kernel's figures of this process;
//! * [`output`] – tables, JSON lines, error lines and exit codes, which `tidespool` uses too.

mod args;
mod bare;
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
mod neighbour;
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
mod segments;
mod set;
mod size;
mod workloads;

use std::ffi::OsString;
use std::io::{BufWriter, Write as _};
use std::process::ExitCode;

use clap::Parser;

pub use self::args::{PlanArgs, parse_duration};
pub use self::bare::Bare;
pub use self::builtin::Builtin;
pub use self::child::fill;
pub use self::engine::{Engine, Needs, Opener};
pub use self::interrupt::Interrupted;
pub use self::local_disk::LocalDiskSpool;
pub use self::neighbour::write_beside;
pub use self::plan::{DEFAULT_JOURNAL_CAPACITY, Drain, Lifetime, Plan, Size, Workload};
pub use self::raw_journal::RawJournal;
pub use self::report::{Moment, Report, Second, word};
pub use self::runner::run_one;

const PROGRAM: &str = "tidespool-bench";

#[derive(Debug, Parser)]
#[command(name = PROGRAM, version)]
struct Cli {
    #[command(flatten)]
    args: command::Args,
}

/// Runs `tidespool-bench` with `args`, which begin with the name of the program.
///
/// Returns the code of [`output::exit_code`]. An error is one line on standard error.
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
