//! `cargo run --release -p tidespool-testkit --bin fault-sweep [-- --sample N] [--json]`

use std::process::ExitCode;

use clap::Parser;
use tidespool_testkit::env::seed_from_env;
use tidespool_testkit::sweep::{Kind, Plan, Point, Points, Subject, count, run_all};

/// Lets each call to the disk fail in turn, in each way, and checks the spool after it.
#[derive(Debug, Parser)]
struct Args {
    /// Only this many points of each kind of fault, spread over the run.
    #[arg(long, value_name = "N")]
    sample: Option<u64>,
    /// Seed of the sample, to repeat it.
    #[arg(long, value_name = "SEED", requires = "sample")]
    seed: Option<u64>,
    /// Only this kind of fault.
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Only this call: among all calls, for `short` and `torn` among the writes, for `misread`
    /// and `misread-later` among the reads.
    #[arg(long, value_name = "N", requires = "kind", conflicts_with = "sample")]
    point: Option<u64>,
    /// Number of concurrent runs.
    #[arg(long, value_name = "N", default_value_t = 6)]
    jobs: usize,
    /// List the calls of a run without a fault, and exit.
    #[arg(long)]
    trace: bool,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

fn main() -> std::io::Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    let code = runtime.block_on(sweep(&args));
    // Runs that hang are reported already: do not wait for them.
    runtime.shutdown_background();
    Ok(code)
}

async fn sweep(args: &Args) -> ExitCode {
    let subject = Subject::default();
    let unharmed = count(&subject).await;
    if args.trace {
        unharmed.trace.iter().for_each(|call| println!("{call}"));
        return ExitCode::SUCCESS;
    }
    let of = Points::from(&unharmed);
    let kinds: Vec<Kind> = args.kind.map_or_else(|| Kind::all().to_vec(), |kind| vec![kind]);
    let plan = match (args.point, args.sample) {
        (Some(number), _) => Plan::one(of, Point { number, kind: kinds[0] }),
        (None, Some(sample)) => {
            let seed = args.seed.unwrap_or_else(|| seed_from_env("TIDESPOOL_SWEEP_SEED"));
            Plan::sample(of, &kinds, sample, seed)
        }
        (None, None) => Plan::all(of, &kinds),
    };
    let (mut done, all) = (0, plan.points.len());
    let mut report = run_all(&subject, &plan, args.jobs, |ran| {
        done += 1;
        if !ran.violations.is_empty() || done % 100 == 0 {
            eprintln!("{done} of {all}: {:?} {:?}", ran.point, ran.violations);
        }
    })
    .await;
    report.add(unharmed);
    if args.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    if report.violations().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
