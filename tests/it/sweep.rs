//! Some of the runs of `fault-sweep`: a call to the disk fails, and a book that is kept outside of the spool is compared with what callers see.
//!
//! `TIDESPOOL_SWEEP_POINTS`: how many calls for each kind of fault. `TIDESPOOL_SWEEP_SEED`: which. It is printed.

use tidespool_testkit::rng::{number_from_env, seed_from_env};
use tidespool_testkit::sweep::{Kind, Plan, Points, Subject, count, run_all};

/// Runs at a time: they wait for the disk and for each other's fault more than they work.
const JOBS: usize = 4;

/// Whatever call fails: nothing acknowledged is lost, nobody hangs, and when the fault is over all is well again without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_call_fails_nothing_acknowledged_is_lost() {
    let seed = seed_from_env("TIDESPOOL_SWEEP_SEED");
    let sample = number_from_env("TIDESPOOL_SWEEP_POINTS").unwrap_or(5);
    println!("sweep: {sample} points of each kind, TIDESPOOL_SWEEP_SEED={seed}");
    let subject = Subject::default();
    let unharmed = count(&subject).await;
    assert_eq!(unharmed.violations, [""; 0]);
    let plan = Plan::sample(Points::from(&unharmed), &Kind::ALL, sample, seed);
    let report = run_all(&subject, &plan, JOBS, |_| ()).await;
    println!("{}", report.text());
    assert_eq!(report.violations(), [""; 0]);
    assert!(report.struck() * 2 > report.runs(), "nothing to judge");
}
