//! The main job of a spool, from end to end: real messages are accepted, kept safe, delivered and removed.
//!
//! ```text
//! cargo run --release --example delivery
//! ```
//!
//! A small mail server without the network: what a client would send comes from files, what a remote server would
//! receive is written to a folder, the *sink*. README.md beside this file has the options, and how to kill a run in
//! the middle and let the next one finish it.
//!
//! # Layout, in the order in which a message passes
//!
//! * `args`, `run` – the options, and the whole run from top to bottom
//! * `input`, `folders`, `mbox`, `envelope` – messages from files
//! * `workplace`, `spools`, `manifest` – the directories, the two spools, the notes of what was acknowledged
//! * `resume` – what an earlier run left, when it was killed
//! * `server` – what all tasks share
//! * `accept`, `deliver`, `retry`, `schedule` – the work; `schedule` is pure
//! * `sink`, `bounce` – where messages arrive
//! * `counters`, `progress`, `verify`, `report` – what one sees

mod accept;
mod args;
mod bad_input;
mod bounce;
mod counters;
mod deliver;
mod envelope;
mod folders;
mod input;
mod manifest;
mod mbox;
mod meta;
mod progress;
mod report;
mod resume;
mod retry;
mod run;
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
