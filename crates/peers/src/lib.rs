//! Compares Tidespool with other engines: the same trait and the same workloads, in one run.
//!
//! # Layout
//!
//! * [`engines`] – each engine as a [`Spool`](tidespool_core::Spool), and what it claims;
//! * `opener` – opens the engines for the bench;
//! * `single` – one run in this process, as the children of a comparison do it;
//! * [`compare`](mod@compare) – the comparison: its runs, their order, and their summary.
//!
//! # Exit codes
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | an error, bad arguments included, or a run of a comparison that failed |
//! | 130 | interrupted |

pub mod compare;
pub mod engines;
mod opener;
mod single;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tidespool_bench::Interrupted;

/// Compare Tidespool with other engines.
#[derive(Debug, Parser)]
#[command(name = "tidespool-peers", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::Args),
    Run(single::Args),
    #[command(hide = true)]
    Fill(single::FillArgs),
    #[command(hide = true)]
    WriteBeside(single::BesideArgs),
}

/// Runs the command that `args` describe and returns its exit code. `args` begin with the name of
/// the program.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(err) => return usage(&err),
    };
    let result = match cli.command {
        Command::Compare(args) => compare::run(&args),
        Command::Run(args) => single::run(&args),
        Command::Fill(args) => single::fill(&args),
        Command::WriteBeside(args) => single::write_beside(&args),
    };
    exit_code(result)
}

/// Prints help as it is, and an error in the arguments as one line.
fn usage(err: &clap::Error) -> ExitCode {
    if !err.use_stderr() || err.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Standard output or standard error may be closed.
        drop(err.print());
        return ExitCode::from(u8::from(err.use_stderr()));
    }
    drop(writeln!(std::io::stderr(), "{}", one_line(&err.to_string())));
    ExitCode::FAILURE
}

/// Returns the first paragraph of a clap error, which names the argument and its values.
fn one_line(text: &str) -> String {
    let paragraph = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    paragraph.collect::<Vec<_>>().join(" ")
}

fn exit_code(result: Result<()>) -> ExitCode {
    let Err(err) = result else { return ExitCode::SUCCESS };
    let line = format!("{err:#}").replace('\n', " ");
    // Standard error may be closed.
    drop(writeln!(std::io::stderr(), "error: {line}"));
    if err.root_cause().is::<Interrupted>() { ExitCode::from(130) } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_bad_argument_gives_one_line_that_names_it() {
        let args = ["tidespool-peers", "compare", "--engine", "nope"];
        let line = one_line(&Cli::try_parse_from(args).unwrap_err().to_string());
        assert!(
            line.starts_with(
                "error: invalid value 'nope' for '--engine <ENGINE>' [possible values: tidespool"
            ),
            "{line}"
        );
        assert!(!line.contains('\n'));
    }
}
