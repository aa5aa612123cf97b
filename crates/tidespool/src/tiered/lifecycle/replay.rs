//! What a process that died had acknowledged, brought back from its crash log.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::crash_log::{CrashLog, LastRun, LoggedChange};
use crate::journal::payload_crc;
use crate::memory::{Dirty, Ticket};
use crate::tiered::background::relief::wait;
use crate::tiered::protection::Protection;
use crate::tiered::shared::Shared;
use crate::{Config, Durability};

/// A crash log that takes over from the last run's.
#[derive(Debug)]
pub(in crate::tiered) struct CrashLogReplay {
    left: LastRun,
    log: Option<Arc<CrashLog>>,
    /// The new log has all entries of the old one, and has taken its place.
    is_in_force: bool,
}

impl CrashLogReplay {
    /// Reads what the last run left, and makes a log for this one.
    pub(in crate::tiered) fn begin(protection: &Protection, config: &Config) -> Result<Self> {
        let left = protection.left()?;
        let log = match config.durability {
            Durability::Memory => None,
            Durability::Process | Durability::Synced => protection.prepare(config, &left.kept).map_or_else(
                |error| {
                    tracing::warn!(%error, "there is no crash log: what must survive the process is synced");
                    None
                },
                Some,
            ),
        };
        Ok(Self { left, log, is_in_force: false })
    }

    /// Bytes of the new log.
    pub(in crate::tiered) fn log_size(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.size())
    }

    /// Changes that are replayed.
    pub(in crate::tiered) fn changes(&self) -> u64 {
        self.left.kept.len() as u64
    }

    /// What is wrong with the last run's log, which can't be used, though it should.
    pub(in crate::tiered) fn torn(&self) -> Option<&str> {
        self.left.torn.as_deref()
    }

    /// Makes the changes part of the spool, in the order in which they were made, as dirty as they
    /// were; and puts the new log into force if it has all of them. Before any other thread runs.
    pub(in crate::tiered) fn adopt(&mut self, shared: &Shared) -> Result<()> {
        let log = self.log.as_ref();
        let mut is_protected = true;
        for kept in std::mem::take(&mut self.left.kept) {
            is_protected &= adopt(shared, log, kept);
        }
        if let Some(log) = self.log.take_if(|_| is_protected) {
            shared.protection.put_in_force(log)?;
            self.is_in_force = true;
        }
        Ok(())
    }

    /// Waits until the changes are on stable storage. If the disk does not take them, the new log
    /// goes on having them; without one it is an error, and the old file keeps them.
    pub(in crate::tiered) fn settle(self, shared: &Shared, changes: u64) -> Result<()> {
        let config = shared.config.load_full();
        if changes > 0 {
            let until = Instant::now() + config.store_deadline;
            let is_durable = wait(shared, shared.commit_queue.flush(false), until).is_some();
            if !is_durable && !self.is_in_force {
                let what = "the disk did not take what the crash log has within store_deadline, and there is no \
                            room for another crash log: nothing is lost, make room and open it again";
                return Err(io::Error::new(io::ErrorKind::TimedOut, what).into());
            }
            if !is_durable {
                tracing::warn!(changes, "the disk did not take what the crash log has: it is tried again");
            }
        }
        if !self.is_in_force {
            // Everything in it is on stable storage, and nothing that comes now is in it.
            shared.protection.remove_file()?;
            if let Err(error) = shared.protection.renew(&config) {
                tracing::warn!(%error, "there is no crash log: what must survive the process is synced");
            }
        }
        Ok(())
    }
}

/// Makes one change part of the spool. True if the new log has it, too.
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
        // Nothing durable has it: the removal has nothing to remove.
        None if !shard.must_log_removal(&id) => return true,
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

/// Says what to do where an opening fails over its crash log.
pub(in crate::tiered) fn explain<T>(result: Result<T>, dir: &Path) -> Result<T> {
    result.with_context(|| format!("bringing back what was acknowledged in {}", dir.display()))
}
