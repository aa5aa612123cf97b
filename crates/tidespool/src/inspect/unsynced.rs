//! The changes in the crash log. As at an opening, they take precedence over the records on disk.

use std::collections::BTreeMap;
use std::io;

use super::Damage;
use crate::checkpoint::Places;
use crate::crash_log::{CRASH_LOG, LastRun};
use crate::index::Key;
use crate::message_id::MessageId;
use crate::storage::Storage;

/// The changes that were acknowledged but not on stable storage when the process died.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    /// By message: the newest version, or `None` if the message was removed.
    changes: BTreeMap<Key, Option<Vec<u8>>>,
    /// The size of the log's file, in bytes.
    pub(super) file_bytes: u64,
    /// Why the log can't be used, although it is of this spool and this boot.
    pub(super) damage: Option<Damage>,
}

impl Unsynced {
    /// Reads the log from `storage`, which must report read errors. A [`LenientStorage`] would
    /// replace an unreadable page with zeros, and zeros look like a page without entries.
    ///
    /// [`LenientStorage`]: super::unreadable::LenientStorage
    pub(super) fn read(places: &Places, storage: &dyn Storage) -> io::Result<Self> {
        let left = LastRun::read_or_torn(storage, &places.dir, places.spool)?;
        let damage = left.torn.map(|what| Damage::new(&places.dir.join(CRASH_LOG), what));
        let changes = left.kept.into_iter().map(|kept| (Key::of(&kept.id), kept.data));
        Ok(Self { changes: changes.collect(), file_bytes: left.file_bytes, damage })
    }

    /// True if there are no changes.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// True if the newest version of a message, or its removal, is here.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.changes.contains_key(key)
    }

    /// Returns the bytes of a message whose newest version is here.
    pub(super) fn get(&self, message: &MessageId) -> Option<&[u8]> {
        self.changes.get(&Key::of(message))?.as_deref()
    }

    /// Returns the messages whose newest version is here, in time order within each kind of id.
    pub(super) fn messages(&self) -> impl Iterator<Item = (Key, &[u8])> {
        self.changes.iter().filter_map(|(key, data)| Some((*key, data.as_deref()?)))
    }

    /// The same, by value.
    pub(super) fn into_messages(self) -> impl Iterator<Item = (Key, Vec<u8>)> {
        self.changes.into_iter().filter_map(|(key, data)| Some((key, data?)))
    }

    /// Returns the messages that were removed.
    pub(super) fn removed(&self) -> impl Iterator<Item = MessageId> {
        self.changes.iter().filter(|(_, data)| data.is_none()).map(|(key, _)| key.message())
    }
}
