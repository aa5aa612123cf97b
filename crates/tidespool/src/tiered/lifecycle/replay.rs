//! Restores the changes that a process acknowledged before it died, from its crash log.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::Config;
use crate::crash_log::{CrashLog, LastRun, LoggedChange};
use crate::journal::payload_crc;
use crate::memory::{Dirty, Ticket};
use crate::storage::is_unreadable;
use crate::tiered::background::relief::wait;
use crate::tiered::state::{Protection, Shared};

/// The crash log of the last run, and the new log that replaces it.
#[derive(Debug)]
pub(in crate::tiered) struct CrashLogReplay {
    last_run: LastRun,
    log: Option<Arc<CrashLog>>,
    /// The new log has all entries of the old one, and has replaced it.
    is_active: bool,
}

impl CrashLogReplay {
    /// Reads the last run's log, and creates a log for this run.
    pub(in crate::tiered) fn begin(protection: &Protection, config: &Config) -> Result<Self> {
        let last_run = protection.last_run()?;
        let prepare = || protection.prepare(config, &last_run.kept);
        let log = config.needs_crash_log().then(prepare).and_then(|prepared| {
            prepared
                .inspect_err(|error| {
                    tracing::warn!(%error, "there is no crash log: changes that must survive the process are synced");
                })
                .ok()
        });
        Ok(Self { last_run, log, is_active: false })
    }

    /// Size of the new log in bytes.
    pub(in crate::tiered) fn log_size(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.size())
    }

    /// Number of changes to replay.
    pub(in crate::tiered) fn changes(&self) -> u64 {
        self.last_run.kept.len() as u64
    }

    /// Describes why the last run's log can't be used although it should be valid. `None`: it can.
    pub(in crate::tiered) fn torn(&self) -> Option<&str> {
        self.last_run.torn.as_deref()
    }

    /// Inserts the changes into the spool as dirty, in their original order. Activates the new log
    /// if it has all of them. Call it before any other thread runs.
    pub(in crate::tiered) fn adopt(&mut self, shared: &Shared) -> Result<()> {
        let log = self.log.as_ref();
        let mut is_protected = true;
        for kept in std::mem::take(&mut self.last_run.kept) {
            is_protected &= adopt(shared, log, kept);
        }
        if let Some(log) = self.log.take_if(|_| is_protected) {
            shared.protection.activate(log)?;
            self.is_active = true;
        }
        Ok(())
    }

    /// Waits until the changes are on stable storage. If the disk does not write them in time, the
    /// new log keeps them. Without a new log this returns an error, and the old file keeps them.
    pub(in crate::tiered) fn settle(self, shared: &Shared, changes: u64) -> Result<()> {
        let config = shared.config.load_full();
        if changes > 0 {
            let until = Instant::now() + config.store_deadline;
            let is_durable = wait(shared, shared.commit_queue.flush(false), until).is_some();
            if !is_durable && !self.is_active {
                let what = "the disk did not write the changes in the crash log within store_deadline, and there is \
                            no room for another crash log: nothing is lost; free disk space and open it again";
                return Err(io::Error::new(io::ErrorKind::TimedOut, what).into());
            }
            if !is_durable {
                tracing::warn!(changes, "the disk did not write the changes in the crash log yet: retrying");
            }
        }
        if !self.is_active {
            // Everything in the old log is on stable storage, and later changes are not in it.
            shared.protection.remove_file()?;
            if let Err(error) = shared.protection.renew(&config) {
                tracing::warn!(%error, "there is no crash log: changes that must survive the process are synced");
            }
        }
        Ok(())
    }
}

/// Inserts one change into the spool. Returns true if the new log has it, too.
fn adopt(shared: &Shared, log: Option<&Arc<CrashLog>>, kept: LoggedChange) -> bool {
    let LoggedChange { id, data, .. } = kept;
    let mut shard = shared.table.lock(&id);
    let version = shared.table.next_version();
    let (dirty, written) = match data {
        Some(data) => {
            let permit = shared.budget.admit_acknowledged(data.len() as u64);
            let crc = payload_crc(&data);
            let written = log.and_then(|log| log.write(id, &data, crc));
            (Dirty::put(Arc::new(data.into_boxed_slice()), Some(crc), permit), written)
        }
        // A removal of a message that is not durable has no effect.
        None if !shard.must_log_removal(&id, shard.index.get(&id)) => return true,
        None => {
            let written = log.and_then(|log| log.write_removal(id));
            (Dirty::tombstone(shared.budget.admit_removal()), written)
        }
    };
    let slot = written.and_then(|written| written.commit(version));
    let is_protected = slot.is_some();
    shard.pending.insert(Ticket { version, at: Instant::now(), id }, Arc::new(dirty), slot);
    is_protected
}

/// Adds the directory to an error of the replay, and an advice to one that may be permanent.
pub(super) fn explain_replay<T>(result: Result<T>, dir: &Path) -> Result<T> {
    let restoring = || format!("restoring the crash log of {}", dir.display());
    result.with_context(restoring).map_err(|error| explain(error, dir))
}

/// Adds an advice to an error that may be permanent.
pub(super) fn explain(error: impl Into<anyhow::Error>, dir: &Path) -> anyhow::Error {
    let error = error.into();
    match error.chain().any(|cause| cause.downcast_ref().is_some_and(is_unreadable)) {
        true => error.context(format!(
            "the disk can't read all of it; if the error persists, `tidespool repair {} NEW_DIR` copies everything \
             readable into a new directory",
            dir.display()
        )),
        false => error,
    }
}
