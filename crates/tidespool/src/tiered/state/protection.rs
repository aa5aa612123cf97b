//! Creates the crash log of a running spool, replaces it after a loss, and reads the last run's.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use thiserror::Error;

use super::commit_queue::CommitQueue;
use super::free_space::keep_free;
use crate::Config;
use crate::crash_log::{CRASH_LOG, CrashLog, LastRun, LoggedChange, NEW_CRASH_LOG, Slot, Written};
use crate::message_id::MessageId;
use crate::storage::{Loss, Space, Storage, loss_of_state};

/// Minimum size in bytes. A smaller log would have no room for large messages.
const LEAST: u64 = 1 << 20;

/// Maximum room in bytes for chunks that are in use and nearly empty; each core has some of each
/// size. The room is a sixteenth of the budget up to this maximum.
const SLACK: u64 = 4 << 20;

/// Keeps acknowledged changes safe from the death of the process.
#[derive(Debug)]
pub(crate) struct Protection {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    spool: [u8; 16],
    commit_queue: Arc<CommitQueue>,
    /// The active log. `None`: changes that must survive go to the journal, with a sync.
    current: ArcSwapOption<CrashLog>,
    renewing: Mutex<()>,
}

/// The crash log could not be read, or its entries could not be kept.
#[derive(Debug, Error)]
#[error("{}: {what}: {source}", path.display())]
pub(crate) struct ProtectionError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

impl Protection {
    pub(in crate::tiered) fn new(
        storage: Arc<dyn Storage>,
        dir: &Path,
        spool: [u8; 16],
        commit_queue: Arc<CommitQueue>,
    ) -> Self {
        let dir = dir.to_owned();
        Self { storage, dir, spool, commit_queue, current: ArcSwapOption::empty(), renewing: Mutex::new(()) }
    }

    /// The file's path.
    pub(in crate::tiered) fn path(&self) -> PathBuf {
        self.dir.join(CRASH_LOG)
    }

    /// Reads the crash log of the last run.
    pub(in crate::tiered) fn last_run(&self) -> Result<LastRun, ProtectionError> {
        LastRun::read(&*self.storage, &self.dir, self.spool)
            .map_err(|source| self.error("reading the crash log of the last run", source))
    }

    /// Creates a log with room for at least `kept`. The log is not active yet.
    pub(in crate::tiered) fn prepare(
        &self,
        config: &Config,
        kept: &[LoggedChange],
    ) -> Result<Arc<CrashLog>, ProtectionError> {
        let path = self.dir.join(NEW_CRASH_LOG);
        let make = || {
            let space = self.storage.space(&config.path).ok();
            let bytes = size(config, space, keep_free(config, &*self.storage)).max(room_for(kept));
            if bytes < LEAST {
                return Err(io::ErrorKind::StorageFull.into());
            }
            CrashLog::create(&*self.storage, &path, self.spool, bytes)
        };
        make().map_err(|source| {
            // The file may be incomplete, and takes disk space.
            let _ = self.storage.remove_file(&path);
            self.error("creating the crash log", source)
        })
    }

    /// Makes `log` the active log, with its entries. Its file replaces the file of the last log.
    pub(in crate::tiered) fn activate(&self, log: Arc<CrashLog>) -> Result<(), ProtectionError> {
        let renamed = self.storage.rename(&self.dir.join(NEW_CRASH_LOG), &self.path());
        renamed.map_err(|source| self.error("renaming the new crash log", source))?;
        self.current.store(Some(log));
        Ok(())
    }

    /// Removes the file. The caller guarantees that everything in it is on stable storage.
    pub(in crate::tiered) fn remove_file(&self) -> Result<(), ProtectionError> {
        match self.storage.remove_file(&self.path()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(self.error("removing the crash log", source))
            }
            _ => Ok(()),
        }
    }

    /// Activates a new log if there is none, or if the active one is lost or broken. Requests a
    /// flush of everything that only the old log protected.
    pub(crate) fn renew(&self, config: &Config) -> Result<(), ProtectionError> {
        let _one = self.renewing.lock();
        let is_lost = self.loss().is_some();
        if !is_lost && !self.is_missing(config) {
            return Ok(());
        }
        self.current.store(None);
        let is_wanted = self.is_missing(config);
        let renewed = match is_wanted {
            true => self.prepare(config, &[]).and_then(|log| self.activate(log)),
            false => Ok(()),
        };
        if !is_lost {
            return renewed;
        }
        // The file of a lost log may have entries that were revoked since. If a new log is active,
        // its file has replaced the old one.
        let removed = if is_wanted && renewed.is_ok() { Ok(()) } else { self.remove_file() };
        drop(self.commit_queue.flush(false));
        renewed.and(removed)
    }

    /// True if a log is active.
    pub(in crate::tiered) fn is_active(&self) -> bool {
        self.current.load().is_some()
    }

    /// True if no log is active although the settings require one.
    pub(crate) fn is_missing(&self, config: &Config) -> bool {
        config.needs_crash_log() && self.current.load().is_none()
    }

    /// Returns how the active log was lost. `None`: it is intact, or no log is active.
    pub(crate) fn loss(&self) -> Option<Loss> {
        let current = self.current.load();
        let log = current.as_ref()?;
        if log.is_broken() {
            return Some(Loss::Broken);
        }
        loss_of_state(&*self.storage, &self.path(), log.state().ok()?, log.size())
    }

    /// True if a log is active whose file is intact and still has a name, wherever that is.
    pub(crate) fn has_named_file(&self) -> bool {
        let current = self.current.load();
        let has_name = |log: &Arc<CrashLog>| log.state().is_ok_and(|state| state.links > 0);
        current.as_ref().is_some_and(|log| !log.is_broken() && has_name(log))
    }

    /// Writes a message to the log. `None`: the message has to go to the journal.
    pub(in crate::tiered) fn write(&self, id: MessageId, data: &[u8], payload_crc: u32) -> Option<Written> {
        self.current.load().as_ref()?.write(id, data, payload_crc)
    }

    /// Writes a removal to the log. `None`: the removal has to go to the journal.
    pub(in crate::tiered) fn write_removal(&self, id: MessageId) -> Option<Written> {
        self.current.load().as_ref()?.write_removal(id)
    }

    /// Commits an entry as this version of its message. Call it under the lock of the id's shard.
    ///
    /// `None`: the log is broken, or another log has become active. The change has to go to the
    /// journal then: the flush that follows a loss of the log may not include it.
    pub(in crate::tiered) fn commit(&self, written: Written, version: u64) -> Option<Slot> {
        let slot = written.commit(version)?;
        let is_current = self.current.load().as_ref().is_some_and(|log| slot.is_of(log));
        is_current.then_some(slot)
    }

    /// Keeps the log's entries for the next opening: entries dropped after this stay in the file.
    pub(in crate::tiered) fn freeze(&self) {
        if let Some(log) = &*self.current.load() {
            log.freeze();
        }
    }

    /// Returns the bytes of the log in memory, and the size of its file.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.current.load().as_ref().map_or((0, 0), |log| (log.touched_bytes(), log.size()))
    }

    /// Returns the memory of unused chunks to the system.
    pub(crate) fn trim(&self) {
        if let Some(log) = &*self.current.load() {
            log.trim();
        }
    }

    fn error(&self, what: &'static str, source: io::Error) -> ProtectionError {
        ProtectionError { path: self.path(), what, source }
    }
}

/// Returns the size of the log in bytes.
///
/// The size is the sum of the dirty limit, a quarter of it for unused parts of slots, a sixteenth
/// of the budget for removals, and room for nearly empty chunks. It is at most a sixty-fourth of
/// the file system, and leaves `keep_free` bytes free, as new segments do.
fn size(config: &Config, space: Option<Space>, keep_free: u64) -> u64 {
    let dirty = config.effective_dirty_limit();
    let sixteenth = config.memory_budget / 16;
    let wanted = dirty + dirty / 4 + sixteenth + sixteenth.min(SLACK);
    match space {
        Some(space) if space.total_bytes > 0 => {
            wanted.min(space.total_bytes / 64).min(space.free_bytes.saturating_sub(keep_free))
        }
        // The file system does not report its size.
        Some(_) | None => wanted,
    }
}

/// Returns a log size in bytes in which all these changes have room. 0 if there are none.
fn room_for(kept: &[LoggedChange]) -> u64 {
    let bytes: u64 =
        kept.iter().map(|kept| kept.data.as_ref().map_or(0, |data| data.len() as u64) + 64).sum();
    if kept.is_empty() { 0 } else { LEAST + bytes * 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_log_leaves_keep_free_bytes_free() {
        let config = Config::new("/x");
        let of = |total, free| {
            let space = Space { total_bytes: total * MIB, free_bytes: free * MIB, ..Space::default() };
            size(&config, Some(space), 300 * MIB) / MIB
        };
        assert_eq!(of(100_000, 50_000), 60);
        assert_eq!(of(640, 600), 10, "a sixty-fourth");
        assert_eq!(of(100_000, 320), 20, "the free space beyond keep_free");
        assert_eq!(of(100_000, 200), 0);
        assert_eq!(size(&config, None, 0) / MIB, 60);
        // ramfs and some FUSE file systems report 0 for both.
        assert_eq!(of(0, 0), 60);
    }

    #[test]
    fn acknowledged_changes_have_room_whatever_the_size_of_the_disk() {
        assert_eq!(room_for(&[]), 0);
        let kept = |len| LoggedChange { version: 1, id: MessageId::random(), data: Some(vec![0; len]) };
        assert!(room_for(&[kept(1_000_000), kept(10)]) > 2 * MIB);
    }
}
