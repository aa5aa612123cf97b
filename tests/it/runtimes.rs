//! Callers on any executor, or without one.

use std::future::Future;
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use tidespool::{Config, Durability, PressureConfig, PressureMonitor, TieredSpool};
use tidespool_core::{
    Closed, Spool, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolEntry, SpoolId,
};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::payload;
use tokio::runtime::{Builder, Runtime};

use crate::broken::{Broken, HOUR, LARGE, committing};
use crate::setup::{MIB, Tiered, assert_absent, assert_holds, enumerate, put};

/// The executor that runs a caller's futures.
#[derive(Debug, Clone, Copy)]
enum Executor {
    /// `block_on` of another crate: no tokio runtime at all.
    NoRuntime,
    /// A tokio runtime of one thread that was built without `enable_time`.
    WithoutTime,
    /// The runtime that `#[tokio::main]` creates.
    Main,
}

impl Executor {
    const ALL: [Self; 3] = [Self::NoRuntime, Self::WithoutTime, Self::Main];

    fn run<T>(self, future: impl Future<Output = T>) -> T {
        match self {
            Self::NoRuntime => block_on(future),
            Self::WithoutTime => Builder::new_current_thread().build().unwrap().block_on(future),
            Self::Main => Builder::new_multi_thread().enable_all().build().unwrap().block_on(future),
        }
    }
}

/// `open` and `shutdown` called `tokio::task::spawn_blocking`, and each store that waited created a
/// tokio timer. The caller panicked unless it was in a tokio runtime with a time driver.
#[test]
fn every_call_works_on_every_executor() {
    for executor in Executor::ALL {
        for durability in [Durability::Memory, Durability::Process, Durability::Synced] {
            let tiered = Tiered::with(durability);
            executor.run(call_everything(&tiered.config));
        }
    }
}

async fn call_everything(config: &Config) {
    let monitor = PressureMonitor::start(PressureConfig::default().memory_limit(1 << 40)).unwrap();
    let spool = TieredSpool::open_watched(config.clone(), &monitor).await.expect("open_watched");
    let (small, large) = (put(&spool, 100, false).await, put(&spool, LARGE, true).await);
    let own_segment = put(&spool, 300_000, false).await;
    let removed = put(&spool, 100, true).await;
    spool.remove(removed).await.expect("remove");
    let deadline = Some(Instant::now() + HOUR);
    spool.store(small, payload::shared(small, 1, 200), true, deadline).await.expect("store with a deadline");
    spool.cleanup().await.expect("cleanup");
    spool.compact().await.expect("compact");
    spool.advise_low_memory().await.expect("advise_low_memory");
    // Everything is checkpointed and nothing is cached: these loads read the disk.
    for (id, len) in [(small, 200), (large, LARGE), (own_segment, 300_000)] {
        assert_holds(&spool, id, len).await;
    }
    assert_absent(&spool, removed).await;
    assert_eq!(enumerate(&spool).await.len(), 3);
    spool.reconfigure(Config::clone(&spool.config()).dirty_limit(2 * MIB)).expect("reconfigure");
    assert_eq!(*spool.health_changes().borrow(), None);
    let refused = TieredSpool::open(config.clone()).await.expect_err("it is open");
    assert!(refused.root_cause().is::<tidespool_core::Locked>(), "{refused:#}");
    spool.shutdown().await.expect("shutdown");
    spool.shutdown().await.expect("the second shutdown");
    let late = spool.store(small, payload::shared(small, 1, 1), true, None).await.unwrap_err();
    assert!(late.root_cause().is::<Closed>(), "{late:#}");
    drop(spool);

    let spool = TieredSpool::open(config.clone()).await.expect("open");
    assert_holds(&spool, large, LARGE).await;
    drop(spool);
    monitor.shutdown();
}

/// A deadline needs a thread with a timer. It ends the wait for the disk, for space, and for a
/// flush.
#[test]
fn deadlines_are_kept_on_every_executor() {
    let soon = Duration::from_millis(50);
    for executor in Executor::ALL {
        let broken = Broken::new(|config| config.store_deadline(soon).dirty_limit(MIB));
        executor.run(async {
            let spool = broken.start().await;
            broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
            let id = SpoolId::new();
            let by_spool = spool.store(id, payload::shared(id, 1, 100), true, None).await.unwrap_err();
            assert!(by_spool.root_cause().is::<SpoolBackpressureTimeout>(), "{executor:?}: {by_spool:#}");
            let deadline = Instant::now() + soon / 5;
            let by_caller =
                spool.store(id, payload::shared(id, 1, 100), true, Some(deadline)).await.unwrap_err();
            assert!(
                by_caller.root_cause().is::<SpoolCallerDeadlineExceeded>(),
                "{executor:?}: {by_caller:#}"
            );
            assert!(Instant::now() >= deadline, "not before it passes");
            assert_absent(spool.as_ref(), id).await;
            let mut stored = 0;
            let no_room = loop {
                let id = SpoolId::new();
                match spool.store(id, payload::shared(id, 1, 100_000), false, None).await {
                    Ok(()) => stored += 1,
                    Err(error) => break error,
                }
                assert!(stored < 20, "{executor:?}: the disk hangs, and there is space for ten");
            };
            assert!(no_room.root_cause().is::<SpoolBackpressureTimeout>(), "{executor:?}: {no_room:#}");
            spool.advise_low_memory().await.expect("advise_low_memory");
            let timed_out = spool.compact().await.expect_err("the disk hangs");
            assert!(timed_out.root_cause().is::<std::io::Error>(), "{executor:?}: {timed_out:#}");
            broken.disk.heal();
            spool.shutdown().await.expect("shutdown");
        });
    }
}

/// The pacer's timer admits the delayed store, not another caller: only one caller stores here.
#[test]
fn a_paced_store_is_admitted_on_every_executor() {
    for executor in Executor::ALL {
        let tiered = Tiered::new(|config| config.dirty_limit(MIB));
        executor.run(async {
            let spool = tiered.start().await;
            let mut stored = Vec::new();
            for _ in 0..100 {
                stored.push(put(spool.as_ref(), 60_000, false).await);
            }
            for id in stored {
                assert_holds(spool.as_ref(), id, 60_000).await;
            }
            spool.shutdown().await.expect("shutdown");
        });
    }
}

/// A runtime that ends drops its futures at any point. The work that they started continues
/// elsewhere.
#[test]
fn a_runtime_that_ends_leaves_the_spool_intact() {
    for time in [false, true] {
        let broken = Broken::new(|config| config.dirty_limit(MIB));
        let runtime = runtime(time);
        let spool = runtime.block_on(broken.start());
        let kept = runtime.block_on(put(spool.as_ref(), LARGE, true));
        broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
        // Some stores wait for the disk, and later ones for space.
        let ids: Vec<SpoolId> = (0..40).map(|_| SpoolId::new()).collect();
        for id in ids.clone() {
            let spool = spool.clone();
            runtime.spawn(async move { spool.store(id, payload::shared(id, 1, 100_000), true, None).await });
        }
        let (compacting, advising) = (spool.clone(), spool.clone());
        runtime.spawn(async move { compacting.compact().await });
        runtime.spawn(async move { advising.advise_low_memory().await });
        wait_until("stores wait for the disk", || broken.disk.blocked() > 0);
        runtime.shutdown_background();
        broken.disk.heal();

        block_on(spool.compact()).expect("compact");
        wait_until("all space is free", || spool.stats().gauges.dirty_bytes == 0);
        let after = block_on(put(spool.as_ref(), 900_000, false));
        block_on(async {
            assert_holds(spool.as_ref(), kept, LARGE).await;
            assert_holds(spool.as_ref(), after, 900_000).await;
            for id in ids {
                if let Ok(data) = spool.load(id).await {
                    payload::assert_is(id, 1, 100_000, &data);
                }
            }
        });
        block_on(spool.shutdown()).expect("shutdown");
    }
}

/// A runtime ends during an opening or a shutdown. The directory is free afterwards, and all
/// messages are present.
#[test]
fn an_opening_and_a_shutdown_outlive_their_runtime() {
    let tiered = Tiered::with(Durability::Memory);
    let id = block_on(async {
        let spool = tiered.start().await;
        let id = put(spool.as_ref(), LARGE, false).await;
        spool.shutdown().await.expect("shutdown");
        id
    });
    for _ in 0..10 {
        let (ending, config) = (runtime(true), tiered.config.clone());
        ending.spawn(async move { TieredSpool::open(config).await.map(drop) });
        ending.shutdown_background();
        let spool = block_on(tiered.start());
        let (ending, closing) = (runtime(false), spool.clone());
        ending.spawn(async move { closing.shutdown().await });
        ending.shutdown_background();
        block_on(spool.shutdown()).expect("shutdown");
        drop(spool);
        let spool = block_on(tiered.start());
        block_on(assert_holds(spool.as_ref(), id, LARGE));
        block_on(spool.shutdown()).expect("shutdown");
    }
}

/// An enumeration has its own thread: it needs no runtime, and ends when its receiver is dropped.
#[test]
fn an_enumeration_needs_no_runtime() {
    let tiered = Tiered::with(Durability::Memory);
    let spool = block_on(tiered.start());
    for _ in 0..100 {
        block_on(put(spool.as_ref(), 100, false));
    }
    let (sender, receiver) = async_channel::bounded(1);
    spool.enumerate(sender, chrono::DateTime::<chrono::Utc>::MAX_UTC).expect("enumerate");
    let reading = thread::spawn(move || {
        (0..50).map(|_| receiver.recv_blocking().unwrap()).collect::<Vec<SpoolEntry>>().len()
    });
    assert_eq!(reading.join().unwrap(), 50);
    block_on(spool.shutdown()).expect("shutdown");
}

fn runtime(time: bool) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2);
    if time {
        builder.enable_time();
    }
    builder.build().unwrap()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < tidespool_testkit::wait::PATIENCE, "{what}: timed out");
        thread::yield_now();
    }
}
