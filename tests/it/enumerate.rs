use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tidespool::TieredSpool;
use tidespool_core::{Spool, SpoolEntry, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::{ids, payload, wait};

use crate::scan::{Way, whole};
use crate::setup::{Tiered, enumerate, enumerate_before, put, stop};

/// Stores small and large messages: some checkpointed, some retained, some new.
async fn fill(spool: &dyn Spool, count: usize) -> BTreeSet<SpoolId> {
    let mut stored = BTreeSet::new();
    for n in 0..count {
        let len = if n % 3 == 0 { 6000 + n } else { 100 + n };
        stored.insert(put(spool, len, n % 100 == 0).await);
        if n == count / 3 {
            spool.compact().await.expect("compact");
        }
        if n == count / 2 {
            spool.advise_low_memory().await.expect("advise_low_memory");
        }
    }
    stored
}

/// A checkpoint that moves everything during an enumeration duplicates no message and omits none.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_during_an_enumeration_changes_nothing() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    let mut stored = fill(spool.as_ref(), 900).await;
    for (way, read_before) in Way::ALL.into_iter().flat_map(|way| [0, 1, 200, 450, 899].map(|n| (way, n))) {
        // A part of them is in memory and in the journal.
        stored.extend(fill(spool.as_ref(), 90).await);
        let mut way = way(&spool);
        let mut found = BTreeSet::new();
        for _ in 0..read_before {
            assert!(found.insert(way.next().await.expect("an entry")));
        }
        spool.compact().await.expect("compact");
        while let Some(id) = way.next().await {
            assert!(found.insert(id), "{id} came twice, with {read_before} read before the checkpoint");
        }
        assert!(
            found == stored,
            "{} of {} came, {read_before} before the checkpoint",
            found.len(),
            stored.len()
        );
    }
    stop(spool).await;
}

/// Messages that are removed or stored during an enumeration come at most once. All others come.
#[tokio::test(flavor = "multi_thread")]
async fn removals_and_stores_during_an_enumeration_affect_no_other_message() {
    for way in Way::ALL {
        let tiered = Tiered::new(|config| config);
        let spool = tiered.start().await;
        let stored: Vec<SpoolId> = fill(spool.as_ref(), 600).await.into_iter().collect();
        let mut way = way(&spool);
        let mut found = BTreeSet::new();
        let mut later = Vec::new();
        let mut turn = 0;
        while let Some(id) = way.next().await {
            assert!(found.insert(id), "{id} came twice");
            // Removes every other message from the far end, stores new ones, and moves all now and
            // then.
            if let Some(id) = stored.iter().rev().step_by(2).nth(turn) {
                spool.remove(*id).await.expect("remove");
            }
            if turn < 600 {
                later.push(put(spool.as_ref(), 50 + turn * 20, false).await);
            }
            if turn % 150 == 149 {
                spool.compact().await.expect("compact");
            }
            turn += 1;
        }
        for id in stored.iter().rev().skip(1).step_by(2) {
            assert!(found.contains(id), "{id} was present throughout and was not enumerated");
        }
        let known: BTreeSet<SpoolId> = stored.iter().copied().chain(later).collect();
        assert!(found.is_subset(&known));
        stop(spool).await;
    }
}

/// A receiver that never reads blocks neither calls, nor upkeep, nor the shutdown. Then its channel
/// ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_reads_blocks_nothing() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    let mut stored = fill(spool.as_ref(), 300).await;
    let (sender, receiver) = async_channel::bounded(1);
    spool.enumerate(sender, DateTime::<Utc>::MAX_UTC).expect("enumerate");
    stored.extend(fill(spool.as_ref(), 300).await);
    spool.cleanup().await.expect("cleanup");
    assert_eq!(enumerate(spool.as_ref()).await.len(), stored.len());
    stop(spool).await;
    let mut entries = 0;
    while receiver.recv().await.is_ok() {
        entries += 1;
    }
    assert!(entries < 300, "{entries} entries came through a channel of 1 without a reader");
}

/// An entry that was read ahead is not sent if a newer version came while the receiver was slow,
/// wherever that version is.
#[tokio::test(flavor = "multi_thread")]
async fn an_outdated_entry_that_was_read_ahead_is_not_sent() {
    for (checkpointed, moved) in [(false, false), (false, true), (true, false), (true, true)] {
        let tiered = Tiered::new(|config| config.checkpoint_after(Duration::from_secs(3600)));
        let spool = tiered.start().await;
        let mut stored = Vec::new();
        for n in 0..200 {
            stored.push(put(spool.as_ref(), if n % 2 == 0 { 6000 } else { 100 }, n == 199).await);
        }
        if checkpointed {
            spool.compact().await.expect("compact");
        }
        let (sender, receiver) = async_channel::bounded(1);
        spool.enumerate(sender, DateTime::<Utc>::MAX_UTC).expect("enumerate");
        // All of them have been read. One more may be in the channel, and one on its way into it.
        let first = whole(receiver.recv().await.expect("an entry"));
        let (removed, replaced) = stored.split_at(100);
        for id in removed {
            spool.remove(*id).await.expect("remove");
        }
        for id in replaced {
            spool.store(*id, payload::shared(*id, 2, 500), true, None).await.expect("store");
        }
        if moved {
            spool.compact().await.expect("compact");
        }
        let mut found = BTreeSet::from([first]);
        let mut number = 0;
        while let Ok(entry) = receiver.recv().await {
            let SpoolEntry::Item { id, data } = entry else { panic!("{entry:?}") };
            assert!(found.insert(id), "{id} came twice");
            number += 1;
            if number > 2 {
                assert!(
                    replaced.contains(&id),
                    "{id} was removed (checkpointed: {checkpointed}, moved: {moved})"
                );
                let seen = payload::read(id, &data).expect("whole");
                assert_eq!(
                    seen.version,
                    Some(2),
                    "{number}: {id} (checkpointed: {checkpointed}, moved: {moved})"
                );
            }
        }
        for id in replaced {
            assert!(found.contains(id), "{id} did not come (checkpointed: {checkpointed}, moved: {moved})");
        }
        stop(spool).await;
    }
}

/// A clock was an hour ahead and was corrected, so the messages of that hour are newer than the
/// start of the next run. The enumeration at its start omitted them and logged nothing. They stayed
/// in the spool until the server was restarted after that hour.
#[tokio::test(flavor = "multi_thread")]
async fn messages_from_a_clock_that_was_ahead_are_counted() {
    for checkpointed in [false, true] {
        let tiered = Tiered::new(|config| config.checkpoint_after(Duration::from_secs(3600)));
        let spool = tiered.start().await;
        let now = Utc::now();
        let ahead = now + chrono::TimeDelta::hours(1);
        let skipped = [ids::v1(ahead, 1), ids::v6(ahead, 2), ids::v7(ahead, 3)];
        let (replaced, removed, timeless) = (ids::v6(ahead, 4), ids::v6(ahead, 5), ids::v4(6));
        let store = |id| spool.store(id, payload::shared(id, 1, 200), true, None);
        for id in skipped.into_iter().chain([replaced, removed, timeless]) {
            store(id).await.expect("store");
        }
        let old = put(spool.as_ref(), 200, true).await;
        if checkpointed {
            spool.compact().await.expect("compact");
        }
        stop(spool).await;

        let spool = tiered.start().await;
        // The server handles later messages itself, whatever its clock shows.
        spool.store(replaced, payload::shared(replaced, 1, 300), true, None).await.expect("store");
        spool
            .store(ids::v6(ahead, 7), payload::shared(ids::v6(ahead, 7), 1, 300), false, None)
            .await
            .expect("store");
        spool.remove(removed).await.expect("remove");
        let start = now + chrono::TimeDelta::minutes(1);
        let found: BTreeSet<_> =
            enumerate_before(spool.as_ref(), start).await.into_iter().map(whole).collect();
        assert_eq!(found, BTreeSet::from([old, timeless]), "checkpointed: {checkpointed}");
        assert_eq!(spool.stats().enumerate_skipped_newer, 3, "checkpointed: {checkpointed}");
        assert_eq!(enumerate(spool.as_ref()).await.len(), 7);
        assert_eq!(spool.stats().enumerate_skipped_newer, 3, "nothing was omitted");
        if !checkpointed {
            spool.compact().await.expect("compact");
            enumerate_before(spool.as_ref(), start).await;
            assert_eq!(spool.stats().enumerate_skipped_newer, 6, "counted each time, checkpointed or not");
        }
        stop(spool).await;
    }
}

/// An enumeration never ended while the disk kept failing. It ended at the shutdown and looked
/// complete.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_failing_disk_an_enumeration_ends_early_and_reports_it() {
    let disk = FaultyStorage::new();
    let tiered = Tiered::new(|config| config.read_wait(Duration::from_millis(1)));
    let spool = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await.expect("open");
    let stored = fill(&spool, 60).await;
    spool.compact().await.expect("compact");
    spool.advise_low_memory().await.expect("advise_low_memory");
    disk.inject(Fault::on(Call::Read).file(".seg").always());
    disk.inject(Fault::on(Call::ReadInMemory).file(".seg").always());
    let mut entries = wait::bounded("the early end", enumerate(&spool)).await;
    let end = entries.pop().expect("an early end");
    assert!(end.is_early_end(), "{end:?}");
    let SpoolEntry::Corrupt { error, .. } = end else { unreachable!() };
    assert!(error.contains("Input/output error") && error.contains("enumerate again"), "{error}");
    let found: BTreeSet<_> = entries.into_iter().map(whole).collect();
    assert!(found.is_subset(&stored) && found.len() < stored.len());
    disk.heal();
    let found: BTreeSet<_> = enumerate(&spool).await.into_iter().map(whole).collect();
    assert_eq!(found, stored);
    spool.shutdown().await.expect("shutdown");
}
