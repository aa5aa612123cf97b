//! Enumeration during traffic, as when a server starts and already accepts mail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use chrono::Utc;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool_core::{Spool, SpoolId};

use super::calls::{advance, all_upkeep, assert_absent, collect, put, put_as};
use crate::{Subject, ids, payload};

/// The number of messages of each kind.
const STABLE: u64 = 200;
const REPLACED: u64 = 60;
const REMOVED: u64 = 60;

/// The state of the tasks that run during the enumerations.
#[derive(Default)]
struct Traffic {
    done: AtomicBool,
    /// The number of turns of each task.
    turns: [AtomicU64; 3],
}

impl Traffic {
    /// Counts one turn of `task`. Returns false if the task must stop.
    async fn turn(&self, task: usize) -> bool {
        self.turns[task].fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        !self.done.load(Ordering::Relaxed)
    }
}

/// A message that is replaced continuously, with the newest version begun and stored.
struct Resaved {
    id: SpoolId,
    started: AtomicU64,
    stored: AtomicU64,
}

/// Messages present throughout are enumerated exactly once, in a version that was current at some
/// time during the enumeration. Removed messages are not enumerated. Messages stored or removed
/// meanwhile are enumerated at most once.
pub async fn messages_present_throughout_are_seen_once(subject: &mut Subject) {
    let spool = subject.shared();
    let assorted = ids::assorted(Utc::now() - chrono::TimeDelta::hours(1), STABLE + REPLACED + REMOVED);
    let (stable, rest) = assorted.split_at(usize::try_from(STABLE).expect("small"));
    let (replaced, removed) = rest.split_at(usize::try_from(REPLACED).expect("small"));
    for (n, &id) in assorted.iter().enumerate() {
        put_as(spool.as_ref(), id, 1, 20 + n * 25, n % 16 == 0).await;
        if n == 150 {
            all_upkeep(spool.as_ref()).await;
        }
    }
    for &id in removed {
        spool.remove(id).await.expect("remove");
    }
    let resaved = |&id: &SpoolId| Resaved { id, started: AtomicU64::new(1), stored: AtomicU64::new(1) };
    let resaved: Arc<Vec<Resaved>> = Arc::new(replaced.iter().map(resaved).collect());
    let traffic = Arc::new(Traffic::default());
    let tasks = [
        tokio::spawn(store_and_remove(spool.clone(), traffic.clone(), 0)),
        tokio::spawn(store_and_remove(spool.clone(), traffic.clone(), 1)),
        tokio::spawn(resave(spool.clone(), traffic.clone(), 2, resaved.clone())),
        tokio::spawn(run_upkeep(spool.clone(), traffic.clone())),
    ];

    for _ in 0..4 {
        let floor: Vec<u64> = resaved.iter().map(|message| message.stored.load(Ordering::SeqCst)).collect();
        let found = enumerate_slowly(spool.as_ref(), &traffic).await;
        for (n, &id) in stable.iter().enumerate() {
            let data = found.get(&id).unwrap_or_else(|| panic!("stable message {id} was not enumerated"));
            payload::assert_is(id, 1, 20 + n * 25, data);
        }
        for (message, floor) in resaved.iter().zip(floor) {
            let id = message.id;
            let data = found.get(&id).unwrap_or_else(|| panic!("re-saved message {id} was not enumerated"));
            let version = payload::read(id, data).expect("whole").version.expect("a version");
            let ceiling = message.started.load(Ordering::SeqCst);
            assert!(
                (floor..=ceiling).contains(&version),
                "{id}: version {version} not in {floor}..={ceiling}"
            );
        }
        for id in removed {
            assert!(!found.contains_key(id), "message {id} was removed earlier, but enumerated");
        }
    }
    traffic.done.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("traffic");
    }
    for &id in removed {
        assert_absent(spool.as_ref(), id).await;
    }
}

/// Enumerates through a small channel, and lets the other tasks run in the middle of it.
async fn enumerate_slowly(spool: &dyn Spool, traffic: &Traffic) -> BTreeMap<SpoolId, Vec<u8>> {
    let (sender, receiver) = async_channel::bounded(4);
    spool.enumerate(sender, Utc::now()).expect("enumerate");
    let mut found = BTreeMap::new();
    while let Ok(entry) = receiver.recv().await {
        let id = entry.id();
        collect(&mut found, entry);
        payload::read(id, &found[&id]).expect("whole");
        if found.len() == 100 {
            advance("the traffic", &traffic.turns, 40).await;
        }
        tokio::task::yield_now().await;
    }
    found
}

/// Stores new messages, never the same id twice, and removes most of them.
async fn store_and_remove(spool: Arc<dyn Spool>, traffic: Arc<Traffic>, task: usize) {
    let mut rng = SmallRng::seed_from_u64(task as u64);
    let mut here = Vec::new();
    while traffic.turn(task).await {
        let id = if rng.random_bool(0.5) { SpoolId::new() } else { ids::v4(rng.random()) };
        let len = rng.random_range(0..6000);
        put_as(spool.as_ref(), id, 1, len, rng.random_bool(0.02)).await;
        here.push(id);
        if here.len() > 20 {
            let id = here.swap_remove(rng.random_range(0..20));
            spool.remove(id).await.expect("remove");
        }
    }
}

async fn resave(spool: Arc<dyn Spool>, traffic: Arc<Traffic>, task: usize, messages: Arc<Vec<Resaved>>) {
    for version in 2.. {
        for message in messages.iter() {
            if !traffic.turn(task).await {
                return;
            }
            message.started.store(version, Ordering::SeqCst);
            put(spool.as_ref(), message.id, version, 800).await;
            message.stored.store(version, Ordering::SeqCst);
        }
    }
}

async fn run_upkeep(spool: Arc<dyn Spool>, traffic: Arc<Traffic>) {
    while !traffic.done.load(Ordering::Relaxed) {
        all_upkeep(spool.as_ref()).await;
        tokio::task::yield_now().await;
    }
}
