//! Offline access to a spool's directory, for tools: [`Inspector`] lists, reads and verifies
//! without changing anything, and [`salvage()`] copies the whole messages of a damaged spool into a
//! new one.
//!
//! The calls block and leave no threads behind. They take the directory's lock, so that a running
//! spool is never inspected. They read the segments, the manifest, the liveness log and the crash
//! log, and never open the index. The result is held in memory: about 60 bytes a message, and the
//! bytes of messages that only the crash log has.
//!
//! The messages are those that an opening would find. As at an opening, the crash log counts only
//! if the machine was not restarted since it was written.
//!
//! # Layout
//!
//! * `offline_spool` – [`Inspector`]: the spool's recovery code, read-only.
//! * `contents` – what the files of a directory hold. `unsynced` – the changes in the crash log.
//!   `torn` – records of a torn end.
//! * `salvage` – copies whole messages into a new spool. `unreadable` – reads a failing disk as far
//!   as possible.

mod contents;
mod offline_spool;
mod salvage;
mod torn;
mod unreadable;
mod unsynced;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tidespool_core::SpoolId;

pub use salvage::{Salvage, salvage, salvage_on};

pub use crate::damage::Damage;
use crate::storage::{OsStorage, Storage};
use crate::whole_text::whole;

/// An open directory of a spool, read-only. Dropping it closes the directory.
#[derive(Debug)]
pub struct Inspector(offline_spool::OfflineSpool);

/// Where the bytes of a message are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Home {
    /// In the journal, younger than the last checkpoint.
    Journal,
    /// In a retained segment.
    Segment,
    /// In the crash log: the message was acknowledged, and was not on stable storage when the
    /// process died.
    CrashLog,
}

/// What the next opening does with the index of the checkpointed messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IndexState {
    /// The index is kept: its files are as the last orderly shutdown left them, or no message is
    /// checkpointed.
    #[default]
    Kept,
    /// The index is rebuilt from the segments. No message depends on it.
    RebuiltAtNextOpen,
}

/// One live message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The name of its spool.
    pub spool: String,
    /// The id of the message.
    pub id: SpoolId,
    /// Payload bytes.
    pub size: u64,
    /// Where the payload is.
    pub home: Home,
}

/// Counts of one spool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SpoolSummary {
    /// Live messages.
    pub messages: u64,
    /// Payload bytes of the live messages.
    pub message_bytes: u64,
}

/// Counts of what a spool's directory holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Version of the on-disk format, from `FORMAT`.
    pub format_version: u32,
    /// Live messages.
    pub messages: u64,
    /// Payload bytes of the live messages.
    pub message_bytes: u64,
    /// Counts by the name of the spool, for all spools.
    pub spools: BTreeMap<String, SpoolSummary>,
    /// Live messages by home: `journal`, `segment`, `crash-log`.
    pub messages_by_home: BTreeMap<String, u64>,
    /// Segments by state: `free`, `journal`, `retained`.
    pub segments_by_state: BTreeMap<String, u64>,
    /// Bytes of all segment files.
    pub segment_bytes: u64,
    /// Bytes of the index's files.
    pub index_bytes: u64,
    /// What the next opening does with the index.
    pub index: IndexState,
    /// Checkpointed messages, from the manifest.
    pub manifest_records: u64,
    /// The last shutdown was orderly.
    pub clean_shutdown: bool,
    /// What the next opening restores from the crash log.
    pub crash_log: CrashLogSummary,
}

/// Counts of what the next opening restores from the crash log. All but `file_bytes` are 0 if the
/// opening ignores the log or can't use it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CrashLogSummary {
    /// Live messages whose newest version is in the crash log.
    pub messages: u64,
    /// Payload bytes of these messages.
    pub message_bytes: u64,
    /// Messages on disk that were removed according to the crash log.
    pub removals: u64,
    /// Bytes of the log's file. 0 if there is none, or if it can't be read.
    pub file_bytes: u64,
}

/// What [`Inspector::verify`] read and found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Messages of which every byte was read and matches its checksum.
    pub messages: u64,
    /// Payload bytes of these messages.
    pub bytes: u64,
    /// What the next opening does with the index. A rebuild of the index is not damage.
    pub index: IndexState,
    /// All damage found. Empty: the spool is whole.
    pub damage: Vec<Damage>,
    /// Records of a torn end, which the next opening cuts. A crash leaves them: they were never
    /// known to be on stable storage. They count as no damage, although damage to the last batch
    /// looks the same.
    pub torn: Vec<Damage>,
}

impl Inspector {
    /// Opens the spool in `path`.
    ///
    /// # Errors
    ///
    /// [`Locked`](tidespool_core::Locked),
    /// [`UnsupportedFormat`](tidespool_core::UnsupportedFormat),
    /// [`DamagedSpool`](tidespool_core::DamagedSpool) if the format file is damaged, or an I/O
    /// error that names the path.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Self::open_on(path, Arc::new(OsStorage))
    }

    /// Opens the spool with another [`Storage`] for the journal and the manifest, for tests that
    /// inject faults.
    ///
    /// # Errors
    ///
    /// Those of [`Inspector::open`].
    pub fn open_on(path: &Path, storage: Arc<dyn Storage>) -> anyhow::Result<Self> {
        offline_spool::OfflineSpool::open(path, storage).map(Self).map_err(whole)
    }

    /// Calls `visit` for each live message of all spools until `visit` returns `false`. The
    /// messages of a spool are in time order within each kind of id.
    ///
    /// # Errors
    ///
    /// An I/O error.
    pub fn entries(&self, visit: &mut dyn FnMut(Entry) -> bool) -> anyhow::Result<()> {
        self.0.entries(visit).map_err(whole)
    }

    /// Returns the names of all spools, in order. A spool of which only messages were found, as in
    /// a repaired store whose `FORMAT` was lost, has the name `unnamed-N`.
    #[must_use]
    pub fn spools(&self) -> Vec<String> {
        self.0.spools()
    }

    /// Returns the names of the spools that have a message with this id, in order. Reads no
    /// payload.
    #[must_use]
    pub fn spools_with(&self, id: SpoolId) -> Vec<String> {
        self.0.spools_with(id)
    }

    /// Returns the bytes of one message of a spool.
    ///
    /// # Errors
    ///
    /// [`SpoolNameError::Unknown`](crate::SpoolNameError::Unknown),
    /// [`NotFound`](tidespool_core::NotFound), [`Corrupt`](tidespool_core::Corrupt), or an I/O
    /// error.
    pub fn load(&self, spool: &str, id: SpoolId) -> anyhow::Result<Vec<u8>> {
        self.0.load(spool, id).map_err(whole)
    }

    /// Counts what the directory holds.
    ///
    /// # Errors
    ///
    /// An I/O error.
    pub fn summary(&self) -> anyhow::Result<Summary> {
        self.0.summary().map_err(whole)
    }

    /// Returns the damage that was found when the directory was opened. Payloads are not read: see
    /// [`verify`](Self::verify). If there is any, messages may be missing from
    /// [`entries`](Self::entries).
    #[must_use]
    pub fn damage(&self) -> Vec<Damage> {
        self.0.damage()
    }

    /// Reads every byte of every message, the journal, the manifest, the liveness log and the crash
    /// log. Compares them with their checksums and with each other, and the index's files with
    /// their state at the last orderly shutdown.
    ///
    /// # Errors
    ///
    /// An I/O error. Damage is part of the result and not an error.
    pub fn verify(&self) -> anyhow::Result<Verification> {
        self.0.verify().map_err(whole)
    }
}
