//! Runs the real `tidespool` binary. One test binary, so that everything is linked once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are outside of the test functions"
)]

mod run; // runs the binary; asserts that it rejects arguments

mod bench_entry; // `tidespool bench` as a subcommand
mod command; // help, and errors in the arguments
mod on_a_spool; // every subcommand on the directory of a real spool
mod orphans; // bodies without an envelope: found and removed
mod repair; // `tidespool repair`, and the others on a spool that cannot be opened
mod several_spools; // every subcommand on a store with several spools
