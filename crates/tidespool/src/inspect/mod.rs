//! An offline look at a spool's directory, for tools: list, read and verify without changing a message; and a copy of what is whole in a damaged
//! one, into a new spool.
//!
//! Blocking calls, no threads left behind but sled's own while it is open. Takes the directory's lock, so a running spool is never looked into.
//! Nothing of Tidespool's own files is changed; sled is opened in place, makes its files where they are missing, and finishes its own recovery after a
//! crash. Only a repair reads it from a copy, and changes nothing.

mod look;
mod salvage;
mod torn;
mod unreadable;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tidespool_core::SpoolId;

pub use salvage::{Salvage, salvage, salvage_on};

use crate::storage::{OsStorage, Storage};

/// An open directory. Closing it is dropping it.
#[derive(Debug)]
pub struct Inspector(look::Look);

/// Where a message's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Home {
    /// In the journal, younger than the last checkpoint.
    Journal,
    /// Whole in sled.
    Sled,
    /// In a retained segment; sled has its place.
    Segment,
    /// Nowhere whole: its record is damaged, and only its id is left.
    Damaged,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its id.
    pub id: SpoolId,
    /// Payload bytes; 0 where the record is damaged.
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
    /// Live messages by home: `journal`, `sled`, `segment`.
    pub messages_by_home: BTreeMap<String, u64>,
    /// Segments by state: `free`, `journal`, `retained`.
    pub segments_by_state: BTreeMap<String, u64>,
    /// Bytes of all segment files.
    pub segment_bytes: u64,
    /// Bytes of sled's directory.
    pub sled_bytes: u64,
    /// Records that sled must contain, from the ledger.
    pub ledger_records: u64,
    /// The last shutdown was an orderly one.
    pub clean_shutdown: bool,
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

    /// The same on another [`Storage`] under the journal and the ledger, for tests that break it.
    ///
    /// # Errors
    ///
    /// As [`Inspector::open`].
    pub fn open_on(path: &Path, storage: Arc<dyn Storage>) -> anyhow::Result<Self> {
        look::Look::open(path, storage).map(Self)
    }

    /// Calls `visit` for each live message, in time order within each kind of id, until it returns `false`.
    ///
    /// # Errors
    ///
    /// An I/O error.
    pub fn entries(&self, visit: &mut dyn FnMut(Entry) -> bool) -> anyhow::Result<()> {
        self.0.entries(visit)
    }

    /// The bytes of one message.
    ///
    /// # Errors
    ///
    /// [`NotFound`](tidespool_core::NotFound), [`Corrupt`](tidespool_core::Corrupt), or an I/O error.
    pub fn load(&self, id: SpoolId) -> anyhow::Result<Vec<u8>> {
        self.0.load(id)
    }

    /// Counts what the directory holds.
    ///
    /// # Errors
    ///
    /// An I/O error.
    pub fn summary(&self) -> anyhow::Result<Summary> {
        self.0.summary()
    }

    /// Reads every byte of every message, the journal, the ledger and sled, and compares them with their checksums and with one another.
    ///
    /// # Errors
    ///
    /// An I/O error; damage is no error here, it is the result.
    pub fn verify(&self) -> anyhow::Result<Verification> {
        self.0.verify()
    }
}
