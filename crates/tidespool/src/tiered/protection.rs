//! The crash log of a running spool: made, replaced when something happens to it, and read at open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use thiserror::Error;
use tidespool_core::SpoolId;

use super::mailbox::Mailbox;
use crate::crash_log::{CRASH_LOG, CrashLog, Left, NEW_CRASH_LOG, Slot, Written};
use crate::storage::{Loss, Storage, loss_of_state};
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
    mailbox: Arc<Mailbox>,
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
    pub(super) fn new(storage: Arc<dyn Storage>, dir: &Path, spool: [u8; 16], mailbox: Arc<Mailbox>) -> Self {
        let dir = dir.to_owned();
        Self { storage, dir, spool, mailbox, current: ArcSwapOption::empty(), renewing: Mutex::new(()) }
    }

    /// The file's path.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(CRASH_LOG)
    }

    /// Reads what the last run left.
    pub(super) fn left(&self) -> Result<Left, ProtectionError> {
        Left::read(&*self.storage, &self.dir, self.spool)
            .map_err(|source| self.error("reading what was not on stable storage", source))
    }

    /// Makes a log that is not in force yet.
    pub(super) fn prepare(&self, config: &Config) -> Result<Arc<CrashLog>, ProtectionError> {
        let path = self.dir.join(NEW_CRASH_LOG);
        let make = || {
            let bytes = size(config, &*self.storage);
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
        if config.durability == Durability::Memory || (self.current.load().is_some() && self.loss().is_none())
        {
            return Ok(());
        }
        let was_there = self.current.swap(None).is_some();
        let renewed = self.prepare(config).and_then(|log| self.put_in_force(log));
        if was_there {
            // What happened to the file may have left entries in it that were taken back since.
            let removed = if renewed.is_err() { self.remove_file() } else { Ok(()) };
            drop(self.mailbox.flush(false));
            return renewed.and(removed);
        }
        renewed
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

    /// Makes what was written count, as this version of its message, under the lock of the id's shard.
    /// `None`: it has to go to the journal, for the log is broken, or was replaced meanwhile. What was
    /// dirty when a log is replaced is flushed, and this would not be.
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
/// the budget for removals; and not more than a sixty-fourth of the file system.
fn size(config: &Config, storage: &dyn Storage) -> u64 {
    let dirty = config.effective_dirty_limit();
    let sixteenth = config.memory_budget / 16;
    let wanted = dirty + dirty / 4 + sixteenth + sixteenth.min(SLACK);
    let total = storage.space(&config.path).map_or(u64::MAX, |space| space.total_bytes);
    wanted.min(total / 64)
}
