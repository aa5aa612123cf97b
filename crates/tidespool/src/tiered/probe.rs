//! The thread that asks the disk itself: how much is free, and whether a small file can be written and read back. On a disk that hangs this thread
//! hangs, and the one that samples health does not.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::shared::Shared;
use crate::Config;
use crate::health::Space;
use crate::storage::{OpenMode, Storage, read_exact_at, write_all_at};

/// Free space is asked for at least this often, and not much more often.
const SPACE_INTERVAL: Duration = Duration::from_millis(250);

/// The longest pause.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is asked of the disk, and what it answered.
#[derive(Debug, Default)]
pub(crate) struct Probe(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    low_space: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Wanted,
    Running,
    Ended(bool),
}

impl Probe {
    pub(super) fn has_low_space(&self) -> bool {
        self.0.lock().low_space
    }

    /// Has the disk tried, unless that was asked for already. Says how it went, once, when it has ended.
    pub(super) fn ask(&self) -> Option<bool> {
        let state = &mut self.0.lock().state;
        match *state {
            State::Idle => *state = State::Wanted,
            State::Ended(ok) => {
                *state = State::Idle;
                return Some(ok);
            }
            State::Wanted | State::Running => {}
        }
        None
    }

    /// What was asked for is of no account any more.
    pub(super) fn forget(&self) {
        self.0.lock().state = State::Idle;
    }

    fn begin(&self) -> bool {
        let state = &mut self.0.lock().state;
        let is_wanted = *state == State::Wanted;
        if is_wanted {
            *state = State::Running;
        }
        is_wanted
    }

    fn end(&self, ok: bool) {
        let state = &mut self.0.lock().state;
        // Forgotten, and perhaps asked for again: that is for the next one to say.
        if *state == State::Running {
            *state = State::Ended(ok);
        }
    }
}

/// Runs until the spool closes.
pub(super) fn run_probe(shared: &Arc<Shared>) {
    let mut space_at = None;
    loop {
        let now = Instant::now();
        let config = shared.config.load_full();
        if space_at.is_none_or(|at| at <= now) {
            space_at = Some(now + SPACE_INTERVAL);
            look_at_space(&shared.probe, &config);
        }
        if shared.probe.begin() {
            let tried = try_out(&*shared.storage, &config.path);
            if let Err(error) = &tried {
                tracing::warn!(%error, path = %config.path.display(), "the disk was tried, and does not work yet");
            }
            shared.probe.end(tried.is_ok());
        }
        if shared.closing.wait(config.health.sample_interval.min(LOOK_AGAIN)) {
            return;
        }
    }
}

fn look_at_space(probe: &Probe, config: &Config) {
    match Space::of(&config.path) {
        Ok(space) => probe.0.lock().low_space = space.is_short(&config.health),
        // What it was last is the best that is known.
        Err(error) => tracing::debug!(%error, "the free space of the file system is not known"),
    }
}

const PATTERN: &[u8] = b"tidespool was here";

/// Writes, syncs and reads a small file where the spool is.
fn try_out(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
    let path = dir.join("probe");
    let tried = write_and_read(storage, &path);
    let removed = storage.remove_file(&path);
    tried.and(removed)
}

fn write_and_read(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    let file = storage.open(path, OpenMode::Create)?;
    write_all_at(&*file, &mut [IoSlice::new(PATTERN)], 0)?;
    file.sync_data()?;
    // From the disk, where the system lets go of what it has in memory.
    file.forget_cached();
    let mut back = [0; PATTERN.len()];
    read_exact_at(&*file, &mut back, 0)?;
    if back == PATTERN { Ok(()) } else { Err(io::Error::other("what was read is not what was written")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::OsStorage;

    #[test]
    fn a_disk_that_works_passes_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("probe"), "of a killed process, and longer than what is written")
            .unwrap();
        try_out(&OsStorage, dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(try_out(&OsStorage, &dir.path().join("missing")).is_err());
    }

    #[test]
    fn an_answer_is_given_once_and_never_for_an_earlier_question() {
        let probe = Probe::default();
        assert!(!probe.begin(), "nobody asked");
        assert_eq!(probe.ask(), None);
        assert!(probe.begin());
        assert!(!probe.begin(), "it is under way");
        assert_eq!(probe.ask(), None);
        probe.end(true);
        assert_eq!((probe.ask(), probe.ask()), (Some(true), None));
        assert!(probe.begin());
        probe.forget();
        assert_eq!(probe.ask(), None);
        probe.end(true);
        assert_eq!(probe.ask(), None, "that was the answer to the question before");
        assert!(probe.begin());
        probe.end(false);
        assert_eq!(probe.ask(), Some(false));
    }
}
