//! The implementation of [`Inspector`](super::Inspector): the spool's recovery code, read-only.

use std::path::Path;
use std::sync::{Arc, Weak};

use anyhow::Result;
use tidespool_core::{NotFound, SpoolId};

use super::contents::Contents;
use super::unreadable::LenientStorage;
use super::{CrashLogSummary, Damage, Entry, Home, IndexState, SpoolSummary, Summary, Verification};
use crate::checkpoint::Places;
use crate::directory::{Directory, FORMAT_VERSION};
use crate::index::{self, DiskIndex, Key, size_of_dir};
use crate::message_id::MessageId;
use crate::storage::Storage;
use crate::store_error::SpoolNameError;

pub(super) struct OfflineSpool {
    places: Places,
    disk: Arc<LenientStorage>,
    contents: Contents,
    /// Holds the lock. The last field, so that everything else is closed first.
    _directory: Directory,
}

impl std::fmt::Debug for OfflineSpool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OfflineSpool")
            .field("places", &self.places)
            .field("counts", &self.contents.counts)
            .finish_non_exhaustive()
    }
}

impl OfflineSpool {
    pub(super) fn open(path: &Path, storage: Arc<dyn Storage>) -> Result<Self> {
        let directory = Directory::open_existing(path)?;
        let disk = LenientStorage::new(storage);
        let places = Places { storage: disk.clone(), dir: directory.path.clone(), spool: directory.spool };
        let names = directory.names.lock().clone();
        let contents = Contents::read(&places, names, disk.below())?;
        Ok(Self { places, disk, contents, _directory: directory })
    }

    pub(super) fn entries(&self, visit: &mut dyn FnMut(Entry) -> bool) -> Result<()> {
        let young = self.contents.journal_messages().map(|(id, place)| (Key::of(&id), place, Home::Journal));
        let checkpointed =
            self.contents.checkpointed.iter().map(|message| (message.key, message.place, Home::Segment));
        let on_disk = young.chain(checkpointed).map(|(key, place, home)| (key, u64::from(place.len), home));
        let unsynced = self.contents.unsynced.messages();
        let unsynced = unsynced.map(|(key, data)| (key, data.len() as u64, Home::CrashLog));
        let mut all: Vec<(Key, u64, Home)> = on_disk.chain(unsynced).collect();
        all.sort_unstable_by_key(|(key, ..)| *key);
        for (key, size, home) in all {
            let message = key.message();
            let spool = self.contents.names.name_of(message.spool());
            if !visit(Entry { spool, id: message.id(), size, home }) {
                break;
            }
        }
        Ok(())
    }

    /// Returns the names of all spools, in order.
    pub(super) fn spools(&self) -> Vec<String> {
        self.contents.names.iter().map(|(name, _)| name.to_owned()).collect()
    }

    /// Returns the names of the spools that have a message with this id, in order.
    pub(super) fn spools_with(&self, id: SpoolId) -> Vec<String> {
        let has = |number| {
            let message = MessageId::new(number, id);
            self.contents.unsynced.get(&message).is_some() || self.contents.place_of(&message).is_some()
        };
        let with = self.contents.names.iter().filter(|(_, number)| has(*number));
        with.map(|(name, _)| name.to_owned()).collect()
    }

    pub(super) fn load(&self, spool: &str, id: SpoolId) -> Result<Vec<u8>> {
        let unknown = || SpoolNameError::Unknown { name: spool.to_owned() };
        let message = MessageId::new(self.contents.names.get(spool).ok_or_else(unknown)?, id);
        if let Some(data) = self.contents.unsynced.get(&message) {
            return Ok(data.to_vec());
        }
        let place = self.contents.place_of(&message).ok_or(NotFound { id })?;
        self.contents.read_message(message, place)
    }

    pub(super) fn summary(&self) -> Result<Summary> {
        let counts = self.contents.counts;
        let mut summary = Summary {
            format_version: FORMAT_VERSION,
            segment_bytes: counts.segment_bytes,
            index_bytes: size_of_dir(&self.places.index()).unwrap_or(0),
            index: self.index_state(),
            manifest_records: self.contents.manifest.tally.records,
            // After an orderly shutdown everything is on stable storage.
            clean_shutdown: counts.clean_shutdown && self.contents.unsynced.is_empty(),
            crash_log: self.crash_log(),
            ..Summary::default()
        };
        let states = [("free", counts.free), ("journal", counts.journal), ("retained", counts.retained)];
        summary.segments_by_state = states.map(|(name, count)| (name.to_owned(), count)).into();
        summary.messages_by_home =
            ["crash-log", "journal", "segment"].map(|name| (name.to_owned(), 0)).into();
        summary.spools = self.spools().into_iter().map(|name| (name, SpoolSummary::default())).collect();
        self.entries(&mut |entry| {
            let of_spool = summary.spools.entry(entry.spool).or_default();
            of_spool.messages += 1;
            of_spool.message_bytes += entry.size;
            summary.messages += 1;
            summary.message_bytes += entry.size;
            let home = match entry.home {
                Home::CrashLog => "crash-log",
                Home::Journal => "journal",
                Home::Segment => "segment",
            };
            *summary.messages_by_home.entry(home.to_owned()).or_default() += 1;
            true
        })?;
        Ok(summary)
    }

    fn crash_log(&self) -> CrashLogSummary {
        let unsynced = &self.contents.unsynced;
        CrashLogSummary {
            messages: unsynced.messages().count() as u64,
            message_bytes: unsynced.messages().map(|(_, data)| data.len() as u64).sum(),
            removals: self.contents.removed_unsynced,
            file_bytes: unsynced.file_bytes,
        }
    }

    /// Whether the next opening keeps the index.
    fn index_state(&self) -> IndexState {
        let manifest = &self.contents.manifest;
        let engine = index::engine(0, self.places.storage.clone(), Weak::<()>::new());
        let index = DiskIndex::new(&self.places.index(), engine);
        match manifest.index.map(|closed| index.is_as_closed(closed)) {
            Some(Ok(true)) => IndexState::Kept,
            None if manifest.retained.is_empty() => IndexState::Kept,
            Some(Ok(false) | Err(_)) | None => IndexState::RebuiltAtNextOpen,
        }
    }

    /// Returns the damage that was found when the contents were read.
    pub(super) fn damage(&self) -> Vec<Damage> {
        let contents = &self.contents;
        let mut damage = contents.damage.clone();
        damage.extend(contents.unsynced.damage.clone());
        damage.extend(self.disk.damage());
        if contents.lost > 0 {
            let what = format!("{} messages are gone, of which not even the id is left", contents.lost);
            damage.push(Damage::new(&self.places.journal(), what));
        }
        damage
    }

    pub(super) fn verify(&self) -> Result<Verification> {
        let contents = &self.contents;
        let mut found = Verification {
            damage: contents.damage.clone(),
            torn: contents.torn.clone(),
            index: self.index_state(),
            ..Verification::default()
        };
        found.damage.extend(contents.unsynced.damage.clone());
        // Reading the log already compared these payloads with their checksums.
        for (_, data) in contents.unsynced.messages() {
            found.messages += 1;
            found.bytes += data.len() as u64;
        }
        let checkpointed = contents.checkpointed.iter().map(|message| (message.key.message(), message.place));
        for (id, place) in contents.journal_messages().chain(checkpointed) {
            match contents.read_or_damage(&self.places, id, place)? {
                Ok(data) => {
                    found.messages += 1;
                    found.bytes += data.len() as u64;
                }
                Err(damage) => found.damage.push(damage),
            }
        }
        found.damage.extend(self.disk.damage());
        Ok(found)
    }
}
