//! Reads fail, or are not needed.

use tidespool::HealthSignal;
use tidespool_core::{Corrupt, NotFound, Spool, SpoolEntry};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE, is_thread};
use crate::setup::{assert_holds, enumerate, healthy, put, stop};

/// After a failed read, a message is neither missing nor damaged. An enumeration retries until it
/// can be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_error_is_neither_a_missing_nor_a_damaged_message() {
    let broken = Broken::new(|config| config);
    let spool = broken.start().await;
    let mut stored = Vec::new();
    for n in 0..20 {
        stored.push((put(spool.as_ref(), LARGE + n, n % 2 == 0).await, LARGE + n));
    }
    spool.compact().await.expect("compact");
    spool.advise_low_memory().await.expect("advise_low_memory");
    broken.disk.inject(Fault::on(Call::Read).file(".seg").always());
    for (id, _) in &stored {
        let root = spool.load(*id).await.expect_err("the disk fails");
        let root = root.root_cause();
        assert!(!root.is::<NotFound>() && !root.is::<Corrupt>(), "{root}");
        assert_eq!(
            root.downcast_ref::<std::io::Error>().map(|err| err.to_string().contains(".seg")),
            Some(true),
            "{root}"
        );
    }
    let before = broken.disk.count(Call::Read);
    let enumeration = {
        let spool = spool.clone();
        tokio::spawn(async move { enumerate(spool.as_ref()).await })
    };
    wait::until("the enumeration retries", || broken.disk.count(Call::Read) > before + 2).await;
    assert!(!enumeration.is_finished());
    broken.disk.heal();
    let entries = wait::bounded("enumerating", enumeration).await.unwrap();
    assert_eq!(entries.len(), stored.len());
    for entry in entries {
        let SpoolEntry::Item { id, data } = entry else { panic!("reported as damaged: {entry:?}") };
        let len = stored.iter().find(|(other, _)| *other == id).map(|(_, len)| *len).unwrap();
        payload::assert_is(id, 1, len, &data);
    }
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    healthy(spool.as_ref()).await;
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// Cached pages are read without a reader thread. Other bytes are read on one. The message is the
/// same.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_reads_the_disk_only_for_uncached_pages() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let mut stored = Vec::new();
    for n in 0..20 {
        stored.push((put(spool.as_ref(), LARGE + n, true).await, LARGE + n));
    }
    drop(spool);
    // A reopened spool has an empty cache: everything is in the journal.
    let spool = broken.start().await;
    let before = broken.disk.count(Call::Read);
    for &(id, len) in &stored[..10] {
        assert_holds(spool.as_ref(), id, len).await;
    }
    assert_eq!(broken.disk.count(Call::ReadInMemory), 10);
    // A file system without support for this, or pages that are not cached.
    broken.disk.inject(Fault::on(Call::ReadInMemory).always());
    let asked = broken.disk.count(Call::Read);
    for &(id, len) in &stored[10..] {
        assert_holds(spool.as_ref(), id, len).await;
    }
    assert!(broken.disk.count(Call::Read) >= asked + 10, "{asked} {before}");
    assert_eq!(spool.stats().disk_errors(), 0);
    broken.disk.heal();
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// A panic in a read was reported as the shutdown of the spool, and to its caller only. It must be
/// an error that shuts the gate. Other messages can still be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_panics_is_an_error_and_shuts_the_gate() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).read_threads(1));
    let spool = broken.start().await;
    let stored = [(put(spool.as_ref(), LARGE, true).await, LARGE)];
    spool.compact().await.expect("compact");
    spool.advise_low_memory().await.expect("advise_low_memory");
    broken.disk.watch(|moment| assert!(moment.call != Call::Read || !is_thread("tide-read-0"), "on purpose"));
    let error = wait::bounded("the load", spool.load(stored[0].0)).await.expect_err("it panicked");
    assert!(error.root_cause().is::<std::io::Error>(), "{error:#}");
    let is_shut = || spool.stats().gauges.unhealthy == Some(HealthSignal::DeadWorker);
    wait::until("the gate is shut", is_shut).await;
    broken.disk.unwatch();
    assert_holds(spool.as_ref(), stored[0].0, LARGE).await;
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// A single misread is not damage: neither for a load, nor for the checkpoint thread, which would
/// drop the message permanently.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_misread_once_is_read_again() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let stored =
        [(put(spool.as_ref(), LARGE, true).await, LARGE), (put(spool.as_ref(), 700, true).await, 700)];
    drop(spool);
    for place in ["the journal", "sled and the segments that it points into"] {
        // A reopened spool has an empty cache.
        let spool = broken.start().await;
        let before = broken.disk.strikes().len();
        for (id, len) in stored {
            broken.disk.inject(Fault::on(Call::Read).file(".seg").corrupt());
            // Prevents loads from cached pages.
            broken.disk.inject(Fault::on(Call::ReadInMemory).always());
            assert_holds(spool.as_ref(), id, len).await;
            broken.disk.heal();
        }
        assert!(broken.disk.strikes().len() > before, "nothing was misread in {place}");
        for nth in 1..=2 {
            let reads =
                Fault::on(Call::Read).only(|m| is_thread("tide-checkpoint") && m.name.ends_with(".seg"));
            broken.disk.inject(reads.nth(nth).corrupt());
            spool.compact().await.expect(place);
            broken.disk.heal();
        }
        assert_eq!(spool.stats().corrupt, 0, "{place}");
        for (id, len) in stored {
            assert_holds(spool.as_ref(), id, len).await;
        }
        stop(spool).await;
    }
    broken.assert_reopens_with(&stored).await;
}
