//! Enumeration: every message created before a time, exactly once.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use tidespool_core::SpoolId;

use super::calls::{
    LENGTHS, all_upkeep, assert_holds, assert_lists, collect, list, list_before, put, put_as,
};
use crate::{Subject, ids, payload, wait};

/// The channel closes without an entry.
pub async fn an_empty_spool_enumerates_nothing(subject: &mut Subject) {
    assert_lists(subject.spool(), &[]).await;
    let id = SpoolId::new();
    put(subject.spool(), id, 1, 100).await;
    subject.spool().remove(id).await.expect("remove");
    assert_lists(subject.spool(), &[]).await;
}

/// A message is enumerated once, whether it is new, replaced, synced or moved by upkeep.
pub async fn every_message_is_enumerated_once(subject: &mut Subject) {
    let spool = subject.spool();
    let mut stored = Vec::new();
    for round in 0..3 {
        for len in LENGTHS {
            let (once, twice) = (SpoolId::new(), SpoolId::new());
            put_as(spool, once, 1, len, round == 0).await;
            put(spool, twice, 1, len / 2).await;
            put_as(spool, twice, 2, len, round == 2).await;
            stored.extend([(once, 1, len), (twice, 2, len)]);
        }
        assert_lists(spool, &stored).await;
        all_upkeep(spool).await;
        assert_lists(spool, &stored).await;
    }
}

/// A message created at `start_time` is not before it, to the precision of its id.
pub async fn start_time_is_a_strict_bound(subject: &mut Subject) {
    let spool = subject.spool();
    let noon: DateTime<Utc> = "2026-01-02T12:00:00Z".parse().expect("a time");
    let step = |steps: i32| noon + TimeDelta::milliseconds(1) * steps;
    let mut timed = Vec::new();
    for n in -5_i32..=5 {
        let salt = u64::from(n.unsigned_abs()) + if n < 0 { 100 } else { 200 };
        timed.extend([ids::v1(step(n), salt), ids::v6(step(n), salt + 1000), ids::v7(step(n), salt + 2000)]);
    }
    // Ids of versions 1 and 6 have a precision of 100 ns.
    let hair = TimeDelta::nanoseconds(100);
    timed.extend([ids::v1(noon - hair, 1), ids::v6(noon - hair, 2), ids::v1(noon + hair, 3)]);
    for &id in &timed {
        put(spool, id, 1, 50).await;
    }
    for settled in [false, true] {
        if settled {
            all_upkeep(spool).await;
        }
        for start in [step(-6), step(-5), noon - hair, noon, noon + hair, step(3), step(6)] {
            let expected: Vec<SpoolId> =
                timed.iter().copied().filter(|id| id.created().is_some_and(|at| at < start)).collect();
            assert_same(&list_before(spool, start).await, &expected, start);
        }
    }
}

/// Ids without a time are enumerated for the earliest and for the latest bound.
pub async fn ids_without_a_time_are_always_enumerated(subject: &mut Subject) {
    let spool = subject.spool();
    let timeless = [ids::v4(1), ids::v4(2), SpoolId::from_bytes([0; 16]), SpoolId::from_bytes([0xff; 16])];
    let timed = SpoolId::new();
    for id in timeless.into_iter().chain([timed]) {
        put(spool, id, 1, 50).await;
    }
    for settled in [false, true] {
        if settled {
            all_upkeep(spool).await;
        }
        let first = DateTime::<Utc>::MIN_UTC;
        assert_same(&list_before(spool, first).await, &timeless, first);
        let last = DateTime::<Utc>::MAX_UTC;
        let everything = [&timeless[..], &[timed]].concat();
        assert_same(&list_before(spool, last).await, &everything, last);
    }
}

fn assert_same(found: &BTreeMap<SpoolId, Vec<u8>>, expected: &[SpoolId], start: DateTime<Utc>) {
    for id in expected {
        assert!(found.contains_key(id), "{id} ({:?}) is missing before {start}", id.created());
    }
    for id in found.keys() {
        assert!(expected.contains(id), "{id} ({:?}) is not before {start}", id.created());
    }
}

/// A dropped receiver ends the enumeration and affects nothing else.
pub async fn a_dropped_receiver_stops_it(subject: &mut Subject) {
    let spool = subject.spool();
    let stored: Vec<_> = (0..100).map(|_| (SpoolId::new(), 1, 2000)).collect();
    for &(id, version, len) in &stored {
        put(spool, id, version, len).await;
    }
    let far = Utc::now() + TimeDelta::days(1);
    for read_before_leaving in [0, 1, 7] {
        let (sender, receiver) = async_channel::bounded(1);
        spool.enumerate(sender.clone(), far).expect("enumerate");
        for _ in 0..read_before_leaving {
            receiver.recv().await.expect("an entry");
        }
        drop(receiver);
        // The spool and this test hold the last two senders: the count is 1 once the spool drops
        // its own.
        let what = "the spool drops its sender after the receiver has gone";
        wait::until(what, || sender.sender_count() == 1).await;
    }
    assert_lists(spool, &stored).await;
}

/// A slow receiver gets every message once, and other calls continue meanwhile.
pub async fn a_slow_receiver_gets_everything(subject: &mut Subject) {
    let spool = subject.spool();
    let mut stored = Vec::new();
    for n in 0..200 {
        let id = SpoolId::new();
        put(spool, id, 1, n * 30).await;
        stored.push((id, 1, n * 30));
        if n == 100 {
            all_upkeep(spool).await;
        }
    }
    let start = Utc::now() + TimeDelta::milliseconds(10);
    let (sender, receiver) = async_channel::bounded(1);
    spool.enumerate(sender, start).expect("enumerate");
    let mut found = BTreeMap::new();
    while let Ok(entry) = receiver.recv().await {
        collect(&mut found, entry);
        // The receiver is slow because of the work in between, not because of a sleep.
        let (id, version, len) = stored[found.len() % stored.len()];
        assert_holds(spool, id, version, len).await;
        let passing = ids::v6(start + TimeDelta::seconds(1), found.len() as u64);
        put(spool, passing, 1, 10).await;
        spool.remove(passing).await.expect("remove");
        tokio::task::yield_now().await;
    }
    assert_eq!(found.len(), stored.len());
    for (id, version, len) in stored {
        payload::assert_is(id, version, len, &found[&id]);
    }
}

/// Two concurrent enumerations at different speeds send the same messages.
pub async fn enumerations_do_not_disturb_each_other(subject: &mut Subject) {
    let spool = subject.spool();
    for n in 0..300 {
        put(spool, SpoolId::new(), 1, n).await;
    }
    let far = Utc::now() + TimeDelta::days(1);
    let (sender, slow) = async_channel::bounded(1);
    spool.enumerate(sender, far).expect("enumerate");
    let mut seen_slowly = BTreeMap::new();
    collect(&mut seen_slowly, slow.recv().await.expect("an entry"));
    let seen_quickly = list(spool).await;
    assert_eq!(seen_quickly.len(), 300);
    while let Ok(entry) = slow.recv().await {
        collect(&mut seen_slowly, entry);
    }
    assert!(seen_slowly == seen_quickly, "{} and {} messages", seen_slowly.len(), seen_quickly.len());
}

/// A receiver that never reads does not delay the shutdown.
pub async fn a_stuck_receiver_does_not_hold_up_shutdown(subject: &mut Subject) {
    let spool = subject.spool();
    for _ in 0..50 {
        put(spool, SpoolId::new(), 1, 2000).await;
    }
    let (sender, receiver) = async_channel::bounded(1);
    spool.enumerate(sender, Utc::now() + TimeDelta::days(1)).expect("enumerate");
    spool.shutdown().await.expect("shutdown");
    let mut entries = 0;
    while receiver.recv().await.is_ok() {
        entries += 1;
    }
    assert!(entries < 50, "{entries} entries through a channel of 1 that was not read before shutdown");
}
