use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::rig::{CommitterRig, LARGE, MIDDLE, SMALL};
use crate::message_id::MessageId;
use crate::tiered::state::Outcome;

/// A message was removed while its store waited for the commit. Both calls returned `Ok`, but the
/// message was back at the next load and after each restart. Cause: while the committer built a
/// batch, it found an unrelated stale ticket and drained tickets. The removal got into this batch.
/// The older store, which had arrived after the arrivals were taken, got into the next one.
#[test]
fn a_removal_is_not_written_before_the_store_that_it_removes() {
    for len in [LARGE, SMALL] {
        for replaces in [false, true] {
            let (mut rig, id, unrelated) = (CommitterRig::new(), MessageId::random(), MessageId::random());
            rig.store(unrelated);
            rig.flush();
            rig.gather();
            rig.wait(id, len);
            if replaces {
                rig.store(id);
            } else {
                rig.remove(id);
            }
            rig.store(unrelated);
            for _ in 0..4 {
                rig.commit();
                rig.check_loads();
                rig.gather();
            }
            rig.drain();
        }
    }
}

/// A version that replaces another one always inherits its place in the queue. The place was lost
/// where removals are taken out of turn because no segment is free.
#[test]
fn a_version_that_replaces_a_due_one_keeps_its_turn() {
    for is_starved in [false, true] {
        let (mut rig, id) = (CommitterRig::new(), MessageId::random());
        rig.wait(id, SMALL);
        rig.turn();
        if is_starved {
            rig.starve();
            // The active segment has no room left.
            rig.committer.executor.writer.seal();
        }
        let blocking = MessageId::random();
        rig.store(blocking);
        rig.remove(id);
        rig.flush();
        rig.gather();
        rig.store(id);
        rig.commit();
        assert!(rig.committer.executor.intake.drains().first_replaced.is_some(), "starved: {is_starved}");
        rig.feed();
        // Nothing else is due: no time has passed.
        rig.turn();
        assert_eq!(rig.shared.table.oldest_dirty(), None, "starved: {is_starved}");
        rig.drain();
    }
}

/// A version in memory becomes due while a newer version of its id is being synced. It must not be
/// written behind the newer one. When that one is durable, the older one need not be written. If
/// the caller of the newer one gives up, the older one must be written.
#[test]
fn an_older_version_that_comes_due_is_not_written_behind_a_newer_one() {
    for gives_up in [false, true] {
        let (mut rig, id) = (CommitterRig::new(), MessageId::random());
        rig.store(id);
        rig.wait(id, SMALL);
        (0..4).for_each(|_| rig.wait(MessageId::random(), MIDDLE));
        rig.turn();
        assert!(rig.committer.executor.writer.is_syncing());
        rig.flush();
        for _ in 0..3 {
            rig.turn();
            assert!(rig.committer.executor.intake.has_tickets());
        }
        if gives_up {
            rig.give_up(0);
        }
        rig.drain();
    }
}

/// A flush returned before anything was written. A store gets its version and its time one after
/// the other, and another store may get both in between. So a version that is drained later can be
/// the lower one: the last ticket's version was below the first one's.
#[test]
fn a_flush_waits_for_all_that_was_dirty_whatever_the_order_of_versions_and_times() {
    let mut rig = CommitterRig::new();
    rig.store_at_once(MessageId::random(), MessageId::random());
    assert!(rig.committer.executor.intake.has_tickets());
    rig.flush();
    // A large message is written alone, and before all others.
    rig.wait(MessageId::random(), LARGE);
    rig.turn();
    assert!(rig.committer.executor.intake.has_tickets());
    rig.check_flushes();
    rig.drain();
}

/// A dirty version is replaced after a flush request. The flush must wait until the replacement is
/// durable, because otherwise neither of the two would be.
#[test]
fn a_flush_waits_for_what_replaced_a_version() {
    let (mut rig, id) = (CommitterRig::new(), MessageId::random());
    rig.store(id);
    let mut flush = rig.shared.commit_queue.flush(false);
    rig.gather();
    rig.store(id);
    rig.commit();
    assert!(flush.try_recv().is_err(), "nothing is durable");
    rig.turn();
    assert!(flush.try_recv().is_ok());
    assert!(rig.shared.table.lock(&id).index.get(&id).is_some());
}

/// A message was replaced, or removed and stored again, each time before its ticket was due. A
/// flush was postponed for it only once, and completed when none of its versions was durable. A
/// crash brought back a much older version.
#[test]
fn a_flush_waits_for_some_version_of_what_is_replaced_again_and_again() {
    for plan in 0..1 << 8 {
        let (mut rig, id) = (CommitterRig::new(), MessageId::random());
        let mut changes = (0..8).map(|bit| plan >> bit & 1 == 1);
        let mut change = |rig: &mut CommitterRig| match changes.next() {
            Some(true) => rig.remove(id),
            Some(false) => rig.store(id),
            None => {}
        };
        rig.store(id);
        rig.drain();
        rig.store(id);
        rig.flush();
        for _ in 0..4 {
            rig.gather();
            change(&mut rig);
            rig.commit();
            change(&mut rig);
        }
        assert!(rig.all_flushes_are_done(), "every flush completes: plan {plan:b}");
        rig.drain();
    }
}

/// A message was replaced again before each of its tickets was taken, because the backlog was
/// always longer than a batch. Each time its ticket was stale and the next one went to the end of
/// the backlog. So no version of the message was ever written.
#[test]
fn a_message_that_is_replaced_before_each_turn_is_written_eventually() {
    let (mut rig, id) = (CommitterRig::new(), MessageId::random());
    for turn in 0..12 {
        rig.feed();
        // A batch with a synced store takes 512 flushed records.
        (0..if turn == 0 { 700 } else { 512 }).for_each(|_| rig.store(MessageId::random()));
        rig.store(id);
        rig.wait(MessageId::random(), SMALL);
        rig.flush();
        rig.gather();
        rig.store(id);
        rig.commit();
        rig.end_syncs();
        assert!(rig.committer.executor.intake.has_tickets(), "the backlog is longer than a batch");
    }
    assert!(rig.durable(&id).is_some());
    rig.drain();
}

/// A pledged version, which would be written whatever replaces it, is removed, and no segment has
/// room for it. Its removal must not be written before it, but may free a segment. So the removal
/// is written instead of the version.
#[test]
fn a_removal_does_not_wait_for_room_for_what_it_removes() {
    let (mut rig, id) = (CommitterRig::new(), MessageId::random());
    rig.store(id);
    rig.drain();
    rig.store(id);
    rig.flush();
    rig.gather();
    rig.store(id);
    rig.commit();
    rig.starve();
    rig.gather();
    rig.remove(id);
    for _ in 0..3 {
        rig.commit();
        rig.flush();
        rig.gather();
    }
    rig.commit();
    assert_eq!(rig.durable(&id), None);
    assert!(!rig.committer.executor.intake.has_tickets());
    rig.drain();
}

/// Nothing is added to a batch that has to be retried. A message with a segment of its own was
/// added, because the committer checked only the room that is left, and such a message needs none.
#[test]
fn nothing_joins_a_batch_that_has_to_be_tried_again() {
    for len in [SMALL, LARGE] {
        for first in [SMALL, LARGE] {
            let mut rig = CommitterRig::new();
            rig.wait(MessageId::random(), first);
            rig.gather();
            rig.disk.fails_batches.store(true, Ordering::SeqCst);
            rig.commit();
            let taken = rig.committer.executor.in_flight.taken().len();
            assert_eq!(taken, 1);
            rig.wait(MessageId::random(), len);
            rig.store(MessageId::random());
            rig.remove(MessageId::random());
            rig.flush();
            for _ in 0..3 {
                rig.turn();
                assert_eq!(rig.committer.executor.in_flight.taken().len(), taken, "{len} joins {first}");
            }
            rig.drain();
        }
    }
}

/// A write error was reported (a log line, a look at the free space) before records that were
/// durable by then were published. Their callers could give up meanwhile.
#[test]
fn durable_stores_are_acknowledged_before_a_failed_write_is_reported() {
    let mut rig = CommitterRig::new();
    (0..4).for_each(|_| rig.wait(MessageId::random(), MIDDLE));
    rig.turn();
    assert!(rig.committer.executor.writer.is_syncing());
    rig.end_syncs();
    rig.wait(MessageId::random(), SMALL);
    rig.gather();
    assert_eq!(rig.outcome(0), None, "durable, but not published");
    rig.give_up_at_report(0);
    rig.set_full(true);
    rig.disk.fails_writes.store(true, Ordering::SeqCst);
    rig.commit();
    assert!(matches!(rig.outcome(0), Some(Outcome::Durable)), "{:?}", rig.outcome(0));
    rig.drain();
}

/// `cleanup` sealed the last segment on a full disk. No checkpoint had room, so that no segment
/// became free, and no removal became durable, although one segment is kept for removals.
#[test]
fn the_last_segment_is_not_sealed_while_no_checkpoint_has_room() {
    let (mut rig, id) = (CommitterRig::new(), MessageId::random());
    rig.wait(id, SMALL);
    rig.turn();
    rig.starve();
    for is_full in [true, false] {
        rig.set_full(is_full);
        let mut sealing = rig.shared.commit_queue.flush(true);
        rig.turn();
        assert!(sealing.try_recv().is_ok());
        assert_eq!(rig.committer.executor.writer.active_generation().is_some(), is_full);
        if is_full {
            rig.remove(id);
            rig.flush();
            rig.turn();
            assert_eq!(rig.durable(&id), None);
            assert!(rig.all_flushes_are_done());
        }
    }
    rig.drain();
}

/// The caller of a transaction gives up while the committer takes it, appends it, or syncs it. Of a
/// transaction that was appended, a later batch aborts all puts at once.
#[test]
fn a_transaction_is_aborted_as_a_whole() {
    let mut is_appended = false;
    for turns in 0..4 {
        for len in [SMALL, MIDDLE, LARGE] {
            let mut rig = CommitterRig::new();
            // The sync of four messages of the middle size is handed over.
            let ids = [(); 4].map(|()| MessageId::random());
            rig.store(ids[1]);
            rig.drain();
            rig.accept(&ids.map(|id| (id, len)));
            for step in 0..4 {
                if step == turns {
                    rig.give_up(0);
                }
                if step % 2 == 0 {
                    rig.gather();
                } else {
                    rig.commit();
                }
                rig.check_recovery();
            }
            rig.wait(MessageId::random(), SMALL);
            rig.drain();
            rig.check_recovery();
            // Without a transaction of their own, a power cut could keep some of the aborts.
            let aborts = rig.aborts();
            assert!(aborts.is_empty() || aborts == [true, true, true, false], "{aborts:?}");
            is_appended |= !aborts.is_empty();
        }
    }
    assert!(is_appended);
}

/// A transaction needs more segments than are kept ready. It asks for them, and waits without
/// blocking what was there before it.
#[test]
fn a_transaction_of_several_segments_gets_them() {
    let mut rig = CommitterRig::new();
    let ids = [(); 20].map(|()| MessageId::random());
    rig.accept(&ids.map(|id| (id, MIDDLE)));
    rig.turn();
    assert!(rig.committer.executor.appended.blocked);
    rig.feed();
    rig.turn();
    rig.end_syncs();
    rig.turn();
    assert!(matches!(rig.outcome(0), Some(Outcome::Durable)), "{:?}", rig.outcome(0));
    assert!(rig.shared.segments.pool().free() <= 2, "the next ones are not kept for it");
    rig.drain();
}

/// The pool went on keeping the segments that a transaction had asked for, whose caller had given
/// up before it got them.
#[test]
fn segments_are_not_kept_for_a_transaction_that_was_cancelled() {
    for next in [None, Some(MIDDLE)] {
        let mut rig = CommitterRig::new();
        let ids = [(); 20].map(|()| MessageId::random());
        rig.accept(&ids.map(|id| (id, MIDDLE)));
        rig.turn();
        assert!(rig.committer.executor.appended.blocked);
        rig.give_up(0);
        next.iter().for_each(|len| rig.wait(MessageId::random(), *len));
        rig.turn();
        rig.feed();
        assert!(rig.shared.segments.pool().free() <= 2, "with {next:?} behind it");
        rig.drain();
    }
}

/// A transaction is written again after an error, and the segments end in the middle of it: the
/// records that are written must not become durable without the others.
#[test]
fn a_transaction_that_does_not_fit_is_not_durable_in_part() {
    let mut rig = CommitterRig::new();
    let ids = [(); 8].map(|()| MessageId::random());
    rig.accept(&ids.map(|id| (id, MIDDLE)));
    rig.turn();
    rig.feed();
    rig.set_full(true);
    rig.disk.fails_batches.store(true, Ordering::SeqCst);
    rig.turn();
    assert_eq!(rig.committer.executor.in_flight.taken().len(), ids.len());
    rig.disk.fails_batches.store(false, Ordering::SeqCst);
    // Two segments are needed, and there is one. The disk is full, so that no other can be made.
    rig.starve();
    rig.feed_one();
    rig.disk.fails_creating.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        rig.turn();
        rig.end_syncs();
        rig.check_recovery();
        assert_eq!(rig.outcome(0), None);
        assert!(ids.iter().all(|id| rig.durable(id).is_none()));
    }
    rig.disk.fails_creating.store(false, Ordering::SeqCst);
    rig.drain();
    assert!(matches!(rig.outcome(0), Some(Outcome::Durable)));
}

/// One step of a caller, the disk or the committer. Ids and stores are given by number.
#[derive(Debug, Clone, Copy)]
enum OrderStep {
    Store(usize),
    Remove(usize),
    Wait(usize, usize),
    /// A transaction of all ids but one.
    Accept(usize, usize),
    /// Enough stores for a sync that is handed over to the syncer.
    Burst,
    GiveUp(usize),
    Flush,
    Gather,
    Commit,
    EndSyncs,
    FailWrites(bool),
    FailSyncs(bool),
    Starve,
    Feed,
}

fn step() -> impl Strategy<Value = OrderStep> {
    let id = || 0..3_usize;
    let len = || prop_oneof![6 => Just(SMALL), 1 => Just(MIDDLE), 2 => Just(LARGE)];
    prop_oneof![
        6 => id().prop_map(OrderStep::Store),
        4 => id().prop_map(OrderStep::Remove),
        6 => (id(), len()).prop_map(|(id, len)| OrderStep::Wait(id, len)),
        4 => (id(), len()).prop_map(|(id, len)| OrderStep::Accept(id, len)),
        4 => Just(OrderStep::Burst),
        2 => (0..8_usize).prop_map(OrderStep::GiveUp),
        4 => Just(OrderStep::Flush),
        8 => Just(OrderStep::Gather),
        8 => Just(OrderStep::Commit),
        4 => Just(OrderStep::EndSyncs),
        1 => any::<bool>().prop_map(OrderStep::FailWrites),
        1 => any::<bool>().prop_map(OrderStep::FailSyncs),
        1 => Just(OrderStep::Starve),
        2 => Just(OrderStep::Feed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// Callers act between the halves of the committer's turns, and the disk may fail. For each id,
    /// versions are written and published in their order (asserted by the committer in debug
    /// builds). Loads return the newest version at each step, and no flush completes too early.
    #[test]
    fn versions_of_an_id_are_written_in_their_order(steps in prop::collection::vec(step(), 1..80)) {
        let mut rig = CommitterRig::new();
        let ids = [(); 3].map(|()| MessageId::random());
        for step in steps {
            match step {
                OrderStep::Store(id) => rig.store(ids[id]),
                OrderStep::Remove(id) => rig.remove(ids[id]),
                OrderStep::Wait(id, len) => rig.wait(ids[id], len),
                OrderStep::Accept(left_out, len) => {
                    let others = (0..3).filter(|id| *id != left_out);
                    rig.accept(&others.map(|id| (ids[id], len)).collect::<Vec<_>>());
                }
                OrderStep::Burst => (0..4).for_each(|_| rig.wait(MessageId::random(), MIDDLE)),
                OrderStep::GiveUp(nth) => rig.give_up(nth),
                OrderStep::Flush => rig.flush(),
                OrderStep::Gather => rig.gather(),
                OrderStep::Commit => rig.commit(),
                OrderStep::EndSyncs => rig.end_syncs(),
                OrderStep::FailWrites(fails) => rig.disk.fails_writes.store(fails, Ordering::SeqCst),
                OrderStep::FailSyncs(fails) => rig.disk.fails_syncs.store(fails, Ordering::SeqCst),
                OrderStep::Starve => rig.starve(),
                OrderStep::Feed => rig.feed(),
            }
            rig.check_loads();
            rig.check_recovery();
        }
        rig.drain();
    }
}
