//! Files that something else deletes, moves, replaces or cuts short under a running spool.
//!
//! The story: a cleaner of temporary files deleted segments of a running spool. Its descriptors
//! went on working, so stores were acknowledged, loads answered and the gate open; at the next
//! start everything in those files was gone. Nothing was logged.
//!
//! Each test loses a file, has the spool look (`cleanup`), and sees the loss counted and the gate
//! shut. Then the file is whole again, the gate opens, and both a copy of the directory as it is
//! then (a crash) and the directory after a shutdown hold every message that was acknowledged, none
//! that was removed, and no damage.

mod directory; // the directory itself, or all that is in it
mod each; // each kind of file, in each way
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

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Delete,
    Move,
    /// By a file with other bytes.
    Replace,
    /// By a copy, which is not written to any more: how editors and `sed -i` change a file.
    ReplaceByCopy,
    CutShort,
    /// Cut short, and written to behind that: the spool may do so before it notices.
    CutShortAndGrown,
    Forbid,
}

impl Way {
    const ALL: [Self; 6] =
        [Self::Delete, Self::Move, Self::Replace, Self::ReplaceByCopy, Self::CutShort, Self::Forbid];

    /// Does it. `aside` is a directory on the same file system.
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
                // In a segment, to its first page and a few messages.
                file.set_len(len / 8).unwrap();
                if self == Self::CutShortAndGrown {
                    file.set_len(len - 4 * KIB).unwrap();
                }
            }
            Self::Forbid => fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap(),
        }
    }
}

/// A running spool with messages in every kind of file, and what it must hold.
struct World {
    tiered: Tiered,
    aside: TempDir,
    disk: FaultyStorage,
    spool: Arc<TieredSpool>,
    live: BTreeMap<SpoolId, (u64, usize)>,
    removed: Vec<SpoolId>,
}

/// Nothing is filed by itself, and a gate that is shut stays so until [`World::open_gate`].
fn still(config: Config) -> Config {
    let health = config.health.clone().unlatch_after(HOUR);
    config.checkpoint_after(HOUR).ballast(128 * KIB).health(health)
}

impl World {
    async fn new() -> Self {
        Self::with(still).await
    }

    async fn with(adjust: fn(Config) -> Config) -> Self {
        let tiered = Tiered::new(adjust);
        let mut world = Self::empty(tiered).await;
        // In a cold segment.
        world.fill(12).await;
        world.remove_some(3).await;
        world.spool.compact().await.expect("compact");
        // In a segment of the journal that is filed and retained.
        world.fill(12).await;
        let filing = still(world.tiered.config.clone()).checkpoint_after(Duration::ZERO);
        world.spool.reconfigure(filing).expect("reconfigure");
        world.spool.cleanup().await.expect("cleanup");
        let spool = world.spool.clone();
        wait::until("all is filed", || spool.stats().gauges.index_entries == 0).await;
        world.spool.reconfigure(still(world.tiered.config.clone())).expect("reconfigure");
        // In the journal: in a segment of its own, in segments that are full, and in one that is
        // not.
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

    /// So many large messages, and as many small ones.
    async fn fill(&mut self, count: usize) {
        for n in 0..count {
            for len in [LARGE + n, SMALL + n] {
                self.live.insert(put(self.spool.as_ref(), len, true).await, (1, len));
            }
        }
    }

    /// One message. The gate may be shut.
    async fn store_unless_refused(&mut self, len: usize) {
        let id = SpoolId::new();
        match self.spool.store(id, payload::shared(id, 1, len), true, None).await {
            Ok(()) => {
                self.live.insert(id, (1, len));
            }
            Err(error) => assert!(error.root_cause().is::<SpoolUnhealthyError>(), "{error:#}"),
        }
    }

    /// Each `n`-th message.
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

    /// Loads that find a message: it is the newest version. Returns how many found that theirs is
    /// damaged.
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

    /// Has the spool look, and sees that it noticed and shut its gate.
    async fn notice(&self) {
        self.spool.cleanup().await.expect("cleanup");
        assert!(self.spool.stats().lost_files > 0, "nothing was noticed");
        let spool = &self.spool;
        wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
    }

    /// The gate of [`still`] may open now, and does once all is whole.
    async fn open_gate(&self) {
        let health = self.tiered.config.health.clone().unlatch_after(Duration::from_millis(1));
        let config = still(self.tiered.config.clone()).health(health);
        self.spool.reconfigure(config).expect("reconfigure");
        let spool = self.spool.clone();
        wait::until("the gate is open", || spool.unhealthy_reason().is_none()).await;
    }

    /// After a crash now, and after a shutdown, everything is there and nothing else, and nothing
    /// is damaged.
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

    /// The newer of the two ledgers in the file.
    fn filed_generation(&self) -> u64 {
        let bytes = fs::read(self.path().join("ledger")).unwrap();
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let parse = |slot: &[u8]| -> Option<Value> {
            serde_json::from_slice(slot.split(|byte| *byte == b'\n').next()?).ok()
        };
        let newest = [first, second].into_iter().filter_map(parse).max_by_key(|line| line["turn"].as_u64());
        newest.unwrap()["filed_generation"].as_u64().unwrap()
    }

    /// The segments with their role and generation. One that is deleted meanwhile is left out.
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
