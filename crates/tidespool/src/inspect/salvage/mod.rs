//! Saves what can be saved of a damaged spool into a new one.
//!
//! Of each message the newest version counts: its record number shows it, and what the crash log
//! has is newer than any record. Where it is not known
//! what lived in a segment, what it holds is saved, and reported as doubtful.

mod target;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use tidespool_core::{Corrupt, SpoolId};

use self::target::Target;
use super::Damage;
use super::contents::{Contents, report};
use super::unreadable::AsFarAsReadable;
use crate::checkpoint::Places;
use crate::journal::RecordPlace;
use crate::storage::{OsStorage, Storage};
use crate::tiered::{existing, identify, lock_untouched};
use crate::whole_text::whole;

/// What [`salvage`] saved, and what it could not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Salvage {
    /// Messages in the new spool.
    pub saved: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Messages among them of which the newest version was in the crash log.
    pub saved_from_crash_log: u64,
    /// Messages that were left out because the crash log says that they were removed.
    pub removed_by_crash_log: u64,
    /// Messages of which no more than the id is left, and parts of which it is not known how many messages they held.
    pub unsaved: Vec<Damage>,
    /// Messages that are gone without their id being known.
    pub lost: u64,
    /// Messages that were saved, though they may have been removed or replaced before.
    pub doubtful: Vec<Damage>,
    /// What else is wrong with the files.
    pub damage: Vec<Damage>,
    /// Records of a torn end, which were left out as an opening leaves them out: after a crash, what was never known to be on stable storage.
    pub torn: Vec<Damage>,
}

impl Salvage {
    /// Everything that the spool held is in the new one, as far as can be told.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.unsaved.is_empty() && self.lost == 0
    }
}

/// Copies every whole message of the spool in `dir` into a new spool in `new_dir`, which must be empty or not be there yet. On stable storage when it
/// returns; until then the new spool has another name (`new_dir` and `.partial`; in a mount point
/// or beside what others left there, `new_dir/.tidespool-repair.partial`). Nothing in `dir` is
/// changed.
///
/// Works where a spool can't be opened: what is damaged or missing is told, and the rest is saved.
///
/// # Errors
///
/// [`Locked`](tidespool_core::Locked), [`UnsupportedFormat`](tidespool_core::UnsupportedFormat), a `new_dir` that can't be used, or an I/O error. There is
/// no new spool then.
pub fn salvage(dir: &Path, new_dir: &Path) -> Result<Salvage> {
    salvage_on(dir, new_dir, Arc::new(OsStorage))
}

/// The same of a spool on another [`Storage`], for tests that break it.
///
/// # Errors
///
/// As [`salvage`].
pub fn salvage_on(dir: &Path, new_dir: &Path, storage: Arc<dyn Storage>) -> Result<Salvage> {
    repair(dir, new_dir, storage).map_err(whole)
}

fn repair(dir: &Path, new_dir: &Path, storage: Arc<dyn Storage>) -> Result<Salvage> {
    let dir = &*existing(dir)?;
    let (spool, format) = identify(dir)?;
    let _lock = lock_untouched(dir)?;
    let mut target = Target::begin(dir, new_dir)?;
    let disk = AsFarAsReadable::new(storage);
    let places = Places { storage: disk.clone(), dir: dir.to_owned(), spool: spool.unwrap_or_default() };
    let mut salvage = Salvage::default();
    if let Some(what) = format {
        salvage.damage.push(report(&dir.join("FORMAT"), None, what));
    }
    if spool.is_none() {
        let what = "no segment tells whose it is: what is in them can't be read".to_owned();
        salvage.unsaved.push(report(&places.journal(), None, what));
    }
    match save(&places, &disk, &mut target, &mut salvage) {
        Ok(()) => target.finish().map(|()| salvage),
        Err(error) => {
            target.discard();
            Err(error)
        }
    }
}

fn save(places: &Places, disk: &AsFarAsReadable, target: &mut Target, salvage: &mut Salvage) -> Result<()> {
    let contents = Contents::read(places, disk.below())?;
    note_what_is_missing(places, disk, &contents, salvage);
    let filed = contents.filed.iter().map(|message| (message.key.id(), message.place));
    for (id, place) in filed.chain(contents.young()) {
        save_message(places, &contents, id, place, target, salvage)?;
    }
    for (key, data) in contents.unsynced.into_messages() {
        salvage.saved += 1;
        salvage.bytes += data.len() as u64;
        salvage.saved_from_crash_log += 1;
        target.put(key.id(), data)?;
    }
    salvage.damage.extend(disk.damage());
    Ok(())
}

fn note_what_is_missing(places: &Places, disk: &AsFarAsReadable, contents: &Contents, salvage: &mut Salvage) {
    salvage.damage.extend(contents.damage.iter().cloned());
    salvage.torn.clone_from(&contents.torn);
    salvage.lost = contents.lost;
    salvage.removed_by_crash_log = contents.removed_unsynced;
    // How many messages were in it alone is not known.
    salvage.unsaved.extend(contents.unsynced.damage.clone());
    let what = "a part of it can't be read: what was there is not known";
    let unknown = unknown_parts(places, disk, contents).into_iter();
    salvage.unsaved.extend(unknown.map(|path| report(&path, None, what.to_owned())));
    if !contents.is_manifest_whole {
        // With it the numbers of the records show what is missing.
        let what = "what was in it is not known without the manifest: what it removed or replaced is saved as it was before";
        let files = contents.damage.iter().filter(|file| file.path.ends_with(".seg"));
        salvage.unsaved.extend(files.map(|file| Damage { what: what.to_owned(), ..file.clone() }));
    }
    for message in &contents.doubtful {
        let path = contents.path_of(places, message.place);
        let what = "it is not known what lived in its segment: it may have been removed before".to_owned();
        salvage.doubtful.push(report(&path, Some(message.key.id()), what));
    }
}

fn save_message(
    places: &Places,
    contents: &Contents,
    id: SpoolId,
    place: RecordPlace,
    target: &mut Target,
    salvage: &mut Salvage,
) -> Result<()> {
    match contents.read_message(id, place) {
        Ok(data) => {
            salvage.saved += 1;
            salvage.bytes += data.len() as u64;
            target.put(id, data)
        }
        Err(error) => match error.root_cause().downcast_ref::<Corrupt>() {
            Some(corrupt) => {
                let path = contents.path_of(places, place);
                salvage.unsaved.push(report(&path, Some(id), corrupt.reason.clone()));
                Ok(())
            }
            None => Err(error),
        },
    }
}

/// Files of which a part can't be read, where nothing else shows whether records stood in it: after
/// a crash only the journal's last records themselves do.
fn unknown_parts(places: &Places, disk: &AsFarAsReadable, contents: &Contents) -> Vec<PathBuf> {
    if contents.counts.clean_shutdown && contents.manifest.index.is_some() {
        // After an orderly end the manifest has the number of the last record.
        return Vec::new();
    }
    let retained = &contents.manifest.retained;
    let journal = contents.segments.all().into_iter();
    let journal = journal.filter(|segment| !retained.contains_key(&segment.generation));
    // One that shows nothing at all may have been anything.
    let all = journal.map(|segment| segment.path.clone()).chain(contents.blank.iter().cloned());
    let mut parts: Vec<PathBuf> = all.filter(|path| disk.has_unread(path)).collect();
    // The directory itself, if it is what can't be read.
    parts.extend(Some(places.journal()).filter(|dir| parts.is_empty() && disk.is_unread(dir)));
    parts
}
