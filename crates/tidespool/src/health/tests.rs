//! The latch under a scripted clock.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::cause::Cause;
use super::latch::Transition;
use super::{Latch, Sample};
use crate::{Config, HealthConfig};

const TICK: Duration = Duration::from_millis(100);
const QUIET: Sample = Sample {
    dirty_fraction: 0.1,
    oldest_dirty_age: Duration::ZERO,
    no_free_segment: false,
    journal_write_errors: 0,
    sled_errors: 0,
    read_errors: 0,
    corruption: 0,
    space_short: false,
    worker_dead: false,
    probe_ok: true,
};

/// A latch with its clock: what is fed is fed every 100 ms.
struct Script {
    latch: Latch,
    start: Instant,
    now: Instant,
}

impl Script {
    fn new(health: HealthConfig) -> Self {
        let now = Instant::now();
        Self { latch: Latch::new(&Config::new("/spool").health(health)), start: now, now }
    }

    fn feed(&mut self, sample: Sample) -> Option<Transition> {
        let transition = self.latch.observe(self.now, &sample);
        self.now += TICK;
        transition
    }

    /// Feeds the same for `time`; returns each transition with the milliseconds since this call.
    fn feed_for(&mut self, time: Duration, sample: Sample) -> Vec<(u128, Transition)> {
        let from = self.now;
        let mut transitions = Vec::new();
        while self.now < from + time {
            let at = (self.now - from).as_millis();
            transitions.extend(self.feed(sample).map(|transition| (at, transition)));
        }
        transitions
    }

    /// Milliseconds since the script began.
    fn at(&self) -> u128 {
        (self.now - self.start).as_millis()
    }
}

fn script() -> Script {
    Script::new(HealthConfig::default())
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn quiet_stays_open() {
    assert_eq!(script().feed_for(seconds(60), QUIET), []);
}

#[test]
fn each_backlog_signal_shuts_the_gate_when_it_lasts_and_opens_it_after_quiet() {
    for (sample, cause) in [
        (Sample { dirty_fraction: 0.98, ..QUIET }, Cause::DirtyBytes),
        (Sample { oldest_dirty_age: Duration::from_millis(5_001), ..QUIET }, Cause::DirtyAge),
        (Sample { no_free_segment: true, ..QUIET }, Cause::NoFreeSegment),
    ] {
        let mut script = script();
        assert_eq!(script.feed_for(seconds(10), sample), [(2_000, Transition::Shut(cause))]);
        assert_eq!(script.feed_for(seconds(60), QUIET), [(5_000, Transition::Open)]);
        assert_eq!(script.feed_for(seconds(10), sample), [(2_000, Transition::Shut(cause))], "and again");
    }
}

#[test]
fn backlog_at_its_limit_is_none() {
    let busy = Sample { dirty_fraction: 0.979, oldest_dirty_age: seconds(5), ..QUIET };
    assert_eq!(script().feed_for(seconds(60), busy), []);
}

#[test]
fn a_short_burst_does_not_shut_the_gate() {
    let mut script = script();
    for _ in 0..10 {
        let burst = Sample { dirty_fraction: 1.0, ..QUIET };
        assert_eq!(script.feed_for(Duration::from_millis(1_900), burst), []);
        assert_eq!(script.feed(QUIET), None);
    }
}

#[test]
fn backlog_that_changes_its_face_is_one_backlog() {
    let mut script = script();
    let bytes = Sample { dirty_fraction: 1.0, ..QUIET };
    let segments = Sample { no_free_segment: true, ..QUIET };
    assert_eq!(script.feed_for(seconds(1), bytes), []);
    assert_eq!(script.feed_for(seconds(2), segments), [(1_000, Transition::Shut(Cause::NoFreeSegment))]);
}

#[test]
fn with_no_latch_time_backlog_shuts_at_once() {
    let mut script = Script::new(HealthConfig::default().backlog_latch_after(Duration::ZERO));
    let shut = Transition::Shut(Cause::DirtyBytes);
    assert_eq!(script.feed(Sample { dirty_fraction: 1.0, ..QUIET }), Some(shut));
}

#[test]
fn hard_faults_shut_the_gate_at_once_and_open_it_after_quiet() {
    for (fault, after, cause) in [
        (
            Sample { journal_write_errors: 1, ..QUIET },
            Sample { journal_write_errors: 1, ..QUIET },
            Cause::JournalWrite,
        ),
        (Sample { corruption: 1, ..QUIET }, Sample { corruption: 1, ..QUIET }, Cause::Corruption),
        (Sample { space_short: true, ..QUIET }, QUIET, Cause::NoSpace),
        (Sample { worker_dead: true, ..QUIET }, QUIET, Cause::WorkerDead),
    ] {
        let mut script = script();
        assert_eq!(script.feed_for(seconds(3), QUIET), []);
        assert_eq!(script.feed(fault), Some(Transition::Shut(cause)));
        assert_eq!(script.feed_for(seconds(60), after), [(5_000, Transition::Open)], "{cause:?}");
    }
}

#[test]
fn faults_before_the_first_sample_count() {
    let shut = Some(Transition::Shut(Cause::Corruption));
    assert_eq!(script().feed(Sample { corruption: 1, ..QUIET }), shut);
}

#[test]
fn a_dead_worker_or_a_full_disk_keeps_the_gate_shut() {
    for lasting in [Sample { worker_dead: true, ..QUIET }, Sample { space_short: true, ..QUIET }] {
        let mut script = script();
        assert_eq!(script.feed_for(seconds(600), lasting).len(), 1);
    }
}

#[test]
fn read_and_sled_errors_shut_the_gate_at_the_third_within_the_window() {
    type Set = fn(&mut Sample, u64);
    let kinds: [(Set, Cause); 2] = [
        (|sample, n| sample.read_errors = n, Cause::ReadErrors),
        (|sample, n| sample.sled_errors = n, Cause::SledErrors),
    ];
    for (set, cause) in kinds {
        let errors = |n| {
            let mut sample = QUIET;
            set(&mut sample, n);
            sample
        };
        let mut script = script();
        assert_eq!(script.feed_for(seconds(20), errors(1)), []);
        assert_eq!(script.feed_for(seconds(20), errors(2)), []);
        assert_eq!(script.feed_for(seconds(3), errors(3)), [(0, Transition::Shut(cause))]);
        assert_eq!(script.feed_for(seconds(20), errors(3)), [(2_100, Transition::Open)]);
        assert_eq!(script.feed_for(seconds(20), errors(4)), [], "the old errors are forgiven");
        assert_eq!(script.feed(errors(100)), Some(Transition::Shut(cause)), "many at once");
    }
}

#[test]
fn errors_further_apart_than_the_window_allows_do_not_shut_the_gate() {
    let mut script = script();
    for n in 1..20 {
        assert_eq!(script.feed_for(seconds(30), Sample { read_errors: n, ..QUIET }), [], "error {n}");
    }
    // The two kinds are counted apart.
    let mixed = Sample { read_errors: 20, sled_errors: 2, ..QUIET };
    assert_eq!(script.feed_for(seconds(30), mixed), []);
}

#[test]
fn noise_while_shut_starts_the_quiet_time_anew() {
    let mut script = script();
    let mut now = Sample { journal_write_errors: 1, ..QUIET };
    assert_eq!(script.feed(now), Some(Transition::Shut(Cause::JournalWrite)));
    assert_eq!(script.feed_for(seconds(4), now), []);
    now.read_errors = 1;
    assert_eq!(script.feed(now), None, "one read error would not shut the gate, but it is not quiet either");
    assert_eq!(script.feed_for(seconds(4), now), []);
    assert_eq!(script.feed(Sample { dirty_fraction: 1.0, ..now }), None);
    assert_eq!(script.feed_for(seconds(60), now), [(5_000, Transition::Open)]);
}

#[test]
fn the_gate_opens_only_after_a_successful_probe() {
    let mut script = script();
    let failing = Sample { journal_write_errors: 1, probe_ok: false, ..QUIET };
    assert!(script.feed(failing).is_some());
    assert!(!script.latch.wants_probe(script.now), "not before the quiet time is over");
    assert_eq!(script.feed_for(seconds(60), failing), []);
    assert!(script.latch.wants_probe(script.now));
    assert_eq!(script.feed(Sample { probe_ok: true, ..failing }), Some(Transition::Open));
    assert!(!script.latch.wants_probe(script.now));
}

#[test]
fn without_unlatching_the_gate_stays_shut() {
    let mut script = Script::new(HealthConfig::default().allow_unlatch(false));
    let shut = [(2_000, Transition::Shut(Cause::NoFreeSegment))];
    assert_eq!(script.feed_for(seconds(3), Sample { no_free_segment: true, ..QUIET }), shut);
    assert_eq!(script.feed_for(seconds(3_600), QUIET), []);
    assert!(!script.latch.wants_probe(script.now));
}

#[test]
fn a_signal_that_flickers_moves_the_gate_at_most_once_in_its_quiet_time() {
    let mut script = script();
    let mut moves = Vec::new();
    for n in 0..600 {
        let sample = Sample { space_short: n % 2 == 0, ..QUIET };
        moves.extend(script.feed(sample).map(|transition| (script.at(), transition)));
    }
    assert_eq!(moves, [(100, Transition::Shut(Cause::NoSpace))]);
}

proptest! {
    /// Whatever comes: shut and open take turns, and the gate never opens less than the quiet time after it shut.
    #[test]
    fn moves_alternate_and_opening_takes_its_time(
        events in prop::collection::vec((0..8_u8, any::<bool>()), 1..400),
    ) {
        let mut script = Script::new(HealthConfig::default().unlatch_after(seconds(1)).backlog_latch_after(TICK));
        let mut now = QUIET;
        let mut shut_at = None;
        for (event, probe_ok) in events {
            now = Sample { probe_ok, no_free_segment: false, space_short: false, dirty_fraction: 0.0, ..now };
            match event {
                0 => now.journal_write_errors += 1,
                1 => now.read_errors += 1,
                2 => now.no_free_segment = true,
                3 => now.space_short = true,
                4 => now.dirty_fraction = 1.0,
                // Quiet for long enough that it may open.
                5 => script.now += seconds(1),
                _ => {}
            }
            let at = script.now;
            match script.feed(now) {
                Some(Transition::Shut(_)) => {
                    prop_assert_eq!(shut_at, None);
                    shut_at = Some(at);
                }
                Some(Transition::Open) => {
                    prop_assert!(probe_ok);
                    let shut = shut_at.take();
                    prop_assert!(shut.is_some_and(|shut| at - shut >= seconds(1)));
                }
                None => {}
            }
        }
    }
}
