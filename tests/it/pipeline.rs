use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidespool::{Config, TieredSpool};
use tidespool_core::{Closed, InDoubt, NotFound, Spool, SpoolEntry, SpoolId, SpoolUnhealthyError};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinHandle;

use crate::broken::{Broken, HOUR, LARGE, SLOW, begin, is_thread, queue, while_the_syncer_waits};
use crate::setup::{KIB, MIB, assert_holds, enumerate, healthy, put, stop};

/// Stores like a server: waits while the gate is shut.
async fn store_once_healthy(spool: &TieredSpool, id: SpoolId, version: u64, len: usize, synced: bool) {
    loop {
        healthy(spool).await;
        match spool.store(id, payload::shared(id, version, len), synced, None).await {
            Ok(()) => return,
            Err(err) => assert!(err.root_cause().is::<SpoolUnhealthyError>(), "{err:#}"),
        }
    }
}

/// With many callers, one batch is synced while the next is written. If either fails, at any of the
/// first batches, both are written again elsewhere, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_while_the_next_batch_is_written_is_repaired() {
    const CALLERS: u64 = 48;
    for (call, thread) in [(Call::Sync, "tide-sync"), (Call::Write, "tide-commit")] {
        for nth in [1, 2, 3, 5, 8] {
            let what = format!("{call:?} {nth}");
            let broken = Broken::new(|config| {
                config
                    .dirty_expire(HOUR)
                    .checkpoint_after(HOUR)
                    .segment_size(256 * KIB)
                    .journal_capacity(8 * MIB)
            });
            let spool = broken.start().await;
            let fails =
                move |fault: Fault| fault.only(move |m| m.name.ends_with(".seg") && is_thread(thread));
            broken.disk.inject(fails(Fault::on(call)).nth(nth));
            let ids: Vec<SpoolId> = (0..CALLERS).map(|_| SpoolId::new()).collect();
            let callers: Vec<_> = ids
                .iter()
                .map(|&id| {
                    let spool = spool.clone();
                    tokio::spawn(async move {
                        for version in 1..=3 {
                            // This dirty version is older than the next synced one.
                            store_once_healthy(&spool, id, 2 * version, LARGE, true).await;
                            store_once_healthy(&spool, id, 2 * version + 1, 700, false).await;
                        }
                        store_once_healthy(&spool, id, 8, LARGE, true).await;
                    })
                })
                .collect();
            for caller in callers {
                wait::bounded(&what, caller).await.expect(&what);
            }
            wait::until("the error is counted", || spool.stats().disk_errors() > 0).await;
            for &id in &ids {
                let data = spool.load(id).await.expect(&what);
                payload::assert_is(id, 8, LARGE, &data);
            }
            assert_eq!(broken.disk.trusted_again(), [""; 0], "{what}");
            // A drop without shutdown acts like a crash.
            drop(spool);
            broken.disk.heal();
            let spool = broken.start().await;
            assert_eq!(spool.recovery().damage, [], "{what}");
            for &id in &ids {
                let data = spool.load(id).await.expect(&what);
                payload::assert_is(id, 8, LARGE, &data);
            }
            stop(spool).await;
        }
    }
}

/// A batch at the syncer is neither acknowledged nor visible before it is durable, even if the next
/// batch is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_being_synced_is_not_acknowledged_when_the_next_is_written() {
    let broken = Broken::new(|config| {
        config.dirty_expire(HOUR).checkpoint_after(HOUR).segment_size(4 * MIB).journal_capacity(16 * MIB)
    });
    let spool = broken.start().await;
    let (ids, stores) = while_the_syncer_waits(&broken, &spool).await;
    let written = || broken.disk.count_where(Call::Write, |name| name.ends_with(".seg"));
    let before = written();
    // Enough stores to be written without waiting for the sync.
    let next: Vec<_> = (0..20).map(|_| begin(&spool, SpoolId::new(), 1, LARGE, None)).collect();
    wait::until("the next batch is written", || written() > before).await;
    // One more batch, so that any completion caused by the previous one would have happened.
    let again: Vec<_> = (0..20).map(|_| begin(&spool, SpoolId::new(), 1, LARGE, None)).collect();
    wait::until("and the one after it", || written() > before + 1).await;
    assert!(stores.iter().chain(&next).chain(&again).all(|store| !store.is_finished()));
    for &id in &ids {
        let error = spool.load(id).await.expect_err("it is not durable");
        assert!(error.root_cause().is::<NotFound>(), "{error:#}");
    }
    broken.disk.release();
    for store in stores.into_iter().chain(next).chain(again) {
        wait::bounded("a store", store).await.unwrap().expect("store");
    }
    for &id in &ids {
        assert_holds(spool.as_ref(), id, LARGE).await;
    }
    stop(spool).await;
}

/// A version that waits for the commit of an older version does not count as lack of space: no
/// segment is sealed for it. It is written as soon as the older version is durable.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_waits_for_an_older_one_seals_no_segment() {
    let broken = Broken::new(|config| config.dirty_expire(HOUR).checkpoint_after(HOUR).segment_size(MIB));
    let spool = broken.start().await;
    let (ids, stores) = while_the_syncer_waits(&broken, &spool).await;
    let id = ids[0];
    spool.store(id, payload::shared(id, 2, LARGE), false, None).await.expect("store");
    let mut flush = Box::pin(spool.advise_low_memory());
    // Requested, but not awaited.
    tokio::time::timeout(Duration::ZERO, &mut flush).await.expect_err("the disk hangs");
    broken.disk.release();
    for store in stores {
        wait::bounded("a store", store).await.unwrap().expect("store");
    }
    wait::bounded("the flush", flush).await.expect("advise_low_memory");
    assert_eq!(spool.stats().gauges.dirty_bytes, 0);
    payload::assert_is(id, 2, LARGE, &spool.load(id).await.expect("load"));
    assert_eq!(spool.stats().gauges.journal_segments_in_use, 1);
    stop(spool).await;
}

/// A flush mark that becomes due while the disk hangs does not keep the committer busy.
#[tokio::test(flavor = "multi_thread")]
async fn the_committer_does_not_spin_while_the_disk_hangs() {
    let broken = Broken::new(|config| config.dirty_expire(Duration::from_millis(10)).checkpoint_after(HOUR));
    let spool = broken.start().await;
    let thread = Arc::new(std::sync::OnceLock::new());
    let found = thread.clone();
    broken.disk.watch(move |_| {
        if is_thread("tide-commit") {
            found.get_or_init(|| std::fs::read_link("/proc/thread-self").unwrap());
        }
    });
    let (_, stores) = while_the_syncer_waits(&broken, &spool).await;
    let used = || {
        let path = std::path::Path::new("/proc").join(thread.get().unwrap()).join("schedstat");
        let text = std::fs::read_to_string(path).unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    };
    let (before, hangs) = (used(), Duration::from_secs(1));
    wait::until("it has hung for a while", || spool.stats().gauges.oldest_dirty_age > hangs).await;
    let used = used() - before;
    assert!(used < hangs / 10, "{used:?} of {hangs:?}");
    broken.disk.heal();
    for store in stores {
        wait::bounded("a store", store).await.unwrap().expect("store");
    }
    stop(spool).await;
}

/// Callers that store until they are stopped.
struct Callers {
    go_on: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    /// Two groups of callers: a slow disk syncs the stores of one group while the stores of the
    /// other are written, so a sync is always in flight.
    async fn keep_busy(broken: &Broken, spool: &Arc<TieredSpool>, sync_takes: Duration) -> Self {
        let go_on = Arc::new(AtomicBool::new(true));
        let store_on = |id, before: Option<JoinHandle<anyhow::Result<()>>>| {
            let (spool, go_on) = (spool.clone(), go_on.clone());
            tokio::spawn(async move {
                if let Some(before) = before {
                    before.await.unwrap().expect("store");
                }
                while go_on.load(Ordering::SeqCst) {
                    store_once_healthy(&spool, id, 1, 64 << 10, true).await;
                }
            })
        };
        let (ids, stores) = while_the_syncer_waits(broken, spool).await;
        let mut tasks: Vec<_> =
            ids.into_iter().zip(stores).map(|(id, store)| store_on(id, Some(store))).collect();
        let before = broken.disk.count(Call::Write);
        tasks.extend((0..8).map(|_| store_on(SpoolId::new(), None)));
        wait::until("the others are written", || broken.disk.count(Call::Write) > before).await;
        let written = AtomicU64::new(0);
        // A sync lasts until the committer has written more, or for [`SLOW`] if it has nothing to
        // write.
        broken.disk.watch(move |moment| {
            if moment.call == Call::Write && is_thread("tide-commit") {
                written.fetch_add(1, Ordering::SeqCst);
            }
            if moment.call == Call::Sync && is_thread("tide-sync") {
                let (before, until) = (written.load(Ordering::SeqCst), Instant::now() + SLOW);
                std::thread::sleep(sync_takes);
                while written.load(Ordering::SeqCst) == before && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        broken.disk.release();
        Self { go_on, tasks }
    }

    async fn stop(self, broken: &Broken) {
        self.go_on.store(false, Ordering::SeqCst);
        for task in self.tasks {
            wait::bounded("a caller", task).await.expect("a caller");
        }
        broken.disk.unwatch();
    }
}

/// Settings with space for the messages of [`Callers`].
fn roomy(config: Config) -> Config {
    config.dirty_limit(16 * MIB).segment_size(MIB).journal_capacity(16 * MIB)
}

/// A flush completes when the messages that were dirty at its start are durable, however many
/// stores follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_completes_while_stores_continue() {
    let broken = Broken::new(|config| roomy(config).dirty_expire(HOUR));
    let spool = broken.start().await;
    let callers = Callers::keep_busy(&broken, &spool, Duration::ZERO).await;
    for _ in 0..3 {
        let id = put(spool.as_ref(), 300, false).await;
        // Two syncs are enough. How many end before this task continues does not matter: none ends
        // after these.
        let syncer = |fault: Fault| fault.only(|m| m.name.ends_with(".seg") && is_thread("tide-sync"));
        broken.disk.inject(syncer(Fault::on(Call::Sync)).from(50).block());
        wait::bounded("the flush", spool.advise_low_memory()).await.expect("advise_low_memory");
        broken.disk.heal();
        assert_holds(spool.as_ref(), id, 300).await;
    }
    callers.stop(&broken).await;
    stop(spool).await;
}

/// A message is stored again and again by callers that time out. Its older version is written on
/// time, and so are the messages behind it.
#[tokio::test(flavor = "multi_thread")]
async fn callers_that_time_out_do_not_delay_an_older_version() {
    let broken = Broken::new(|config| roomy(config).dirty_expire(Duration::from_millis(200)));
    let spool = broken.start().await;
    let mut callers = Callers::keep_busy(&broken, &spool, Duration::from_millis(20)).await;
    let id = SpoolId::new();
    let give_up = |n: u64| {
        let (spool, go_on) = (spool.clone(), callers.go_on.clone());
        tokio::spawn(async move {
            while go_on.load(Ordering::SeqCst) {
                // With a deadline of its own, the store would wait a little longer for a disk that
                // has its record.
                let store = spool.store(id, payload::shared(id, 2, 100), true, None);
                let _ = tokio::time::timeout(Duration::from_millis(4 + n), store).await;
            }
        })
    };
    let impatient: Vec<_> = (0..4).map(give_up).collect();
    callers.tasks.extend(impatient);
    wait::until("they give up", || spool.stats().aborts > 3).await;
    spool.store(id, payload::shared(id, 1, 300), false, None).await.expect("store");
    let stored = Instant::now();
    let behind = put(spool.as_ref(), 300, false).await;
    wait::until("both are written", || {
        let since = stored.elapsed();
        spool.stats().gauges.oldest_dirty_age < since
    })
    .await;
    callers.stop(&broken).await;
    assert_holds(spool.as_ref(), behind, 300).await;
    stop(spool).await;
}

/// The disk pauses for longer than a shutdown waits, and then continues. Stores that had returned
/// `Err` at the shutdown's deadline were found after the restart. A sync in flight is awaited, and
/// its callers get its result.
#[tokio::test(flavor = "multi_thread")]
async fn callers_of_a_sync_in_flight_at_the_shutdown_get_its_result() {
    let broken =
        Broken::new(|config| config.checkpoint_after(HOUR).shutdown_timeout(Duration::from_millis(200)));
    let spool = broken.start().await;
    let (mut ids, mut stores) = while_the_syncer_waits(&broken, &spool).await;
    for _ in 0..56 {
        let id = SpoolId::new();
        stores.push(queue(&spool, id, 1, LARGE).await);
        ids.push(id);
    }
    wait::bounded("the shutdown", spool.shutdown()).await.expect_err("the disk hangs");
    broken.disk.heal();
    let (mut stored, mut doubted) = (Vec::new(), Vec::new());
    for (id, store) in ids.iter().zip(stores) {
        match wait::bounded("a store", store).await.unwrap() {
            Ok(()) => stored.push(*id),
            // Written after the batch that was being synced.
            Err(error) if error.is::<InDoubt>() => doubted.push(*id),
            Err(error) => assert!(error.root_cause().is::<Closed>(), "{error:#}"),
        }
    }
    assert!(!stored.is_empty(), "nothing was being synced");
    drop(spool);
    let spool = broken.start().await;
    assert_eq!(spool.recovery().damage, []);
    let found: Vec<SpoolId> = enumerate(spool.as_ref()).await.iter().map(SpoolEntry::id).collect();
    assert!(stored.iter().all(|id| found.contains(id)), "a message is lost");
    let unknown = found.iter().filter(|id| ids.contains(id) && !stored.contains(id) && !doubted.contains(id));
    assert_eq!(unknown.count(), 0, "a failed store is found");
    stop(spool).await;
}
