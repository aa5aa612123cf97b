use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidespool::{Config, TieredSpool};
use tidespool_core::Spool as _;
use tidespool_testkit::wait;

use super::expected::{Expected, durable};
use super::{Donors, open, shut_down};
use crate::broken::HOUR;
use crate::setup::{KIB, copy_dir, small};

pub(super) const SEGMENT_SIZE: u64 = 128 * KIB;

/// A configuration in which segments fill quickly, and only [`checkpoint_all`] makes checkpoints.
pub(super) fn config(spool: &Path) -> Config {
    small(spool).segment_size(SEGMENT_SIZE).checkpoint_after(HOUR)
}

/// Checkpoints the journal and retains its segments. Later removals are not included.
pub(super) async fn checkpoint_all(spool: &TieredSpool) {
    // A removal that is written after the cleanup would wait for the next one.
    durable(spool).await;
    let checkpointing = config(&spool.config().path).checkpoint_after(Duration::ZERO);
    spool.reconfigure(checkpointing).expect("reconfigure");
    spool.cleanup().await.expect("cleanup");
    wait::until("everything is checkpointed", || spool.stats().gauges.index_entries == 0).await;
    spool.reconfigure(config(&spool.config().path)).expect("reconfigure");
}

/// Copies the directory of a running spool as a kill leaves it. If a segment changed its role or
/// the manifest was written meanwhile, the copy is inconsistent and is repeated. The caller must
/// not store or checkpoint meanwhile, so that this ends.
pub(super) fn copy_running(spool: &Path, to: &Path) {
    let started = Instant::now();
    let mut before = state_files(spool);
    loop {
        assert!(started.elapsed() < wait::PATIENCE, "the spool keeps changing");
        copy_changing(spool, to).unwrap();
        let after = state_files(spool);
        if after == before {
            return;
        }
        fs::remove_dir_all(to).unwrap();
        before = after;
    }
}

/// Copies a directory in which files appear and disappear. For an unreadable file it creates
/// another unreadable file.
fn copy_changing(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_changing(&path, &target)?;
            continue;
        }
        match fs::copy(&path, &target) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                fs::write(&target, [])?;
                fs::set_permissions(&target, fs::metadata(&path)?.permissions())?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            copied => drop(copied?),
        }
    }
    Ok(())
}

/// The headers of the segments, and the contents of all other files except sled's. Skips files that
/// disappear.
fn state_files(spool: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let dirs = [spool.to_owned(), spool.join("journal")];
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap());
    let files = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let first = |path: PathBuf| {
        let mut bytes = fs::read(&path).ok()?;
        if path.extension().is_some_and(|kind| kind == "seg") {
            bytes.truncate(4096);
        }
        Some((path, bytes))
    };
    files.filter_map(first).collect()
}

/// How the process with the spool ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// After a shutdown.
    Closed,
    /// Copied while the spool was running, as after a kill.
    Killed,
}

/// One spool in both states, an older copy of its sled files, and the sled files of another spool.
pub(super) struct Images {
    dir: TempDir,
    pub(super) expected: Expected,
}

impl Images {
    /// Live messages are in the journal, in retained and in cold segments. Of the messages in the
    /// older copy of sled, some were removed, some replaced, and most others moved.
    pub(super) async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let mut expected = Expected::default();
        let path = dir.path().join("spool");
        let spool = open(&config(&path)).await;
        expected.fill(&spool, 8).await;
        expected.remove_each(&spool, 3).await;
        spool.compact().await.expect("compact");
        expected.fill(&spool, 4).await;
        checkpoint_all(&spool).await;
        shut_down(spool).await;
        copy_dir(&path.join("sled"), &dir.path().join("older"));

        let spool = open(&config(&path)).await;
        expected.fill(&spool, 8).await;
        expected.remove_each(&spool, 4).await;
        expected.replace_each(&spool, 5).await;
        checkpoint_all(&spool).await;
        spool.compact().await.expect("compact");
        expected.fill(&spool, 4).await;
        checkpoint_all(&spool).await;
        expected.remove_each(&spool, 7).await;
        expected.replace_each(&spool, 6).await;
        checkpoint_all(&spool).await;
        expected.remove_each(&spool, 9).await;
        expected.replace_each(&spool, 8).await;
        expected.fill(&spool, 2).await;
        durable(&spool).await;
        copy_running(&path, &dir.path().join("killed"));
        shut_down(spool).await;
        copy_dir(&path, &dir.path().join("closed"));

        other_spool(&dir.path().join("other")).await;
        copy_dir(&dir.path().join("other").join("sled"), &dir.path().join("foreign"));
        Self { dir, expected }
    }

    pub(super) fn donors(&self) -> Donors {
        Donors { older: self.dir.path().join("older"), foreign: self.dir.path().join("foreign") }
    }

    /// The directory of the spool in this state. It must not be changed.
    pub(super) fn path(&self, state: State) -> PathBuf {
        self.dir.path().join(match state {
            State::Closed => "closed",
            State::Killed => "killed",
        })
    }

    /// A copy of the spool in this state, in a directory of its own.
    pub(super) fn copy(&self, state: State) -> (TempDir, Config) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("spool");
        copy_dir(&self.path(state), &path);
        (dir, config(&path))
    }
}

/// A spool with a similar history and other messages.
async fn other_spool(path: &Path) {
    let mut expected = Expected::default();
    let spool = open(&config(path)).await;
    expected.fill(&spool, 8).await;
    expected.remove_each(&spool, 3).await;
    spool.compact().await.expect("compact");
    expected.fill(&spool, 8).await;
    checkpoint_all(&spool).await;
    shut_down(spool).await;
}
