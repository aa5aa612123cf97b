//! What the crash log has, which counts more than what is on disk: as an opening takes it.

use std::collections::BTreeMap;
use std::io;

use tidespool_core::SpoolId;

use super::Damage;
use super::contents::report;
use crate::checkpoint::Places;
use crate::crash_log::{CRASH_LOG, LastRun};
use crate::durable::Key;
use crate::storage::Storage;

/// Changes that were acknowledged and not on stable storage when the process died.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    /// By message: its newest version, or `None` if it was removed.
    changes: BTreeMap<Key, Option<Vec<u8>>>,
    /// Bytes of the log's file.
    pub(super) file_bytes: u64,
    /// The log should be used, and can't be.
    pub(super) damage: Option<Damage>,
}

impl Unsynced {
    /// Reads the log, from the disk as it is: a page of zeros in it would pass for a page without
    /// entries.
    pub(super) fn read(places: &Places, storage: &dyn Storage) -> io::Result<Self> {
        let left = LastRun::read(storage, &places.dir, places.spool)?;
        let damage = left.torn.map(|what| report(&places.dir.join(CRASH_LOG), None, what));
        let changes = left.kept.into_iter().map(|kept| (Key::of(&kept.id), kept.data));
        Ok(Self { changes: changes.collect(), file_bytes: left.file_bytes, damage })
    }

    /// True if it says nothing about any message.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// True if it has the newest version of a message, or its removal.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.changes.contains_key(key)
    }

    /// The bytes of a message whose newest version is here.
    pub(super) fn get(&self, id: &SpoolId) -> Option<&[u8]> {
        self.changes.get(&Key::of(id))?.as_deref()
    }

    /// The messages whose newest version is here, in time order within each kind of id.
    pub(super) fn messages(&self) -> impl Iterator<Item = (Key, &[u8])> {
        self.changes.iter().filter_map(|(key, data)| Some((*key, data.as_deref()?)))
    }

    /// The same, with their bytes.
    pub(super) fn into_messages(self) -> impl Iterator<Item = (Key, Vec<u8>)> {
        self.changes.into_iter().filter_map(|(key, data)| Some((key, data?)))
    }

    /// The messages that were removed.
    pub(super) fn removed(&self) -> impl Iterator<Item = SpoolId> {
        self.changes.iter().filter(|(_, data)| data.is_none()).map(|(key, _)| key.id())
    }
}
