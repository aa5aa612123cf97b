//! Runs the real `tidespool` binary. One test binary, so that everything is linked once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are outside of the test functions"
)]

mod run; // the binary, and what it says when it refuses

mod bench_entry; // `tidespool bench` as a subcommand; the crate tidespool-bench tests the benchmark itself
mod command; // what it says and how it ends, above all where something is wrong
mod on_a_spool; // on the directory of a real spool
mod repair; // `tidespool repair`, and what the others say of a spool that can't be opened
