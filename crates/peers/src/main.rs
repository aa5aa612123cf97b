//! The `tidespool-peers` command. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidespool_peers::run(std::env::args_os())
}
