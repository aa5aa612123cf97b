//! Many consecutive calls of sled fail in a running spool. Then the disk works again.

use anyhow::Context as _;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use crate::child::run;
use crate::control::{Control, Fault, KINDS};
use crate::event::Event;
use crate::layout::Call;
use crate::setup::{Extent, Template, seed};
use crate::tasks::{Ending, Task, What};

/// Messages in the spool at the start of the traffic.
const MESSAGES: u64 = 6_000;

/// Trials of a sampled run, per test, and of a complete run.
const SAMPLE: u64 = 2;
const ALL: u64 = 40;

/// If no call was met, more trials are made, up to this number.
const UNTIL_MET: u64 = 12;

/// The calls that fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// 20 to 40 reads.
    Reads,
    /// 20 to 40 calls of one kind that changes or syncs.
    Changes,
    /// 40 to 120 calls of every kind: what is rebuilt fails too.
    Everything,
}

const WHICH: [Which; 3] = [Which::Reads, Which::Changes, Which::Everything];

impl Which {
    pub(crate) fn from_number(number: u64) -> anyhow::Result<Self> {
        WHICH.into_iter().find(|which| *which as u64 == number).context("an unknown kind of burst")
    }

    /// The next burst, and the name of the calls that fail.
    pub(crate) fn fault(self, rng: &mut SmallRng) -> (Fault, &'static str) {
        const CHANGES: [(Call, &str); 4] = [
            (Call::Pwrite, "pwrite"),
            (Call::Fsync, "fsync"),
            (Call::SyncFileRange, "sync_file_range"),
            (Call::Ftruncate, "ftruncate"),
        ];
        let every = KINDS.iter().fold(0, |bits, (call, _)| bits | call.bit());
        let (calls, name, skip, count) = match self {
            // sled reads and writes blocks, so there are few calls, and hardly any can be skipped.
            Self::Reads => (Call::Pread.bit(), "pread", rng.random_range(0..3), rng.random_range(20..41)),
            Self::Changes => {
                let (call, name) = CHANGES[rng.random_range(0..CHANGES.len())];
                // Any sync, by either call.
                let calls = if call == Call::Fsync { call.bit() | Call::Fdatasync.bit() } else { call.bit() };
                (calls, name, rng.random_range(0..2), rng.random_range(20..41))
            }
            Self::Everything => (every, "all kinds", rng.random_range(0..6), rng.random_range(40..121)),
        };
        (Fault { calls, skip, count, errno: libc::EIO }, name)
    }
}

#[test]
fn bursts_of_failed_reads() {
    bursts(Which::Reads);
}

#[test]
fn bursts_of_failed_writes_and_syncs() {
    bursts(Which::Changes);
}

#[test]
fn bursts_of_failures_of_every_call() {
    bursts(Which::Everything);
}

fn bursts(which: Which) {
    let seed = seed();
    let count = match Extent::from_env(SAMPLE) {
        Extent::All => ALL,
        Extent::Points(count) => count,
    };
    println!("bursts, {which:?}: {count} trials, TIDESPOOL_SLED_CALLS_SEED={seed}");
    let template = Template::make(MESSAGES, Ending::Orderly, seed);
    let (mut met, mut wrong, mut n) = (0, Vec::new(), 0);
    while n < count || (met == 0 && n < UNTIL_MET) {
        let (reports, found) = trial(&template, which, n, seed);
        met += reports.iter().filter(|text| text.starts_with("failed: ")).count();
        if !found.is_empty() {
            let first = found[..found.len().min(3)].join("; ");
            println!("bursts, {which:?}, trial {n}: {} wrong: {first}\n    after {reports:?}", found.len());
            wrong.push(format!("trial {n}: {} wrong: {first}", found.len()));
        }
        n += 1;
    }
    println!("bursts, {which:?}: {} of {n} trials broke a guarantee, {met} bursts were met", wrong.len());
    assert!(
        wrong.is_empty(),
        "{} of {n} trials broke a guarantee. Repeat them: TIDESPOOL_SLED_CALLS_SEED={seed} TIDESPOOL_SLED_CALLS={n}\n{}",
        wrong.len(),
        wrong.join("\n"),
    );
    assert!(met > 0, "no call was met");
}

/// Runs a trial. Returns the child's reports of bursts, and the violations.
fn trial(template: &Template, which: Which, n: u64, seed: u64) -> (Vec<String>, Vec<String>) {
    let mut trial = template.copy();
    let control = Control::create(trial.beside("control"));
    let ending = if n.is_multiple_of(2) { Ending::Orderly } else { Ending::Killed };
    let task = Task { what: What::Traffic(which), ending, seed: seed.wrapping_add(n) };
    let (path, log) = (trial.spool(), trial.beside("log"));
    let mut reports = Vec::new();
    let end = run(task, &path, Some(&control), &log, |event| {
        if let Event::Burst(text) = event {
            reports.push(text.clone());
        }
        trial.oracle.enter(event);
    });
    (reports, trial.judge(end))
}
