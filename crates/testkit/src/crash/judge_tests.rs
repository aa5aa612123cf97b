//! The check must detect each kind of violation, and report none for a correct spool.

use super::*;
use crate::oracle::{DurabilityLevel, Promise, Violation};
use crate::payload::Seen;
use std::time::Duration;
use tidespool_core::SpoolId;

const MEMORY: Promise = Promise {
    level: DurabilityLevel::Memory,
    dirty_expire: Duration::from_millis(50),
    slack: Duration::from_millis(50),
};
const KILL: Promise = Promise { level: DurabilityLevel::Kill, ..MEMORY };

/// Builds a log line by line, 1 ms apart unless `pass` is called.
#[derive(Default)]
struct LogBuilder {
    log: Vec<Line>,
    now_us: u64,
    ops: u64,
    before: Stock,
    after: Stock,
}

impl LogBuilder {
    fn say(&mut self, event: Event) {
        self.now_us += 1000;
        self.log.push(Line { at_us: self.now_us, event });
    }

    /// Intent to store. The operation's number is its version.
    fn begin(&mut self, id: SpoolId, forced: bool) -> u64 {
        self.ops += 1;
        self.say(Event::Store { op: self.ops, id, version: self.ops, len: 100, forced });
        self.ops
    }

    fn store(&mut self, id: SpoolId, forced: bool) -> u64 {
        let op = self.begin(id, forced);
        self.say(Event::Done { op });
        op
    }

    fn fail(&mut self, id: SpoolId, forced: bool) -> u64 {
        let op = self.begin(id, forced);
        self.say(Event::Failed { op, in_doubt: false });
        op
    }

    fn fail_in_doubt(&mut self, id: SpoolId, forced: bool) -> u64 {
        let op = self.begin(id, forced);
        self.say(Event::Failed { op, in_doubt: true });
        op
    }

    fn begin_remove(&mut self, id: SpoolId) -> u64 {
        self.ops += 1;
        self.say(Event::Remove { op: self.ops, id });
        self.ops
    }

    fn remove(&mut self, id: SpoolId) {
        let op = self.begin_remove(id);
        self.say(Event::Done { op });
    }

    fn pass(&mut self, time: Duration) {
        self.now_us += u64::try_from(time.as_micros()).unwrap();
        self.say(Event::Tick);
    }

    /// After the kill, version `version` of `id` is present.
    fn finds(&mut self, id: SpoolId, version: u64) {
        self.after.insert(id, Found::Whole(Seen { version: Some(version), len: 100 }));
    }

    fn violations(&self, promise: Promise) -> Vec<Violation> {
        judge(promise, &self.before, &self.log, &self.after).violations
    }
}

fn id() -> SpoolId {
    SpoolId::new()
}

#[test]
fn a_correct_spool_has_no_violation() {
    let mut story = LogBuilder::default();
    let (synced, removed, old, young, doubted, failed) = (id(), id(), id(), id(), id(), id());
    let kept = story.store(synced, true);
    story.store(removed, true);
    story.remove(removed);
    let aged = story.store(old, false);
    story.pass(Duration::from_secs(1));
    story.store(young, false);
    story.fail(failed, true);
    story.begin(doubted, true);
    story.finds(synced, kept);
    story.finds(old, aged);
    let verdict = judge(MEMORY, &story.before, &story.log, &story.after);
    assert_eq!(verdict.violations, []);
    let expected = Coverage {
        acknowledged: 5,
        had_to_survive: 4,
        old_enough: 2,
        in_doubt: 1,
        lost_young: 1,
        came_back: 2,
    };
    assert_eq!(verdict.coverage, expected);
}

#[test]
fn an_operation_without_a_result_may_have_happened_or_not() {
    let (stored, removed, replaced) = (id(), id(), id());
    let story = |happened: bool| {
        let mut story = LogBuilder::default();
        let there = story.store(removed, true);
        let old = story.store(replaced, true);
        let doubted = story.begin(stored, true);
        let new = story.begin(replaced, true);
        story.begin_remove(removed);
        if happened {
            story.finds(stored, doubted);
            story.finds(replaced, new);
        } else {
            story.finds(removed, there);
            story.finds(replaced, old);
        }
        story.violations(KILL)
    };
    assert_eq!(story(true), []);
    assert_eq!(story(false), []);
}

#[test]
fn i1_a_lost_synced_message_is_detected() {
    let mut story = LogBuilder::default();
    let lost = id();
    story.store(lost, true);
    assert!(matches!(story.violations(MEMORY)[..], [Violation::DurableLost(id, _)] if id == lost));
}

#[test]
fn i1_an_earlier_version_of_a_synced_message_is_detected() {
    let mut story = LogBuilder::default();
    let stale = id();
    let old = story.store(stale, true);
    story.store(stale, true);
    story.finds(stale, old);
    assert!(matches!(story.violations(MEMORY)[..], [Violation::DurableLost(id, _)] if id == stale));
}

#[test]
fn i1_a_message_from_before_the_child_is_detected_when_lost() {
    let mut story = LogBuilder::default();
    let (lost, failed) = (id(), id());
    for id in [lost, failed] {
        story.before.insert(id, Found::Whole(Seen { version: Some(900), len: 100 }));
    }
    story.fail(failed, true);
    story.say(Event::Opened);
    assert!(matches!(story.violations(MEMORY)[..], [Violation::DurableLost(..), Violation::DurableLost(..)]));
    story.finds(lost, 900);
    story.finds(failed, 900);
    assert_eq!(story.violations(MEMORY), []);
}

#[test]
fn i1_at_level_kill_every_acknowledged_store_must_survive() {
    let mut story = LogBuilder::default();
    let lost = id();
    story.store(lost, false);
    assert_eq!(story.violations(MEMORY), []);
    assert!(matches!(story.violations(KILL)[..], [Violation::DurableLost(id, _)] if id == lost));
}

#[test]
fn i2_an_old_unsynced_message_is_detected_when_lost() {
    let mut story = LogBuilder::default();
    let lost = id();
    story.store(lost, false);
    story.pass(Duration::from_millis(90));
    assert_eq!(story.violations(MEMORY), []);
    story.pass(Duration::from_millis(20));
    assert!(matches!(story.violations(MEMORY)[..], [Violation::OldLost(id, _)] if id == lost));
}

#[test]
fn i2_an_old_message_replaced_repeatedly_is_detected_when_lost() {
    let mut story = LogBuilder::default();
    let lost = id();
    for _ in 0..100 {
        story.store(lost, false);
    }
    assert!(matches!(story.violations(MEMORY)[..], [Violation::OldLost(id, _)] if id == lost));
}

#[test]
fn i2_a_slow_disk_is_not_a_violation() {
    let mut story = LogBuilder::default();
    let (lost, probe) = (id(), id());
    story.store(lost, false);
    let slow = story.begin(probe, true);
    story.pass(Duration::from_millis(200));
    // Without a result, and later with one: a commit takes 200 ms here.
    assert_eq!(story.violations(MEMORY), []);
    story.say(Event::Done { op: slow });
    story.finds(probe, slow);
    story.pass(Duration::from_millis(200));
    assert_eq!(story.violations(MEMORY), []);
    story.pass(Duration::from_millis(500));
    assert!(matches!(story.violations(MEMORY)[..], [Violation::OldLost(id, _)] if id == lost));
}

#[test]
fn i2_a_hole_is_detected() {
    let mut story = LogBuilder::default();
    let (lost, kept) = (id(), id());
    story.store(lost, false);
    let newer = story.store(kept, false);
    story.finds(kept, newer);
    assert_eq!(story.violations(MEMORY), [Violation::Hole(lost, kept)]);
}

#[test]
fn i2_other_losses_are_not_holes() {
    let (older, newer) = (id(), id());
    // The older one removed or replaced meanwhile; the newer one synced, or begun before the result
    // of the older one.
    let mut removed = LogBuilder::default();
    removed.store(older, false);
    let version = removed.store(newer, false);
    removed.begin_remove(older);
    removed.finds(newer, version);
    let mut replaced = LogBuilder::default();
    replaced.store(older, false);
    let version = replaced.store(newer, false);
    replaced.begin(older, false);
    replaced.finds(newer, version);
    let mut synced = LogBuilder::default();
    synced.store(older, false);
    let version = synced.store(newer, true);
    synced.finds(newer, version);
    let mut beside = LogBuilder::default();
    let first = beside.begin(older, false);
    let second = beside.begin(newer, false);
    beside.say(Event::Done { op: first });
    beside.say(Event::Done { op: second });
    beside.finds(newer, second);
    for story in [removed, replaced, synced, beside] {
        assert_eq!(story.violations(MEMORY), [], "{:?}", story.log);
    }
}

#[test]
fn i3_an_undone_removal_is_detected_immediately_or_when_it_is_old() {
    let mut story = LogBuilder::default();
    let removed = id();
    let version = story.store(removed, true);
    story.remove(removed);
    story.finds(removed, version);
    // Delivered again after a crash within dirty_expire: allowed at the level `Memory`.
    assert_eq!(story.violations(MEMORY), []);
    assert!(matches!(story.violations(KILL)[..], [Violation::Resurrected(id, _)] if id == removed));
    story.pass(Duration::from_secs(1));
    assert!(matches!(story.violations(MEMORY)[..], [Violation::Resurrected(id, _)] if id == removed));
}

#[test]
fn i3_a_message_that_was_never_stored_is_detected() {
    let mut story = LogBuilder::default();
    let (unknown, other_version) = (id(), id());
    story.store(other_version, false);
    story.finds(unknown, 7);
    story.finds(other_version, 700);
    assert!(matches!(story.violations(MEMORY)[..], [Violation::Resurrected(..), Violation::Resurrected(..)]));
}

#[test]
fn i4_wrong_bytes_are_detected() {
    let mut story = LogBuilder::default();
    let torn = id();
    story.store(torn, false);
    story.after.insert(torn, Found::Wrong("byte 7 of 100".to_owned()));
    assert!(matches!(story.violations(MEMORY)[..], [Violation::WrongBytes(id, _)] if id == torn));
}

#[test]
fn leftovers_of_a_failed_store_are_detected() {
    let mut story = LogBuilder::default();
    let (fresh, replaced) = (id(), id());
    story.store(replaced, true);
    let (a, b) = (story.fail(fresh, false), story.fail(replaced, true));
    story.finds(fresh, a);
    story.finds(replaced, b);
    assert!(matches!(story.violations(KILL)[..], [Violation::LeftBehind(..), Violation::LeftBehind(..)]));
}

/// A store that failed in doubt may be present after the kill or not, as a new message or as a
/// replacement.
#[test]
fn a_store_that_failed_in_doubt_may_be_present_or_not() {
    for promise in [MEMORY, KILL] {
        for forced in [false, true] {
            let (fresh, replaced) = (id(), id());
            let mut story = LogBuilder::default();
            let old = story.store(replaced, true);
            let (a, b) = (story.fail_in_doubt(fresh, forced), story.fail_in_doubt(replaced, forced));
            story.finds(replaced, old);
            assert_eq!(story.violations(promise), []);
            story.finds(fresh, a);
            story.finds(replaced, b);
            assert_eq!(story.violations(promise), []);
        }
    }
}

/// An acknowledged synced store of any id that began after the error ends the doubt. One that began
/// before it does not.
#[test]
fn the_next_synced_store_ends_the_doubt() {
    let (doubted, other) = (id(), id());
    let story = |begun_after: bool, forced: bool, answered: bool| {
        let mut story = LogBuilder::default();
        let failed = story.begin(doubted, true);
        let beside = if begun_after { 0 } else { story.begin(other, forced) };
        story.say(Event::Failed { op: failed, in_doubt: true });
        let op = if begun_after { story.begin(other, forced) } else { beside };
        if answered {
            story.say(Event::Done { op });
            story.finds(other, op);
        }
        story.finds(doubted, failed);
        story.violations(KILL)
    };
    assert!(matches!(story(true, true, true)[..], [Violation::LeftBehind(id, _)] if id == doubted));
    for (begun_after, forced, answered) in
        [(false, true, true), (true, false, true), (true, true, false), (false, true, false)]
    {
        assert_eq!(story(begun_after, forced, answered), [], "{begun_after} {forced} {answered}");
    }
}

/// A doubt excuses nothing else: later acknowledged stores are present, the earlier version is
/// present or replaced by the store in doubt, and that store was not visible before the kill.
#[test]
fn a_doubt_excuses_no_loss() {
    let (replaced, later) = (id(), id());
    let mut story = LogBuilder::default();
    let old = story.store(replaced, true);
    let doubted = story.fail_in_doubt(replaced, true);
    assert!(matches!(story.violations(KILL)[..], [Violation::DurableLost(id, _)] if id == replaced));
    let new = story.store(later, true);
    let doubted_later = story.fail_in_doubt(later, true);
    let newest = story.store(later, true);
    story.finds(replaced, old);
    for (found, lost) in [(new, true), (doubted_later, true), (newest, false)] {
        story.finds(later, found);
        let violations = story.violations(KILL);
        assert_eq!(!violations.is_empty(), lost, "{found}: {violations:?}");
    }
    // The synced store of the other message ended the first doubt.
    story.finds(replaced, doubted);
    assert!(matches!(story.violations(KILL)[..], [Violation::LeftBehind(id, _)] if id == replaced));
}

/// A store in doubt replaced nothing while the spool was open. So the loss of the version before it
/// is a hole if a newer store is kept.
#[test]
fn i2_a_hole_behind_a_doubt_is_detected() {
    let (older, newer) = (id(), id());
    let mut story = LogBuilder::default();
    story.store(older, false);
    story.fail_in_doubt(older, true);
    let version = story.store(newer, false);
    story.finds(newer, version);
    assert_eq!(story.violations(MEMORY), [Violation::Hole(older, newer)]);
}

#[test]
fn violations_that_the_child_detected_are_reported() {
    let mut story = LogBuilder::default();
    story.say(Event::Wrong { what: "lost while running".to_owned() });
    assert_eq!(story.violations(MEMORY), [Violation::SeenByTheChild("lost while running".to_owned())]);
}
