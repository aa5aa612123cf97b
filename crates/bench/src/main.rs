//! The `tidespool-bench` command. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidespool::keep_the_heap_small();
    tidespool_bench::run(std::env::args_os())
}
