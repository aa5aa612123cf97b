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

/// Environment variables of the child: the directory of the spool, and the kind of its death.
const CHILD_DIR: &str = "TIDESPOOL_DEATH_DIR";
const CHILD_DEATH: &str = "TIDESPOOL_DEATH";

/// Rounds of stores, replacements and removals before the child dies.
const ROUNDS: usize = 25;

#[test]
fn an_abort() {
    dies("abort");
}

/// A panic of a caller during a call, in a program in which a panic aborts.
#[test]
fn a_panic() {
    dies("panic");
}

/// The signal handler runs on its own stack, as the one for faults in the crash log does.
#[test]
fn a_stack_overflow() {
    dies("stack overflow");
}

/// A supervisor kills a whole process group, so no other process can help.
#[test]
fn a_kill_of_the_process_group() {
    dies("kill of the group");
}

/// A `SIGBUS` of another origin does not concern the crash log.
#[test]
fn a_bus_error_of_the_program() {
    dies("bus error");
}

/// `main` returns without a shutdown of the spool.
#[test]
fn an_exit() {
    dies("exit");
}

/// Runs a child that dies, and checks the spool. The child prints its acknowledged calls, one per
/// line: `+ID LEN` and `-ID`.
fn dies(how: &str) {
    let dir = TempDir::with_prefix("tidespool-death-").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "deaths::child", "--nocapture", "--test-threads=1"]);
    command.env(CHILD_DIR, dir.path()).env(CHILD_DEATH, how).stderr(Stdio::piped());
    let output = command.process_group(0).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), how == "exit", "{how}: {}\n{printed}\n{errors}", output.status);
    assert!(printed.contains("dying"), "{how}: {}\n{printed}\n{errors}", output.status);
    let (mut present, mut gone) = (Vec::new(), Vec::new());
    for line in printed.lines() {
        if let Some((id, len)) = line.strip_prefix('+').and_then(|line| line.split_once(' ')) {
            present.push((id.parse::<SpoolId>().unwrap(), len.parse::<usize>().unwrap()));
        } else if let Some(id) = line.strip_prefix('-') {
            gone.push(id.parse::<SpoolId>().unwrap());
        }
    }
    present.retain(|(id, _)| !gone.contains(id));
    assert!(present.len() >= ROUNDS * 4 && gone.len() >= ROUNDS * 4, "{} and {}", present.len(), gone.len());
    block_on(async {
        let spool = open(&dir.path().join("spool")).await;
        assert!(
            spool.recovery().replayed > 0 && spool.recovery().damage.is_empty(),
            "{:?}",
            spool.recovery()
        );
        for (id, len) in present {
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

/// Not a test itself: runs in the process that dies.
#[test]
fn child() {
    let (Some(dir), Ok(how)) = (std::env::var_os(CHILD_DIR), std::env::var(CHILD_DEATH)) else { return };
    let spool = Path::new(&dir).join("spool");
    // The test harness has printed the start of a line.
    println!();
    block_on(async {
        // The journal receives synced changes only.
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
            let overflown = std::thread::spawn(|| recurse(1)).join();
            unreachable!("{overflown:?}");
        }
        "kill of the group" => kill_process_group(getpgrp(), Signal::KILL).unwrap(),
        "bus error" => {
            // The first signal reaches the handler of the standard library, which only resets
            // itself.
            loop {
                rustix::process::kill_process(rustix::process::getpid(), Signal::BUS).unwrap();
            }
        }
        "exit" => std::process::exit(0),
        other => panic!("there is no death named {other}"),
    }
}

/// Recurses until the stack overflows.
#[expect(unconditional_recursion, reason = "on purpose")]
fn recurse(depth: u64) -> u64 {
    std::hint::black_box(recurse(std::hint::black_box(depth + 1)) + 1)
}
