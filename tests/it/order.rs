//! What must be on stable storage before what. sled writes its file past the storage, so no power cut is played on it here; its sync is seen,
//! and what may not happen before it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tidespool::TieredSpool;
use tidespool_core::Spool as _;
use tidespool_testkit::faults::{Call, Fault, FaultyStorage, Moment};
use tidespool_testkit::wait;

use crate::broken::{Broken, HOUR, LARGE, committing, is_thread};
use crate::setup::{KIB, MIB, Tiered, assert_holds, put, stop};

/// A checkpoint, as far as it can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The ledger tells exactly what sled holds.
    Settled,
    /// The ledger says that sled is being changed.
    Filing { db_is_synced: bool },
}

/// Looks at each call, and notes what came too early.
struct Judge {
    dir: PathBuf,
    state: State,
    checkpoints: u64,
    recycled: u64,
    wrong: Vec<String>,
}

impl Judge {
    fn watch(disk: &FaultyStorage, dir: &Path) -> Arc<Mutex<Self>> {
        let judge = Self {
            dir: dir.to_owned(),
            state: State::Settled,
            checkpoints: 0,
            recycled: 0,
            wrong: Vec::new(),
        };
        let judge = Arc::new(Mutex::new(judge));
        let watcher = judge.clone();
        disk.watch(move |moment| watcher.lock().see(moment));
        judge
    }

    fn see(&mut self, moment: &Moment<'_>) {
        match moment.call {
            Call::Sync if moment.name == "db" => {
                if let State::Filing { db_is_synced } = &mut self.state {
                    *db_is_synced = true;
                }
            }
            Call::Sync if moment.name.starts_with("ledger") && is_thread("tidespool-filer") => {
                self.ledger(moment);
            }
            // A used segment is marked as free, or deleted, by the thread that files; cold ones are written before it begins.
            Call::Write | Call::Remove if moment.name.ends_with(".seg") && is_thread("tidespool-filer") => {
                self.recycled += 1;
                if self.state != State::Settled {
                    self.wrong
                        .push(format!("{:?} of {} while sled is being changed", moment.call, moment.name));
                }
            }
            _ => {}
        }
    }

    fn ledger(&mut self, moment: &Moment<'_>) {
        let is_filing = newest(&self.dir.join(moment.name))["filing"] == Value::Bool(true);
        self.state = match (self.state, is_filing) {
            (_, true) => State::Filing { db_is_synced: false },
            (State::Filing { db_is_synced }, false) => {
                self.checkpoints += 1;
                if !db_is_synced {
                    self.wrong.push("a ledger counts what sled's file has not on stable storage".to_owned());
                }
                State::Settled
            }
            (State::Settled, false) => State::Settled,
        };
    }
}

/// The newer of the two ledgers in the file.
fn newest(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let parse = |slot: &[u8]| -> Option<Value> {
        serde_json::from_slice(slot.split(|byte| *byte == b'\n').next()?).ok()
    };
    [first, second].into_iter().filter_map(parse).max_by_key(|line| line["turn"].as_u64()).unwrap()
}

/// Between a change of sled and the sync of its file no ledger counts the change, and no segment is recycled: for small messages, large ones,
/// removals, and survivors that are moved. Without sled's sync, or with a segment given back too early, a power cut loses what was
/// acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_recycled_or_counted_before_sled_is_durable() {
    let (tiered, disk) = (Tiered::new(|config| config.segment_size(64 * KIB)), FaultyStorage::new());
    let spool = Arc::new(TieredSpool::open_on(tiered.config.clone(), disk.storage()).await.expect("open"));
    let judge = Judge::watch(&disk, &tiered.path());
    let mut live = Vec::new();
    for round in 0..6 {
        for n in 0..12 {
            let len = if n % 2 == 0 { LARGE } else { 900 };
            live.push((put(spool.as_ref(), len, n % 3 == 0).await, len));
        }
        let mut n = 0;
        let gone: Vec<_> = live
            .extract_if(.., |_| {
                n += 1;
                n % 3 != 0
            })
            .collect();
        spool.compact().await.expect("compact");
        for (id, _) in gone {
            spool.remove(id).await.expect("remove");
        }
        if round % 2 == 1 {
            spool.cleanup().await.expect("cleanup");
        }
        spool.compact().await.expect("compact");
    }
    disk.unwatch();
    {
        let judge = judge.lock();
        assert_eq!(judge.wrong, [""; 0]);
        assert!(judge.checkpoints > 5 && judge.recycled > 5, "{} {}", judge.checkpoints, judge.recycled);
    }
    for (id, len) in live {
        assert_holds(spool.as_ref(), id, len).await;
    }
    stop(spool).await;
}

/// Dirty bytes are not the cache's: while the disk takes nothing, all of them can be loaded, however often the cache is emptied and filled with
/// others; and when the disk works again all of them are written.
#[tokio::test(flavor = "multi_thread")]
async fn dirty_bytes_are_never_in_the_cache_alone() {
    let broken = Broken::new(|config| {
        let config = config.memory_budget(8 * MIB).dirty_limit(4 * MIB).checkpoint_after(HOUR);
        config.store_deadline(Duration::from_millis(50))
    });
    let spool = broken.start().await;
    let mut stored = Vec::new();
    // What the cache is filled with.
    for _ in 0..100 {
        stored.push((put(spool.as_ref(), LARGE, false).await, LARGE));
        wait::until("it is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    }
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let clean = stored.len();
    for _ in 0..20 {
        stored.push((put(spool.as_ref(), LARGE, false).await, LARGE));
    }
    for _ in 0..2 {
        // Gives up after `store_deadline`, and empties the cache all the same.
        spool.advise_low_memory().await.expect("advise_low_memory");
        for &(id, len) in &stored[clean..] {
            assert_holds(spool.as_ref(), id, len).await;
        }
        for &(id, len) in &stored[..clean] {
            assert_holds(spool.as_ref(), id, len).await;
        }
    }
    for &(id, len) in &stored[clean..] {
        assert_holds(spool.as_ref(), id, len).await;
    }
    broken.disk.heal();
    wait::until("everything is durable", || spool.stats().gauges.dirty_bytes == 0).await;
    // Like a crash.
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}
