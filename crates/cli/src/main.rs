//! The `tidespool` command. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidespool_cli::run(std::env::args_os())
}
