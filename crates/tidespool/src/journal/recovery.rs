//! Reads the segment files at open, and repairs them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::error::{RecoveryError, failed};
use super::lost::is_left_by_a_restoration;
use super::pool::{FreeSegment, parse_segment_file_name};
use super::record::{HEADER_LEN, RecordHeader, RecordKind, payload_crc};
use super::replay::{JournalReplay, Replayed, Torn, Witness};
use super::scan::{newest_generation, scan};
use super::scan_ahead::scan_in_order;
use super::segment::{PAGE, Role, Segment, SegmentHeader, Use};
use super::segments::salt_of;
use super::void_footers::{erase_footer, void_footers};
use crate::message_id::MessageId;
use crate::storage::{OpenMode, Storage, StorageFile, is_no_file, read_exact_at, write_all_at};

/// The most records for which memory is reserved ahead: the estimate from the first segment may be
/// wrong for the others.
const MOST_RESERVED: usize = 4 << 20;

/// What the manifest states about the journal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checkpointed {
    /// Segments up to this generation are checkpointed.
    pub(crate) generation: u64,
    /// Records up to this number are checkpointed.
    pub(crate) seq: u64,
    /// Records up to this number were durable.
    pub(crate) durable_seq: u64,
    /// Checkpointed segments that are kept for the messages in them.
    pub(crate) retained: BTreeSet<u64>,
    /// The retained segments without a live message: it is no loss if they are missing.
    pub(crate) unused: BTreeSet<u64>,
    /// No segment ever had this generation or a higher one.
    pub(crate) next_generation: u64,
    /// The last run ended cleanly: it synced everything in the segments without an error.
    pub(crate) clean_end: bool,
    /// There is no manifest, so the other fields are unknown: every segment and record found is
    /// accepted.
    pub(crate) unknown: bool,
}

impl Checkpointed {
    fn is_retained(&self, header: &SegmentHeader) -> bool {
        match header.role {
            Role::Cold => true,
            Role::Free | Role::Journal => {
                header.generation <= self.generation && self.retained.contains(&header.generation)
            }
        }
    }
}

/// What is wrong with a file, and what recovery did about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileDamage {
    pub(crate) path: PathBuf,
    pub(crate) what: String,
}

/// What recovery found.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) replayed: Replayed,
    /// The journal's segments, to which nothing more is written.
    pub(crate) journal: Vec<Arc<Segment>>,
    pub(crate) retained: Vec<Arc<Segment>>,
    pub(crate) free: Vec<FreeSegment>,
    pub(crate) damage: Vec<FileDamage>,
    /// Paths of the segments whose header is a guess, because the first page is damaged.
    guessed_headers: Vec<PathBuf>,
    pub(crate) next_slot: u32,
    pub(crate) next_generation: u64,
    /// Number of records in the torn tail.
    pub(crate) torn_records: u64,
    /// A segment has a generation that the manifest calls unused: the manifest is older than the
    /// segment.
    pub(crate) outran_manifest: bool,
}

/// Reads every segment in `dir`. With `repair`, cuts torn tails and makes everything read durable.
///
/// Nothing is cut after a single read: anything unexpected is read again first.
pub(crate) fn recover(
    storage: &Arc<dyn Storage>,
    dir: &Path,
    spool: [u8; 16],
    checkpointed: &Checkpointed,
    repair: bool,
) -> Result<Recovered, RecoveryError> {
    if repair {
        remove_unfinished_copies(&**storage, dir);
    }
    let mut found = read_segments(storage, dir, spool, checkpointed, repair)?;
    if !found.is_as_expected() {
        let again = read_segments(storage, dir, spool, checkpointed, repair)?;
        if !again.has_same_content(&found) {
            let source = io::Error::other("two reads of the segments differ: the disk or memory is faulty");
            return Err(failed("reading", dir)(source));
        }
        found = again;
    }
    let void = void_footers(&found.journal, salt_of(spool), found.replayed.cut_from)?;
    let void_kept = match checkpointed.unknown {
        true => void_footers(&found.retained, salt_of(spool), found.replayed.next_seq)?,
        false => Vec::new(),
    };
    if repair {
        // Before the cut: if only torn records show the segment's generation, nothing shows it
        // afterwards.
        for segment in found.journal.iter().filter(|segment| found.guessed_headers.contains(&segment.path)) {
            write_first_page(segment, spool)?;
        }
        void.iter().chain(&void_kept).try_for_each(|segment| erase_footer(segment))?;
        cut_torn_tail(&found.journal, &found.replayed, salt_of(spool))?;
    }
    Ok(found)
}

/// Removes the partial copies that a crash left of segments being restored. A copy that can't be
/// removed is harmless.
fn remove_unfinished_copies(storage: &dyn Storage, dir: &Path) {
    let names = storage.list(dir).unwrap_or_default();
    for name in names.iter().filter(|name| is_left_by_a_restoration(name)) {
        if let Err(error) = storage.remove_file(&dir.join(name)) {
            tracing::debug!(name, %error, "an unfinished copy of a segment could not be removed");
        }
    }
}

impl Recovered {
    fn is_as_expected(&self) -> bool {
        let Replayed { gaps, damaged, torn, broken, .. } = &self.replayed;
        self.damage.is_empty()
            && gaps.is_empty()
            && damaged.is_empty()
            && torn.is_empty()
            && *broken == 0
            && !self.outran_manifest
    }

    fn has_same_content(&self, other: &Self) -> bool {
        let summary = |found: &Self| {
            let segments = |segments: &[Arc<Segment>]| -> Vec<u64> {
                segments.iter().map(|segment| segment.generation).collect()
            };
            let free: Vec<u32> = found.free.iter().map(|free| free.slot).collect();
            (segments(&found.journal), segments(&found.retained), free, found.outran_manifest)
        };
        self.damage == other.damage && self.replayed == other.replayed && summary(self) == summary(other)
    }
}

/// Reads and replays all segments. Changes no record.
fn read_segments(
    storage: &Arc<dyn Storage>,
    dir: &Path,
    spool: [u8; 16],
    checkpointed: &Checkpointed,
    repair: bool,
) -> Result<Recovered, RecoveryError> {
    let mut found = Recovered::default();
    let mut by_generation = BTreeMap::new();
    let files = match segment_files(storage, dir) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
            found.damage.push(FileDamage { path: dir.to_owned(), what: "it is missing".to_owned() });
            Vec::new()
        }
        files => files?,
    };
    // Wrapping is safe: the pool checks whether the name is taken before it creates a file.
    found.next_slot = files.last().map_or(0, |(slot, _)| slot.wrapping_add(1));
    let after_checkpointed = if files.is_empty() { 1 } else { generation_after(checkpointed.generation) };
    found.next_generation = checkpointed.next_generation.max(after_checkpointed);
    let outran =
        |generation: u64| checkpointed.next_generation > 0 && generation >= checkpointed.next_generation;
    for (slot, path) in files {
        let file = match storage.open(&path, if repair { OpenMode::Write } else { OpenMode::Read }) {
            Ok(file) => file,
            Err(error) if is_no_file(&error) => {
                found.damage.push(FileDamage { path, what: format!("{error}: left alone") });
                continue;
            }
            Err(error) => return Err(failed("opening", &path)(error)),
        };
        if repair {
            read_from_disk(&*file, checkpointed.clean_end).map_err(failed("syncing", &path))?;
        }
        let class = classify(&*file, spool, checkpointed).map_err(failed("reading", &path))?;
        match class {
            SegmentClass::Free { size, used_by } => {
                found.outran_manifest |= outran(used_by);
                // Only this header shows the generation of a cold segment that the manifest does
                // not list.
                found.next_generation = found.next_generation.max(used_by + 1);
                found.free.push(FreeSegment { slot, path, file, size });
            }
            SegmentClass::Foreign(what) => found.damage.push(FileDamage { path, what }),
            SegmentClass::Used(header, remark) => {
                if let Some(remark) = remark {
                    found.damage.push(FileDamage { path: path.clone(), what: remark.to_string() });
                }
                if remark == Some(Remark::GuessedHeader) {
                    found.guessed_headers.push(path.clone());
                }
                found.outran_manifest |= outran(header.generation);
                found.next_generation = found.next_generation.max(generation_after(header.generation));
                let retained = checkpointed.is_retained(&header);
                let segment =
                    Segment::new(header, slot, path.clone(), file, Use { settled: true, counted: !retained });
                if let Some(other) = by_generation.insert(header.generation, Arc::new(segment)) {
                    let what = format!("a copy of {}: left alone", other.path.display());
                    found.damage.push(FileDamage { path, what });
                    by_generation.insert(header.generation, other);
                }
            }
        }
    }
    let is_lost = |generation: &&u64| !by_generation.contains_key(generation);
    for generation in checkpointed.retained.difference(&checkpointed.unused).filter(is_lost) {
        let what = format!("the segment of generation {generation} is missing");
        found.damage.push(FileDamage { path: dir.to_owned(), what });
    }
    (found.retained, found.journal) = by_generation.into_values().partition(|segment| !segment.is_counted());
    found.replayed = replay(&found.journal, &found.retained, spool, checkpointed)?;
    found.torn_records = found.replayed.torn.len() as u64;
    Ok(found)
}

/// Makes the next reads come from the disk, not from the page cache.
///
/// A failed sync, in the last run or in an earlier open, may leave pages in memory that never
/// reached the disk, and the next sync would succeed regardless. Data that was only not synced yet
/// is synced now. After a clean end there is none.
fn read_from_disk(file: &dyn StorageFile, clean_end: bool) -> io::Result<()> {
    // First drops what a failed sync left, so that the next sync reports the truth about the rest.
    file.forget_cached();
    if !clean_end {
        file.sync_data()?;
        file.forget_cached();
    }
    Ok(())
}

/// The first generation that no earlier use of a segment can have had.
///
/// A crash can lose the first page of a use and leave its records, or leave a cold segment that no
/// manifest lists. Such a file counts as free. If its next use had the same generation, its old
/// records would count. That generation is unknown, but it is one of the 2^32 that belong to the
/// last run.
const fn generation_after(used: u64) -> u64 {
    (used | 0xffff_ffff) + 1
}

fn segment_files(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Vec<(u32, PathBuf)>, RecoveryError> {
    let names = storage.list(dir).map_err(failed("listing", dir))?;
    let mut files: Vec<(u32, PathBuf)> =
        names.iter().filter_map(|name| Some((parse_segment_file_name(name)?, dir.join(name)))).collect();
    files.sort_unstable();
    Ok(files)
}

enum SegmentClass {
    /// A segment file of this size whose content does not count, last used under this generation.
    Free { size: u64, used_by: u64 },
    /// In use.
    Used(SegmentHeader, Option<Remark>),
    /// Not a segment of this spool: left alone.
    Foreign(String),
}

/// What is wrong with a segment in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
enum Remark {
    /// The header is a guess.
    #[error("its first page is damaged; the records after it were read")]
    GuessedHeader,
    #[error("cut short: {size} of {of} bytes are there")]
    CutShort { size: u64, of: u64 },
}

fn classify(
    file: &dyn StorageFile,
    spool: [u8; 16],
    checkpointed: &Checkpointed,
) -> io::Result<SegmentClass> {
    let size = file.len()?;
    let matters =
        |generation: u64| generation > checkpointed.generation || checkpointed.retained.contains(&generation);
    let header = read_header(file, size)?;
    if let Some(header) = header {
        if header.spool != spool {
            return Ok(SegmentClass::Foreign("a segment of another spool: left alone".to_owned()));
        }
        // A cold segment counts only once the manifest lists it.
        let used = match header.role {
            Role::Free => false,
            Role::Journal => matters(header.generation),
            Role::Cold => checkpointed.unknown || checkpointed.retained.contains(&header.generation),
        };
        if !used {
            let size = if size == header.size { size } else { 0 };
            return Ok(SegmentClass::Free { size, used_by: header.generation });
        }
        let remark = (size < header.size).then_some(Remark::CutShort { size, of: header.size });
        return Ok(SegmentClass::Used(header, remark));
    }
    match newest_generation(file, salt_of(spool))? {
        Some(generation) if matters(generation) => {
            // A retained segment above the checkpointed generation is a cold one.
            let is_cold = generation > checkpointed.generation && checkpointed.retained.contains(&generation);
            let role = if is_cold { Role::Cold } else { Role::Journal };
            // An abandoned cold segment looks the same. Its messages may have been replaced or
            // removed since.
            let may_be_old = role == Role::Journal
                && !checkpointed.unknown
                && !checkpointed.retained.contains(&generation);
            if may_be_old && newest_seq(file, spool, generation)? <= checkpointed.seq {
                let what = "its first page is damaged, and it has nothing newer than the last checkpoint: left alone";
                return Ok(SegmentClass::Foreign(what.to_owned()));
            }
            let header = SegmentHeader { role, generation, size, spool };
            Ok(SegmentClass::Used(header, Some(Remark::GuessedHeader)))
        }
        Some(used_by) => Ok(SegmentClass::Free { size, used_by }),
        None if begins_with_zeros(file, size)? => Ok(SegmentClass::Free { size: 0, used_by: 0 }),
        None => Ok(SegmentClass::Foreign(
            "neither its first page nor any record can be read: left alone".to_owned(),
        )),
    }
}

fn newest_seq(file: &dyn StorageFile, spool: [u8; 16], generation: u64) -> io::Result<u64> {
    let mut newest = 0;
    scan(file, salt_of(spool), generation, &mut |found| newest = newest.max(found.header.seq))?;
    Ok(newest)
}

fn read_header(file: &dyn StorageFile, size: u64) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; 48];
    if size < PAGE {
        return Ok(None);
    }
    read_exact_at(file, &mut bytes, 0)?;
    Ok(SegmentHeader::decode(&bytes))
}

/// True for a file whose creation was interrupted: it is still empty.
fn begins_with_zeros(file: &dyn StorageFile, size: u64) -> io::Result<bool> {
    let mut page = vec![0; usize::try_from(size.min(PAGE)).unwrap_or(0)];
    read_exact_at(file, &mut page, 0)?;
    Ok(page.iter().all(|byte| *byte == 0))
}

/// Replays the journal. Without a manifest, gaps between records mean nothing: the newest version
/// of each message counts.
fn replay(
    journal: &[Arc<Segment>],
    retained: &[Arc<Segment>],
    spool: [u8; 16],
    checkpointed: &Checkpointed,
) -> Result<Replayed, RecoveryError> {
    let mut replay = JournalReplay::new(checkpointed.seq, checkpointed.durable_seq);
    let reading = |segment: &Segment, error| failed("reading", &segment.path)(error);
    let mut first = 0_usize;
    let broken = scan_in_order(journal, salt_of(spool), &mut |number, found| {
        match number {
            0 => first += 1,
            // Assumes that the others hold about as many.
            _ if first > 0 => {
                replay.reserve((std::mem::take(&mut first) * (journal.len() - 1)).min(MOST_RESERVED));
            }
            _ => {}
        }
        match checkpointed.unknown {
            true => replay.take_kept(found),
            false => replay.take(found),
        }
    })
    .map_err(|(number, error)| reading(&journal[number], error))?;
    if checkpointed.unknown {
        scan_in_order(retained, salt_of(spool), &mut |_, found| replay.pass(found))
            .map_err(|(number, error)| reading(&retained[number], error))?;
    }
    let replayed = Replayed { broken, ..replay.finish() };
    for segment in journal {
        let last = replayed.last_seqs.get(&segment.generation).copied();
        // Excludes the cut records: their numbers are used again.
        segment.note_last_seq(last.unwrap_or(0).min(replayed.next_seq.saturating_sub(1)));
    }
    Ok(replayed)
}

/// Writes the first page of a segment from its guessed header.
fn write_first_page(segment: &Segment, spool: [u8; 16]) -> Result<(), RecoveryError> {
    let Segment { role, generation, size, .. } = *segment;
    SegmentHeader { role, generation, size, spool }
        .write(&*segment.file)
        .and_then(|()| segment.file.sync_data())
        .map_err(failed("writing the first page of", &segment.path))
}

/// Overwrites the headers of records that were never acknowledged, because their numbers are used
/// again. Makes the rest durable.
fn cut_torn_tail(journal: &[Arc<Segment>], replayed: &Replayed, salt: u32) -> Result<(), RecoveryError> {
    // The record that the witness replaces is cut last: until then it is the evidence.
    let last_torn = replayed.witness.and_then(|_| replayed.torn.iter().max_by_key(|torn| torn.durable_seq));
    for torn in replayed.torn.iter().filter(|torn| Some(*torn) != last_torn) {
        overwrite(journal, torn, &[0; HEADER_LEN])?;
    }
    // What a killed process wrote may be only in the page cache, and counts as durable from now on.
    sync(journal.iter())?;
    if let (Some(torn), Some(witness)) = (last_torn, replayed.witness) {
        overwrite(journal, torn, &mark_of(torn, witness).encode(salt))?;
        sync(journal.iter().filter(|segment| segment.generation == torn.generation))?;
    }
    Ok(())
}

fn mark_of(torn: &Torn, witness: Witness) -> RecordHeader {
    RecordHeader {
        kind: RecordKind::Mark,
        generation: torn.generation,
        seq: witness.seq,
        durable_seq: witness.durable_seq,
        id: MessageId::NONE,
        continues: false,
        payload_len: 0,
        payload_crc: payload_crc(&[]),
    }
}

fn overwrite(journal: &[Arc<Segment>], torn: &Torn, header: &[u8; HEADER_LEN]) -> Result<(), RecoveryError> {
    let Some(segment) = journal.iter().find(|segment| segment.generation == torn.generation) else {
        return Ok(());
    };
    write_all_at(&*segment.file, &mut [IoSlice::new(header)], torn.offset)
        .map_err(failed("cutting the torn end of", &segment.path))
}

fn sync<'a>(mut segments: impl Iterator<Item = &'a Arc<Segment>>) -> Result<(), RecoveryError> {
    segments.try_for_each(|segment| segment.file.sync_data().map_err(failed("syncing", &segment.path)))
}
