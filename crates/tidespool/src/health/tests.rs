//! Tests of the latch with a scripted clock.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::latch::Transition;
use super::{HealthSample, Latch};
use crate::{Config, HealthConfig, HealthSignal};

const TICK: Duration = Duration::from_millis(100);
/// Later than the dirty expiry, but not late enough for the signal of the dirty age.
const LATE: Duration = Duration::from_millis(600);
const QUIET: HealthSample = HealthSample {
    dirty_fraction: 0.1,
    oldest_dirty_age: Duration::ZERO,
    no_free_segment: false,
    no_room_for_segment: false,
    checkpoint_stall: Duration::ZERO,
    journal_errors: 0,
    sled_errors: 0,
    sled_is_out: false,
    read_errors: 0,
    damage: 0,
    lost_files: 0,
    files_are_lost: false,
    low_space: false,
    dead_worker: false,
    probe: Some(true),
};

/// A latch with its clock, which advances 100 ms per sample.
struct LatchScript {
    latch: Latch,
    start: Instant,
    now: Instant,
}

impl LatchScript {
    fn new(health: HealthConfig) -> Self {
        let now = Instant::now();
        Self { latch: Latch::new(&Config::new("/spool").health(health)), start: now, now }
    }

    fn feed(&mut self, sample: HealthSample) -> Option<Transition> {
        let transition = self.latch.observe(self.now, &sample);
        self.now += TICK;
        transition
    }

    /// Feeds one sample for `time`. Returns each transition with the milliseconds since this call.
    fn feed_for(&mut self, time: Duration, sample: HealthSample) -> Vec<(u128, Transition)> {
        let from = self.now;
        let mut transitions = Vec::new();
        while self.now < from + time {
            let at = (self.now - from).as_millis();
            transitions.extend(self.feed(sample).map(|transition| (at, transition)));
        }
        transitions
    }

    /// Milliseconds since the start of the script.
    fn at(&self) -> u128 {
        (self.now - self.start).as_millis()
    }
}

fn script() -> LatchScript {
    LatchScript::new(HealthConfig::default())
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn without_signals_the_gate_stays_open() {
    assert_eq!(script().feed_for(seconds(60), QUIET), []);
}

#[test]
fn each_backlog_signal_shuts_the_gate_when_it_lasts_and_opens_it_after_quiet() {
    for (sample, cause) in [
        (HealthSample { dirty_fraction: 0.98, oldest_dirty_age: LATE, ..QUIET }, HealthSignal::DirtyBytes),
        (HealthSample { oldest_dirty_age: Duration::from_millis(5_001), ..QUIET }, HealthSignal::DirtyAge),
        (HealthSample { no_free_segment: true, ..QUIET }, HealthSignal::NoFreeSegment),
    ] {
        // The pauses are long enough that the second quiet time is not longer.
        let mut script = script();
        assert_eq!(script.feed_for(seconds(10), sample), [(2_000, Transition::Shut(cause))]);
        assert_eq!(script.feed_for(seconds(60), QUIET), [(5_000, Transition::Open)]);
        assert_eq!(script.feed_for(seconds(10), sample), [(2_000, Transition::Shut(cause))], "and again");
        assert_eq!(script.feed_for(seconds(60), QUIET), [(5_000, Transition::Open)]);
    }
}

/// Two callers that store large messages keep the buffer full, and the disk writes them in time.
#[test]
fn a_full_buffer_is_no_backlog_while_it_is_written_in_time() {
    let full = HealthSample { dirty_fraction: 1.25, oldest_dirty_age: Duration::from_millis(500), ..QUIET };
    assert_eq!(script().feed_for(seconds(60), full), []);
}

#[test]
fn the_gate_stays_shut_while_sled_is_broken() {
    let mut script = script();
    let broken = HealthSample { sled_errors: 3, sled_is_out: true, ..QUIET };
    assert_eq!(script.feed_for(seconds(60), broken), [(0, Transition::Shut(HealthSignal::SledErrors))]);
    let again = HealthSample { sled_is_out: false, ..broken };
    assert_eq!(script.feed_for(seconds(60), again), [(5_000, Transition::Open)]);
}

#[test]
fn the_newest_errors_count_even_above_the_threshold() {
    let mut script = LatchScript::new(HealthConfig::default().hard_latch_after(seconds(5)));
    assert_eq!(script.feed_for(seconds(4), HealthSample { read_errors: 3, ..QUIET }), []);
    let shut = [(1_000, Transition::Shut(HealthSignal::ReadErrors))];
    assert_eq!(script.feed_for(seconds(50), HealthSample { read_errors: 6, ..QUIET })[..1], shut);
}

#[test]
fn values_at_the_backlog_limits_raise_no_signal() {
    let busy = HealthSample { dirty_fraction: 0.979, oldest_dirty_age: seconds(5), ..QUIET };
    assert_eq!(script().feed_for(seconds(60), busy), []);
}

#[test]
fn a_short_burst_does_not_shut_the_gate() {
    let mut script = script();
    for _ in 0..10 {
        let burst = HealthSample { dirty_fraction: 1.0, oldest_dirty_age: LATE, ..QUIET };
        assert_eq!(script.feed_for(Duration::from_millis(1_900), burst), []);
        assert_eq!(script.feed(QUIET), None);
    }
}

#[test]
fn the_times_of_two_signals_do_not_add_up() {
    let mut script = script();
    let bytes = HealthSample { dirty_fraction: 1.0, oldest_dirty_age: LATE, ..QUIET };
    let segments = HealthSample { no_free_segment: true, ..QUIET };
    assert_eq!(script.feed_for(seconds(1), bytes), []);
    let shut = [(2_000, Transition::Shut(HealthSignal::NoFreeSegment))];
    assert_eq!(script.feed_for(seconds(3), segments), shut);
}

/// A spool without room for a segment on the disk reported a backlog instead of low space.
#[test]
fn without_room_for_a_segment_the_signal_is_low_space() {
    let mut script = script();
    let full = HealthSample { no_free_segment: true, no_room_for_segment: true, ..QUIET };
    let shut = [(2_000, Transition::Shut(HealthSignal::LowSpace))];
    assert_eq!(script.feed_for(seconds(3), full), shut);
    let room = HealthSample { no_room_for_segment: false, ..full };
    assert_eq!(script.feed_for(seconds(3), room), [], "until the gate opens");
    assert_eq!(script.feed_for(seconds(6), QUIET), [(5_000, Transition::Open)]);
}

#[test]
fn a_worse_signal_replaces_the_one_that_shut_the_gate() {
    let mut script = script();
    let backlog = HealthSample { oldest_dirty_age: seconds(6), ..QUIET };
    assert_eq!(script.feed_for(seconds(4), backlog), [(2_000, Transition::Shut(HealthSignal::DirtyAge))]);
    let broken = HealthSample { journal_errors: 1, ..backlog };
    assert_eq!(script.feed(broken), Some(Transition::Worse(HealthSignal::JournalErrors)));
    assert_eq!(script.feed_for(seconds(60), broken), [], "the backlog lasts");
    let after = HealthSample { journal_errors: 1, ..QUIET };
    assert_eq!(script.feed_for(seconds(60), after), [(5_000, Transition::Open)]);
}

#[test]
fn hard_signals_and_backlogs_have_their_own_times() {
    let health = HealthConfig::default()
        .hard_latch_after(seconds(3))
        .hard_unlatch_after(seconds(20))
        .backlog_latch_after(seconds(1))
        .backlog_unlatch_after(seconds(7));
    let mut script = LatchScript::new(health);
    let full = HealthSample { low_space: true, ..QUIET };
    assert_eq!(script.feed_for(seconds(4), full), [(3_000, Transition::Shut(HealthSignal::LowSpace))]);
    assert_eq!(script.feed_for(seconds(60), QUIET), [(20_000, Transition::Open)]);
    assert_eq!(script.feed_for(seconds(90), QUIET), [], "long enough to reset the backoff");
    let late = HealthSample { no_free_segment: true, ..QUIET };
    let shut = [(1_000, Transition::Shut(HealthSignal::NoFreeSegment))];
    assert_eq!(script.feed_for(seconds(2), late), shut);
    assert_eq!(script.feed_for(seconds(60), QUIET), [(7_000, Transition::Open)]);
    assert_eq!(script.feed_for(seconds(90), QUIET), [], "long enough to reset the backoff");
    // The longest time of the latched signals counts.
    assert_eq!(script.feed_for(seconds(2), late), shut);
    let both = HealthSample { low_space: true, ..late };
    assert_eq!(script.feed_for(seconds(4), both), [(3_000, Transition::Worse(HealthSignal::LowSpace))]);
    assert_eq!(script.feed_for(seconds(60), QUIET), [(20_000, Transition::Open)]);
}

#[test]
fn a_stalled_checkpoint_shuts_the_gate_until_it_makes_progress() {
    let mut script = script();
    let busy = HealthSample { checkpoint_stall: Duration::from_millis(59_900), ..QUIET };
    assert_eq!(script.feed_for(seconds(60), busy), []);
    let stuck = HealthSample { checkpoint_stall: seconds(60), ..QUIET };
    assert_eq!(script.feed_for(seconds(9), stuck), [(0, Transition::Shut(HealthSignal::StalledCheckpoint))]);
    assert_eq!(script.feed_for(seconds(60), busy), [(5_000, Transition::Open)]);
}

#[test]
fn a_gate_that_opened_too_early_has_a_longer_quiet_time_next() {
    let mut script = script();
    let mut now = QUIET;
    for quiet_ms in [5_000, 10_000, 20_000, 40_000, 80_000, 80_000] {
        now.journal_errors += 1;
        assert_eq!(script.feed(now), Some(Transition::Shut(HealthSignal::JournalErrors)));
        assert_eq!(script.feed_for(Duration::from_millis(quiet_ms), now), [], "{quiet_ms} ms");
        assert_eq!(script.feed(now), Some(Transition::Open));
        assert_eq!(script.feed_for(seconds(10), now), []);
    }
    // The gate stayed open long enough to reset the backoff.
    assert_eq!(script.feed_for(seconds(400), now), []);
    now.journal_errors += 1;
    assert_eq!(script.feed(now), Some(Transition::Shut(HealthSignal::JournalErrors)));
    assert_eq!(script.feed_for(seconds(60), now), [(5_000, Transition::Open)]);
}

/// An error every second, with an unlatch time of zero.
#[test]
fn with_no_quiet_time_the_gate_does_not_flap() {
    let mut script = LatchScript::new(HealthConfig::default().hard_unlatch_after(Duration::ZERO));
    let mut moves = Vec::new();
    for second in 1..=60 {
        moves.extend(script.feed_for(seconds(1), HealthSample { journal_errors: second, ..QUIET }));
    }
    assert!(moves.len() <= 10, "{} moves in a minute: {moves:?}", moves.len());
}

#[test]
fn with_no_latch_time_backlog_shuts_at_once() {
    let mut script = LatchScript::new(HealthConfig::default().backlog_latch_after(Duration::ZERO));
    let shut = Transition::Shut(HealthSignal::DirtyBytes);
    assert_eq!(
        script.feed(HealthSample { dirty_fraction: 1.0, oldest_dirty_age: LATE, ..QUIET }),
        Some(shut)
    );
}

#[test]
fn hard_faults_shut_the_gate_at_once_and_open_it_after_quiet() {
    for (fault, cause) in [
        (HealthSample { journal_errors: 1, ..QUIET }, HealthSignal::JournalErrors),
        (HealthSample { damage: 10, ..QUIET }, HealthSignal::Damage),
        (HealthSample { lost_files: 1, ..QUIET }, HealthSignal::LostFiles),
        (HealthSample { dead_worker: true, ..QUIET }, HealthSignal::DeadWorker),
    ] {
        // Errors are totals, and stay.
        let after = HealthSample { dead_worker: false, ..fault };
        let mut script = script();
        assert_eq!(script.feed_for(seconds(3), QUIET), []);
        assert_eq!(script.feed(fault), Some(Transition::Shut(cause)));
        assert_eq!(script.feed_for(seconds(60), after), [(5_000, Transition::Open)], "{cause:?}");
    }
}

#[test]
fn faults_before_the_first_sample_count() {
    let shut = Some(Transition::Shut(HealthSignal::Damage));
    assert_eq!(script().feed(HealthSample { damage: 10, ..QUIET }), shut);
}

/// One damaged old message, found at open, shut the gate of a mail server for five seconds. It
/// says nothing about new writes. Many damaged messages in a short time do.
#[test]
fn a_few_damaged_messages_do_not_shut_the_gate_and_many_do() {
    for before_the_first_look in [true, false] {
        let mut script = script();
        if !before_the_first_look {
            assert_eq!(script.feed(QUIET), None);
        }
        for found in [1, 9] {
            assert_eq!(script.feed_for(seconds(2), HealthSample { damage: found, ..QUIET }), []);
        }
        let shut = [(0, Transition::Shut(HealthSignal::Damage))];
        assert_eq!(script.feed_for(seconds(2), HealthSample { damage: 10, ..QUIET }), shut);
    }
    // Findings further apart than the window allows do not shut the gate.
    let mut script = script();
    for found in 0..60 {
        assert_eq!(script.feed_for(seconds(7), HealthSample { damage: found, ..QUIET }), [], "{found}");
    }
    // The threshold is for damage alone: a failed write still shuts the gate at once.
    let failed = HealthSample { damage: 59, journal_errors: 1, ..QUIET };
    assert_eq!(script.feed(failed), Some(Transition::Shut(HealthSignal::JournalErrors)));
    let one = HealthConfig::default().damage(1);
    assert_eq!(
        LatchScript::new(one).feed(HealthSample { damage: 1, ..QUIET }),
        Some(Transition::Shut(HealthSignal::Damage)),
        "the threshold can be set to 1"
    );
}

#[test]
fn a_disk_that_is_full_for_a_moment_does_not_shut_the_gate() {
    let mut script = script();
    let full = HealthSample { low_space: true, ..QUIET };
    assert_eq!(script.feed_for(Duration::from_millis(500), full), []);
    assert_eq!(script.feed(QUIET), None);
    assert_eq!(script.feed_for(seconds(5), full), [(500, Transition::Shut(HealthSignal::LowSpace))]);
    assert_eq!(script.feed_for(seconds(60), QUIET), [(5_000, Transition::Open)]);
}

#[test]
fn a_dead_worker_a_full_disk_or_a_lost_file_keeps_the_gate_shut() {
    let lost = HealthSample { lost_files: 1, files_are_lost: true, ..QUIET };
    for lasting in
        [HealthSample { dead_worker: true, ..QUIET }, HealthSample { low_space: true, ..QUIET }, lost]
    {
        let mut script = script();
        assert_eq!(script.feed_for(seconds(600), lasting).len(), 1);
    }
}

#[test]
fn read_and_sled_errors_shut_the_gate_at_the_third_within_the_window() {
    type Set = fn(&mut HealthSample, u64);
    let kinds: [(Set, HealthSignal); 2] = [
        (|sample, n| sample.read_errors = n, HealthSignal::ReadErrors),
        (|sample, n| sample.sled_errors = n, HealthSignal::SledErrors),
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
        assert_eq!(script.feed_for(seconds(20), errors(4)), [], "the old errors are cleared");
        assert_eq!(script.feed(errors(100)), Some(Transition::Shut(cause)), "many at once");
    }
}

#[test]
fn errors_further_apart_than_the_window_allows_do_not_shut_the_gate() {
    let mut script = script();
    for n in 1..20 {
        assert_eq!(script.feed_for(seconds(30), HealthSample { read_errors: n, ..QUIET }), [], "error {n}");
    }
    // The two kinds are counted separately.
    let mixed = HealthSample { read_errors: 20, sled_errors: 2, ..QUIET };
    assert_eq!(script.feed_for(seconds(30), mixed), []);
}

#[test]
fn noise_while_shut_restarts_the_quiet_time() {
    let mut script = script();
    let mut now = HealthSample { journal_errors: 1, ..QUIET };
    assert_eq!(script.feed(now), Some(Transition::Shut(HealthSignal::JournalErrors)));
    assert_eq!(script.feed_for(seconds(4), now), []);
    now.read_errors = 1;
    assert_eq!(script.feed(now), None, "one read error does not shut the gate, but it is not quiet");
    assert_eq!(script.feed_for(seconds(4), now), []);
    assert_eq!(script.feed(HealthSample { dirty_fraction: 1.0, oldest_dirty_age: LATE, ..now }), None);
    assert_eq!(script.feed_for(seconds(60), now), [(5_000, Transition::Open)]);
}

#[test]
fn the_gate_opens_only_after_a_successful_probe() {
    let mut script = script();
    let untried = HealthSample { journal_errors: 1, probe: None, ..QUIET };
    assert!(script.feed(untried).is_some());
    assert_eq!(script.feed_for(Duration::from_millis(4_900), untried), []);
    assert!(!script.latch.wants_probe(script.now), "not before the quiet time is over");
    assert_eq!(script.feed_for(seconds(60), untried), []);
    assert!(script.latch.wants_probe(script.now));
    assert_eq!(script.feed(HealthSample { probe: Some(false), ..untried }), None);
    assert!(!script.latch.wants_probe(script.now), "a failed probe restarts the quiet time");
    assert_eq!(script.feed(HealthSample { probe: Some(true), ..untried }), None, "it was not requested");
    assert_eq!(script.feed_for(seconds(5), untried), []);
    assert!(script.latch.wants_probe(script.now));
    assert_eq!(script.feed(HealthSample { probe: Some(true), ..untried }), Some(Transition::Open));
    assert!(!script.latch.wants_probe(script.now));
}

#[test]
fn with_the_longest_unlatch_time_the_gate_stays_shut() {
    let year = seconds(31_557_600);
    let mut script = LatchScript::new(HealthConfig::default().backlog_unlatch_after(year));
    let shut = [(2_000, Transition::Shut(HealthSignal::NoFreeSegment))];
    assert_eq!(script.feed_for(seconds(3), HealthSample { no_free_segment: true, ..QUIET }), shut);
    assert_eq!(script.feed_for(seconds(3_600), QUIET), []);
    assert!(!script.latch.wants_probe(script.now));
}

#[test]
fn a_flickering_signal_changes_the_gate_at_most_once_per_quiet_time() {
    let mut script = script();
    let mut moves = Vec::new();
    for n in 0..600 {
        let sample = HealthSample { journal_errors: n / 2, ..QUIET };
        moves.extend(script.feed(sample).map(|transition| (script.at(), transition)));
    }
    assert_eq!(moves, [(300, Transition::Shut(HealthSignal::JournalErrors))]);
}

proptest! {
    /// For any samples, shut and open alternate, and at least the quiet time lies between a shut
    /// and the next open.
    #[test]
    fn moves_alternate_and_opening_takes_its_time(
        events in prop::collection::vec((0..8_u8, any::<bool>()), 1..400),
    ) {
        let mut script = LatchScript::new(
            HealthConfig::default()
                .hard_unlatch_after(seconds(1))
                .backlog_unlatch_after(seconds(1))
                .backlog_latch_after(TICK),
        );
        let mut now = QUIET;
        let mut shut_at = None;
        for (event, probe_ok) in events {
            now = HealthSample { probe: Some(probe_ok), no_free_segment: false, low_space: false, dirty_fraction: 0.0, ..now };
            match event {
                0 => now.journal_errors += 1,
                1 => now.read_errors += 1,
                2 => now.no_free_segment = true,
                3 => now.low_space = true,
                4 => (now.dirty_fraction, now.oldest_dirty_age) = (1.0, LATE),
                // Quiet for long enough that the gate may open.
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
                Some(Transition::Worse(_)) => prop_assert!(shut_at.is_some()),
                None => {}
            }
        }
    }
}
