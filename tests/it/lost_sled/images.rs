use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidespool::{Config, TieredSpool};
use tidespool_core::Spool as _;
use tidespool_testkit::wait;

use super::book::{Book, durable};
use super::{Donors, end, open};
use crate::broken::HOUR;
use crate::setup::{KIB, copy_dir, small};

pub(super) const SEGMENT_SIZE: u64 = 128 * KIB;

/// Segments fill quickly, and nothing is filed but by [`file_all`].
pub(super) fn config(spool: &Path) -> Config {
    small(spool).segment_size(SEGMENT_SIZE).checkpoint_after(HOUR)
}

/// Files what is in the journal. Its segments are retained, and removals of it come later.
pub(super) async fn file_all(spool: &TieredSpool) {
    // A removal that is written after the clean-up waits for the next one.
    durable(spool).await;
    let filing = config(&spool.config().path).checkpoint_after(Duration::ZERO);
    spool.reconfigure(filing).expect("reconfigure");
    spool.cleanup().await.expect("cleanup");
    wait::until("all is filed", || spool.stats().gauges.index_entries == 0).await;
    spool.reconfigure(config(&spool.config().path)).expect("reconfigure");
}

/// Copies the directory of a running spool as a kill at one moment leaves it. If a segment changed
/// its role or the manifest was written meanwhile, the copy is of no single moment, and another one
/// is made. The caller sees to it that this ends: nothing is stored or filed.
pub(super) fn copy_running(spool: &Path, to: &Path) {
    let started = Instant::now();
    let mut before = truth(spool);
    loop {
        assert!(started.elapsed() < wait::PATIENCE, "the spool does not come to rest");
        copy_what_is_there(spool, to).unwrap();
        let after = truth(spool);
        if after == before {
            return;
        }
        fs::remove_dir_all(to).unwrap();
        before = after;
    }
}

/// Copies a directory in which files and directories come and go. A file that may not be read is
/// made anew, as one that may not be read.
fn copy_what_is_there(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_what_is_there(&path, &target)?;
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

/// The headers of segments, and all of each other file but sled's. Files that go meanwhile are left
/// out.
fn truth(spool: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
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

/// What a spool's directory is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// After an orderly end.
    Closed,
    /// Copied while the spool was running: as after a kill.
    Killed,
}

/// One spool in both states, and what sled's files were in the past and are in another spool.
pub(super) struct Images {
    dir: TempDir,
    pub(super) book: Book,
}

impl Images {
    /// Live messages are in the journal, in retained and in cold segments. Of the older copy of
    /// sled some messages were removed, some were replaced, and most of the others have moved.
    pub(super) async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let mut book = Book::default();
        let path = dir.path().join("spool");
        let spool = open(&config(&path)).await;
        book.fill(&spool, 8).await;
        book.remove_each(&spool, 3).await;
        spool.compact().await.expect("compact");
        book.fill(&spool, 4).await;
        file_all(&spool).await;
        end(spool).await;
        copy_dir(&path.join("sled"), &dir.path().join("older"));

        let spool = open(&config(&path)).await;
        book.fill(&spool, 8).await;
        book.remove_each(&spool, 4).await;
        book.replace_each(&spool, 5).await;
        file_all(&spool).await;
        spool.compact().await.expect("compact");
        book.fill(&spool, 4).await;
        file_all(&spool).await;
        book.remove_each(&spool, 7).await;
        book.replace_each(&spool, 6).await;
        file_all(&spool).await;
        book.remove_each(&spool, 9).await;
        book.replace_each(&spool, 8).await;
        book.fill(&spool, 2).await;
        durable(&spool).await;
        copy_running(&path, &dir.path().join("killed"));
        end(spool).await;
        copy_dir(&path, &dir.path().join("closed"));

        other_spool(&dir.path().join("other")).await;
        copy_dir(&dir.path().join("other").join("sled"), &dir.path().join("foreign"));
        Self { dir, book }
    }

    pub(super) fn donors(&self) -> Donors {
        Donors { older: self.dir.path().join("older"), foreign: self.dir.path().join("foreign") }
    }

    /// Where the spool is in this state. It is not to be changed.
    pub(super) fn path(&self, state: State) -> PathBuf {
        self.dir.path().join(match state {
            State::Closed => "closed",
            State::Killed => "killed",
        })
    }

    /// A copy of the spool in this state, with room beside it.
    pub(super) fn copy(&self, state: State) -> (TempDir, Config) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("spool");
        copy_dir(&self.path(state), &path);
        (dir, config(&path))
    }
}

/// A spool with about the same history, and other messages.
async fn other_spool(path: &Path) {
    let mut book = Book::default();
    let spool = open(&config(path)).await;
    book.fill(&spool, 8).await;
    book.remove_each(&spool, 3).await;
    spool.compact().await.expect("compact");
    book.fill(&spool, 8).await;
    file_all(&spool).await;
    end(spool).await;
}
