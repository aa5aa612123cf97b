//! Checks that the spool's files are in place. Other software may delete, move, replace or truncate
//! them while the spool runs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::ballast::Ballast;
use super::manifest::ManifestFile;
use crate::index::DiskIndex;
use crate::journal::Segments;
use crate::storage::{KeptFile, Loss, Storage, loss_of};

/// The most segments that [`Presence::look_around`] checks at a time: two system calls each.
const AT_ONCE: usize = 512;

/// The spool's directory, and the files in it that belong to neither the journal nor the
/// checkpoint.
pub(crate) trait DirectoryCheck: Send + Sync {
    /// Returns the loss if the path no longer leads to the directory, or if another process holds
    /// it.
    fn away(&self) -> Option<(PathBuf, Loss)>;

    /// Returns the lost files of the directory itself.
    fn lost(&self) -> Vec<(PathBuf, Loss)>;

    /// Writes the lost files again.
    ///
    /// # Errors
    ///
    /// An error of the operating system; another process holds the directory.
    fn restore(&self) -> io::Result<()>;
}

/// Receives reports of lost files.
pub(crate) trait PresenceEvents: Send + Sync {
    /// A file is lost. Called once for each loss.
    fn lost_file(&self, path: &Path, loss: Loss);

    /// A lost file is back.
    fn found_file(&self, path: &Path);
}

/// Checks the files. Shared by the probe thread and the checkpointer, which restores lost files.
pub(crate) struct Presence {
    pub(super) watched: Watched,
    /// The liveness log of the retained segments.
    liveness: Mutex<Option<KeptFile>>,
    state: Mutex<PresenceState>,
    is_away: AtomicBool,
    is_complete: AtomicBool,
}

#[derive(Debug, Default)]
struct PresenceState {
    lost: BTreeMap<PathBuf, Loss>,
    /// The generation that is checked next.
    next: u64,
}

/// The files that a [`Presence`] checks.
pub(crate) struct Watched {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) home: Arc<dyn DirectoryCheck>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) manifest_file: Arc<ManifestFile>,
    pub(crate) ballast: Arc<Ballast>,
    pub(crate) durable: Arc<DiskIndex>,
    pub(crate) events: Arc<dyn PresenceEvents>,
}

impl Presence {
    pub(crate) fn new(watched: Watched) -> Self {
        Self {
            watched,
            liveness: Mutex::default(),
            state: Mutex::default(),
            is_away: AtomicBool::new(false),
            is_complete: AtomicBool::new(true),
        }
    }

    /// Checks whether the path no longer leads to the directory. Asks the disk.
    pub(crate) fn finds_away(&self) -> bool {
        self.watched.home.away().is_some()
    }

    /// Returns true if no file is known to be lost.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }

    /// Returns true if the directory itself is lost. Then nothing can be restored.
    pub(crate) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Acquire)
    }

    /// Describes the lost files, except the index, which is rebuilt. Returns nothing while a check
    /// hangs on the disk.
    pub(crate) fn describe_lost(&self) -> Vec<String> {
        let Some(state) = self.state.try_lock() else { return Vec::new() };
        let lost = state.lost.iter().filter(|(path, _)| !path.starts_with(self.watched.durable.path()));
        lost.map(|(path, loss)| format!("{}: {loss}", path.display())).collect()
    }

    /// Checks the next few segments and all other files. Returns true if it found a loss: call
    /// [`look_at_all`](Self::look_at_all) once that is restored.
    pub(crate) fn look_around(&self) -> bool {
        let mut state = self.state.lock();
        if !state.lost.is_empty() {
            // The checkpointer checks all files until none is lost.
            return false;
        }
        let Some(mut found) = self.look_at_the_rest(&mut state) else { return true };
        let (lost, next) = self.watched.segments.look(state.next, AT_ONCE);
        state.next = next.unwrap_or(0);
        found.extend(lost);
        self.note(&mut state, found);
        !state.lost.is_empty()
    }

    /// Checks every file. Returns true if a file is lost.
    pub(crate) fn look_at_all(&self) -> bool {
        let mut state = self.state.lock();
        let Some(mut found) = self.look_at_the_rest(&mut state) else { return true };
        let mut next = Some(0);
        while let Some(from) = next {
            let (lost, more) = self.watched.segments.look(from, AT_ONCE);
            found.extend(lost);
            next = more;
        }
        let is_back = |path: &PathBuf| !found.iter().any(|(lost, _)| lost == path);
        let back: Vec<PathBuf> = state.lost.keys().filter(|path| is_back(path)).cloned().collect();
        for path in back {
            state.lost.remove(&path);
            self.watched.events.found_file(&path);
        }
        self.note(&mut state, found);
        !state.lost.is_empty()
    }

    /// Checks all files except the segments in use. `None` if the directory is lost, which it
    /// records.
    fn look_at_the_rest(&self, state: &mut PresenceState) -> Option<Vec<(PathBuf, Loss)>> {
        let Watched { home, segments, manifest_file, ballast, .. } = &self.watched;
        let away = home.away();
        let was_away = self.is_away.swap(away.is_some(), Ordering::AcqRel);
        if let Some(away) = away {
            segments.set_away(true);
            self.note(state, vec![away]);
            return None;
        }
        if was_away {
            segments.set_away(false);
        }
        let mut found = home.lost();
        found.extend(manifest_file.loss().map(|loss| (manifest_file.path().to_owned(), loss)));
        found.extend(segments.give_up_lost());
        found.extend(ballast.take_lost());
        found.extend(self.lost_data_file());
        found.extend(self.lost_liveness());
        Some(found)
    }

    /// Sets the file of the liveness log that is checked.
    pub(super) fn watch_liveness(&self, file: Option<KeptFile>) {
        *self.liveness.lock() = file;
    }

    fn lost_liveness(&self) -> Option<(PathBuf, Loss)> {
        let kept = self.liveness.lock().clone()?;
        let loss = kept.loss(&*self.watched.storage)?;
        // A new log file may have replaced it meanwhile.
        let is_same = self.liveness.lock().as_ref().is_some_and(|now| now.path == kept.path);
        is_same.then_some((kept.path, loss))
    }

    /// Returns the loss of the index's data file.
    fn lost_data_file(&self) -> Option<(PathBuf, Loss)> {
        let (path, file) = self.watched.durable.data_file()?;
        // An engine may truncate its file at times, so the length proves nothing.
        let loss = loss_of(&*self.watched.storage, &path, &*file, 0)?;
        Some((path, loss))
    }

    pub(super) fn has_lost_data_file(&self) -> bool {
        self.lost_data_file().is_some()
    }

    fn note(&self, state: &mut PresenceState, found: Vec<(PathBuf, Loss)>) {
        for (path, loss) in found {
            if let Entry::Vacant(entry) = state.lost.entry(path) {
                self.watched.events.lost_file(entry.key(), loss);
                entry.insert(loss);
            }
        }
        self.is_complete.store(state.lost.is_empty(), Ordering::Release);
    }
}

/// A directory that is never lost.
#[cfg(test)]
struct NeverLost;

#[cfg(test)]
impl DirectoryCheck for NeverLost {
    fn away(&self) -> Option<(PathBuf, Loss)> {
        None
    }

    fn lost(&self) -> Vec<(PathBuf, Loss)> {
        Vec::new()
    }

    fn restore(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
impl PresenceEvents for NeverLost {
    fn lost_file(&self, _path: &Path, _loss: Loss) {}
    fn found_file(&self, _path: &Path) {}
}

#[cfg(test)]
impl Presence {
    /// A presence in a directory that is never lost, without ballast.
    pub(crate) fn anywhere(
        storage: Arc<dyn Storage>,
        dir: &Path,
        segments: Arc<Segments>,
        durable: Arc<DiskIndex>,
    ) -> Self {
        Self::new(Watched {
            home: Arc::new(NeverLost),
            segments,
            manifest_file: Arc::new(ManifestFile::new(storage.clone(), dir)),
            ballast: Arc::new(Ballast::new(
                storage.clone(),
                Arc::new(crate::storage::DiskRoom::new(storage.clone(), dir, 0)),
                dir,
                0,
            )),
            durable,
            events: Arc::new(NeverLost),
            storage,
        })
    }
}
