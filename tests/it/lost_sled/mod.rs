//! sled's files are lost, damaged or exchanged at any point. No message is lost.
//!
//! sled was once the only place of the messages that it held. A few failed reads made it drop
//! hundreds of synced messages, or restore removed ones, and no call reported it. Now sled is an
//! index. The segments and the manifest decide which messages live, and sled is rebuilt from them.
//!
//! Each test builds a spool with messages in every kind of place, damages the files in `sled/` (a
//! *strike*), and compares every result with the expected messages ([`Expected`]). During a
//! rebuild, the load of a checkpointed message may fail with an I/O error. It never returns
//! `NotFound`, `Corrupt`, an older version or a removed message.
//!
//! The tests list `sled/` recursively and do not depend on the names of sled's files.
//!
//! Each test runs in a process of its own ([`alone`]): a panic inside sled ends one of the I/O
//! threads that all its instances in a process share.
//!
//! `TIDESPOOL_LOST_SLED_TRIALS` is the number of random trials (default 30; 3 000 before a
//! release). `TIDESPOOL_LOST_SLED_SEED` is the seed of the first one, and repeats it.

mod closed; // damage while no process has the spool open
mod expected; // the expected messages, and their comparison with a spool
mod footers; // damage to sled and to the footers of segments
mod images; // initial directories: after a shutdown, and after a kill
mod rebuilding; // damage while sled is rebuilt
mod running; // damage under a running spool
mod strike; // the kinds of damage
mod tombstones; // removed messages stay removed after their tombstones are recycled
mod trials; // random histories with random damage

use std::process::Command;
use std::sync::Arc;

use tidespool::inspect::Inspector;
use tidespool::{Config, TieredSpool};
use tidespool_testkit::wait;

use crate::setup::{stop, when_free};

pub(crate) use strike::lose_all;

use expected::Expected;
use images::Images;
use strike::{Donors, Target, Way};

/// Environment variable that marks the process of one test.
const ALONE: &str = "TIDESPOOL_TEST_ALONE";

/// Runs the body of the test `name` in a process of its own. `name` is its path with the crate's
/// name.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let name = name.split_once("::").expect("a path with the name of the crate").1;
    run_alone(name, &[]).unwrap_or_else(|output| panic!("{output}"));
}

/// Runs one test in a process of its own, with these variables. `Err` is its output.
fn run_alone(name: &str, variables: &[(&str, String)]) -> Result<(), String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .env("RUST_BACKTRACE", "0")
        .envs(variables.iter().map(|(key, value)| (key, value)))
        .output()
        .unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() && text.contains("1 passed") {
        println!("{text}");
        return Ok(());
    }
    Err(format!("{name}: {}\n{text}\n{errors}", output.status))
}

/// Runs a future to its end. Hanging threads do not prevent the exit of the process.
fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(future);
    runtime.shutdown_background();
}

/// Defines tests of asynchronous functions without arguments. Each runs in a process of its own.
macro_rules! alone_tests {
    ($($(#[$note:meta])* $name:ident: $body:expr;)*) => {
        $($(#[$note])*
        #[test]
        fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            $crate::lost_sled::alone(name, || $crate::lost_sled::block_on($body));
        })*
    };
}
use alone_tests;

/// Runs each case, also after a failed one, and reports all failures.
async fn each_case<C, F>(cases: impl IntoIterator<Item = C>, run: impl Fn(C) -> F)
where
    C: std::fmt::Debug,
    F: Future<Output = ()> + Send + 'static,
{
    let (mut count, mut failures) = (0, Vec::new());
    for case in cases {
        count += 1;
        let name = format!("{case:?}");
        println!("{name}");
        if let Err(error) = tokio::spawn(run(case)).await {
            let panic = error.into_panic();
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            failures.push(format!("{name}: {}", text.unwrap_or_default()));
        }
    }
    assert!(count > 0, "no case");
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.join("\n"));
}

async fn open(config: &Config) -> Arc<TieredSpool> {
    let opened = wait::bounded("open", when_free(|| TieredSpool::open(config.clone()))).await;
    Arc::new(opened.expect("open"))
}

async fn shut_down(spool: Arc<TieredSpool>) {
    wait::bounded("shutdown", stop(spool)).await;
}

/// Asserts that the spool holds exactly the expected messages, now and after a shutdown, and that
/// `verify` finds no damage.
async fn assert_is_whole(config: &Config, expected: &Expected) {
    let spool = open(config).await;
    expected.assert_exact(&spool).await;
    assert_eq!(spool.recovery().damage, [], "no message is damaged");
    shut_down(spool).await;
    let verified = Inspector::open(&config.path).expect("inspect").verify().expect("verify");
    assert_eq!((verified.damage, verified.messages), (Vec::new(), expected.len()));
    let spool = open(config).await;
    expected.assert_exact(&spool).await;
    shut_down(spool).await;
}

/// Prints an error of an upkeep call, which may report damage that it found.
fn report(what: &str, result: anyhow::Result<()>) {
    if let Err(error) = result {
        println!("{what}: {error:#}");
    }
}
