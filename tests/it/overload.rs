use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_lite::future::{or, poll_once};
use tidespool::{Config, TieredSpool};
use tidespool_core::{Spool, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::{payload, wait};
use tokio::task::JoinSet;

use crate::broken::{Broken, HOUR, committing};
use crate::setup::{KIB, MIB, Tiered, assert_holds, put, stop};

const MESSAGE: usize = 64 * 1024;

const TOO_SOON: Duration = Duration::from_secs(4);

type Store = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Little space, which only commits free.
fn narrow(config: Config) -> Config {
    config.dirty_limit(MIB).segment_size(2 * MIB).journal_capacity(32 * MIB).checkpoint_after(HOUR)
}

fn store(spool: &Arc<TieredSpool>, len: usize, deadline: Option<Instant>) -> (SpoolId, Store) {
    let (spool, id) = (spool.clone(), SpoolId::new());
    (id, Box::pin(async move { spool.store(id, payload::shared(id, 1, len), false, deadline).await }))
}

/// Blocks all syncs until the disk is released or healed.
fn hold(disk: &FaultyStorage) {
    disk.inject(committing(Fault::on(Call::Sync)).always().block());
}

/// Stores until one has to wait for space. On a held disk, no space becomes free.
async fn fill(spool: &Arc<TieredSpool>) -> (Vec<SpoolId>, Store) {
    let mut stored = Vec::new();
    wait::bounded("the space is used up", async {
        loop {
            let (id, mut next) = store(spool, MESSAGE, None);
            let gauges = spool.stats().gauges;
            if gauges.dirty_limit - gauges.dirty_bytes < MESSAGE as u64 + KIB {
                assert!(poll_once(&mut next).await.is_none(), "there was space for it");
                return (stored, next);
            }
            next.await.expect("store");
            stored.push(id);
        }
    })
    .await
}

/// Releases one sync after the other until `future` completes.
async fn while_syncs_end<T>(disk: &FaultyStorage, future: impl Future<Output = T>) -> T {
    let release = async {
        loop {
            disk.release();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    wait::bounded("stores while syncs end", or(future, release)).await
}

async fn assert_no_space_is_lost(spool: &TieredSpool) {
    wait::until("everything is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    put(spool, 1024 * 1024 - 1024, false).await;
}

/// The first waiting message needs many times the total space. Small messages behind it do not wait
/// for it.
#[tokio::test(flavor = "multi_thread")]
async fn small_messages_pass_a_huge_one_at_the_limit() {
    let broken = Broken::new(|config| narrow(config).max_message_size(512 * MIB));
    let spool = broken.start().await;
    hold(&broken.disk);
    let (stored, first) = fill(&spool).await;
    // The content of this message is never read.
    let huge: Arc<Box<[u8]>> = Arc::new(vec![0; 256 << 20].into_boxed_slice());
    let mut huge = Box::pin(spool.store(SpoolId::new(), huge, false, None));
    assert!(poll_once(&mut huge).await.is_none());
    let mut small: Vec<_> = (0..8).map(|_| store(&spool, MESSAGE, None)).collect();
    for (_, store) in &mut small {
        assert!(poll_once(store).await.is_none());
    }
    while_syncs_end(&broken.disk, async {
        first.await.expect("the one that came before");
        for (id, store) in small {
            store.await.expect("a small one");
            assert_holds(spool.as_ref(), id, MESSAGE).await;
        }
    })
    .await;
    assert!(poll_once(&mut huge).await.is_none());
    drop(huge);
    broken.disk.heal();
    for id in stored {
        assert_holds(spool.as_ref(), id, MESSAGE).await;
    }
    assert_no_space_is_lost(&spool).await;
    stop(spool).await;
}

/// Small messages arrive without end. The message that needs all the space is still stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_huge_message_is_stored_in_the_end() {
    let tiered = Tiered::new(narrow);
    let spool = tiered.start().await;
    let done = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let (spool, done) = (spool.clone(), done.clone());
        callers.spawn(async move {
            let mut stored = VecDeque::new();
            while !done.load(Ordering::Relaxed) {
                stored.push_back(put(spool.as_ref(), MESSAGE, false).await);
                // The callers hold four times the dirty limit together, so most of it must be
                // written.
                if stored.len() > 4
                    && let Some(oldest) = stored.pop_front()
                {
                    spool.remove(oldest).await.expect("remove");
                }
                // A store with space never waits, so the task yields to let the others run.
                tokio::task::yield_now().await;
            }
        });
    }
    wait::until("there is a crowd", || spool.stats().stores > 100).await;
    for len in [900 * 1024, 1024 * 1024, 1_900_000] {
        let id = wait::bounded("a huge one", put(spool.as_ref(), len, false)).await;
        assert_holds(spool.as_ref(), id, len).await;
    }
    done.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    stop(spool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_waiters_do_not_keep_space() {
    let broken = Broken::new(narrow);
    let spool = broken.start().await;
    hold(&broken.disk);
    let (_, first) = fill(&spool).await;
    let mut waiting: Vec<_> = (0..30).map(|n| store(&spool, MESSAGE + n, None)).collect();
    for (_, store) in &mut waiting {
        assert!(poll_once(store).await.is_none());
    }
    // Drops every waiter but each third one, including the first.
    let kept: Vec<_> = waiting.into_iter().enumerate().filter(|(n, _)| n % 3 == 2).collect();
    drop(first);
    while_syncs_end(&broken.disk, async {
        for (n, (id, store)) in kept {
            store.await.expect("store");
            assert_holds(spool.as_ref(), id, MESSAGE + n).await;
        }
    })
    .await;
    broken.disk.heal();
    assert_no_space_is_lost(&spool).await;
    stop(spool).await;
}

/// A caller polls its store once and then does something else for long (`select!` with a long
/// branch). Its store is first in the queue. The stores behind it were not admitted when they were
/// due, because the first store kept the timer for all.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_polled_does_not_block_others() {
    let broken = Broken::new(narrow);
    let spool = broken.start().await;
    hold(&broken.disk);
    let (_, unpolled) = fill(&spool).await;
    let behind: Vec<_> = (0..20).map(|_| tokio::spawn(store(&spool, MESSAGE, None).1)).collect();
    broken.disk.heal();
    for store in behind {
        wait::bounded("a store behind it", store).await.unwrap().expect("store");
    }
    drop(unpolled);
    assert_no_space_is_lost(&spool).await;
    stop(spool).await;
}

/// Space is granted while callers drop their stores. A store that is dropped before it uses its
/// space returns it.
#[tokio::test(flavor = "multi_thread")]
async fn space_granted_to_dropped_stores_is_returned() {
    let broken = Broken::new(narrow);
    let spool = broken.start().await;
    for _ in 0..5 {
        hold(&broken.disk);
        let (_, first) = fill(&spool).await;
        let mut waiting: Vec<_> = (0..10).map(|_| store(&spool, MESSAGE, None).1).collect();
        for store in &mut waiting {
            assert!(poll_once(store).await.is_none());
        }
        let gone = tokio::spawn(async move { drop((first, waiting)) });
        broken.disk.heal();
        gone.await.unwrap();
        wait::until("everything is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    }
    assert_no_space_is_lost(&spool).await;
    stop(spool).await;
}

/// With a slow disk and no space left, a deadline that cannot be met is rejected at once, with the
/// error of the party that set it. The deadline is so long that it does not pass on a busy machine.
async fn assert_rejected_at_once<E>(store_deadline: Duration, deadline: impl Fn() -> Option<Instant>)
where
    E: std::error::Error + Send + Sync + 'static,
{
    let broken = Broken::new(|config| narrow(config).store_deadline(store_deadline));
    let spool = broken.start().await;
    broken.disk.watch(|moment| {
        if moment.call == Call::Sync && moment.name.ends_with(".seg") {
            std::thread::sleep(Duration::from_secs(2));
        }
    });
    // Measures a rate of at most 33 KB per second. The excess over the limit takes 10 s.
    put(spool.as_ref(), 66_000, false).await;
    wait::until("everything is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    broken.disk.unwatch();
    hold(&broken.disk);
    let mut stored = Vec::new();
    let refused = wait::bounded("the space is used up", async {
        loop {
            // Below the point where stores are slowed, or above the limit: no store is paced.
            let (id, mut next) = store(&spool, 700_000, deadline());
            match poll_once(&mut next).await {
                Some(Err(err)) => return (id, err),
                Some(Ok(())) => stored.push(id),
                None => panic!("it waits"),
            }
        }
    })
    .await;
    let (id, err) = refused;
    assert!(err.root_cause().is::<E>(), "{err:#}");
    crate::setup::assert_absent(spool.as_ref(), id).await;
    let gauges = spool.stats().gauges;
    assert!(gauges.dirty_limit - gauges.dirty_bytes < 700_000 + KIB, "there was space for it");
    broken.disk.heal();
    for id in stored {
        assert_holds(spool.as_ref(), id, 700_000).await;
    }
    assert_no_space_is_lost(&spool).await;
    stop(spool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_deadline_that_cannot_be_met_is_rejected_at_once() {
    let soon = || Some(Instant::now() + TOO_SOON);
    assert_rejected_at_once::<SpoolCallerDeadlineExceeded>(HOUR, soon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spools_deadline_that_cannot_be_met_is_rejected_at_once() {
    assert_rejected_at_once::<SpoolBackpressureTimeout>(TOO_SOON, || None).await;
}

/// Callers store, drop their stores and set deadlines. Every acknowledged message is present,
/// before and after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_messages_survive_an_overload() {
    let tiered = Tiered::new(narrow);
    let spool = tiered.start().await;
    let mut callers = JoinSet::new();
    for n in 0..32 {
        let spool = spool.clone();
        callers.spawn(async move {
            let mut stored = Vec::new();
            for turn in 0..30 {
                let len = 10_000 + 2_000 * n + turn;
                let (id, data, sync) = (SpoolId::new(), (n + turn) % 7, n % 8 == 0);
                let deadline = (data == 1).then(|| Instant::now() + Duration::from_millis(5));
                let mut store = Box::pin(spool.store(id, payload::shared(id, 1, len), sync, deadline));
                let result = match (data, poll_once(&mut store).await) {
                    (_, Some(result)) => result,
                    (0, None) => continue,
                    (_, None) => store.await,
                };
                match result {
                    Ok(()) => stored.push((id, len)),
                    Err(err) => assert!(err.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{err:#}"),
                }
            }
            stored
        });
    }
    let mut stored = Vec::new();
    while let Some(caller) = callers.join_next().await {
        stored.extend(caller.unwrap());
    }
    assert!(stored.len() > 32 * 15, "{}", stored.len());
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    stop(spool).await;
    let spool = tiered.start().await;
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    stop(spool).await;
}

/// A huge message waits until all space is free, and small messages pass it. They are written as
/// well, however long they could stay dirty otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_pass_a_huge_one_do_not_delay_it() {
    let deadline = Duration::from_secs(10);
    let broken = Broken::new(|config| {
        let config = config.dirty_expire(HOUR).checkpoint_after(HOUR).store_deadline(deadline);
        config.max_message_size(30 * MIB).segment_size(32 * MIB).journal_capacity(128 * MIB)
    });
    let spool = broken.start().await;
    put(spool.as_ref(), 1_000, false).await;
    hold(&broken.disk);
    // Smaller than a segment, so the store returns from memory.
    let (id, huge) = store(&spool, 30 << 20, None);
    let huge = tokio::spawn(huge);
    wait::until("space is being freed for it", || broken.disk.blocked() == 1).await;
    let (first, mut first_store) = store(&spool, 1_000, None);
    wait::bounded("the small message passes", &mut first_store).await.unwrap();
    // With the second commit, everything is written that the committer was asked for when the huge
    // one came.
    broken.disk.release();
    wait::until("the first commit has ended", || spool.stats().commit.count == 1).await;
    wait::until("the second one has begun", || broken.disk.blocked() == 1).await;
    let (second, mut second_store) = store(&spool, 1_000, None);
    // On a slow machine this message may come too late to pass.
    let has_overtaken = poll_once(&mut second_store).await.is_some();
    broken.disk.heal();
    wait::bounded("the huge one", huge).await.unwrap().unwrap();
    if !has_overtaken {
        second_store.await.unwrap();
    }
    assert_holds(spool.as_ref(), id, 30 << 20).await;
    for small in [first, second] {
        assert_holds(spool.as_ref(), small, 1_000).await;
    }
    stop(spool).await;
}
