//! Some runs of `fault-sweep`: a call to the disk fails, and the results of the calls are compared
//! with an account outside of the spool.
//!
//! `TIDESPOOL_SWEEP_POINTS` sets the number of calls for each kind of fault, `TIDESPOOL_SWEEP_SEED`
//! their choice. The seed is printed.

use tidespool_testkit::env::{number_from_env, seed_from_env};
use tidespool_testkit::sweep::{Kind, Plan, Points, Subject, count, run_all};

/// Concurrent runs. A run mostly waits for the disk and for its fault.
const JOBS: usize = 4;

/// Whichever call fails: no acknowledged message is lost, no call hangs, and after the fault the
/// spool is healthy again without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_message_is_lost_whichever_call_fails() {
    let seed = seed_from_env("TIDESPOOL_SWEEP_SEED");
    let sample = number_from_env("TIDESPOOL_SWEEP_POINTS").unwrap_or(5);
    println!("sweep: {sample} points of each kind, TIDESPOOL_SWEEP_SEED={seed}");
    let subject = Subject::default();
    let unharmed = count(&subject).await;
    assert_eq!(unharmed.violations, [""; 0]);
    let plan = Plan::sample(Points::from(&unharmed), Kind::all(), sample, seed);
    let report = run_all(&subject, &plan, JOBS, |_| ()).await;
    println!("{}", report.text());
    assert_eq!(report.violations(), [""; 0]);
    assert!(report.struck() * 2 > report.runs(), "too few runs had a fault");
}
