//! The main job of a spool from end to end: accept real messages, keep them safe, deliver and
//! remove them.
//!
//! ```text
//! cargo run --release --example delivery
//! ```
//!
//! A small mail server without the network. Messages come from files instead of clients. Deliveries
//! go to a folder, the *sink*, instead of remote servers. README.md beside this file describes the
//! options, and how to kill a run in the middle and let the next run finish it.
//!
//! # Layout, in the order in which a message passes
//!
//! * `args`, `run` – the options, and the whole run from top to bottom
//! * `input`, `folders`, `mbox`, `envelope` – messages from files
//! * `workplace`, `spools`, `run_log` – the directories, the two spools, the log of
//!   acknowledgements
//! * `resume` – recovery after an earlier run was killed
//! * `server` – state shared by all tasks
//! * `accept`, `deliver`, `retry`, `schedule` – the work; `schedule` is pure
//! * `sink`, `bounce` – where messages arrive
//! * `counters`, `progress`, `verify`, `report` – measuring, checking and printing

mod accept;
mod args;
mod bad_input;
mod bounce;
mod counters;
mod deliver;
mod envelope;
mod folders;
mod input;
mod mbox;
mod meta;
mod progress;
mod report;
mod resume;
mod retry;
mod run;
mod run_log;
mod schedule;
mod server;
mod sink;
mod spools;
mod verify;
mod workplace;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Args;
use crate::bad_input::BadInput;
use crate::run::Ending;

fn main() -> ExitCode {
    tidespool::keep_the_heap_small();
    deliver()
}

#[tokio::main]
async fn deliver() -> ExitCode {
    match run::run(Args::parse()).await {
        Ok(Ending::AllArrived) => ExitCode::SUCCESS,
        Ok(Ending::Wrong) => ExitCode::from(1),
        Ok(Ending::LostUnsynced) => ExitCode::from(3),
        Ok(Ending::Interrupted) => ExitCode::from(130),
        Err(err) => {
            eprintln!("delivery: {err:#}");
            ExitCode::from(if err.is::<BadInput>() { 2 } else { 1 })
        }
    }
}
