//! The liveness log: appends, commits, compaction.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::changes::LivenessChanges;
use super::file::{LogFile, numbers_in, path_of};
use super::read::read;
use super::record::LivenessEntry;
use super::state::Liveness;
use super::weight::Weights;
use super::{LivenessError, LogPosition};
use crate::storage::{KeptFile, Loss, OpenMode, Storage};

/// A log with less garbage than this is not rewritten.
const MIN_GARBAGE_BYTES: u64 = 1 << 20;

/// The log of an open spool. Holds no data of single records.
#[derive(Debug)]
pub(crate) struct LivenessLog {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    committed: LogPosition,
    /// The file of the committed position. `None` if there is no log yet, or if it is missing.
    file: Option<LogFile>,
    weights: Weights,
    /// Entries are missing from the log.
    has_gap: bool,
    /// The last returned position, if it is not committed.
    pending: Option<PendingAppend>,
    /// The highest number of a file since the log was opened. A number is used once.
    highest: u64,
    /// A new file was written since the last commit.
    is_anew_uncommitted: bool,
    /// There may be files that the committed position does not need.
    has_others: bool,
    /// A loss of the file that was found and not reported yet.
    found: Option<Loss>,
}

/// The state that takes effect when a position is committed.
#[derive(Debug)]
struct PendingAppend {
    position: LogPosition,
    /// The new file, if the position is in another file than the committed one.
    anew: Option<Anew>,
    changes: Vec<LivenessEntry>,
}

/// A new file.
#[derive(Debug)]
struct Anew {
    file: LogFile,
    /// The end of the entries that state everything committed. `None` if they omit some of it.
    base_end: Option<u64>,
    /// The weights of these entries.
    weights: Weights,
    has_gap: bool,
}

impl LivenessLog {
    /// Opens the log that the manifest names, and returns the live records up to `position.len`.
    /// Removes files of other numbers.
    ///
    /// Damage is no error: [`Liveness::damage`] reports it. The caller then finds the live records
    /// in another way, and writes them with [`renew`](Self::renew).
    ///
    /// # Errors
    ///
    /// The file exists and can't be read, or has another version.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        dir: &Path,
        position: LogPosition,
        is_retained: &dyn Fn(u64) -> bool,
    ) -> Result<(Self, Liveness), LivenessError> {
        let (file, liveness) = open_and_read(&*storage, dir, position, OpenMode::Write, is_retained)?;
        let mut log = Self {
            storage,
            dir: dir.to_owned(),
            committed: position,
            file,
            weights: Weights::of(&liveness),
            has_gap: liveness.has_gap(),
            pending: None,
            highest: position.number,
            is_anew_uncommitted: false,
            has_others: true,
            found: None,
        };
        log.remove_others();
        Ok((log, liveness))
    }

    /// Reads the log that a manifest names. Changes nothing.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub(crate) fn look(
        storage: &dyn Storage,
        dir: &Path,
        position: LogPosition,
        is_retained: &dyn Fn(u64) -> bool,
    ) -> Result<Liveness, LivenessError> {
        Ok(open_and_read(storage, dir, position, OpenMode::Read, is_retained)?.1)
    }

    /// Reads the live records as of the committed position.
    ///
    /// # Errors
    ///
    /// The file can't be read.
    pub(crate) fn read(&self, is_retained: &dyn Fn(u64) -> bool) -> Result<Liveness, LivenessError> {
        read_file(self.file.as_ref(), &self.dir, self.committed, is_retained)
    }

    /// Appends the changes, durably: one write, one sync. Returns the position that the manifest
    /// must name. Before [`committed`](Self::committed) the changes do not count, and the next call
    /// replaces them.
    ///
    /// If the file has failed or is lost, writes the log to a new file.
    ///
    /// # Errors
    ///
    /// Nothing changed, and the call can be repeated.
    pub(crate) fn append(&mut self, changes: &LivenessChanges) -> Result<LogPosition, LivenessError> {
        let loss = self.file.as_ref().and_then(|file| file.loss(&*self.storage));
        self.found = loss.or(self.found);
        let changes = self.entries_of(changes);
        let storage = &*self.storage;
        let is_usable = |file: &LogFile| !file.has_failed() && file.loss(storage).is_none();
        let anew = self.pending.as_mut().and_then(|pending| pending.anew.as_mut());
        let anew = anew.and_then(|anew| Some((&mut anew.file, anew.base_end?)));
        if let Some((file, base_end)) = anew.filter(|(file, _)| is_usable(file)) {
            let position = file.append(&changes, base_end)?;
            let anew = self.pending.take().and_then(|pending| pending.anew);
            self.pending = Some(PendingAppend { position, anew, changes });
            return Ok(position);
        }
        match self.file.as_mut().filter(|file| is_usable(file)) {
            Some(file) => {
                let position = file.append(&changes, self.committed.len)?;
                self.pending = Some(PendingAppend { position, anew: None, changes });
                Ok(position)
            }
            None => self.rewrite(&|_| true, changes, true),
        }
    }

    /// Returns true if the log is worth [`compact`](Self::compact)ing: more than half of it, and
    /// more than 1 MiB, concerns dead records or segments that are not retained.
    pub(crate) fn wants_compaction(&self, is_retained: &dyn Fn(u64) -> bool) -> bool {
        let garbage = self.committed.len.saturating_sub(self.weights.useful_bytes(is_retained));
        // Files stay until a commit. While commits fail, there is at most one compacted file.
        !self.is_anew_uncommitted && garbage > MIN_GARBAGE_BYTES && garbage > self.committed.len / 2
    }

    /// Writes the live records of the retained segments and the changes to a new file, durably.
    /// Returns the position that the manifest must name. The old file stays until
    /// [`committed`](Self::committed).
    ///
    /// Needs about two bytes of memory for each live record.
    ///
    /// # Errors
    ///
    /// Nothing changed, and the call can be repeated.
    pub(crate) fn compact(
        &mut self,
        is_retained: &dyn Fn(u64) -> bool,
        changes: &LivenessChanges,
    ) -> Result<LogPosition, LivenessError> {
        let entries = self.entries_of(changes);
        // A segment that is left out here stays retained if the manifest fails.
        self.rewrite(is_retained, entries, false)
    }

    /// Writes a new file that holds only these changes, to replace a damaged log. The changes must
    /// list every retained segment.
    ///
    /// # Errors
    ///
    /// Nothing changed, and the call can be repeated.
    pub(crate) fn renew(&mut self, changes: &LivenessChanges) -> Result<LogPosition, LivenessError> {
        let changes = changes.entries(|_| false);
        self.write_anew(&Liveness::default(), &[], changes, false)
    }

    /// Records that the manifest with this position is durable. Removes files of other numbers.
    /// Later appends continue from here.
    pub(crate) fn committed(&mut self, position: LogPosition) {
        if let Some(pending) = self.pending.take_if(|pending| pending.position == position) {
            self.committed = position;
            if let Some(anew) = pending.anew {
                (self.weights, self.has_gap) = (anew.weights, anew.has_gap);
                self.file = Some(anew.file);
            }
            self.weights.apply(&pending.changes);
        }
        // Only the caller of this log writes the manifest.
        debug_assert_eq!(position, self.committed);
        // A position that a manifest is still to name keeps its file.
        if position == self.committed && self.pending.is_none() {
            self.is_anew_uncommitted = false;
            self.remove_others();
        }
    }

    /// Returns what happened to the file's name or length, now or since the last call. `None` if
    /// nothing did. The next append writes a new file.
    pub(crate) fn loss(&mut self) -> Option<Loss> {
        let found = self.found.take();
        self.file.as_ref().and_then(|file| file.loss(&*self.storage)).or(found)
    }

    /// Returns true if entries are missing since the log was opened. It must be
    /// [renewed](Self::renew).
    pub(crate) const fn has_gap(&self) -> bool {
        self.has_gap
    }

    /// Returns the file of the committed position. `None` if there is no log yet.
    pub(crate) fn kept_file(&self) -> Option<KeptFile> {
        let file = self.file.as_ref()?.shared();
        Some(KeptFile { path: self.path(), file, least: self.committed.len })
    }

    /// Returns the path of the committed position's file, whether or not it exists.
    pub(crate) fn path(&self) -> PathBuf {
        path_of(&self.dir, self.committed.number)
    }

    fn entries_of(&self, changes: &LivenessChanges) -> Vec<LivenessEntry> {
        changes.entries(|generation| self.has_gap || self.weights.has(generation))
    }

    /// Writes a new file with the committed state and these changes.
    fn rewrite(
        &mut self,
        is_retained: &dyn Fn(u64) -> bool,
        changes: Vec<LivenessEntry>,
        is_extensible: bool,
    ) -> Result<LogPosition, LivenessError> {
        let liveness = self.read(is_retained)?;
        // Damage that was reported at open is carried on. New damage would go unnoticed.
        if liveness.has_gap() && !self.has_gap {
            return Err(LivenessError::Damaged { what: liveness.damage().join("; ") });
        }
        self.write_anew(&liveness, &liveness.entries(is_retained), changes, is_extensible)
    }

    fn write_anew(
        &mut self,
        liveness: &Liveness,
        base: &[LivenessEntry],
        changes: Vec<LivenessEntry>,
        is_extensible: bool,
    ) -> Result<LogPosition, LivenessError> {
        self.highest += 1;
        self.has_others = true;
        self.is_anew_uncommitted = true;
        let created = LogFile::create(&*self.storage, &self.dir, self.highest, base, &changes);
        let (file, base_end) = created?;
        let mut weights = Weights::default();
        weights.apply(base);
        let position = file.position();
        let (base_end, has_gap) = (is_extensible.then_some(base_end), liveness.has_gap());
        let anew = Some(Anew { file, base_end, weights, has_gap });
        self.pending = Some(PendingAppend { position, anew, changes });
        Ok(position)
    }

    /// Removes the files that the committed position does not need.
    fn remove_others(&mut self) {
        if !self.has_others {
            return;
        }
        self.has_others = false;
        let numbers = match numbers_in(&*self.storage, &self.dir) {
            Ok(numbers) => numbers,
            Err(error) => {
                self.has_others = true;
                let dir = self.dir.display();
                tracing::warn!(%dir, %error, "old liveness logs could not be listed");
                return;
            }
        };
        for number in numbers.into_iter().filter(|number| *number != self.committed.number) {
            let path = path_of(&self.dir, number);
            if let Err(error) = self.storage.remove_file(&path) {
                self.has_others = true;
                let path = path.display();
                tracing::warn!(%path, %error, "an old liveness log could not be removed");
            }
        }
    }
}

fn open_and_read(
    storage: &dyn Storage,
    dir: &Path,
    position: LogPosition,
    mode: OpenMode,
    is_retained: &dyn Fn(u64) -> bool,
) -> Result<(Option<LogFile>, Liveness), LivenessError> {
    let file = match position.number {
        0 => None,
        _ => LogFile::open(storage, dir, position, mode)?,
    };
    let liveness = read_file(file.as_ref(), dir, position, is_retained)?;
    Ok((file, liveness))
}

/// Returns the state of a log. `file` is `None` if it does not exist.
fn read_file(
    file: Option<&LogFile>,
    dir: &Path,
    position: LogPosition,
    is_retained: &dyn Fn(u64) -> bool,
) -> Result<Liveness, LivenessError> {
    if let Some(file) = file {
        return read(file.path(), file.storage_file(), position, is_retained);
    }
    let mut liveness = Liveness::default();
    if position.number > 0 {
        liveness.note_damage(format!("{} is missing", path_of(dir, position.number).display()));
        liveness.gap();
    }
    Ok(liveness)
}
