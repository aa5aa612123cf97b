//! Many callers at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool_core::{NotFound, Spool, SpoolId};
use tokio::task::JoinSet;

use super::calls::{advance, all_upkeep, assert_absent, assert_holds, assert_lists, get, put_as};
use crate::{Subject, payload};

/// While one id is replaced repeatedly, each load returns one intact version. The version is at
/// least the last one stored before the load began, and at most the last one begun before the load
/// ended.
pub async fn a_load_sees_one_version_whole(subject: &mut Subject) {
    const VERSIONS: u64 = 400;
    let id = SpoolId::new();
    let progress = Arc::new((AtomicU64::new(1), AtomicU64::new(1)));
    let loads: Arc<[AtomicU64; 3]> = Arc::default();
    let len = |version: u64| 16 + usize::try_from(version * 7919 % 9000).expect("small");
    put_as(subject.spool(), id, 1, len(1), false).await;

    let mut tasks = JoinSet::new();
    let (spool, shared, counted) = (subject.shared(), progress.clone(), loads.clone());
    tasks.spawn(async move {
        let (begun, stored) = &*shared;
        for version in 2..=VERSIONS {
            // Loads that begin after the last store prove nothing, so wait for the loads.
            if version % 20 == 2 {
                advance("the loads", counted.as_ref(), 1).await;
            }
            begun.store(version, Ordering::SeqCst);
            put_as(spool.as_ref(), id, version, len(version), version % 50 == 0).await;
            stored.store(version, Ordering::SeqCst);
            if version % 100 == 0 {
                all_upkeep(spool.as_ref()).await;
            }
            tokio::task::yield_now().await;
        }
    });
    for loader in 0..loads.len() {
        let (spool, shared, counted) = (subject.shared(), progress.clone(), loads.clone());
        tasks.spawn(async move {
            let (begun, stored) = &*shared;
            while stored.load(Ordering::SeqCst) < VERSIONS {
                let floor = stored.load(Ordering::SeqCst);
                let data = get(spool.as_ref(), id).await;
                let ceiling = begun.load(Ordering::SeqCst);
                let seen = payload::read(id, &data).unwrap_or_else(|err| panic!("{err}"));
                let version = seen.version.expect("a version");
                assert!((floor..=ceiling).contains(&version), "version {version} not in {floor}..={ceiling}");
                counted[loader].fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no task panics");
    }
    assert_holds(subject.spool(), id, VERSIONS, len(VERSIONS)).await;
}

/// Many callers store, load and remove one id. Each load returns a stored version or nothing. When
/// all callers have ended, loads and enumerations agree.
pub async fn many_callers_on_one_id_agree_in_the_end(subject: &mut Subject) {
    const CALLERS: u64 = 16;
    let id = SpoolId::new();
    let mut tasks = JoinSet::new();
    for caller in 0..CALLERS {
        let spool = subject.shared();
        tasks.spawn(async move {
            let mut rng = SmallRng::seed_from_u64(caller);
            for turn in 0..40 {
                match rng.random_range(0..5) {
                    0 => spool.remove(id).await.expect("remove"),
                    1 | 2 => assert_whole_or_absent(spool.as_ref(), id).await,
                    _ => put_as(spool.as_ref(), id, caller * 1000 + turn, 2000, rng.random_bool(0.2)).await,
                }
                tokio::task::yield_now().await;
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no task panics");
    }
    // All callers have ended: the result must not change any more.
    let spool = subject.spool();
    let version = settled_version(spool, id).await;
    all_upkeep(spool).await;
    assert_eq!(settled_version(spool, id).await, version);
    let expected: Vec<_> = version.map(|version| (id, version, 2000)).into_iter().collect();
    assert_lists(spool, &expected).await;
    spool.remove(id).await.expect("remove");
    all_upkeep(spool).await;
    assert_absent(spool, id).await;
    assert_lists(spool, &[]).await;
}

async fn assert_whole_or_absent(spool: &dyn Spool, id: SpoolId) {
    match spool.load(id).await {
        Ok(data) => drop(payload::read(id, &data).unwrap_or_else(|err| panic!("{err}"))),
        Err(err) => assert!(err.root_cause().is::<NotFound>(), "{err:#}"),
    }
}

async fn settled_version(spool: &dyn Spool, id: SpoolId) -> Option<u64> {
    match spool.load(id).await {
        Ok(data) => payload::read(id, &data).unwrap_or_else(|err| panic!("{err}")).version,
        Err(err) => {
            assert!(err.root_cause().is::<NotFound>(), "{err:#}");
            None
        }
    }
}

/// Each caller sees its own messages as if it were the only caller.
pub async fn callers_on_many_ids_do_not_disturb_each_other(subject: &mut Subject) {
    const CALLERS: u64 = 32;
    let mut tasks = JoinSet::new();
    for caller in 0..CALLERS {
        tasks.spawn(use_own_ids(subject.shared(), caller));
    }
    let mut expected = Vec::new();
    while let Some(task) = tasks.join_next().await {
        expected.extend(task.expect("no task panics"));
    }
    assert_lists(subject.spool(), &expected).await;
    all_upkeep(subject.spool()).await;
    for &(id, version, len) in &expected {
        assert_holds(subject.spool(), id, version, len).await;
    }
    assert_lists(subject.spool(), &expected).await;
}

/// Stores, replaces, loads and removes ids that no other caller uses. Returns the messages that are
/// left.
async fn use_own_ids(spool: Arc<dyn Spool>, caller: u64) -> Vec<(SpoolId, u64, usize)> {
    let mut rng = SmallRng::seed_from_u64(caller + 77);
    let mut mine: Vec<(SpoolId, u64, usize)> = Vec::new();
    for turn in 0..40 {
        let len = rng.random_range(0..9000);
        let force_sync = rng.random_bool(0.1);
        let pick = rng.random_range(0..mine.len().max(1));
        match rng.random_range(0..4) {
            0 if !mine.is_empty() => {
                let (id, _, _) = mine.swap_remove(pick);
                spool.remove(id).await.expect("remove");
                assert_absent(spool.as_ref(), id).await;
            }
            1 if !mine.is_empty() => {
                let (id, _, _) = mine[pick];
                put_as(spool.as_ref(), id, turn + 100, len, force_sync).await;
                mine[pick] = (id, turn + 100, len);
            }
            _ => {
                let id = SpoolId::new();
                put_as(spool.as_ref(), id, turn + 100, len, force_sync).await;
                mine.push((id, turn + 100, len));
            }
        }
        for &(id, version, len) in &mine {
            assert_holds(spool.as_ref(), id, version, len).await;
        }
    }
    mine
}
