use std::sync::Arc;
use std::time::{Duration, Instant};

use tidespool::{Config, TieredSpool};
use tidespool_core::{
    Corrupt, NotFound, Spool, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolEntry, SpoolId,
};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinHandle;

use crate::setup::{KIB, MIB, Tiered, assert_absent, assert_holds, enumerate, healthy, put, stop};

/// Larger than `separate_above`: these stay in segments.
pub(crate) const LARGE: usize = 20_000;
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Of a slow disk: a sync that nothing else ends.
pub(crate) const SLOW: Duration = Duration::from_millis(100);

/// A spool on a storage that breaks as told.
pub(crate) struct Broken {
    pub(crate) tiered: Tiered,
    pub(crate) disk: FaultyStorage,
}

impl Broken {
    pub(crate) fn new(adjust: impl FnOnce(Config) -> Config) -> Self {
        Self { tiered: Tiered::new(adjust), disk: FaultyStorage::new() }
    }

    pub(crate) async fn start(&self) -> Arc<TieredSpool> {
        let opened = TieredSpool::open_on(self.tiered.config.clone(), self.disk.storage()).await;
        Arc::new(opened.expect("open"))
    }

    /// After a shutdown or a crash, on a disk that works: exactly these messages, and nothing to report.
    pub(crate) async fn assert_reopens_with(&self, messages: &[(SpoolId, usize)]) {
        self.disk.heal();
        let spool = self.start().await;
        assert_eq!(spool.recovery().damage, []);
        for &(id, len) in messages {
            assert_holds(spool.as_ref(), id, len).await;
        }
        assert_eq!(enumerate(spool.as_ref()).await.len(), messages.len());
        stop(spool).await;
    }
}

/// Only what the threads do that write the journal: segments are prepared on another.
pub(crate) fn committing(fault: Fault) -> Fault {
    fault.only(|moment| {
        moment.name.ends_with(".seg") && (is_thread("tidespool-commit") || is_thread("tidespool-sync"))
    })
}

pub(crate) fn is_thread(name: &str) -> bool {
    std::thread::current().name() == Some(name)
}

/// A store that goes on by itself.
pub(crate) fn begin(
    spool: &Arc<TieredSpool>,
    id: SpoolId,
    version: u64,
    len: usize,
    deadline: Option<Duration>,
) -> JoinHandle<anyhow::Result<()>> {
    let (spool, deadline) = (spool.clone(), deadline.map(|wait| Instant::now() + wait));
    tokio::spawn(async move { spool.store(id, payload::shared(id, version, len), true, deadline).await })
}

/// Whatever fails once in writing the journal is made good by itself: the message is stored, and is there after a restart. Nothing else
/// has to come for that.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_once_in_writing_the_journal_is_made_good() {
    let faults = [
        Fault::on(Call::Sync),
        Fault::on(Call::Write),
        Fault::on(Call::Write).full_disk(),
        Fault::on(Call::Write).torn(5000),
        Fault::on(Call::Write).short(700),
    ];
    for fault in faults {
        let is_error = !format!("{fault:?}").contains("Short");
        let broken = Broken::new(|config| config.dirty_expire(HOUR).checkpoint_after(HOUR));
        let spool = broken.start().await;
        let before = put(spool.as_ref(), LARGE, true).await;
        broken.disk.inject(committing(fault.clone()));
        let id = SpoolId::new();
        let store = spool.store(id, payload::shared(id, 1, LARGE), true, None);
        wait::bounded("a store beside a fault", store)
            .await
            .unwrap_or_else(|err| panic!("{fault:?}: {err:#}"));
        if is_error {
            wait::until("the error is noticed", || spool.stats().disk_errors() > 0).await;
        }
        healthy(spool.as_ref()).await;
        let after = put(spool.as_ref(), 100, true).await;
        assert_eq!(broken.disk.trusted_again(), [""; 0], "{fault:?}");
        // Like a crash.
        drop(spool);
        broken.assert_reopens_with(&[(before, LARGE), (id, LARGE), (after, 100)]).await;
    }
}

/// A disk on which syncs fail for a while. Nobody is told `Ok` before one succeeds; who gives up leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn while_syncs_fail_stores_wait_or_leave_nothing_behind() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let (replaced, removed) = (put(spool.as_ref(), 3000, true).await, put(spool.as_ref(), 3000, true).await);
    let kept = put(spool.as_ref(), LARGE, true).await;
    // The first commit hangs until all the stores below have come; it succeeds, and from the next on all fail.
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    broken.disk.inject(committing(Fault::on(Call::Sync)).always());
    let first = SpoolId::new();
    let first_store = begin(&spool, first, 1, 500, None);
    wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
    let soon = Some(Duration::from_millis(300));
    let (late, patient) = (SpoolId::new(), SpoolId::new());
    let gave_up = [begin(&spool, late, 1, 700, soon), begin(&spool, replaced, 2, 700, soon)];
    let waits = begin(&spool, patient, 1, 900, None);
    tokio::task::yield_now().await;
    broken.disk.release();
    wait::bounded("the first store", first_store).await.unwrap().expect("it was synced");

    for store in gave_up {
        let err =
            wait::bounded("a store with a deadline", store).await.unwrap().expect_err("nothing was synced");
        assert!(err.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{err:#}");
    }
    wait::until("the spool is unhealthy", || spool.unhealthy_reason().is_some()).await;
    assert!(!waits.is_finished());
    // Everything that needs no sync goes on.
    assert_absent(spool.as_ref(), late).await;
    assert_holds(spool.as_ref(), replaced, 3000).await;
    assert_holds(spool.as_ref(), kept, LARGE).await;
    spool.remove(removed).await.expect("remove");
    assert_absent(spool.as_ref(), removed).await;
    assert_eq!(enumerate(spool.as_ref()).await.len(), 3);

    broken.disk.heal();
    wait::bounded("the patient store", waits).await.unwrap().expect("the disk works again");
    healthy(spool.as_ref()).await;
    assert_absent(spool.as_ref(), late).await;
    assert_holds(spool.as_ref(), replaced, 3000).await;
    assert_eq!(broken.disk.trusted_again(), [""; 0]);
    stop(spool).await;
    broken.assert_reopens_with(&[(first, 500), (patient, 900), (replaced, 3000), (kept, LARGE)]).await;
}

/// What an `Err` says is durable as soon as a dirty message would be, without more traffic: the abort is synced too.
#[tokio::test(flavor = "multi_thread")]
async fn the_abort_of_a_late_store_is_synced_by_itself() {
    // Nothing is due for an hour: what is synced is synced for the abort.
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).dirty_expire(HOUR));
    let spool = broken.start().await;
    let kept = put(spool.as_ref(), 700, true).await;
    wait::until("segments are ready", || spool.stats().gauges.journal_segments_free == 2).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    let before = broken.disk.count(Call::Sync);
    let id = SpoolId::new();
    let store = begin(&spool, id, 1, 700, Some(Duration::from_millis(100)));
    wait::bounded("the store", store).await.unwrap().expect_err("the disk hangs");
    broken.disk.heal();
    wait::until("the store is taken back", || spool.stats().aborts > 0).await;
    wait::until("the abort is synced", || broken.disk.count(Call::Sync) >= before + 2).await;
    assert_absent(spool.as_ref(), id).await;
    drop(spool);
    broken.assert_reopens_with(&[(kept, 700)]).await;
}

/// Two shutdowns on a disk that fails: they end, and the first says how much is lost. The disk is not hammered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_on_a_failing_disk_ends_and_says_what_is_lost() {
    let broken = Broken::new(|config| config.shutdown_timeout(Duration::from_millis(400)));
    let spool = broken.start().await;
    let kept = put(spool.as_ref(), LARGE, true).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always());
    put(spool.as_ref(), 5000, false).await;
    let before = broken.disk.count(Call::Sync);
    for _ in 0..2 {
        let ended = wait::bounded("the shutdown", spool.shutdown()).await;
        let err = format!("{:#}", ended.expect_err("something is lost"));
        assert!(err.contains("5256 dirty bytes could not be written"), "{err}");
    }
    let tries = broken.disk.count(Call::Sync) - before;
    assert!(tries < 100, "{tries} syncs");
    drop(spool);
    broken.disk.heal();
    let spool = broken.start().await;
    assert_holds(spool.as_ref(), kept, LARGE).await;
    stop(spool).await;
}

/// A disk that hangs: no store waits longer than its deadline, memory goes on working, and the spool can be shut down. Its directory stays
/// locked until the hanging call has returned.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_disk_hangs_nobody() {
    let broken =
        Broken::new(|config| config.shutdown_timeout(Duration::from_millis(400)).checkpoint_after(HOUR));
    let spool = broken.start().await;
    let kept = put(spool.as_ref(), LARGE, true).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let store = begin(&spool, SpoolId::new(), 1, 100, Some(Duration::from_millis(50)));
    let err = wait::bounded("a synced store", store).await.unwrap().expect_err("the disk hangs");
    assert!(err.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{err:#}");
    wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
    let unsynced = put(spool.as_ref(), 2000, false).await;
    assert_holds(spool.as_ref(), unsynced, 2000).await;
    assert_holds(spool.as_ref(), kept, LARGE).await;
    spool.remove(kept).await.expect("remove");
    assert_absent(spool.as_ref(), kept).await;

    let err = wait::bounded("the shutdown", spool.shutdown()).await.expect_err("the disk hangs");
    let err = format!("{err:#}");
    assert!(err.contains("dirty bytes could not be written") && err.contains("hangs"), "{err}");
    drop(spool);
    let again = TieredSpool::open_on(broken.tiered.config.clone(), broken.disk.storage()).await;
    let err = again.expect_err("somebody may still write there");
    assert!(err.root_cause().is::<tidespool_core::Locked>(), "{err:#}");
    broken.disk.heal();
    let spool = broken.start().await;
    assert_eq!(spool.recovery().damage, []);
    stop(spool).await;
}

/// The spool's own bound ends the wait as well, with its own error.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_hanging_disk_the_spools_deadline_holds() {
    let broken = Broken::new(|config| config.store_deadline(Duration::from_millis(100)));
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let id = SpoolId::new();
    let err =
        wait::bounded("the store", begin(&spool, id, 1, 100, None)).await.unwrap().expect_err("it hangs");
    assert!(err.root_cause().is::<SpoolBackpressureTimeout>(), "{err:#}");
    assert_absent(spool.as_ref(), id).await;
    broken.disk.heal();
    stop(spool).await;
    broken.assert_reopens_with(&[]).await;
}

/// A backlog that lasts shuts the gate, by its bytes or by its age; when it is gone the gate opens.
#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_backlog_shuts_the_gate_until_it_is_gone() {
    const BACKLOG: &str = "the spool is catching up";
    for by_age in [false, true] {
        let broken = Broken::new(|config| {
            let health = config.health.clone().backlog_latch_after(Duration::from_millis(50));
            let health = if by_age {
                health.dirty_age(Duration::from_millis(200))
            } else {
                health.dirty_age(HOUR).dirty_fraction(0.5)
            };
            config.health(health).dirty_limit(MIB)
        });
        let spool = broken.start().await;
        broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
        let mut stored = vec![(put(spool.as_ref(), 1000, false).await, 1000)];
        if !by_age {
            for _ in 0..3 {
                stored.push((put(spool.as_ref(), 200_000, false).await, 200_000));
            }
        }
        wait::until("the gate is shut", || spool.unhealthy_reason() == Some(BACKLOG)).await;
        let id = SpoolId::new();
        let refused = spool.store(id, payload::shared(id, 1, 10), false, None).await;
        assert!(refused.unwrap_err().root_cause().is::<tidespool_core::SpoolUnhealthyError>());
        for &(id, len) in &stored {
            assert_holds(spool.as_ref(), id, len).await;
        }
        broken.disk.heal();
        healthy(spool.as_ref()).await;
        stored.push((put(spool.as_ref(), 1000, true).await, 1000));
        stop(spool).await;
        broken.assert_reopens_with(&stored).await;
    }
}

/// No room for new segments: stores wait for room and give up in time; removes go on, and what they free is enough to go on with.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_removes_go_on_and_make_room() {
    let broken = Broken::new(|config| {
        let config = config.segment_size(64 * KIB).journal_capacity(256 * KIB);
        config.store_deadline(Duration::from_millis(500)).checkpoint_after(Duration::ZERO)
    });
    let spool = broken.start().await;
    broken.disk.inject(Fault::on(Call::Create).file(".seg").always().full_disk());
    let mut stored = Vec::new();
    let refused = loop {
        let id = SpoolId::new();
        match spool.store(id, payload::shared(id, 1, LARGE), true, None).await {
            Ok(()) => stored.push(id),
            Err(err) => break err,
        }
        assert!(stored.len() < 100, "segments come from nowhere");
    };
    assert!(refused.root_cause().is::<SpoolBackpressureTimeout>(), "{refused:#}");
    for &id in &stored {
        assert_holds(spool.as_ref(), id, LARGE).await;
        spool.remove(id).await.expect("remove");
    }
    let id = SpoolId::new();
    wait::bounded("room", async {
        while spool.store(id, payload::shared(id, 1, LARGE), true, None).await.is_err() {
            spool.cleanup().await.expect("cleanup");
        }
    })
    .await;
    stop(spool).await;
    broken.assert_reopens_with(&[(id, LARGE)]).await;
}

/// Whichever call of writing the ledger fails, in whichever of a checkpoint's two writes, and in the file that then takes its place: the
/// checkpoint is made again, and nothing is lost, not even if the process dies before.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_cannot_be_written_costs_nothing() {
    let is_ledgers = |fault: Fault| {
        fault.only(|moment| {
            is_thread("tidespool-filer")
                && (moment.name.starts_with("ledger") || moment.call == Call::SyncDir)
        })
    };
    for (call, nth) in [(Call::Write, 1), (Call::Write, 2), (Call::Sync, 1), (Call::Sync, 2)] {
        for then in [None, Some(Call::Create), Some(Call::Sync), Some(Call::Rename), Some(Call::SyncDir)] {
            for dies in [false, true] {
                let what = format!("{call:?} {nth}, then {then:?}, dies: {dies}");
                let broken = Broken::new(|config| config.checkpoint_after(HOUR));
                let spool = broken.start().await;
                let mut stored = Vec::new();
                for n in 0..12 {
                    let len = if n % 2 == 0 { LARGE } else { 900 };
                    stored.push((put(spool.as_ref(), len, true).await, len));
                }
                spool.compact().await.expect("compact");
                // Of the filed ones some go, and some come.
                for (id, _) in stored.drain(..6) {
                    spool.remove(id).await.expect("remove");
                }
                stored.push((put(spool.as_ref(), LARGE, true).await, LARGE));
                // Twice: what was removed may have made the thread rewrite a segment before it is asked for anything.
                broken.disk.inject(is_ledgers(Fault::on(call)).nth(nth));
                broken.disk.inject(is_ledgers(Fault::on(call)).nth(nth + 1));
                spool.compact().await.expect_err(&what);
                if let Some(then) = then {
                    broken.disk.inject(is_ledgers(Fault::on(then)).always());
                    spool.compact().await.expect_err(&what);
                }
                for &(id, len) in &stored {
                    assert_holds(spool.as_ref(), id, len).await;
                }
                if !dies {
                    broken.disk.heal();
                    spool.compact().await.expect(&what);
                    healthy(spool.as_ref()).await;
                    stored.push((put(spool.as_ref(), 900, true).await, 900));
                    for (id, _) in stored.drain(..2) {
                        spool.remove(id).await.expect("remove");
                    }
                    spool.compact().await.expect(&what);
                }
                drop(spool);
                broken.assert_reopens_with(&stored).await;
            }
        }
    }
}

/// Segments that a failed checkpoint was to give back are given back by the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_checkpoint_leaks_no_segments() {
    for nth in 1..=6 {
        let broken = Broken::new(|config| config.checkpoint_after(HOUR).segment_size(64 * KIB));
        let spool = broken.start().await;
        let mut stored = Vec::new();
        for _ in 0..12 {
            stored.push(put(spool.as_ref(), LARGE, true).await);
        }
        spool.compact().await.expect("compact");
        assert!(spool.stats().gauges.journal_segments_retained >= 4);
        for (n, id) in stored.iter().enumerate() {
            if n % 3 != 0 {
                spool.remove(*id).await.expect("remove");
            }
        }
        broken.disk.inject(Fault::on(Call::Rename).nth(nth));
        let _ = spool.compact().await;
        broken.disk.heal();
        spool.compact().await.expect("compact");
        for id in stored.iter().step_by(3) {
            assert_holds(spool.as_ref(), *id, LARGE).await;
            spool.remove(*id).await.expect("remove");
        }
        spool.compact().await.expect("compact");
        let gauges = spool.stats().gauges;
        assert_eq!(gauges.journal_segments_retained, 0, "failure {nth}: {gauges:?}");
        stop(spool).await;
        broken.assert_reopens_with(&[]).await;
    }
}

/// A read that fails says nothing of the message: it is neither missing nor damaged. Enumerating waits until it can be told.
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
    wait::until("enumerating tries again", || broken.disk.count(Call::Read) > before + 2).await;
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

/// What the system has in memory is read without a reading thread, and what it has not, or cannot read so, on one: the message is the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_asks_the_disk_only_for_what_is_not_in_memory() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let mut stored = Vec::new();
    for n in 0..20 {
        stored.push((put(spool.as_ref(), LARGE + n, true).await, LARGE + n));
    }
    drop(spool);
    // A start with an empty cache: everything is in the journal.
    let spool = broken.start().await;
    let before = broken.disk.count(Call::Read);
    for &(id, len) in &stored[..10] {
        assert_holds(spool.as_ref(), id, len).await;
    }
    assert_eq!(broken.disk.count(Call::ReadInMemory), 10);
    // A file system that can't tell, or bytes that are not there.
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

/// A journal that is hardly larger than what is dirty comes through syncs that fail for a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_journal_comes_through_failing_syncs() {
    let broken = Broken::new(|config| {
        config
            .segment_size(64 * KIB)
            .journal_capacity(256 * KIB)
            .dirty_limit(MIB)
            .checkpoint_after(Duration::ZERO)
    });
    let spool = broken.start().await;
    let mut stored = vec![(put(spool.as_ref(), 3000, true).await, 3000)];
    for round in 0..3 {
        // A third of the syncs on the way fail.
        for nth in 1..=4 {
            broken.disk.inject(committing(Fault::on(Call::Sync)).nth(nth * 3 - round));
        }
        let mut stores = Vec::new();
        healthy(spool.as_ref()).await;
        for n in 0..40 {
            let (id, len) = (SpoolId::new(), 9000 + n);
            stores.push((id, len, begin(&spool, id, 1, len, None)));
        }
        for (id, len, store) in stores {
            match wait::bounded("a store", store).await.unwrap() {
                Ok(()) => stored.push((id, len)),
                Err(err) => assert!(err.root_cause().is::<tidespool_core::SpoolUnhealthyError>(), "{err:#}"),
            }
        }
        broken.disk.heal();
    }
    assert!(stored.len() > 10, "{}", stored.len());
    assert_eq!(broken.disk.trusted_again(), [""; 0]);
    healthy(spool.as_ref()).await;
    stop(spool).await;
    broken.assert_reopens_with(&stored).await;
}

/// A commit that fails is tried again while older versions of the same messages come due: they must not be written after it. They once were,
/// and an acknowledged store was replaced by the version before it, for good.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_never_overtakes_a_commit_that_is_tried_again() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let (stored, removed) = (SpoolId::new(), put(spool.as_ref(), 300, true).await);
    spool.store(stored, payload::shared(stored, 1, 300), false, None).await.expect("store");
    spool.remove(removed).await.expect("remove");
    broken.disk.inject(committing(Fault::on(Call::Sync)).always());
    let before = broken.disk.count(Call::Sync);
    let stores = [begin(&spool, stored, 2, 300, None), begin(&spool, removed, 2, 300, None)];
    // By then the older versions are due, too.
    wait::until("it was tried again and again", || broken.disk.count(Call::Sync) > before + 4).await;
    broken.disk.heal();
    for store in stores {
        wait::bounded("the store", store).await.unwrap().expect("it is acknowledged");
    }
    for id in [stored, removed] {
        payload::assert_is(id, 2, 300, &spool.load(id).await.expect("load"));
    }
    drop(spool);
    let spool = broken.start().await;
    for id in [stored, removed] {
        payload::assert_is(id, 2, 300, &spool.load(id).await.expect("load after a crash"));
    }
    stop(spool).await;
}

/// A message that needs a file of its own, on a disk that has no room for it, is refused; nobody waits behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_for_a_full_disk_keeps_nobody_waiting() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let small = put(spool.as_ref(), 300, true).await;
    wait::until("segments are ready", || spool.stats().gauges.journal_segments_free == 2).await;
    broken.disk.inject(Fault::on(Call::Create).file(".seg").always().full_disk());
    for force_sync in [false, true] {
        let large = SpoolId::new();
        let store = spool.store(large, payload::shared(large, 1, 1_000_000), force_sync, None);
        let err = wait::bounded("the large message", store).await.expect_err("there is no room");
        assert!(err.root_cause().is::<SpoolBackpressureTimeout>(), "{err:#}");
        assert_absent(spool.as_ref(), large).await;
    }
    let next = put(spool.as_ref(), 300, true).await;
    spool.remove(small).await.expect("remove");
    wait::until("the removal is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    assert_eq!(spool.unhealthy_reason(), None);
    drop(spool);
    broken.assert_reopens_with(&[(next, 300)]).await;
}

/// A disk that can't write the file of a message larger than a segment is broken, not full. The gate once stayed open: only the store was refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_of_a_large_messages_file_shuts_the_gate() {
    for call in [Call::Write, Call::Sync] {
        // It stays shut, so that nobody misses it.
        let broken = Broken::new(|config| {
            let health = config.health.clone().allow_unlatch(false);
            config.health(health).checkpoint_after(HOUR)
        });
        let spool = broken.start().await;
        let kept = put(spool.as_ref(), 300, true).await;
        broken.disk.inject(committing(Fault::on(call)));
        let large = SpoolId::new();
        let store = spool.store(large, payload::shared(large, 1, 1_000_000), true, None);
        let err = wait::bounded("the large message", store).await.expect_err("the disk fails");
        assert!(err.root_cause().is::<SpoolBackpressureTimeout>(), "{err:#}");
        wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
        assert_absent(spool.as_ref(), large).await;
        drop(spool);
        broken.assert_reopens_with(&[(kept, 300)]).await;
    }
}

/// A disk that is full when a spool is made gives sled's settings no room; the ballast does. What a sync of them failed for is read from the disk
/// before they are synced again: it once was taken from memory, where it may be all that there is.
#[tokio::test(flavor = "multi_thread")]
async fn what_sled_could_not_sync_while_it_was_made_is_not_trusted() {
    let broken = Broken::new(|config| config);
    broken.disk.inject(Fault::on(Call::Sync).file("conf").full_disk());
    let spool = broken.start().await;
    assert_eq!(broken.disk.trusted_again(), [""; 0]);
    let id = put(spool.as_ref(), LARGE, true).await;
    stop(spool).await;
    broken.assert_reopens_with(&[(id, LARGE)]).await;
}

/// A checkpoint that did not end leaves records in sled that the ledger does not count as filed. The opening after it counts them; the opening after the
/// next crash once took the ledger for one of an earlier time, and did not replay the segment that was filed in part.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_crash_after_a_checkpoint_that_did_not_end_costs_nothing() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let mut stored = Vec::new();
    for n in 0..24 {
        let len = if n % 2 == 0 { LARGE } else { 700 };
        stored.push((put(spool.as_ref(), len, true).await, len));
    }
    broken.disk.inject(Fault::on(Call::Sync).file("db").always());
    spool.compact().await.expect_err("sled can't be made durable");
    drop(spool);
    broken.disk.heal();
    for round in ["first", "second", "third"] {
        let spool = broken.start().await;
        assert_eq!(spool.recovery().damage, [], "the {round} time");
        for &(id, len) in &stored {
            assert_holds(spool.as_ref(), id, len).await;
        }
        // Like a crash.
        drop(spool);
    }
    broken.assert_reopens_with(&stored).await;
}

/// Without a ledger nobody says whether a segment into which sled points is filed to its end. It was taken for that once, and what a checkpoint that did not
/// end had not come to was missing.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_ledger_a_segment_that_was_filed_in_part_is_replayed() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let spool = broken.start().await;
    let mut stored = Vec::new();
    for n in 0..24 {
        let len = if n % 2 == 0 { LARGE } else { 700 };
        stored.push((put(spool.as_ref(), len, true).await, len));
    }
    // sled hears of the first of them, and not of the others: reading them fails.
    broken.disk.inject(
        Fault::on(Call::Read).only(|m| is_thread("tidespool-filer") && m.name.ends_with(".seg")).from(13),
    );
    spool.compact().await.expect_err("not all of it can be read");
    drop(spool);
    broken.disk.heal();
    std::fs::remove_file(broken.tiered.path().join("ledger")).unwrap();
    let spool = broken.start().await;
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    assert_eq!(enumerate(spool.as_ref()).await.len(), stored.len());
    assert_ne!(spool.recovery().damage, [], "the ledger is missing");
    // Like a crash.
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}
