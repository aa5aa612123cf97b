//! The `tidespool` command: look into a spool's directory, verify it, save what is whole in a damaged one, and measure what a spool does on this
//! machine.
//!
//! # Layout
//!
//! * one file per subcommand: `ls`, `get`, `stat`, `verify`, `repair`, and the folder [`bench`](mod@bench);
//! * `spool_dir` – opens a directory for those that look into one;
//! * `output` – tables, exit codes and the one line that an error gets;
//! * `size` – sizes on the command line.
//!
//! # Exit codes
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; `verify`: the spool is whole; `repair`: everything was saved |
//! | 1 | an error, bad arguments included: one line on standard error |
//! | 2 | damage was found; `repair`: something could not be saved |
//! | 130 | interrupted |
//!
//! A closed pipe (`tidespool ls DIR | head`) is no error.

pub mod bench;
mod get;
mod ls;
mod output;
mod repair;
mod size;
mod spool_dir;
mod stat;
mod verify;

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::Outcome;

/// Look into a spool's directory, verify it, save what is whole in a damaged one, and measure what a spool does on this machine.
#[derive(Debug, Parser)]
#[command(name = "tidespool", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(ls::Args),
    Get(get::Args),
    Stat(stat::Args),
    Verify(verify::Args),
    Repair(repair::Args),
    Bench(Box<bench::Args>),
}

impl Command {
    fn run(&self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        match self {
            Self::Ls(args) => ls::run(args, out),
            Self::Get(args) => get::run(args, out),
            Self::Stat(args) => stat::run(args, out),
            Self::Verify(args) => verify::run(args, out),
            Self::Repair(args) => repair::run(args, out),
            Self::Bench(args) => bench::run(args, out),
        }
    }
}

/// Runs the command that `args` (the program's name first) ask for, and tells how it ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(err) => return output::usage(&err),
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let result = cli.command.run(&mut out);
    // Also after an error: what was found before it is worth reading.
    let flushed = out.flush();
    output::exit_code(result, flushed)
}
