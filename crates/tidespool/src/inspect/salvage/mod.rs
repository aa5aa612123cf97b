//! Saves what can be saved of a damaged spool into a new one.
//!
//! * `rescue` – which version of each message counts, and where it is read from.
//! * `target` – the new spool.
//! * `sled_copy` – what sled's files still hold.
//!
//! Of each message the newest version counts: its record number tells. The journal knows what came after the last checkpoint, removals included; sled
//! knows the rest. Where sled lost something, what the segments still hold is taken, too, and it is said that it may have been removed before.

mod rescue;
mod sled_copy;
mod target;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use tidespool_core::SpoolId;

use self::rescue::Rescue;
use self::sled_copy::{Records, SledCopy, not_all};
use self::target::Target;
use super::Damage;
use super::torn::torn_records;
use super::unreadable::AsFarAsReadable;
use crate::checkpoint::{Examined, Places, Stock, examine, read_ledger};
use crate::journal::salt_of;
use crate::storage::{OsStorage, Storage};
use crate::tiered::{identify, lock_untouched};

/// What [`salvage`] saved, and what it could not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Salvage {
    /// Messages in the new spool.
    pub saved: u64,
    /// Their payload bytes.
    pub bytes: u64,
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
/// returns; until then the new spool has another name (`new_dir` and `.partial`). Nothing in `dir` is changed.
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
    let (spool, format) = identify(dir)?;
    let _lock = lock_untouched(dir)?;
    let mut target = Target::begin(dir, new_dir)?;
    let disk = AsFarAsReadable::new(storage);
    let places = Places { storage: disk.clone(), dir: dir.to_owned(), spool: spool.unwrap_or_default() };
    let mut report = Salvage::default();
    if let Some(what) = format {
        report.damage.push(damage(&dir.join("FORMAT"), None, what));
    }
    if spool.is_none() {
        let what = "no segment tells whose it is: what is in them can't be read".to_owned();
        report.unsaved.push(damage(&places.journal(), None, what));
    }
    match save(&places, &disk, &mut target, &mut report).map(|()| report) {
        Ok(report) => target.finish().map(|()| report),
        Err(error) => {
            target.discard();
            Err(error)
        }
    }
}

fn damage(path: &Path, id: Option<SpoolId>, what: String) -> Damage {
    Damage { path: path.display().to_string(), id, what }
}

fn save(places: &Places, disk: &AsFarAsReadable, target: &mut Target, report: &mut Salvage) -> Result<()> {
    let (mut sled, wrong) = SledCopy::open(disk, &places.sled(), &target.scratch())?;
    let part = || disk.has_unread(&places.sled()).then(|| "a part of its files can't be read".to_owned());
    let wrong = wrong.or_else(part);
    save_with(places, disk, &mut sled, wrong, target, report)?;
    sled.close();
    report.damage.extend(disk.damage());
    Ok(())
}

/// The same with what is left of sled, and what is known to be wrong with it.
fn save_with(
    places: &Places,
    disk: &AsFarAsReadable,
    sled: &mut dyn Records,
    mut sled_wrong: Option<String>,
    target: &mut Target,
    report: &mut Salvage,
) -> Result<()> {
    let found = read_ledger(places, false)?;
    let mut stock = Stock::against(found.ledger.as_ref());
    let wrong = sled.visit(&mut |key, value| {
        stock.count(key, value);
        Ok(())
    })?;
    if !wrong.is_empty() {
        sled_wrong = Some(not_all(&wrong));
    }
    let known = stock.retained.iter().map(|(generation, has)| (*generation, has.live)).collect();
    let ((), examined) = examine(places, found, false, |_| Ok(((), stock)))?;
    report.torn = torn_records(&examined.recovered, salt_of(places.spool));
    let what = "a part of it can't be read: what was there is not known".to_owned();
    let unknown = unknown_parts(places, disk, &examined).into_iter();
    report.unsaved.extend(unknown.map(|path| damage(&path, None, what.clone())));
    let mut rescue = Rescue::new(places, examined, known, sled_wrong, report)?;
    let held = rescue.save_filed(sled, target, report)?;
    let restored = rescue.save_unfiled(target, report)?;
    rescue.count_lost(held, restored, report);
    rescue.save_journal(target, report)
}

/// Files of which a part can't be read, where nothing else tells whether records stood in it: what came last, after a crash, is known to nobody else.
fn unknown_parts(places: &Places, disk: &AsFarAsReadable, examined: &Examined) -> Vec<PathBuf> {
    if examined.ledger.as_ref().is_some_and(|ledger| ledger.files.is_some()) {
        // After an orderly end the ledger has the number of the last record.
        return Vec::new();
    }
    let journal = examined.recovered.journal.iter().map(|segment| segment.path.clone());
    // One that shows nothing at all may have been anything.
    let blank = examined.recovered.free.iter().filter(|free| free.size == 0).map(|free| free.path.clone());
    let mut parts: Vec<PathBuf> = journal.chain(blank).filter(|path| disk.has_unread(path)).collect();
    // The directory itself, if it is what can't be read.
    parts.extend(Some(places.journal()).filter(|dir| parts.is_empty() && disk.is_unread(dir)));
    parts
}
