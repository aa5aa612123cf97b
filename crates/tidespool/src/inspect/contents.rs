//! The contents of a spool's directory, read from its segments, manifest, liveness log and crash
//! log. The index is not opened, because it holds nothing that these do not contain.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tidespool_core::Corrupt;

use super::Damage;
use super::torn::torn_records;
use super::unsynced::Unsynced;
use crate::checkpoint::{
    CheckpointedMessage, Examined, Leftovers, Liveness, LivenessLog, Manifest, Places, examine, living_in,
    newest_puts, place_of_found, read_manifest,
};
use crate::directory::SpoolNames;
use crate::index::Key;
use crate::journal::{
    NewestById, NewestRecord, NoPoolEvents, Pool, PoolSettings, ReadError, RecordPlace, Recovered, Segments,
    salt_of,
};
use crate::message_id::{MessageId, SpoolNumber};
use crate::storage::Storage;

/// The contents of a directory, and its damage.
pub(super) struct Contents {
    /// The spools of the store, including those of which only messages were found.
    pub(super) names: SpoolNames,
    pub(super) manifest: Manifest,
    pub(super) is_manifest_whole: bool,
    /// The newest record of each message that is younger than the last checkpoint, without messages
    /// that the crash log has.
    pub(super) newest: NewestById,
    /// The checkpointed messages without a younger record, in key order.
    pub(super) checkpointed: Vec<CheckpointedMessage>,
    /// The changes in the crash log. They take precedence over all records.
    pub(super) unsynced: Unsynced,
    /// Messages on disk whose removal only the crash log has.
    pub(super) removed_unsynced: u64,
    pub(super) segments: Segments,
    pub(super) counts: Counts,
    pub(super) damage: Vec<Damage>,
    pub(super) torn: Vec<Damage>,
    /// The number of lost messages whose ids are not known.
    pub(super) lost: u64,
    /// Messages that may have been removed or replaced, because the live messages of their segment
    /// are not known.
    pub(super) doubtful: Vec<CheckpointedMessage>,
    /// Free segment files that are empty or can't be read.
    pub(super) blank: Vec<PathBuf>,
}

/// Segments by use, and other counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) free: u64,
    pub(super) journal: u64,
    pub(super) retained: u64,
    pub(super) segment_bytes: u64,
    pub(super) clean_shutdown: bool,
}

impl Contents {
    /// Reads everything except the payloads in segments, and changes nothing. Reads the crash log
    /// from `storage`.
    pub(super) fn read(places: &Places, names: SpoolNames, storage: &dyn Storage) -> Result<Self> {
        let found = read_manifest(places, false)?;
        let Examined { manifest, is_manifest_whole, recovered, damage: files } =
            examine(places, found, false)?;
        let mut damage: Vec<Damage> = files
            .iter()
            .chain(&recovered.damage)
            .map(|file| Damage::new(&file.path, file.what.clone()))
            .collect();
        let mut lost = 0;
        for gap in &recovered.replayed.gaps {
            lost += gap.last - gap.first + 1;
            let what = format!("records {} to {} are missing", gap.first, gap.last);
            damage.push(Damage::new(&places.journal(), what));
        }
        let is_retained = |generation: u64| manifest.retained.contains_key(&generation);
        let liveness = LivenessLog::look(&*places.storage, &places.dir, manifest.liveness, &is_retained)?;
        damage.extend(liveness.damage().iter().map(|what| Damage::new(&places.dir, what.clone())));
        let torn = torn_records(&recovered, salt_of(places.spool), &names);
        let counts = count(&recovered, &manifest, is_manifest_whole);
        let blank =
            recovered.free.iter().filter(|free| free.size == 0).map(|free| free.path.clone()).collect();
        let (newest, segments) = into_segments(places, recovered);
        let mut contents = Self {
            names,
            manifest,
            is_manifest_whole,
            newest,
            checkpointed: Vec::new(),
            unsynced: Unsynced::default(),
            removed_unsynced: 0,
            segments,
            counts,
            damage,
            torn,
            lost,
            doubtful: Vec::new(),
            blank,
        };
        contents.list_checkpointed(places, &liveness)?;
        let crash_log = || format!("reading the crash log in {}", places.dir.display());
        contents.apply_unsynced(Unsynced::read(places, storage).with_context(crash_log)?);
        contents.name_all();
        Ok(contents)
    }

    /// Adds names for the spools of messages whose number has no name.
    fn name_all(&mut self) {
        let young = self.newest.iter().filter(|(_, newest)| newest.place.is_some()).map(|(id, _)| id.spool());
        let checkpointed = self.checkpointed.iter().map(|message| message.key.spool());
        let unsynced = self.unsynced.messages().map(|(key, _)| key.spool());
        let numbers: BTreeSet<SpoolNumber> = young.chain(checkpointed).chain(unsynced).collect();
        numbers.into_iter().for_each(|number| self.names.add_found(number));
    }

    /// Takes over the changes of the crash log. Drops all messages on disk that it has a newer
    /// version or a removal of.
    fn apply_unsynced(&mut self, unsynced: Unsynced) {
        self.removed_unsynced = unsynced.removed().filter(|id| self.place_of(id).is_some()).count() as u64;
        self.newest.retain(|id, _| !unsynced.contains(&Key::of(id)));
        self.checkpointed.retain(|message| !unsynced.contains(&message.key));
        self.doubtful.retain(|message| !unsynced.contains(&message.key));
        self.unsynced = unsynced;
    }

    fn list_checkpointed(&mut self, places: &Places, liveness: &Liveness) -> Result<()> {
        let (mut unknown, mut known) = (Vec::new(), Vec::new());
        for (generation, kept) in self.manifest.retained.clone() {
            let Some(segment) = self.segments.get(generation) else {
                self.lost += kept.live;
                continue;
            };
            if !liveness.is_exact(generation) {
                unknown.push(segment);
                continue;
            }
            let expected = liveness.count(generation).unwrap_or(0);
            let living = living_in(&segment, self.segments.salt(), liveness)?;
            let found = living.len() as u64;
            self.checkpointed.extend(living);
            if found < expected {
                self.lost += expected - found;
                let what =
                    format!("{} of {expected} messages have no record that can be read", expected - found);
                self.damage.push(Damage::new(&segment.path, what));
            }
            known.push(segment);
        }
        let (salt, mut gone) = (salt_of(places.spool), Leftovers::default());
        for segment in known.iter().filter(|_| !unknown.is_empty()) {
            gone.add(segment, salt)?;
        }
        let puts = newest_puts(unknown.iter().map(|segment| &**segment), salt, gone)?;
        let doubtful = puts.into_iter().map(|(key, found)| CheckpointedMessage {
            key,
            seq: found.header.seq,
            place: place_of_found(&found),
        });
        self.doubtful = doubtful.collect();
        self.checkpointed.extend(&self.doubtful);
        // Only the newest version of a message counts.
        self.checkpointed.sort_unstable_by_key(|message| (message.key, std::cmp::Reverse(message.seq)));
        self.checkpointed.dedup_by_key(|message| message.key);
        let newest = &self.newest;
        self.checkpointed.retain(|message| !newest.contains_key(&message.key.message()));
        self.doubtful.retain(|message| !newest.contains_key(&message.key.message()));
        if !self.is_manifest_whole {
            self.doubt_journal_messages()?;
        }
        Ok(())
    }

    /// Without a manifest, marks journal messages as doubtful.
    ///
    /// A segment that is read as the journal's may be checkpointed, and removals of its messages
    /// may have been in segments that were recycled since. A message with a record number above all
    /// missing numbers is not doubtful.
    fn doubt_journal_messages(&mut self) -> Result<()> {
        let mut seqs = Vec::new();
        for segment in self.segments.all() {
            seqs.extend(segment.listing(self.segments.salt())?.entries().map(|entry| entry.seq));
        }
        let certain_from = first_without_gap(seqs);
        let young = self.newest.iter().filter(|(_, newest)| newest.seq < certain_from);
        let doubtful = young.filter_map(|(id, newest)| {
            Some(CheckpointedMessage { key: Key::of(id), seq: newest.seq, place: newest.place? })
        });
        self.doubtful.extend(doubtful);
        Ok(())
    }

    /// Returns the messages whose newest record is younger than the last checkpoint, in no order.
    pub(super) fn journal_messages(&self) -> impl Iterator<Item = (MessageId, RecordPlace)> + '_ {
        self.newest.iter().filter_map(|(id, newest)| Some((*id, newest.place?)))
    }

    /// Returns the place of a message in the segments, if its newest version is there.
    pub(super) fn place_of(&self, id: &MessageId) -> Option<RecordPlace> {
        if let Some(NewestRecord { place, .. }) = self.newest.get(id) {
            return *place;
        }
        let key = Key::of(id);
        let found = self.checkpointed.binary_search_by_key(&key, |message| message.key).ok()?;
        Some(self.checkpointed[found].place)
    }

    /// Returns the bytes of the message at a place.
    ///
    /// # Errors
    ///
    /// [`Corrupt`], or an I/O error.
    pub(super) fn read_message(&self, message: MessageId, place: RecordPlace) -> Result<Vec<u8>> {
        let id = message.id();
        let Some(segment) = self.segments.get(place.generation) else {
            let reason = format!("its segment (generation {}) is missing", place.generation);
            return Err(Corrupt { id, reason }.into());
        };
        match segment.read_put(self.segments.salt(), &message, place) {
            Ok((data, _)) => Ok(data),
            Err(error @ ReadError::Damaged { .. }) => Err(Corrupt { id, reason: error.to_string() }.into()),
            Err(error @ ReadError::Io { .. }) => Err(error.into()),
        }
    }

    /// Returns the bytes of the message at a place, or the damage that prevents it.
    ///
    /// # Errors
    ///
    /// An I/O error.
    pub(super) fn read_or_damage(
        &self,
        places: &Places,
        message: MessageId,
        place: RecordPlace,
    ) -> Result<Result<Vec<u8>, Damage>> {
        match self.read_message(message, place) {
            Ok(data) => Ok(Ok(data)),
            Err(error) => match error.root_cause().downcast_ref::<Corrupt>() {
                Some(corrupt) => {
                    let path = self.path_of(places, place);
                    let what = corrupt.reason.clone();
                    Ok(Err(Damage::of_message(&path, message, &self.names, what)))
                }
                None => Err(error),
            },
        }
    }

    /// Returns the file that contains a place.
    pub(super) fn path_of(&self, places: &Places, place: RecordPlace) -> PathBuf {
        self.segments.get(place.generation).map_or_else(|| places.journal(), |segment| segment.path.clone())
    }
}

/// Returns the lowest number from which no number is missing, up to the highest.
fn first_without_gap(mut seqs: Vec<u64>) -> u64 {
    seqs.sort_unstable();
    let gap = seqs.windows(2).rfind(|pair| pair[0] + 1 < pair[1]);
    gap.map_or(seqs.first().copied().unwrap_or(0), |pair| pair[1])
}

fn count(recovered: &Recovered, manifest: &Manifest, is_manifest_whole: bool) -> Counts {
    let segments = recovered.journal.iter().chain(&recovered.retained);
    Counts {
        free: recovered.free.len() as u64,
        journal: recovered.journal.len() as u64,
        retained: recovered.retained.len() as u64,
        segment_bytes: segments.map(|segment| segment.size).sum::<u64>()
            + recovered.free.iter().map(|free| free.size).sum::<u64>(),
        clean_shutdown: is_manifest_whole && manifest.durable_seq + 1 == recovered.replayed.next_seq,
    }
}

fn into_segments(places: &Places, recovered: Recovered) -> (NewestById, Segments) {
    // No segment is made in it.
    let settings = PoolSettings::new(places.journal(), places.spool, 1 << 20, 4 << 20);
    let pool = Pool::new(places.storage.clone(), settings, Arc::new(NoPoolEvents));
    let segments = Segments::new(Arc::new(pool), places.spool, recovered.next_generation);
    recovered.journal.into_iter().chain(recovered.retained).for_each(|segment| segments.insert(segment));
    (recovered.replayed.newest, segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_a_gap_begin_after_the_last_missing_number() {
        for (seqs, first) in [
            (vec![], 0),
            (vec![7], 7),
            (vec![3, 1, 2, 2], 1),
            (vec![1, 3, 4, 6, 7, 7, 8], 6),
            (vec![1, 9], 9),
        ] {
            assert_eq!(first_without_gap(seqs.clone()), first, "{seqs:?}");
        }
    }
}
