//! The `tidespool` command: inspects, verifies and repairs the directory of a spool, and runs the
//! benchmark.
//!
//! # Layout
//!
//! * one file for each subcommand: `ls`, `get`, `orphans`, `stat`, `verify`, `repair`; `bench` is
//!   the crate [`tidespool_bench`];
//! * `spool_dir` – opens a directory for inspection;
//! * `output` – output that the subcommands share; [`tidespool_bench::output`] has what `bench`
//!   needs too.
//!
//! # Exit codes
//!
//! | code | meaning |
//! |---|---|
//! | 0 | success; `verify`: the spool is whole; `repair`: everything was saved |
//! | 1 | an error, also in the arguments: one line on standard error |
//! | 2 | damage was found; `repair`: something could not be saved; `orphans`: the list may be wrong, and nothing was removed |
//! | 130 | interrupted |
//!
//! A closed pipe (`tidespool ls DIR | head`) is not an error.

mod get;
mod ls;
mod orphans;
mod output;
mod repair;
mod spool_dir;
mod stat;
mod verify;

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tidespool_bench::command as bench;
use tidespool_bench::output::{exit_code, usage};

use crate::output::Outcome;

/// The name of the program, which begins an error line.
const PROGRAM: &str = "tidespool";

/// The name of the subcommand `bench`.
const BENCH: &str = "bench";

/// Inspect, verify and repair the directory of a spool, and measure what a spool does on this
/// machine.
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(ls::Args),
    Get(get::Args),
    Orphans(orphans::Args),
    Stat(stat::Args),
    Verify(verify::Args),
    Repair(repair::Args),
    #[command(name = BENCH)]
    Bench(Box<bench::Args>),
}

impl Command {
    fn run(&self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        match self {
            Self::Ls(args) => ls::run(args, out),
            Self::Get(args) => get::run(args, out),
            Self::Orphans(args) => orphans::run(args, out),
            Self::Stat(args) => stat::run(args, out),
            Self::Verify(args) => verify::run(args, out),
            Self::Repair(args) => repair::run(args, out),
            Self::Bench(args) => bench::run(args, Some(BENCH), out).map(|()| Outcome::Fine),
        }
    }
}

/// Returns the description of the command line, from which `docs/command-line.md` is generated.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command that `args` describe and returns its exit code. `args` begin with the name of
/// the program.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(err) => return usage(PROGRAM, &err),
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let result = cli.command.run(&mut out);
    // Also after an error: the output before it is useful.
    let flushed = out.flush();
    exit_code(PROGRAM, result.map(Outcome::exit_code), flushed)
}
