//! Upkeep beside the traffic: it holds up no caller, callers share it, and what a shutdown cuts
//! short is no success.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use futures_lite::future;
use parking_lot::{Condvar, Mutex};
use tidespool::{Config, TieredSpool};
use tidespool_core::{Closed, Corrupt, Spool, SpoolId};
use tidespool_testkit::faults::{Call, Fault, Moment};
use tidespool_testkit::rng::{Rng, seed_from_env};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinHandle;

use crate::broken::{Broken, HOUR, LARGE, begin_compact, committing, is_thread};
use crate::damage::flip_a_bit;
use crate::setup::{Tiered, assert_holds, put, stop};

/// Twelve of them fill a segment: where nothing was removed there is nothing to rewrite.
const PACKED: usize = 21_000;

/// Nearly a segment each: few of them fill the journal.
const HUGE: usize = 200_000;

/// Nothing is filed unless a caller asks, or stores wait for it.
fn unhurried(config: Config) -> Config {
    config.checkpoint_after(HOUR)
}

/// A read of a segment by the thread that verifies, as long as nothing is to be filed: the
/// checkpoint thread did it once.
fn is_verifying(moment: &Moment<'_>) -> bool {
    let by_thread = is_thread("tidespool-check") || is_thread("tidespool-filer");
    moment.call == Call::Read && moment.name.ends_with(".seg") && by_thread
}

/// The next read of a verification hangs.
fn hang_verifying(broken: &Broken) {
    broken.disk.inject(Fault::on(Call::Read).only(is_verifying).block());
}

/// Counts the reads of verifications from now on.
fn count_verifying(broken: &Broken) -> Arc<AtomicU64> {
    let reads = Arc::<AtomicU64>::default();
    let counted = reads.clone();
    broken.disk.watch(move |moment| {
        counted.fetch_add(u64::from(is_verifying(moment)), Ordering::Relaxed);
    });
    reads
}

/// Messages in retained segments, in the order of their keys: all is filed, and nothing is dead.
/// `count`: up to twelve, or a multiple of it.
async fn filed(spool: &TieredSpool, count: usize) -> Vec<(SpoolId, usize)> {
    let mut stored = Vec::new();
    for _ in 0..count {
        stored.push((put(spool, PACKED, true).await, PACKED));
    }
    spool.compact().await.expect("compact");
    stored.sort_by_key(|(id, _)| id.created());
    stored
}

fn begin_shutdown(spool: &Arc<TieredSpool>) -> JoinHandle<Result<()>> {
    let spool = spool.clone();
    tokio::spawn(async move { spool.shutdown().await })
}

async fn closed(spool: &TieredSpool) {
    let config = Config::clone(&spool.config());
    wait::until("the spool closes", || spool.reconfigure(config.clone()).is_err()).await;
}

fn assert_closed<T: std::fmt::Debug>(what: &str, result: Result<T>) {
    let error = result.expect_err(what);
    assert!(error.root_cause().is::<Closed>(), "{what}: {error:#}");
}

/// `compact` verified every byte on the checkpoint thread, which filed nothing meanwhile: the
/// journal ran full, the gate shut, and stores waited for as long as the verification took. So did
/// each `cleanup`.
#[tokio::test(flavor = "multi_thread")]
async fn stores_and_cleanups_do_not_wait_for_a_verification() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    let mut stored = filed(&spool, 48).await;
    hang_verifying(&broken);
    let compaction = begin_compact(&spool);
    wait::until("the verification hangs", || broken.disk.blocked() == 1).await;
    // More than twice what the journal holds.
    for _ in 0..80 {
        stored.push((put(spool.as_ref(), HUGE, true).await, HUGE));
    }
    let (gone, left) = stored.split_at(30);
    for (id, _) in gone {
        spool.remove(*id).await.expect("remove");
    }
    wait::bounded("cleaning up", spool.cleanup()).await.expect("cleanup");
    assert_eq!(broken.disk.blocked(), 1, "the verification went on");
    assert!(!compaction.is_finished());
    broken.disk.heal();
    wait::bounded("compacting", compaction).await.unwrap().expect("nothing is damaged");
    for &(id, len) in left {
        assert_holds(spool.as_ref(), id, len).await;
    }
    stop(spool).await;
    broken.assert_reopens_with(left).await;
}

/// While bytes are verified others are moved, removed and replaced. A message that is not where it
/// was is not damaged; and one that was moved is to be read where it is now: if its bytes are
/// damaged there, they are.
#[tokio::test(flavor = "multi_thread")]
async fn what_moves_during_a_verification_is_read_where_it_is_then() {
    for is_damaged in [false, true] {
        let broken = Broken::new(|config| config.checkpoint_after(Duration::ZERO));
        let spool = broken.start().await;
        let stored = filed(&spool, 60).await;
        hang_verifying(&broken);
        let compaction = begin_compact(&spool);
        wait::until("the verification hangs", || broken.disk.blocked() == 1).await;
        let rewritten = spool.stats().segments_rewritten;
        for (n, (id, _)) in stored.iter().enumerate() {
            match n % 4 {
                0 | 1 => spool.remove(*id).await.expect("remove"),
                2 => {
                    let data = payload::shared(*id, 1, PACKED);
                    spool.store(*id, data, true, None).await.expect("store");
                }
                _ => {}
            }
        }
        while spool.stats().segments_rewritten == rewritten {
            wait::bounded("cleaning up", spool.cleanup()).await.expect("cleanup");
        }
        let (damaged, len) = stored[59];
        if is_damaged {
            flip_a_bit(&broken.tiered.path(), damaged, len, len / 2);
        }
        broken.disk.heal();
        let compacted = wait::bounded("compacting", compaction).await.unwrap();
        if is_damaged {
            let error = compacted.expect_err("a message is damaged");
            let corrupt = error.root_cause().downcast_ref::<Corrupt>().unwrap_or_else(|| panic!("{error:#}"));
            assert_eq!(corrupt.id, damaged);
            assert!(error.to_string().contains("found 1 damaged"), "{error:#}");
        } else {
            compacted.expect("nothing is damaged");
        }
        assert_eq!(spool.stats().corrupt, u64::from(is_damaged));
        stop(spool).await;
    }
}

/// Lets the disk make one of its hanging calls after the other, until the spool is shut down.
async fn shut_down_step_by_step(broken: &Broken, spool: &Arc<TieredSpool>) {
    let shutdown = begin_shutdown(spool);
    closed(spool).await;
    wait::until("the shutdown ends", || {
        broken.disk.release();
        shutdown.is_finished()
    })
    .await;
    shutdown.await.unwrap().expect("nothing hangs for good");
}

/// A shutdown ended the verification, and `compact` returned `Ok`, as if everything had been read.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_a_shutdown_cuts_short_is_no_success() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    let stored = filed(&spool, 144).await;
    broken.disk.inject(Fault::on(Call::Read).only(is_verifying).always().block());
    let compaction = begin_compact(&spool);
    wait::until("the verification hangs", || broken.disk.blocked() == 1).await;
    shut_down_step_by_step(&broken, &spool).await;
    assert_closed("compacting", wait::bounded("compacting", compaction).await.unwrap());
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// The same of filing, for both calls: `Ok` is for those of which everything is filed.
#[tokio::test(flavor = "multi_thread")]
async fn filing_that_a_shutdown_cuts_short_is_no_success() {
    for compact in [false, true] {
        let broken = Broken::new(unhurried);
        let spool = broken.start().await;
        let mut stored = Vec::new();
        for _ in 0..20 {
            stored.push((put(spool.as_ref(), HUGE, true).await, HUGE));
        }
        let in_ledger =
            |moment: &Moment<'_>| is_thread("tidespool-filer") && moment.name.starts_with("ledger");
        broken.disk.inject(Fault::on(Call::Sync).only(in_ledger).always().block());
        if !compact {
            let config = Config::clone(&spool.config()).checkpoint_after(Duration::ZERO);
            spool.reconfigure(config).expect("reconfigure");
        }
        let upkeep = {
            let spool = spool.clone();
            tokio::spawn(async move { if compact { spool.compact().await } else { spool.cleanup().await } })
        };
        wait::until("the checkpoint hangs", || broken.disk.blocked() == 1).await;
        shut_down_step_by_step(&broken, &spool).await;
        let result = wait::bounded("the upkeep", upkeep).await.unwrap();
        drop(spool);
        broken.disk.heal();
        let spool = broken.start().await;
        if result.is_ok() {
            assert_eq!(spool.recovery().records, 0, "not everything was filed");
        } else {
            assert_closed("the upkeep", result);
        }
        stop(spool).await;
        broken.assert_reopens_with(&stored).await;
    }
}

/// A shutdown ended the flush that `advise_low_memory` waited for, and the call returned `Ok`.
#[tokio::test(flavor = "multi_thread")]
async fn advice_that_a_shutdown_cuts_short_is_no_success() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let dirty = put(spool.as_ref(), LARGE, false).await;
    let mut advice = spool.advise_low_memory();
    wait::until("the flush hangs", || broken.disk.blocked() == 1).await;
    assert!(future::poll_once(&mut advice).await.is_none());
    let shutdown = begin_shutdown(&spool);
    closed(&spool).await;
    assert_closed("advise_low_memory", wait::bounded("advise_low_memory", advice).await);
    broken.disk.heal();
    wait::bounded("the shutdown", shutdown).await.unwrap().expect("nothing hangs any more");
    drop(spool);
    broken.assert_reopens_with(&[(dirty, LARGE)]).await;
}

/// Each of the callers had a verification of its own, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_while_a_compaction_runs_shares_the_next() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    let stored = filed(&spool, 10).await;
    let reads = count_verifying(&broken);
    hang_verifying(&broken);
    let first = begin_compact(&spool);
    wait::until("the verification hangs", || broken.disk.blocked() == 1).await;
    let mut others: Vec<_> = (0..9).map(|_| spool.compact()).collect();
    for other in &mut others {
        assert!(future::poll_once(other).await.is_none());
    }
    broken.disk.heal();
    wait::bounded("compacting", first).await.unwrap().expect("compact");
    for other in others {
        wait::bounded("compacting", other).await.expect("compact");
    }
    assert_eq!(reads.load(Ordering::Relaxed), 2 * stored.len() as u64);
    stop(spool).await;
}

/// Compactions that their callers had given up ran to their end, one after the other: a `cleanup`
/// after ten of them waited for all their reading.
#[tokio::test(flavor = "multi_thread")]
async fn compactions_that_nobody_waits_for_end_soon() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    let stored = filed(&spool, 10).await;
    let reads = count_verifying(&broken);
    broken.disk.inject(Fault::on(Call::Read).only(is_verifying).always().block());
    let first = begin_compact(&spool);
    wait::until("the verification hangs", || broken.disk.blocked() == 1).await;
    first.abort();
    for _ in 0..9 {
        let given_up = tokio::time::timeout(Duration::from_millis(20), spool.compact()).await;
        given_up.expect_err("the disk hangs");
    }
    broken.disk.heal();
    wait::bounded("cleaning up", spool.cleanup()).await.expect("cleanup");
    wait::bounded("compacting", spool.compact()).await.expect("compact");
    assert_eq!(reads.load(Ordering::Relaxed), 1 + stored.len() as u64, "the one that hung, and the last run");
    stop(spool).await;
}

/// Holds calls of the disk back, until it is opened.
#[derive(Default)]
struct Barrier {
    /// Whether it is open, and how many calls it holds.
    state: Mutex<(bool, usize)>,
    opened: Condvar,
}

impl Barrier {
    fn pass(&self) {
        let mut state = self.state.lock();
        state.1 += 1;
        self.opened.wait_while(&mut state, |(is_open, _)| !*is_open);
    }

    fn holds(&self) -> usize {
        self.state.lock().1
    }

    fn open(&self) {
        self.state.lock().0 = true;
        self.opened.notify_all();
    }
}

/// A call that was with the disk when the spool was closed, and then failed there, came back with
/// an error of the disk. For its caller that looks like a broken disk: after a shutdown it expects
/// `Closed`.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_in_a_spool_that_is_closing_is_closed() {
    type Begin = fn(Arc<TieredSpool>, SpoolId) -> JoinHandle<Result<()>>;
    type Where = fn(&Moment<'_>) -> bool;
    let load: Begin = |spool, id| tokio::spawn(async move { spool.load(id).await.map(drop) });
    let cleanup: Begin = |spool, _| tokio::spawn(async move { spool.cleanup().await });
    let compact: Begin = |spool, _| tokio::spawn(async move { spool.compact().await });
    let reading: Where =
        |m| m.call == Call::Read && m.name.ends_with(".seg") && is_thread("tidespool-read-0");
    let filing: Where =
        |m| m.call == Call::Sync && m.name.starts_with("ledger") && is_thread("tidespool-filer");
    let at_once = Some(Duration::ZERO);
    let cases = [
        ("load", load, reading, None),
        ("cleanup", cleanup, filing, at_once),
        ("compact, filing", compact, filing, Some(HOUR)),
        ("compact, verifying", compact, is_verifying as Where, None),
    ];
    for (what, begin, is_here, to_file) in cases {
        let broken = Broken::new(|config| unhurried(config).read_threads(1));
        let spool = broken.start().await;
        let stored = filed(&spool, 3).await;
        spool.advise_low_memory().await.expect("advise_low_memory");
        if let Some(checkpoint_after) = to_file {
            put(spool.as_ref(), LARGE, true).await;
            let config = Config::clone(&spool.config()).checkpoint_after(checkpoint_after);
            spool.reconfigure(config).expect("reconfigure");
        }
        let barrier = Arc::<Barrier>::default();
        let held = barrier.clone();
        broken.disk.watch(move |moment| {
            if is_here(moment) {
                held.pass();
            }
        });
        broken.disk.inject(Fault::on_any().only(is_here).always());
        let call = begin(spool.clone(), stored[0].0);
        wait::until("the call is with the disk", || barrier.holds() == 1).await;
        let shutdown = begin_shutdown(&spool);
        closed(&spool).await;
        barrier.open();
        assert_closed(what, wait::bounded(what, call).await.unwrap());
        wait::bounded("the shutdown", shutdown).await.unwrap().expect("nothing hangs");
    }
}

/// Calls one after the other, until one fails. Returns the error.
async fn until_it_fails<F: Future<Output = Result<()>>>(mut call: impl FnMut() -> F) -> anyhow::Error {
    loop {
        if let Err(error) = call().await {
            return error;
        }
        tokio::task::yield_now().await;
    }
}

/// What there is to call, again and again until it fails, each with its name.
fn callers(spool: &Arc<TieredSpool>, kept: SpoolId) -> Vec<(&'static str, JoinHandle<anyhow::Error>)> {
    let mut callers = Vec::new();
    macro_rules! caller {
        ($what:literal, $spool:ident => $call:expr) => {
            let spool = spool.clone();
            let call = move || {
                let $spool = spool.clone();
                async move { $call }
            };
            callers.push(($what, tokio::spawn(until_it_fails(call))));
        };
    }
    caller!("cleanup", spool => spool.cleanup().await);
    caller!("another cleanup", spool => spool.cleanup().await);
    caller!("compact", spool => spool.compact().await);
    caller!("another compact", spool => spool.compact().await);
    caller!("advise_low_memory", spool => spool.advise_low_memory().await.map(drop));
    caller!("load", spool => spool.load(kept).await.map(drop));
    caller!("remove", spool => spool.remove(SpoolId::new()).await);
    caller!("enumerate", spool => {
        let (sender, receiver) = async_channel::bounded(4);
        let begun = spool.enumerate(sender, DateTime::<Utc>::MAX_UTC);
        while receiver.recv().await.is_ok() {}
        begun
    });
    for force_sync in [false, true] {
        caller!("store", spool => {
            let id = SpoolId::new();
            spool.store(id, payload::shared(id, 1, LARGE), force_sync, None).await?;
            spool.remove(id).await
        });
    }
    callers
}

/// Each call that races a shutdown may fail with `Closed`, and with nothing else.
/// `TIDESPOOL_UPKEEP_SEED` repeats the moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_that_race_a_shutdown_fail_with_closed() {
    let seed = seed_from_env("TIDESPOOL_UPKEEP_SEED");
    println!("TIDESPOOL_UPKEEP_SEED={seed}");
    let mut rng = Rng::new(seed);
    for round in 0..30 {
        let tiered = Tiered::new(|config| config.checkpoint_after(Duration::from_millis(1)));
        let spool = tiered.start().await;
        let kept = filed(&spool, 5).await;
        spool.advise_low_memory().await.expect("advise_low_memory");
        let callers = callers(&spool, kept[0].0);
        tokio::time::sleep(Duration::from_micros(rng.below(20_000))).await;
        wait::bounded("the shutdown", spool.shutdown()).await.expect("shutdown");
        for (what, caller) in callers {
            let error = wait::bounded(what, caller).await.unwrap();
            assert!(error.root_cause().is::<Closed>(), "{what} in round {round}: {error:?}");
        }
    }
}
