//! Upkeep beside the traffic. It blocks no caller, callers share a run, and a run that a shutdown
//! interrupts does not return `Ok`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use futures_lite::future;
use parking_lot::{Condvar, Mutex};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool::{Config, TieredSpool};
use tidespool_core::{Closed, Corrupt, Spool, SpoolId};
use tidespool_testkit::env::seed_from_env;
use tidespool_testkit::faults::{Call, Fault, Moment};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinHandle;

use crate::broken::{Broken, HOUR, LARGE, begin_compact, committing, is_thread};
use crate::damage::flip_a_bit;
use crate::setup::{Tiered, assert_holds, put, stop};

/// Length in bytes. Twelve of these fill a segment, so without removals nothing is rewritten.
const PACKED: usize = 21_000;

/// Length in bytes. Nearly a segment each: few of these fill the journal.
const HUGE: usize = 200_000;

/// Nothing is checkpointed unless a caller asks for it or stores wait for it.
fn unhurried(config: Config) -> Config {
    config.checkpoint_after(HOUR)
}

/// A read of a segment for a verification, if nothing is to be checkpointed. Includes reads of the
/// checkpoint thread, to detect a verification there.
fn is_verifying(moment: &Moment<'_>) -> bool {
    let by_thread = is_thread("tide-verify") || is_thread("tide-checkpoint");
    moment.call == Call::Read && moment.name.ends_with(".seg") && by_thread
}

/// Makes the next read of a verification hang.
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

/// Stores messages in retained segments, sorted by creation time: all are checkpointed, and none is
/// removed. `count` is at most twelve, or a multiple of it.
async fn store_checkpointed(spool: &TieredSpool, count: usize) -> Vec<(SpoolId, usize)> {
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

async fn wait_until_closed(spool: &TieredSpool) {
    let config = Config::clone(&spool.config());
    wait::until("the spool closes", || spool.reconfigure(config.clone()).is_err()).await;
}

fn assert_closed<T: std::fmt::Debug>(what: &str, result: Result<T>) {
    let error = result.expect_err(what);
    assert!(error.root_cause().is::<Closed>(), "{what}: {error:#}");
}

/// `compact` verified every byte on the checkpoint thread, which made no checkpoint meanwhile. The
/// journal filled up, the gate shut, and stores and each `cleanup` waited for the verification.
#[tokio::test(flavor = "multi_thread")]
async fn stores_and_cleanups_do_not_wait_for_a_verification() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    let mut stored = store_checkpointed(&spool, 48).await;
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
    assert_eq!(broken.disk.blocked(), 1, "the verification continued");
    assert!(!compaction.is_finished());
    broken.disk.heal();
    wait::bounded("compacting", compaction).await.unwrap().expect("nothing is damaged");
    for &(id, len) in left {
        assert_holds(spool.as_ref(), id, len).await;
    }
    stop(spool).await;
    broken.assert_reopens_with(left).await;
}

/// During a verification, other messages are moved, removed and replaced. A message that was moved
/// away is not damaged. It is verified at its new place, and damage there is reported.
#[tokio::test(flavor = "multi_thread")]
async fn what_moves_during_a_verification_is_read_where_it_is_then() {
    for is_damaged in [false, true] {
        let broken = Broken::new(|config| config.checkpoint_after(Duration::ZERO));
        let spool = broken.start().await;
        let stored = store_checkpointed(&spool, 60).await;
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

/// Shuts down and releases the hanging calls of the disk one by one.
async fn shut_down_step_by_step(broken: &Broken, spool: &Arc<TieredSpool>) {
    let shutdown = begin_shutdown(spool);
    wait_until_closed(spool).await;
    wait::until("the shutdown ends", || {
        broken.disk.release();
        shutdown.is_finished()
    })
    .await;
    shutdown.await.unwrap().expect("every call was released");
}

/// A shutdown ended the verification, and `compact` returned `Ok` without having read everything.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_verification_is_not_a_success() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    let stored = store_checkpointed(&spool, 144).await;
    broken.disk.inject(Fault::on(Call::Read).only(is_verifying).always().block());
    let compaction = begin_compact(&spool);
    wait::until("the verification hangs", || broken.disk.blocked() == 1).await;
    shut_down_step_by_step(&broken, &spool).await;
    assert_closed("compacting", wait::bounded("compacting", compaction).await.unwrap());
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}

/// A checkpoint is interrupted, for both calls. `Ok` means that everything is checkpointed.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_checkpoint_is_not_a_success() {
    for compact in [false, true] {
        let broken = Broken::new(unhurried);
        let spool = broken.start().await;
        let mut stored = Vec::new();
        for _ in 0..20 {
            stored.push((put(spool.as_ref(), HUGE, true).await, HUGE));
        }
        let in_manifest =
            |moment: &Moment<'_>| is_thread("tide-checkpoint") && moment.name.starts_with("manifest");
        broken.disk.inject(Fault::on(Call::Sync).only(in_manifest).always().block());
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
            assert_eq!(spool.recovery().records, 0, "not everything was checkpointed");
        } else {
            assert_closed("the upkeep", result);
        }
        stop(spool).await;
        broken.assert_reopens_with(&stored).await;
    }
}

/// A shutdown ended the flush that `advise_low_memory` waited for, and the call returned `Ok`.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_flush_is_not_a_success() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let dirty = put(spool.as_ref(), LARGE, false).await;
    let mut flush = spool.advise_low_memory();
    wait::until("the flush hangs", || broken.disk.blocked() == 1).await;
    assert!(future::poll_once(&mut flush).await.is_none());
    let shutdown = begin_shutdown(&spool);
    wait_until_closed(&spool).await;
    assert_closed("advise_low_memory", wait::bounded("advise_low_memory", flush).await);
    broken.disk.heal();
    wait::bounded("the shutdown", shutdown).await.unwrap().expect("the disk works again");
    drop(spool);
    broken.assert_reopens_with(&[(dirty, LARGE)]).await;
}

/// Each concurrent caller had a verification of its own, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn callers_during_a_compaction_share_the_next_one() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    let stored = store_checkpointed(&spool, 10).await;
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

/// Compactions whose futures were dropped still ran to their end, one after the other. A `cleanup`
/// after ten of them waited for all their reads.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_compactions_end_soon() {
    let broken = Broken::new(unhurried);
    let spool = broken.start().await;
    let stored = store_checkpointed(&spool, 10).await;
    let reads = count_verifying(&broken);
    broken.disk.inject(Fault::on(Call::Read).only(is_verifying).always().block());
    let first = begin_compact(&spool);
    wait::until("the verification hangs", || broken.disk.blocked() == 1).await;
    first.abort();
    for _ in 0..9 {
        let timed_out = tokio::time::timeout(Duration::from_millis(20), spool.compact()).await;
        timed_out.expect_err("the disk hangs");
    }
    broken.disk.heal();
    wait::bounded("cleaning up", spool.cleanup()).await.expect("cleanup");
    wait::bounded("compacting", spool.compact()).await.expect("compact");
    assert_eq!(
        reads.load(Ordering::Relaxed),
        1 + stored.len() as u64,
        "one read for the run that hung, and one for each message of the last run"
    );
    stop(spool).await;
}

/// Blocks calls of the disk until it is opened.
#[derive(Default)]
struct Barrier {
    /// Whether it is open, and the number of calls it has held.
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

/// A call was at the disk when the spool was closed, and failed there. Its caller got a disk error,
/// which looks like a broken disk. After a shutdown, callers expect `Closed`.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_in_a_closing_spool_returns_closed() {
    type Begin = fn(Arc<TieredSpool>, SpoolId) -> JoinHandle<Result<()>>;
    type Where = fn(&Moment<'_>) -> bool;
    let load: Begin = |spool, id| tokio::spawn(async move { spool.load(id).await.map(drop) });
    let cleanup: Begin = |spool, _| tokio::spawn(async move { spool.cleanup().await });
    let compact: Begin = |spool, _| tokio::spawn(async move { spool.compact().await });
    let reading: Where = |m| m.call == Call::Read && m.name.ends_with(".seg") && is_thread("tide-read-0");
    let checkpointing: Where =
        |m| m.call == Call::Sync && m.name.starts_with("manifest") && is_thread("tide-checkpoint");
    let at_once = Some(Duration::ZERO);
    let cases = [
        ("load", load, reading, None),
        ("cleanup", cleanup, checkpointing, at_once),
        ("compact, checkpointing", compact, checkpointing, Some(HOUR)),
        ("compact, verifying", compact, is_verifying as Where, None),
    ];
    for (what, begin, is_here, checkpoint_after_setting) in cases {
        let broken = Broken::new(|config| unhurried(config).read_threads(1));
        let spool = broken.start().await;
        let stored = store_checkpointed(&spool, 3).await;
        spool.advise_low_memory().await.expect("advise_low_memory");
        if let Some(checkpoint_after) = checkpoint_after_setting {
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
        wait::until("the call is at the disk", || barrier.holds() == 1).await;
        let shutdown = begin_shutdown(&spool);
        wait_until_closed(&spool).await;
        barrier.open();
        assert_closed(what, wait::bounded(what, call).await.unwrap());
        wait::bounded("the shutdown", shutdown).await.unwrap().expect("nothing hangs");
    }
}

/// Repeats a call until it fails. Returns the error.
async fn until_it_fails<F: Future<Output = Result<()>>>(mut call: impl FnMut() -> F) -> anyhow::Error {
    loop {
        if let Err(error) = call().await {
            return error;
        }
        tokio::task::yield_now().await;
    }
}

/// Spawns all calls, each repeated until it fails. Returns them with their names.
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

/// Calls that race a shutdown may fail with `Closed` only. `TIDESPOOL_UPKEEP_SEED` repeats the
/// timing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_that_race_a_shutdown_fail_with_closed() {
    let seed = seed_from_env("TIDESPOOL_UPKEEP_SEED");
    println!("TIDESPOOL_UPKEEP_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for round in 0..30 {
        let tiered = Tiered::new(|config| config.checkpoint_after(Duration::from_millis(1)));
        let spool = tiered.start().await;
        let kept = store_checkpointed(&spool, 5).await;
        spool.advise_low_memory().await.expect("advise_low_memory");
        let callers = callers(&spool, kept[0].0);
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..20_000))).await;
        wait::bounded("the shutdown", spool.shutdown()).await.expect("shutdown");
        for (what, caller) in callers {
            let error = wait::bounded(what, caller).await.unwrap();
            assert!(error.root_cause().is::<Closed>(), "{what} in round {round}: {error:?}");
        }
    }
}
