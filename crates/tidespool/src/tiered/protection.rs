//! The crash log of a running spool: made, replaced when something happens to it, and read at open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use thiserror::Error;
use tidespool_core::SpoolId;

use super::commit::queue::CommitQueue;
use super::lifecycle::open::keep_free;
use crate::crash_log::{CRASH_LOG, CrashLog, LastRun, LoggedChange, NEW_CRASH_LOG, Slot, Written};
use crate::storage::{Loss, Space, Storage, loss_of_state};
use crate::{Config, Durability};

/// A spool with less than this is better off without: everything large would go past it.
const LEAST: u64 = 1 << 20;

/// Room for the chunks that are in use and nearly empty, some of each size for each core: a
/// sixteenth of the budget, and so much at most.
const SLACK: u64 = 4 << 20;

/// What keeps acknowledged changes over the death of the process.
#[derive(Debug)]
pub(crate) struct Protection {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    spool: [u8; 16],
    commit_queue: Arc<CommitQueue>,
    /// `None`: what must survive goes to the journal, with a sync.
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
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        dir: &Path,
        spool: [u8; 16],
        commit_queue: Arc<CommitQueue>,
    ) -> Self {
        let dir = dir.to_owned();
        Self { storage, dir, spool, commit_queue, current: ArcSwapOption::empty(), renewing: Mutex::new(()) }
    }

    /// The file's path.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(CRASH_LOG)
    }

    /// Reads what the last run left.
    pub(super) fn left(&self) -> Result<LastRun, ProtectionError> {
        LastRun::read(&*self.storage, &self.dir, self.spool)
            .map_err(|source| self.error("reading what was not on stable storage", source))
    }

    /// Makes a log that is not in force yet, with room for `kept` at the least.
    pub(super) fn prepare(
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
            // It may be half made, and takes room.
            let _ = self.storage.remove_file(&path);
            self.error("making it", source)
        })
    }

    /// Puts a log into force, with the entries that it has: it replaces the file of the last one.
    pub(super) fn put_in_force(&self, log: Arc<CrashLog>) -> Result<(), ProtectionError> {
        let renamed = self.storage.rename(&self.dir.join(NEW_CRASH_LOG), &self.path());
        renamed.map_err(|source| self.error("putting the new one in its place", source))?;
        self.current.store(Some(log));
        Ok(())
    }

    /// Removes the file of the last run: everything in it is on stable storage.
    pub(super) fn remove_file(&self) -> Result<(), ProtectionError> {
        match self.storage.remove_file(&self.path()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.error("removing it", source)),
            _ => Ok(()),
        }
    }

    /// Puts a new log into force if there is none, or if something happened to the one there is.
    /// What only the old one protected is written to the journal at once.
    pub(crate) fn renew(&self, config: &Config) -> Result<(), ProtectionError> {
        let _one = self.renewing.lock();
        let is_lost = self.loss().is_some();
        if !is_lost && !self.is_wanting(config) {
            return Ok(());
        }
        self.current.store(None);
        let is_wanted = self.is_wanting(config);
        let renewed = match is_wanted {
            true => self.prepare(config, &[]).and_then(|log| self.put_in_force(log)),
            false => Ok(()),
        };
        if !is_lost {
            return renewed;
        }
        // The file may have entries that were taken back since. A new log has taken its place.
        let removed = if is_wanted && renewed.is_ok() { Ok(()) } else { self.remove_file() };
        drop(self.commit_queue.flush(false));
        renewed.and(removed)
    }

    /// True if there is a log.
    pub(super) fn is_in_force(&self) -> bool {
        self.current.load().is_some()
    }

    /// True if there is no log, although the settings want one.
    pub(crate) fn is_wanting(&self, config: &Config) -> bool {
        config.durability != Durability::Memory && self.current.load().is_none()
    }

    /// What happened to the log. `None`: nothing, or there is none.
    pub(crate) fn loss(&self) -> Option<Loss> {
        let current = self.current.load();
        let log = current.as_ref()?;
        if log.is_broken() {
            return Some(Loss::Broken);
        }
        loss_of_state(&*self.storage, &self.path(), log.state().ok()?, log.size())
    }

    /// Writes a message to the log. `None`: it has to go to the journal.
    pub(super) fn write(&self, id: SpoolId, data: &[u8], payload_crc: u32) -> Option<Written> {
        self.current.load().as_ref()?.write(id, data, payload_crc)
    }

    /// Writes a removal to the log. `None`: it has to go to the journal.
    pub(super) fn write_removal(&self, id: SpoolId) -> Option<Written> {
        self.current.load().as_ref()?.write_removal(id)
    }

    /// Makes an entry count, as this version of its message. Call it under the lock of the id's
    /// shard. `None`: the log is broken, or another one is in force by now. The change has to go to
    /// the journal then: the flush that follows a loss of the log may have passed it.
    pub(super) fn commit(&self, written: Written, version: u64) -> Option<Slot> {
        let slot = written.commit(version)?;
        let is_current = self.current.load().as_ref().is_some_and(|log| slot.is_of(log));
        is_current.then_some(slot)
    }

    /// What is not on stable storage by now stays in the log, for the next opening.
    pub(super) fn freeze(&self) {
        if let Some(log) = &*self.current.load() {
            log.freeze();
        }
    }

    /// Bytes of the log in memory, and of its file.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.current.load().as_ref().map_or((0, 0), |log| (log.touched_bytes(), log.size()))
    }

    /// Gives back the memory of what is not in use.
    pub(crate) fn trim(&self) {
        if let Some(log) = &*self.current.load() {
            log.trim();
        }
    }

    fn error(&self, what: &'static str, source: io::Error) -> ProtectionError {
        ProtectionError { path: self.path(), what, source }
    }
}

/// Bytes of the log: what may be dirty, with a quarter for what slots leave unused; a sixteenth of
/// the budget for removals; at most a sixty-fourth of the file system, and not of the room that new
/// segments leave to others, which is `keep_free`.
fn size(config: &Config, space: Option<Space>, keep_free: u64) -> u64 {
    let dirty = config.effective_dirty_limit();
    let sixteenth = config.memory_budget / 16;
    let wanted = dirty + dirty / 4 + sixteenth + sixteenth.min(SLACK);
    match space {
        Some(space) if space.total_bytes > 0 => {
            wanted.min(space.total_bytes / 64).min(space.free_bytes.saturating_sub(keep_free))
        }
        // It does not report its size.
        Some(_) | None => wanted,
    }
}

/// Bytes of a log in which these changes have room, whatever else there is. 0 where there are none.
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
    fn the_log_takes_no_room_that_others_need() {
        let config = Config::new("/x");
        let of = |total, free| {
            let space = Space { total_bytes: total * MIB, free_bytes: free * MIB, ..Space::default() };
            size(&config, Some(space), 300 * MIB) / MIB
        };
        assert_eq!(of(100_000, 50_000), 60);
        assert_eq!(of(640, 600), 10, "a sixty-fourth");
        assert_eq!(of(100_000, 320), 20, "what is to stay free stays free");
        assert_eq!(of(100_000, 200), 0);
        assert_eq!(size(&config, None, 0) / MIB, 60);
        // ramfs and some FUSE file systems say 0 of both.
        assert_eq!(of(0, 0), 60);
    }

    #[test]
    fn what_was_acknowledged_has_room_on_any_disk() {
        assert_eq!(room_for(&[]), 0);
        let kept = |len| LoggedChange { version: 1, id: SpoolId::new(), data: Some(vec![0; len]) };
        assert!(room_for(&[kept(1_000_000), kept(10)]) > 2 * MIB);
    }
}
