//! Another program deletes, moves, replaces or truncates files under a running spool.
//!
//! A cleaner of temporary files deleted segments of a running spool. Its descriptors still worked,
//! so stores were acknowledged, loads succeeded and the gate stayed open. At the next start,
//! everything in those files was gone, and nothing had been logged.
//!
//! Each test loses a file, makes the spool check its files (`cleanup`), and expects the loss to be
//! counted and the gate to be shut. Then the file is restored and the gate opens. A copy of the
//! directory at that point (a crash), and the directory after a shutdown, hold every acknowledged
//! message, no removed one, and no damage.

mod directory; // the directory itself, or its whole contents
mod each; // each kind of file, with each kind of damage
mod trials; // random files, under traffic

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tidespool::{Config, HealthSignal, TieredSpool};
use tidespool_core::{Corrupt, Spool as _, SpoolEntry, SpoolId, SpoolUnhealthyError};
use tidespool_testkit::faults::FaultyStorage;
use tidespool_testkit::{payload, wait};

use crate::broken::{HOUR, LARGE};
use crate::setup::{KIB, Tiered, assert_absent, copy_dir, enumerate, put, stop};

const SMALL: usize = 700;

/// A kind of damage to a file (a *strike*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Delete,
    Move,
    /// Replaces it with a file with other bytes.
    Replace,
    /// Replaces it with a copy, as editors and `sed -i` do. The spool does not write to the copy.
    ReplaceByCopy,
    CutShort,
    /// Truncates it and extends it again, as later writes of the spool do.
    CutShortAndGrown,
    Forbid,
}

impl Way {
    const ALL: [Self; 6] =
        [Self::Delete, Self::Move, Self::Replace, Self::ReplaceByCopy, Self::CutShort, Self::Forbid];

    /// Damages the file. `aside` is a directory on the same file system.
    fn strike(self, path: &Path, aside: &Path) {
        let other = aside.join("other");
        match self {
            Self::Delete => fs::remove_file(path).unwrap(),
            Self::Move => fs::rename(path, &other).unwrap(),
            Self::Replace => {
                let len = fs::metadata(path).unwrap().len();
                fs::write(&other, vec![7; usize::try_from(len).unwrap()]).unwrap();
                fs::rename(&other, path).unwrap();
            }
            Self::ReplaceByCopy => {
                fs::copy(path, &other).unwrap();
                fs::rename(&other, path).unwrap();
            }
            Self::CutShort | Self::CutShortAndGrown => {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                let len = file.metadata().unwrap().len();
                // In a segment, the first page and a few messages remain.
                file.set_len(len / 8).unwrap();
                if self == Self::CutShortAndGrown {
                    file.set_len(len - 4 * KIB).unwrap();
                }
            }
            Self::Forbid => fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap(),
        }
    }
}

/// A running spool with messages in every kind of file, and the expected messages.
struct World {
    tiered: Tiered,
    aside: TempDir,
    disk: FaultyStorage,
    spool: Arc<TieredSpool>,
    live: BTreeMap<SpoolId, (u64, usize)>,
    removed: Vec<SpoolId>,
}

/// Disables automatic checkpoints, and keeps a shut gate shut until [`World::open_gate`].
fn still(config: Config) -> Config {
    let health = config.health.clone().hard_unlatch_after(HOUR);
    config.checkpoint_after(HOUR).ballast(128 * KIB).health(health)
}

impl World {
    async fn new() -> Self {
        Self::with(still).await
    }

    async fn with(adjust: fn(Config) -> Config) -> Self {
        let tiered = Tiered::new(adjust);
        let mut world = Self::empty(tiered).await;
        // Messages in a cold segment.
        world.fill(12).await;
        world.remove_some(3).await;
        world.spool.compact().await.expect("compact");
        // Messages in a journal segment that is checkpointed and retained.
        world.fill(12).await;
        let checkpointing = still(world.tiered.config.clone()).checkpoint_after(Duration::ZERO);
        world.spool.reconfigure(checkpointing).expect("reconfigure");
        world.spool.cleanup().await.expect("cleanup");
        let spool = world.spool.clone();
        wait::until("everything is checkpointed", || spool.stats().gauges.index_entries == 0).await;
        world.spool.reconfigure(still(world.tiered.config.clone())).expect("reconfigure");
        // Messages in the journal: in a segment of its own, in full segments, and in a partly
        // filled one.
        let len = 300 * 1024;
        world.live.insert(put(world.spool.as_ref(), len, true).await, (1, len));
        world.fill(16).await;
        world.replace_some(5).await;
        world.remove_some(7).await;
        let stats = world.spool.stats();
        assert_eq!((stats.lost_files, stats.gauges.unhealthy), (0, None), "a false alarm");
        world
    }

    async fn empty(tiered: Tiered) -> Self {
        let aside = TempDir::new_in(tiered.path().parent().unwrap()).unwrap();
        let disk = FaultyStorage::new();
        let opened = TieredSpool::open_on(tiered.config.clone(), disk.storage()).await;
        let spool = Arc::new(opened.expect("open"));
        Self { tiered, aside, disk, spool, live: BTreeMap::new(), removed: Vec::new() }
    }

    fn path(&self) -> PathBuf {
        self.tiered.path()
    }

    /// Stores `count` large messages and as many small ones.
    async fn fill(&mut self, count: usize) {
        for n in 0..count {
            for len in [LARGE + n, SMALL + n] {
                self.live.insert(put(self.spool.as_ref(), len, true).await, (1, len));
            }
        }
    }

    /// Stores one message, unless the shut gate rejects it.
    async fn store_unless_rejected(&mut self, len: usize) {
        let id = SpoolId::new();
        match self.spool.store(id, payload::shared(id, 1, len), true, None).await {
            Ok(()) => {
                self.live.insert(id, (1, len));
            }
            Err(error) => assert!(error.root_cause().is::<SpoolUnhealthyError>(), "{error:#}"),
        }
    }

    /// Removes each `n`-th message.
    async fn remove_some(&mut self, n: usize) {
        let ids: Vec<_> = self.live.keys().copied().step_by(n).collect();
        for id in ids {
            self.live.remove(&id);
            self.spool.remove(id).await.expect("remove");
            self.removed.push(id);
        }
        let spool = self.spool.clone();
        wait::until("removals are durable", || spool.stats().gauges.dirty_entries == 0).await;
    }

    async fn replace_some(&mut self, n: usize) {
        for (id, (version, len)) in self.live.iter_mut().step_by(n) {
            *version += 1;
            let data = payload::shared(*id, *version, *len);
            self.spool.store(*id, data, true, None).await.expect("store");
        }
    }

    /// Loads all messages and asserts the newest version of each. Returns the number of damaged
    /// messages.
    async fn check(&self, spool: &TieredSpool) -> usize {
        let mut damaged = 0;
        for (id, (version, len)) in &self.live {
            match spool.load(*id).await {
                Ok(data) => payload::assert_is(*id, *version, *len, &data),
                Err(error) if error.root_cause().is::<Corrupt>() => {
                    println!("{error:#}");
                    damaged += 1;
                }
                Err(error) => panic!("{id}: {error:#}"),
            }
        }
        for id in &self.removed {
            assert_absent(spool, *id).await;
        }
        damaged
    }

    /// Makes the spool check its files, and asserts that it detects the loss and shuts its gate.
    async fn assert_detected(&self) {
        self.spool.cleanup().await.expect("cleanup");
        assert!(self.spool.stats().lost_files > 0, "no loss was detected");
        let spool = &self.spool;
        wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
    }

    /// Lets the gate of [`still`] open when everything is restored.
    async fn open_gate(&self) {
        let health = self.tiered.config.health.clone().hard_unlatch_after(Duration::from_millis(1));
        let config = still(self.tiered.config.clone()).health(health);
        self.spool.reconfigure(config).expect("reconfigure");
        let spool = self.spool.clone();
        wait::until("the gate is open", || spool.unhealthy_reason().is_none()).await;
    }

    /// Asserts that after a crash now, and after a shutdown, exactly the expected messages exist,
    /// without damage.
    async fn assert_survives(self) {
        let crashed = self.aside.path().join("crashed");
        copy_dir(&self.path(), &crashed);
        self.assert_is_whole(&crashed).await;
        stop(self.spool.clone()).await;
        self.assert_is_whole(&self.path()).await;
    }

    async fn assert_is_whole(&self, dir: &Path) {
        let mut config = self.tiered.config.clone();
        config.path = dir.to_owned();
        let spool = Arc::new(TieredSpool::open(config).await.expect("open"));
        assert_eq!(spool.recovery().damage, []);
        assert_eq!(self.check(&spool).await, 0);
        assert_eq!(enumerate(spool.as_ref()).await.len(), self.live.len());
        stop(spool).await;
    }

    /// Reads the newer of the two manifests in the file.
    fn checkpointed_generation(&self) -> u64 {
        let bytes = fs::read(self.path().join("manifest")).unwrap();
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let parse = |slot: &[u8]| -> Option<Value> {
            serde_json::from_slice(slot.split(|byte| *byte == b'\n').next()?).ok()
        };
        let newest = [first, second].into_iter().filter_map(parse).max_by_key(|line| line["turn"].as_u64());
        newest.unwrap()["checkpointed_generation"].as_u64().unwrap()
    }

    /// The segments with role and generation. Skips files that are deleted meanwhile.
    fn segments(&self) -> Vec<(u32, u64, PathBuf)> {
        let names = fs::read_dir(self.path().join("journal")).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<_> = names
            .filter_map(|path| {
                let bytes = match fs::read(&path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => return None,
                    read => read.unwrap(),
                };
                let role = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
                Some((role, u64::from_le_bytes(bytes[16..24].try_into().unwrap()), path))
            })
            .collect();
        found.sort();
        found
    }
}
