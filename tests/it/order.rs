//! The order of writes to stable storage. sled is not part of it: sled bypasses the storage, and
//! nothing depends on its files.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidespool::TieredSpool;
use tidespool_core::Spool as _;
use tidespool_testkit::faults::{Call, Fault, FaultyStorage, Moment};
use tidespool_testkit::wait;

use crate::broken::{Broken, HOUR, LARGE, committing, is_thread};
use crate::setup::{KIB, MIB, Tiered, assert_holds, put, stop};

/// Watches each call of the checkpoint thread and records the calls that come too early.
struct Judge {
    dir: PathBuf,
    /// Segments and logs with writes since their last sync.
    unsynced: BTreeSet<String>,
    /// New segments for survivors, until the liveness log names them.
    begun: BTreeSet<String>,
    /// The liveness log has changes that no durable manifest includes.
    is_ahead: bool,
    checkpoints: u64,
    recycled: u64,
    wrong: Vec<String>,
}

impl Judge {
    fn watch(disk: &FaultyStorage, dir: &Path) -> Arc<Mutex<Self>> {
        let judge = Self {
            dir: dir.to_owned(),
            unsynced: BTreeSet::new(),
            begun: BTreeSet::new(),
            is_ahead: false,
            checkpoints: 0,
            recycled: 0,
            wrong: Vec::new(),
        };
        let judge = Arc::new(Mutex::new(judge));
        let watcher = judge.clone();
        disk.watch(move |moment| {
            if is_thread("tide-checkpoint") {
                watcher.lock().see(moment);
            }
        });
        judge
    }

    fn see(&mut self, moment: &Moment<'_>) {
        let Moment { call, name, .. } = *moment;
        let (is_log, is_segment) = (name.starts_with("liveness."), name.ends_with(".seg"));
        match call {
            Call::Write if is_log => self.log_is_written(name),
            Call::Write if name == "manifest" => self.manifest_is_written(),
            Call::Write if is_segment => self.segment_is_written(name),
            Call::Remove if is_log && self.is_ahead => {
                self.wrong
                    .push(format!("{name} is removed before the manifest that names another is durable"));
            }
            Call::Remove if is_segment => self.segment_is_recycled(name),
            Call::Sync if name == "manifest" && self.is_ahead => {
                self.is_ahead = false;
                self.checkpoints += 1;
            }
            Call::Sync => {
                self.unsynced.remove(name);
            }
            _ => {}
        }
    }

    fn log_is_written(&mut self, name: &str) {
        let unsynced = self.unsynced.iter().filter(|name| name.ends_with(".seg"));
        let wrong = unsynced.map(|segment| format!("{name} counts what {segment} may lose"));
        self.wrong.extend(wrong);
        self.unsynced.insert(name.to_owned());
        self.begun.clear();
        self.is_ahead = true;
    }

    fn manifest_is_written(&mut self) {
        let wrong = self.unsynced.iter().map(|file| format!("the manifest counts what {file} may lose"));
        self.wrong.extend(wrong);
    }

    /// A write to a segment for survivors, or to a used one that is marked as free.
    fn segment_is_written(&mut self, name: &str) {
        // A new file may still be empty.
        let mut role = [0; 4];
        let file = std::fs::File::open(self.dir.join("journal").join(name)).unwrap();
        file.read_at(&mut role, 12).unwrap();
        let is_free = role == [0; 4];
        if is_free || self.begun.contains(name) {
            self.begun.insert(name.to_owned());
            self.unsynced.insert(name.to_owned());
        } else {
            self.segment_is_recycled(name);
        }
    }

    fn segment_is_recycled(&mut self, name: &str) {
        self.recycled += 1;
        self.unsynced.remove(name);
        self.begun.remove(name);
        if self.is_ahead {
            self.wrong.push(format!("{name} is recycled before a manifest that does without it is durable"));
        }
    }
}

/// The liveness log names a survivor's new place after that place is on stable storage. The
/// manifest includes the log after the log is durable. A segment is recycled, and an older log
/// removed, after the manifest is durable. In any other order a power cut loses acknowledged
/// messages. The test covers small messages, large ones, removals, and survivors that are moved.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_recycled_or_counted_before_its_replacement_is_durable() {
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

/// Dirty bytes do not depend on the cache. While the disk accepts no writes, all messages can be
/// loaded, even if the cache is emptied and filled with others. When the disk works again, all are
/// written.
#[tokio::test(flavor = "multi_thread")]
async fn dirty_bytes_are_never_in_the_cache_alone() {
    let broken = Broken::new(|config| {
        let config = config.memory_budget(8 * MIB).dirty_limit(4 * MIB).checkpoint_after(HOUR);
        config.store_deadline(Duration::from_millis(50))
    });
    let spool = broken.start().await;
    let mut stored = Vec::new();
    // Messages that fill the cache.
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
        // Times out after `store_deadline`, but still empties the cache.
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
    // A drop without shutdown acts like a crash.
    drop(spool);
    broken.assert_reopens_with(&stored).await;
}
