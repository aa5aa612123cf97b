use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, getpgrp, kill_process_group};
use tempfile::TempDir;
use tidespool::TieredSpool;
use tidespool_core::{NotFound, Spool as _, SpoolId};
use tidespool_testkit::payload;

use crate::setup::{block_on, config, open, put_some};

/// Set for the child: the directory of the spool, and how it dies.
const CHILD_DIR: &str = "TIDESPOOL_DEATH_DIR";
const CHILD_DEATH: &str = "TIDESPOOL_DEATH";

/// Rounds of stores, replacements and removals before the child dies.
const ROUNDS: usize = 25;

#[test]
fn an_abort() {
    dies("abort");
}

/// A panic of a caller, in the middle of a call, in a program that a panic ends.
#[test]
fn a_panic() {
    dies("panic");
}

/// The signal is handled on a stack of its own, as that for a fault in the crash log is.
#[test]
fn a_stack_overflow() {
    dies("stack overflow");
}

/// A supervisor kills a whole group of processes, and no other process is left to help.
#[test]
fn a_kill_of_the_process_group() {
    dies("kill of the group");
}

/// `SIGBUS` from elsewhere is none of the crash log's.
#[test]
fn a_bus_error_of_the_program() {
    dies("bus error");
}

/// `main` returns, and the spool was not shut down.
#[test]
fn an_exit() {
    dies("exit");
}

/// What the child acknowledged, one line each: `+ID LEN` and `-ID`.
fn dies(how: &str) {
    let dir = TempDir::with_prefix("tidespool-death-").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "deaths::child", "--nocapture", "--test-threads=1"]);
    command.env(CHILD_DIR, dir.path()).env(CHILD_DEATH, how).stderr(Stdio::piped());
    let output = command.process_group(0).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), how == "exit", "{how}: {}\n{said}\n{complained}", output.status);
    assert!(said.contains("dying"), "{how}: {}\n{said}\n{complained}", output.status);
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    for line in said.lines() {
        if let Some((id, len)) = line.strip_prefix('+').and_then(|line| line.split_once(' ')) {
            there.push((id.parse::<SpoolId>().unwrap(), len.parse::<usize>().unwrap()));
        } else if let Some(id) = line.strip_prefix('-') {
            gone.push(id.parse::<SpoolId>().unwrap());
        }
    }
    there.retain(|(id, _)| !gone.contains(id));
    assert!(there.len() >= ROUNDS * 4 && gone.len() >= ROUNDS * 4, "{} and {}", there.len(), gone.len());
    block_on(async {
        let spool = open(&dir.path().join("spool")).await;
        assert!(
            spool.recovery().replayed > 0 && spool.recovery().damage.is_empty(),
            "{:?}",
            spool.recovery()
        );
        for (id, len) in there {
            let data = spool.load(id).await.unwrap_or_else(|error| panic!("{how}: {id}: {error:#}"));
            payload::assert_is(id, 1, len, &data);
        }
        for id in gone {
            let error = spool.load(id).await.expect_err("it was removed");
            assert!(error.root_cause().is::<NotFound>(), "{how}: {id}: {error:#}");
        }
        spool.shutdown().await.unwrap();
    });
}

/// Not a test: the process that dies.
#[test]
fn child() {
    let (Some(dir), Ok(how)) = (std::env::var_os(CHILD_DIR), std::env::var(CHILD_DEATH)) else { return };
    let spool = Path::new(&dir).join("spool");
    // The harness has begun a line.
    println!();
    block_on(async {
        // Nothing is written to the journal but what is synced.
        let config = config(&spool).dirty_expire(Duration::from_secs(3600));
        let spool = Arc::new(TieredSpool::open(config).await.unwrap());
        for round in 0..ROUNDS {
            let (kept, removed) = (put_some(&*spool, false).await, put_some(&*spool, round % 2 == 0).await);
            let mut out = std::io::stdout().lock();
            for (id, len) in kept.iter().chain(&removed) {
                writeln!(out, "+{id} {len}").unwrap();
            }
            drop(out);
            for (id, _) in removed {
                spool.remove(id).await.unwrap();
                println!("-{id}");
            }
        }
        println!("dying");
        std::io::stdout().flush().unwrap();
        die(&how, &spool).await;
    });
}

async fn die(how: &str, spool: &Arc<TieredSpool>) {
    match how {
        "abort" => std::process::abort(),
        "panic" => {
            std::panic::set_hook(Box::new(|_| std::process::abort()));
            let id = SpoolId::new();
            let _storing = spool.store(id, payload::shared(id, 1, 100), true, None);
            panic!("on purpose");
        }
        "stack overflow" => {
            let overflown = std::thread::spawn(|| deep(1)).join();
            unreachable!("{overflown:?}");
        }
        "kill of the group" => kill_process_group(getpgrp(), Signal::KILL).unwrap(),
        "bus error" => {
            // The first one takes back the handler of the standard library, which does no more.
            loop {
                rustix::process::kill_process(rustix::process::getpid(), Signal::BUS).unwrap();
            }
        }
        "exit" => std::process::exit(0),
        other => panic!("no death is named {other}"),
    }
}

/// Calls itself until the stack ends.
#[expect(unconditional_recursion, reason = "on purpose")]
fn deep(depth: u64) -> u64 {
    std::hint::black_box(deep(std::hint::black_box(depth + 1)) + 1)
}
