//! An offline look at a spool's directory, for tools: list, read and verify without changing
//! anything; and a copy of what is whole in a damaged one, into a new spool.
//!
//! Blocking calls, no threads left behind. Takes the directory's lock, so a running spool is never
//! looked into. Everything is read from the segments, the manifest, the log of what lives in the
//! segments, and the crash log. The index is never opened. What is found is held in memory: about
//! 60 bytes a message, and the messages that are in the crash log alone.
//!
//! The messages are those that an opening would find. What the crash log has counts if the machine
//! was not started again since, as at an opening.

mod contents;
mod look;
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

use crate::storage::{OsStorage, Storage};
use crate::whole_text::whole;

/// An open directory. Closing it is dropping it.
#[derive(Debug)]
pub struct Inspector(look::Look);

/// Where a message's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Home {
    /// In the journal, younger than the last checkpoint.
    Journal,
    /// In a retained segment.
    Segment,
    /// In the crash log: acknowledged, and not on stable storage when the process died.
    CrashLog,
}

/// What the next opening does with the index of the filed messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IndexState {
    /// Its files are what the last orderly end left, or nothing is filed: it is kept.
    #[default]
    Kept,
    /// It is rebuilt from the segments. No message depends on it.
    RebuiltAtNextOpen,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its id.
    pub id: SpoolId,
    /// Payload bytes.
    pub size: u64,
    /// Where its bytes are.
    pub home: Home,
}

/// What the directory holds, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Version of the layout, from `FORMAT`.
    pub format_version: u32,
    /// Live messages.
    pub messages: u64,
    /// Their payload bytes.
    pub message_bytes: u64,
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
    /// Messages that are filed, from the manifest.
    pub manifest_records: u64,
    /// The last shutdown was an orderly one.
    pub clean_shutdown: bool,
    /// What the next opening brings back from the crash log.
    pub crash_log: CrashLogSummary,
}

/// What a crash log changes, in numbers. All but the file's size are 0 if an opening ignores the
/// log or can't use it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CrashLogSummary {
    /// Live messages whose newest version is in it.
    pub messages: u64,
    /// Their payload bytes.
    pub message_bytes: u64,
    /// Messages that are on disk and that it says were removed.
    pub removals: u64,
    /// Bytes of its file. 0 if there is none, or if it can't be read.
    pub file_bytes: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file.
    pub path: String,
    /// The message, where one can be named.
    pub id: Option<SpoolId>,
    /// What is wrong, where in the file.
    pub what: String,
}

/// What [`Inspector::verify`] read and found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Messages of which every byte was checked.
    pub messages: u64,
    /// Payload bytes checked.
    pub bytes: u64,
    /// What the next opening does with the index: no damage.
    pub index: IndexState,
    /// Everything that is wrong. Empty: the spool is whole.
    pub damage: Vec<Damage>,
    /// Records of a torn end, which the next opening cuts: after a crash, what was never known to be on stable storage. No damage, as far as can be
    /// told.
    pub torn: Vec<Damage>,
}

impl Inspector {
    /// Opens the spool in `path`.
    ///
    /// # Errors
    ///
    /// [`Locked`](tidespool_core::Locked), [`UnsupportedFormat`](tidespool_core::UnsupportedFormat),
    /// [`DamagedSpool`](tidespool_core::DamagedSpool) where the format file is damaged, or an I/O error that names the path.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Self::open_on(path, Arc::new(OsStorage))
    }

    /// The same on another [`Storage`] under the journal and the manifest, for tests that break it.
    ///
    /// # Errors
    ///
    /// As [`Inspector::open`].
    pub fn open_on(path: &Path, storage: Arc<dyn Storage>) -> anyhow::Result<Self> {
        look::Look::open(path, storage).map(Self).map_err(whole)
    }

    /// Calls `visit` for each live message, in time order within each kind of id, until it returns `false`.
    ///
    /// # Errors
    ///
    /// An I/O error.
    pub fn entries(&self, visit: &mut dyn FnMut(Entry) -> bool) -> anyhow::Result<()> {
        self.0.entries(visit).map_err(whole)
    }

    /// The bytes of one message.
    ///
    /// # Errors
    ///
    /// [`NotFound`](tidespool_core::NotFound), [`Corrupt`](tidespool_core::Corrupt), or an I/O error.
    pub fn load(&self, id: SpoolId) -> anyhow::Result<Vec<u8>> {
        self.0.load(id).map_err(whole)
    }

    /// Counts what the directory holds.
    ///
    /// # Errors
    ///
    /// An I/O error.
    pub fn summary(&self) -> anyhow::Result<Summary> {
        self.0.summary().map_err(whole)
    }

    /// Reads every byte of every message, the journal, the manifest, the log of what lives and the
    /// crash log, and compares them with their checksums and with one another. The index is
    /// compared with what the last orderly end left.
    ///
    /// # Errors
    ///
    /// An I/O error; damage is no error here, it is the result.
    pub fn verify(&self) -> anyhow::Result<Verification> {
        self.0.verify().map_err(whole)
    }
}
