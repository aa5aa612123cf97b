//! Copies the readable messages of a damaged spool into a new one.
//!
//! Only the newest version of each message counts. The record number orders versions, and a change
//! in the crash log is newer than all records. If the live messages of a segment are not known, its
//! messages are saved and reported as doubtful.
//!
//! `target` has the new spool: made under another name, and moved to its place when it is complete.

mod target;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use self::target::Target;
use super::Damage;
use super::contents::Contents;
use super::unreadable::LenientStorage;
use crate::checkpoint::Places;
use crate::directory::{Format, SpoolNames, existing, identify, lock_untouched};
use crate::storage::{OsStorage, Storage};
use crate::whole_text::whole;

/// What [`salvage`] saved, and what it could not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Salvage {
    /// Messages in the new spool.
    pub saved: u64,
    /// Payload bytes of these messages.
    pub bytes: u64,
    /// Saved messages whose newest version was in the crash log.
    pub saved_from_crash_log: u64,
    /// Messages that were left out because the crash log has their removal.
    pub removed_by_crash_log: u64,
    /// Messages whose id is known and whose bytes can't be read, and damaged parts that held an
    /// unknown number of messages.
    pub unsaved: Vec<Damage>,
    /// The number of lost messages whose ids are not known.
    pub lost: u64,
    /// Messages that were saved although they may have been removed or replaced.
    pub doubtful: Vec<Damage>,
    /// Other damage of the files.
    pub damage: Vec<Damage>,
    /// Records of a torn end, which are left out, as an opening leaves them out. A crash leaves
    /// them: they were never known to be on stable storage.
    pub torn: Vec<Damage>,
}

impl Salvage {
    /// Whether the new spool has all messages of the old one, as far as can be determined.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.unsaved.is_empty() && self.lost == 0
    }
}

/// Copies every whole message of the spool in `dir` into a new spool in `new_dir`. Changes nothing
/// in `dir`.
///
/// `new_dir` must not exist, or be empty apart from entries of file systems and tools such as
/// `lost+found`. When `salvage` returns, the new spool is on stable storage. Until then it has
/// another name: `new_dir` with the suffix `.partial`. If `new_dir` is a mount point or has such
/// entries, the name is `new_dir/.tidespool-repair.partial`.
///
/// Also works if the spool can't be opened: reports damaged and missing parts, and saves the rest.
///
/// # Errors
///
/// [`Locked`](tidespool_core::Locked), [`UnsupportedFormat`](tidespool_core::UnsupportedFormat), a
/// `new_dir` that can't be used, or an I/O error. After an error there is no new spool.
pub fn salvage(dir: &Path, new_dir: &Path) -> Result<Salvage> {
    salvage_on(dir, new_dir, Arc::new(OsStorage))
}

/// As [`salvage`], with another [`Storage`] for the damaged spool, for tests that inject faults.
///
/// # Errors
///
/// Those of [`salvage`].
pub fn salvage_on(dir: &Path, new_dir: &Path, storage: Arc<dyn Storage>) -> Result<Salvage> {
    repair(dir, new_dir, storage).map_err(whole)
}

fn repair(dir: &Path, new_dir: &Path, storage: Arc<dyn Storage>) -> Result<Salvage> {
    let dir = &*existing(dir)?;
    let (format, defect) = identify(dir)?;
    let _lock = lock_untouched(dir)?;
    let is_unknown = format.is_none();
    let Format { id, names } = format.unwrap_or_else(|| Format::new([0; 16]));
    let mut target = Target::begin(dir, new_dir)?;
    let disk = LenientStorage::new(storage);
    let places = Places { storage: disk.clone(), dir: dir.to_owned(), spool: id };
    let mut salvage = Salvage::default();
    if let Some(what) = defect {
        salvage.damage.push(Damage::new(&dir.join("FORMAT"), what));
    }
    if is_unknown {
        let what = "no segment has a readable spool id: the segments can't be read".to_owned();
        salvage.unsaved.push(Damage::new(&places.journal(), what));
    }
    match save(&places, names, &disk, &mut target, &mut salvage) {
        Ok(names) => target.finish(names).map(|()| salvage),
        Err(error) => {
            target.discard();
            Err(error)
        }
    }
}

/// Saves all messages. Returns the names of their spools, and of those without messages.
fn save(
    places: &Places,
    names: SpoolNames,
    disk: &LenientStorage,
    target: &mut Target,
    salvage: &mut Salvage,
) -> Result<SpoolNames> {
    let contents = Contents::read(places, names, disk.below())?;
    note_what_is_missing(places, disk, &contents, salvage);
    let checkpointed = contents.checkpointed.iter().map(|message| (message.key.message(), message.place));
    for (id, place) in checkpointed.chain(contents.journal_messages()) {
        match contents.read_or_damage(places, id, place)? {
            Ok(data) => {
                salvage.saved += 1;
                salvage.bytes += data.len() as u64;
                target.put(id, data)?;
            }
            Err(damage) => salvage.unsaved.push(damage),
        }
    }
    for (key, data) in contents.unsynced.into_messages() {
        salvage.saved += 1;
        salvage.bytes += data.len() as u64;
        salvage.saved_from_crash_log += 1;
        target.put(key.message(), data)?;
    }
    salvage.damage.extend(disk.damage());
    Ok(contents.names)
}

fn note_what_is_missing(places: &Places, disk: &LenientStorage, contents: &Contents, salvage: &mut Salvage) {
    salvage.damage.extend(contents.damage.iter().cloned());
    salvage.torn.clone_from(&contents.torn);
    salvage.lost = contents.lost;
    salvage.removed_by_crash_log = contents.removed_unsynced;
    // A crash log that can't be used held an unknown number of messages.
    salvage.unsaved.extend(contents.unsynced.damage.clone());
    let what = "a part of it can't be read: the messages in that part are not known";
    let unknown = unknown_parts(places, disk, contents).into_iter();
    salvage.unsaved.extend(unknown.map(|path| Damage::new(&path, what.to_owned())));
    if !contents.is_manifest_whole {
        // With a manifest, gaps in the record numbers show which records are missing.
        let what = "without the manifest its records are not known: messages that it removed or replaced are saved in an older version";
        let files = contents.damage.iter().filter(|file| file.path.ends_with(".seg"));
        salvage.unsaved.extend(files.map(|file| Damage { what: what.to_owned(), ..file.clone() }));
    }
    for message in &contents.doubtful {
        let path = contents.path_of(places, message.place);
        let what =
            "the live messages of its segment are not known: it may have been removed before".to_owned();
        salvage.doubtful.push(Damage::of_message(&path, message.key.message(), &contents.names, what));
    }
}

/// Returns the files that are partly unreadable and may have held unknown records in that part.
///
/// After a crash, nothing but the records themselves shows how far the journal reached.
fn unknown_parts(places: &Places, disk: &LenientStorage, contents: &Contents) -> Vec<PathBuf> {
    if contents.counts.clean_shutdown && contents.manifest.index.is_some() {
        // After an orderly shutdown the manifest has the number of the last record.
        return Vec::new();
    }
    let retained = &contents.manifest.retained;
    let journal = contents.segments.all().into_iter();
    let journal = journal.filter(|segment| !retained.contains_key(&segment.generation));
    // A file of which nothing can be read may have been a segment of the journal.
    let all = journal.map(|segment| segment.path.clone()).chain(contents.blank.iter().cloned());
    let mut parts: Vec<PathBuf> = all.filter(|path| disk.has_unread(path)).collect();
    // The directory itself, if it can't be read.
    parts.extend(Some(places.journal()).filter(|dir| parts.is_empty() && disk.is_unread(dir)));
    parts
}
