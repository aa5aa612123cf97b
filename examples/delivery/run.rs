//! One run, from top to bottom.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tidespool_core::{Locked, UnsupportedFormat};
use tokio::task::{JoinError, JoinSet};

use crate::accept;
use crate::args::Args;
use crate::bad_input::BadInput;
use crate::counters::Counters;
use crate::deliver;
use crate::input::Input;
use crate::progress::Progress;
use crate::report::{Summary, Verdict, recovery_line};
use crate::resume::{self, Found, Recovery};
use crate::retry;
use crate::run_log::{self, Notes, Run, RunLog};
use crate::server::Server;
use crate::sink::Sink;
use crate::spools::{Spools, each};
use crate::verify;
use crate::workplace::Workplace;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    AllArrived,
    LostUnsynced,
    Wrong,
    Interrupted,
}

/// A server that is ready to start, and its work.
struct Job {
    server: Arc<Server>,
    /// Messages left in the spools by a killed run.
    found: Vec<Found>,
    /// Indexes of the messages to accept.
    indexes: Vec<u64>,
    recovery: Option<Recovery>,
}

/// Why the tasks ended.
enum Stop {
    Done,
    Interrupted,
    Failed(anyhow::Error),
}

pub(crate) async fn run(args: Args) -> Result<Ending> {
    let mut progress = Progress::new(args.json);
    let input = read_input(&args)?;
    let workplace = Workplace::claim(&args.spool_dir(), &args.sink_dir())?;
    let prepared = prepare(&args, input, &workplace, &mut progress).await;
    let Job { server, found, indexes, recovery } = match prepared {
        Ok(job) => job,
        Err(err) => {
            if err.is::<BadInput>() {
                workplace.abandon();
            }
            return Err(err);
        }
    };
    let started = Instant::now();
    let stop = serve(&args, Arc::clone(&server), found, indexes, &mut progress).await;
    let seconds = started.elapsed().as_secs_f64();
    match stop {
        Stop::Done => finish(&args, &server, &workplace, recovery, seconds).await,
        Stop::Interrupted => {
            server.spools.shutdown().await?;
            progress.say("Stopped: all accepted messages are on disk. The same command continues the run.");
            Ok(Ending::Interrupted)
        }
        Stop::Failed(err) => {
            // The first error stopped the run and is the one to report. A second error is added to
            // it.
            if let Err(closing) = server.spools.shutdown().await {
                return Err(err.context(format!("closing the spools also failed: {closing:#}")));
            }
            Err(err.context("stopped (the same command continues the run)"))
        }
    }
}

/// Reads the messages before any directory is touched. An unfinished run fixes their number.
fn read_input(args: &Args) -> Result<Input> {
    let unfinished = Notes::read(&args.spool_dir().join(crate::workplace::NOTES))?;
    let messages = unfinished.map_or(args.messages, |(notes, _)| notes.run.messages);
    Ok(Input::read(args, messages)?)
}

async fn prepare(args: &Args, input: Input, workplace: &Workplace, progress: &mut Progress) -> Result<Job> {
    match Notes::read(&workplace.notes())? {
        Some((notes, whole_bytes)) => resume(args, input, workplace, notes, whole_bytes, progress).await,
        None => start(args, input, workplace, progress).await,
    }
}

/// Prepares a new run.
async fn start(args: &Args, input: Input, workplace: &Workplace, progress: &mut Progress) -> Result<Job> {
    let sink = open_sink(workplace)?;
    sink.clear().map_err(|err| unusable_sink(workplace, &err))?;
    workplace.remove_spools()?;
    let spools = open_spools(workplace).await?;
    let run = Run {
        version: run_log::VERSION,
        messages: args.messages,
        seed: args.seed,
        failures: args.failures,
        origin: input.origin.clone(),
        fingerprint: input.fingerprint(),
        sink: workplace.sink().display().to_string(),
    };
    let run_log = RunLog::create(&workplace.notes(), &run).context("creating the log of the run")?;
    progress.say(&format!(
        "{} messages from {} ({} different), to {}",
        run.messages,
        input.origin,
        input.templates.len(),
        workplace.sink().display()
    ));
    if input.cut_short {
        progress.say("The input exceeds the memory limit for it: the remaining messages are skipped.");
    }
    let indexes = (0..run.messages).collect();
    let server = Server::new(run, input, spools, sink, run_log, args.sync, Counters::new()?);
    Ok(Job { server: Arc::new(server), found: Vec::new(), indexes, recovery: None })
}

/// Prepares the continuation of an unfinished run.
async fn resume(
    args: &Args,
    input: Input,
    workplace: &Workplace,
    mut notes: Notes,
    whole_bytes: u64,
    progress: &mut Progress,
) -> Result<Job> {
    require_same(&notes.run, &input, workplace)?;
    let sink = open_sink(workplace)?;
    let spools = open_spools(workplace).await?;
    let run_log = RunLog::reopen(&workplace.notes(), whole_bytes).context("reopening the log of the run")?;
    let counters = Counters::new()?;
    progress.say(&format!(
        "Going on with the unfinished run in {}: {} of {} messages were accepted (its own --messages, --seed and --failures hold)",
        workplace.spool().display(),
        notes.accepted.len(),
        notes.run.messages
    ));
    let recovered = resume::recover(&spools, &sink, &run_log, &mut notes, &counters.problems).await;
    let (found, recovery) = match recovered {
        Ok(recovered) => recovered,
        Err(err) => {
            spools.shutdown().await?;
            return Err(err.context("recovering what the killed run left"));
        }
    };
    progress.say(&recovery_line(&recovery));
    let indexes = notes.indexes_to_accept();
    let server = Server::new(notes.run, input, spools, sink, run_log, args.sync, counters);
    Ok(Job { server: Arc::new(server), found, indexes, recovery: Some(recovery) })
}

/// Rejects other messages or another sink: the check at the end would be meaningless.
fn require_same(run: &Run, input: &Input, workplace: &Workplace) -> Result<(), BadInput> {
    let spool = workplace.spool().display();
    let instead = format!("or remove {spool} to start a new run");
    if run.fingerprint != input.fingerprint() {
        return Err(BadInput::new(format!(
            "the unfinished run in {spool} sends the messages of {}, but the messages of {} differ: give the same input again, {instead}",
            run.origin, input.origin
        )));
    }
    if run.sink != workplace.sink().display().to_string() {
        return Err(BadInput::new(format!(
            "the unfinished run in {spool} delivers to {}: give the same folder with --sink, {instead}",
            run.sink
        )));
    }
    Ok(())
}

fn open_sink(workplace: &Workplace) -> Result<Sink, BadInput> {
    Sink::new(workplace.sink()).map_err(|err| unusable_sink(workplace, &err))
}

fn unusable_sink(workplace: &Workplace, err: &std::io::Error) -> BadInput {
    BadInput::io("use", workplace.sink(), err, "give --sink a folder that can be written to")
}

async fn open_spools(workplace: &Workplace) -> Result<Spools> {
    Spools::open(workplace.store()).await.map_err(|err| {
        let root = err.root_cause();
        if root.is::<Locked>() || root.is::<UnsupportedFormat>() {
            BadInput::new(format!("{err:#}")).into()
        } else {
            err
        }
    })
}

/// Runs all tasks until everything is delivered, Ctrl-C is pressed, or a task fails. Joins all
/// tasks before it returns.
async fn serve(
    args: &Args,
    server: Arc<Server>,
    found: Vec<Found>,
    indexes: Vec<u64>,
    progress: &mut Progress,
) -> Stop {
    let mut tasks = JoinSet::new();
    tasks.spawn(accept::all(Arc::clone(&server), found, indexes, args.rate, args.concurrency));
    tasks.spawn(retry::wait_and_pass_on(Arc::clone(&server)));
    for _ in 0..args.concurrency {
        tasks.spawn(deliver::worker(Arc::clone(&server)));
    }
    let mut stop = Stop::Done;
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut listening = true;
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.tick().await;
    loop {
        tokio::select! {
            joined = tasks.join_next() => match joined.map(flatten) {
                None => break,
                Some(Ok(())) => {}
                Some(Err(err)) => {
                    server.stop();
                    if !matches!(stop, Stop::Failed(_)) {
                        stop = Stop::Failed(err);
                    }
                }
            },
            _ = second.tick() => progress.show(&server),
            _ = &mut interrupt, if listening => {
                listening = false;
                server.stop();
                if matches!(stop, Stop::Done) {
                    stop = Stop::Interrupted;
                }
            }
        }
    }
    progress.show(&server);
    progress.finish();
    stop
}

fn flatten(joined: Result<Result<()>, JoinError>) -> Result<()> {
    joined.context("a task ended early")?
}

/// Checks the result, reports it, and cleans up.
async fn finish(
    args: &Args,
    server: &Server,
    workplace: &Workplace,
    recovery: Option<Recovery>,
    seconds: f64,
) -> Result<Ending> {
    let problems = &server.counters.problems;
    for (name, spool) in [("meta", server.spools.meta()), ("data", server.spools.data())] {
        let mut left = BTreeSet::new();
        each(spool, |entry| {
            left.insert(entry.id());
            Ok(())
        })
        .await?;
        verify::check_spool(name, &left, problems);
    }
    let (notes, _) = Notes::read(&workplace.notes())?.context("the log of the run is missing")?;
    let arrived =
        tokio::task::block_in_place(|| verify::check(&notes, &server.input, &server.sink, problems))
            .context("reading the sink")?;
    let totals = (notes.accepted.len() as u64, notes.lost.len() as u64);
    let summary = Summary::new(server, totals, arrived, recovery, seconds);
    // The spools are closed before the result is printed: an error here is part of the result.
    server.spools.shutdown().await?;
    if args.json {
        crate::progress::print(&summary.json()?);
    } else {
        crate::progress::print(&summary.text());
    }
    if summary.verdict() == Verdict::Wrong {
        eprintln!("delivery: all files are kept in {}", workplace.spool().display());
        return Ok(Ending::Wrong);
    }
    // The log is removed first: without it, the next run is a new run, whatever else remains.
    std::fs::remove_file(workplace.notes()).context("removing the log of the finished run")?;
    workplace.remove_spools()?;
    Ok(match summary.verdict() {
        Verdict::LostUnsynced => Ending::LostUnsynced,
        _ => Ending::AllArrived,
    })
}
