//! Each of sled's calls fails in turn while a spool is opened, read and shut down.

use std::collections::BTreeMap;
use std::fmt;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::child::{End, run};
use crate::control::{Control, Fault, KINDS};
use crate::event::Event;
use crate::layout::Call;
use crate::setup::{Extent, Template, seed};
use crate::tasks::{Ending, Task, What};

/// Messages in the spool that is opened.
const MESSAGES: u64 = 1_200;

/// Points of a sampled run, per test.
const SAMPLE: u64 = 16;

/// All calls of the kind fail until the spool is open, or the opening has failed.
const LASTING: u64 = u64::MAX;

/// Several consecutive calls fail at each of the first `OFTEN` calls of a kind, and at every
/// [`SELDOM`]th one after them.
const OFTEN: u64 = 40;
const SELDOM: u64 = 16;

/// Largest number of calls of one kind that are tested after the opening.
const LATER: u64 = 40;

/// One trial: the fault, and how the child ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    fault: Fault,
    name: &'static str,
    ending: Ending,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { skip, count, errno, .. } = self.fault;
        let count = if count == LASTING { "lasting".to_owned() } else { count.to_string() };
        write!(f, "{} {skip} {count} {errno} {:?}", self.name, self.ending)
    }
}

/// A spool whose process was killed.
#[test]
fn calls_fail_while_a_killed_spool_is_opened() {
    sweep("killed", Ending::Killed);
}

/// A spool that was shut down.
#[test]
fn calls_fail_while_a_spool_that_was_shut_down_is_opened() {
    sweep("shut down", Ending::Orderly);
}

fn sweep(name: &str, ending: Ending) {
    let seed = seed();
    let template = Template::make(MESSAGES, ending, seed);
    let points = points(&template, seed, Extent::from_env(SAMPLE));
    println!("opening, {name}: {} points, TIDESPOOL_SLED_CALLS_SEED={seed}", points.len());
    let mut wrong = BTreeMap::new();
    let (mut refused, mut met) = (0, 0);
    for point in &points {
        let outcome = try_point(&template, *point);
        refused += u64::from(outcome.refused);
        met += u64::from(outcome.met);
        if !outcome.wrong.is_empty() {
            println!(
                "opening, {name}: {point}: {} wrong, the first: {}",
                outcome.wrong.len(),
                outcome.wrong[0]
            );
            wrong.insert(point.to_string(), outcome.wrong);
        }
    }
    let total = points.len();
    println!(
        "opening, {name}: of {total} points {met} met a call, {refused} openings failed, {} broke a guarantee",
        wrong.len()
    );
    assert!(met > 0, "no call was met");
    assert!(
        wrong.is_empty(),
        "{} of {total} points broke a guarantee. Repeat one: TIDESPOOL_SLED_CALLS_SEED={seed} TIDESPOOL_SLED_CALLS_ONLY='{}'\n{}",
        wrong.len(),
        wrong.keys().next().unwrap(),
        summary(&wrong),
    );
}

/// The first violations of each point.
fn summary(wrong: &BTreeMap<String, Vec<String>>) -> String {
    let line = |(point, what): (&String, &Vec<String>)| {
        format!("{point}: {} wrong: {}", what.len(), what[..what.len().min(2)].join("; "))
    };
    wrong.iter().map(line).collect::<Vec<_>>().join("\n")
}

struct Outcome {
    /// The opening returned an error.
    refused: bool,
    /// A call failed.
    met: bool,
    wrong: Vec<String>,
}

fn try_point(template: &Template, point: Point) -> Outcome {
    let mut trial = template.copy();
    let control = Control::create(trial.beside("control"));
    control.arm(point.fault);
    let task = Task { what: What::Open, ending: point.ending, seed: 0 };
    let (path, log) = (trial.spool(), trial.beside("log"));
    let mut refused = false;
    let end = run(task, &path, Some(&control), &log, |event| {
        if *event == Event::Opened && point.fault.count == LASTING {
            control.disarm();
        }
        refused |= matches!(event, Event::Refused(..));
        trial.oracle.enter(event);
    });
    let met = control.failed() > 0;
    Outcome { refused, met, wrong: trial.judge(end) }
}

/// All points, or a sample of them.
fn points(template: &Template, seed: u64, extent: Extent) -> Vec<Point> {
    let mut groups = every_point(template);
    if let Ok(only) = std::env::var("TIDESPOOL_SLED_CALLS_ONLY") {
        return groups.into_iter().flatten().filter(|point| point.to_string() == only).collect();
    }
    let Extent::Points(count) = extent else { return groups.into_iter().flatten().collect() };
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut chosen = Vec::new();
    for n in 0..count {
        groups.retain(|points| !points.is_empty());
        if groups.is_empty() {
            break;
        }
        // Half of the points are reads of the opening, which are the most frequent and the most
        // dangerous calls.
        let group = if n % 2 == 0 { 0 } else { rng.random_range(0..groups.len()) };
        let point = rng.random_range(0..groups[group].len());
        chosen.push(groups[group].swap_remove(point));
    }
    chosen
}

/// The points in groups: first the reads of the opening, then its other calls by kind, then those
/// after it.
fn every_point(template: &Template) -> Vec<Vec<Point>> {
    let trial = template.copy();
    let control = Control::create(trial.beside("control"));
    let task = Task { what: What::Open, ending: Ending::Orderly, seed: 0 };
    let mut opening = KINDS.map(|_| 0);
    let end = run(task, &trial.spool(), Some(&control), &trial.beside("log"), |event| {
        if *event == Event::Opened {
            opening = KINDS.map(|(call, _)| control.seen(call));
        }
    });
    assert_eq!(end, End::Done);
    let mut groups = Vec::new();
    let mut later = Vec::new();
    for ((call, name), opening) in KINDS.into_iter().zip(opening) {
        let seen = control.seen(call);
        println!("opening: {opening} calls of {name}, then {}", seen - opening);
        groups.push((0..opening).flat_map(|skip| at_call(call, name, skip, &[3, LASTING])).collect());
        // Most of these calls are loads of one message each.
        let step = usize::try_from((seen - opening) / LATER).unwrap() + 1;
        later.extend((opening..seen).step_by(step).flat_map(|skip| at_call(call, name, skip, &[])));
    }
    let pread = KINDS.iter().position(|(call, _)| *call == Call::Pread).unwrap();
    groups.swap(0, pread);
    groups.push(later);
    groups
}

/// The faults at one call: it fails alone, and with the calls after it.
fn at_call(call: Call, name: &'static str, skip: u64, runs: &[u64]) -> Vec<Point> {
    let fault = |count, errno| Fault { calls: call.bit(), skip, count, errno };
    let mut faults: Vec<Fault> = errnos(call).iter().map(|errno| fault(1, *errno)).collect();
    if skip < OFTEN || skip.is_multiple_of(SELDOM) {
        faults.extend(runs.iter().map(|count| fault(*count, libc::EIO)));
    }
    let point = |(n, fault)| {
        let killed = (n as u64 + skip) % 2 == 1;
        Point { fault, name, ending: if killed { Ending::Killed } else { Ending::Orderly } }
    };
    faults.into_iter().enumerate().map(point).collect()
}

/// The error numbers of single failures.
fn errnos(call: Call) -> &'static [i32] {
    match call {
        Call::Write | Call::Pwrite | Call::Mkdir => &[libc::EIO, libc::ENOSPC],
        Call::Open => &[libc::EIO, libc::EMFILE],
        _ => &[libc::EIO],
    }
}
