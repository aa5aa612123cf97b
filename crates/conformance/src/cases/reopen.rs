//! All messages survive a restart.

use chrono::{TimeDelta, Utc};
use tidespool_core::SpoolId;

use super::calls::{
    LENGTHS, all_upkeep, assert_absent, assert_holds, assert_lists, list_before, put, put_as,
};
use crate::{Subject, ids};

/// Messages of every size, synced or not, with and without upkeep, survive two restarts.
pub async fn stored_messages_survive_a_restart(subject: &mut Subject) {
    let mut stored = Vec::new();
    for round in 0..2 {
        for force_sync in [false, true] {
            for len in LENGTHS {
                let id = SpoolId::new();
                put_as(subject.spool(), id, 1, len, force_sync).await;
                stored.push((id, 1, len));
            }
        }
        if round == 0 {
            all_upkeep(subject.spool()).await;
        }
    }
    for _ in 0..2 {
        subject.reopen().await;
        for &(id, version, len) in &stored {
            assert_holds(subject.spool(), id, version, len).await;
        }
        assert_lists(subject.spool(), &stored).await;
    }
}

/// The newest version survives, whether the old one was new, moved by upkeep, or older than another
/// restart.
pub async fn replaced_messages_survive_as_replaced(subject: &mut Subject) {
    let ids: Vec<SpoolId> = ids::assorted(Utc::now(), 12);
    let mut expected = Vec::new();
    for version in 1..=5 {
        expected.clear();
        for (n, &id) in ids.iter().enumerate() {
            let len = [0, 300, 20_000, 4096][(n + usize::try_from(version).expect("small")) % 4];
            put_as(subject.spool(), id, version, len, n % 3 == 0).await;
            expected.push((id, version, len));
        }
        match version {
            2 => all_upkeep(subject.spool()).await,
            1 | 3 | 5 => subject.reopen().await,
            _ => {}
        }
        assert_lists(subject.spool(), &expected).await;
    }
    subject.reopen().await;
    assert_lists(subject.spool(), &expected).await;
}

/// Messages removed while new, after upkeep, or after an earlier restart stay absent after the next
/// two restarts.
pub async fn removed_messages_stay_away_after_a_restart(subject: &mut Subject) {
    let ids = ids::assorted(Utc::now(), 16);
    for (n, &id) in ids.iter().enumerate() {
        put_as(subject.spool(), id, 1, n * 900, n % 2 == 0).await;
    }
    let mut gone: Vec<SpoolId> = Vec::new();
    for (stage, part) in ids.chunks(4).enumerate() {
        for &id in part {
            subject.spool().remove(id).await.expect("remove");
            gone.push(id);
        }
        match stage {
            0 => all_upkeep(subject.spool()).await,
            _ => subject.reopen().await,
        }
        for &id in &gone {
            assert_absent(subject.spool(), id).await;
        }
    }
    all_upkeep(subject.spool()).await;
    subject.reopen().await;
    assert_lists(subject.spool(), &[]).await;
}

/// An id that was removed and stored again has its newest message after a restart.
pub async fn a_message_stored_after_its_removal_survives(subject: &mut Subject) {
    let ids: Vec<SpoolId> = (0..6).map(|_| SpoolId::new()).collect();
    let mut expected = Vec::new();
    for (n, &id) in ids.iter().enumerate() {
        put_as(subject.spool(), id, 1, 6000, n % 2 == 0).await;
        match n / 2 {
            1 => all_upkeep(subject.spool()).await,
            2 => subject.reopen().await,
            _ => {}
        }
        subject.spool().remove(id).await.expect("remove");
        put_as(subject.spool(), id, 2, 700, n % 2 == 1).await;
        expected.push((id, 2, 700));
    }
    for _ in 0..2 {
        subject.reopen().await;
        assert_lists(subject.spool(), &expected).await;
    }
}

/// The time bound of an enumeration also applies to messages from before the restart.
pub async fn start_time_holds_after_a_restart(subject: &mut Subject) {
    let from = Utc::now() - TimeDelta::hours(1);
    let ids = ids::assorted(from, 40);
    for &id in &ids {
        put(subject.spool(), id, 1, 60).await;
    }
    subject.reopen().await;
    let start = from + TimeDelta::milliseconds(20);
    let mut expected: Vec<SpoolId> =
        ids.into_iter().filter(|id| id.created().is_none_or(|created| created < start)).collect();
    expected.sort_unstable();
    let found: Vec<SpoolId> = list_before(subject.spool(), start).await.into_keys().collect();
    assert_eq!(found, expected);
}

/// Dropping a spool without a shutdown loses no synced message, like a crash.
pub async fn synced_messages_survive_a_drop(subject: &mut Subject) {
    let mut stored = Vec::new();
    for round in 0..3 {
        for len in [0, 100, 5000, 200_000] {
            let id = SpoolId::new();
            put_as(subject.spool(), id, 1, len, true).await;
            stored.push((id, 1, len));
        }
        if round == 1 {
            all_upkeep(subject.spool()).await;
        }
        subject.drop_and_open().await;
        for &(id, version, len) in &stored {
            assert_holds(subject.spool(), id, version, len).await;
        }
        assert_lists(subject.spool(), &stored).await;
    }
}
