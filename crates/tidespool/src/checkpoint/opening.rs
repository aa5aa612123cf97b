//! At open: sled, the ledger and the segments compared, and made to agree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use thiserror::Error;
use tidespool_core::SpoolId;

use super::ballast::Ballast;
use super::ledger::{Ledger, LedgerError, LedgerFile};
use super::leftover::newest_puts;
use super::retained::{Retained, describe, locator, place_of, pointed_to};
use super::stock::{Stock, Unfinished, count_filed, take_stock};
use crate::durable::{
    Change, Durable, DurableError, Fingerprint, Key, KeyRange, Op, Record, SledOptions, sled_helpers,
};
use crate::journal::{
    FileDamage, Filed, Found, NewestById, Recovered, RecoveryError, Role, Segment, Segments, former_segments,
    recover,
};
use crate::storage::Storage;

/// Why the spool can't be opened. Nothing was lost by trying.
#[derive(Debug, Error)]
pub(crate) enum OpeningError {
    #[error(transparent)]
    Journal(#[from] RecoveryError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Engine(#[from] DurableError),
    /// More than one of the things that tell of each other is damaged: going on would forget what can still be saved.
    #[error("{path} is damaged: {what}", path = path.display())]
    Beyond { path: PathBuf, what: String },
    #[error("moving the damaged {from} aside: {source}", from = from.display())]
    MoveAside { from: PathBuf, source: std::io::Error },
}

/// Where everything is.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) dir: PathBuf,
    pub(crate) spool: [u8; 16],
}

impl Places {
    pub(crate) fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    pub(crate) fn sled(&self) -> PathBuf {
        self.dir.join("sled")
    }
}

/// What was read from disk, before anything is changed beyond the journal's torn end.
pub(crate) struct Opened {
    pub(crate) durable: Durable,
    pub(crate) ledger: Ledger,
    pub(crate) recovered: Recovered,
    pub(crate) damage: Vec<FileDamage>,
    /// Messages whose records are damaged, with their reasons.
    pub(crate) damaged: Vec<(SpoolId, String)>,
    /// sled does not hold what the ledger says: [`settle`] has to be called.
    pub(crate) disagrees: Option<String>,
    /// What sled holds was counted, and not taken from the ledger because its files are what they were.
    pub(crate) counted: bool,
}

/// What a directory holds, before anything is decided about it.
pub(crate) struct Examined {
    /// `None`: it is missing or damaged.
    pub(crate) ledger: Option<Ledger>,
    pub(crate) stock: Stock,
    pub(crate) recovered: Recovered,
    pub(crate) damage: Vec<FileDamage>,
    /// What is wrong with what sled holds.
    pub(crate) disagrees: Option<String>,
}

/// The ledger, or what is wrong with it. `None` without damage: there is none and need not be one.
pub(crate) struct LedgerFound {
    pub(crate) ledger: Option<Ledger>,
    damage: Vec<FileDamage>,
}

/// Reads the ledger. In a `fresh` directory there need not be one.
pub(crate) fn read_ledger(places: &Places, fresh: bool) -> Result<LedgerFound, OpeningError> {
    let file = LedgerFile::new(places.storage.clone(), &places.dir);
    let damaged = |path: PathBuf, what| LedgerFound { ledger: None, damage: vec![FileDamage { path, what }] };
    match file.read() {
        Ok(Some(ledger)) => Ok(LedgerFound { ledger: Some(ledger), damage: Vec::new() }),
        Ok(None) if fresh => Ok(LedgerFound { ledger: Some(Ledger::default()), damage: Vec::new() }),
        Ok(None) => {
            let what = "it is missing: what sled should hold is not known";
            Ok(damaged(file.path().to_owned(), what.to_owned()))
        }
        Err(LedgerError::Damaged { path, what }) => {
            Ok(damaged(path, format!("{what}: what sled should hold is not known")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether sled's files are, byte for byte, what they were when the ledger was written: then what it says of them need not be counted again. To be
/// asked before sled is opened.
fn are_as_they_were(places: &Places, ledger: Option<&Ledger>) -> bool {
    let Some(then) = ledger.and_then(|ledger| ledger.files) else { return false };
    match Fingerprint::of(&places.sled(), None) {
        Ok(now) => now == Some(then),
        Err(error) => {
            // Whoever opens them next has more to say.
            tracing::warn!(%error, "sled's files could not be compared with what they were");
            false
        }
    }
}

/// Counts sled, replays the journal, and compares both with the ledger. With `repair` false nothing is changed.
///
/// `engine` opens and counts sled; beside it, the journal is read, which waits for it only where there is no ledger to tell what is filed.
pub(crate) fn examine<E>(
    places: &Places,
    found: LedgerFound,
    repair: bool,
    engine: impl FnOnce(Option<&Ledger>) -> Result<(E, Stock), OpeningError>,
) -> Result<(E, Examined), OpeningError> {
    let LedgerFound { mut ledger, mut damage } = found;
    let replay = |filed: &Filed| recover(&places.storage, &places.journal(), places.spool, filed, repair);
    let ((engine, stock), mut recovered) = if let Some(ledger) = &ledger {
        let filed = filed_by(ledger);
        let (opened, recovered) = thread::scope(|scope| {
            let thread = thread::Builder::new().name("tidespool-open".to_owned());
            let replaying = thread.spawn_scoped(scope, || replay(&filed));
            let opened = engine(Some(ledger));
            let recovered = match replaying {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err(panicked(places))),
                Err(_) => replay(&filed),
            };
            (opened, recovered)
        });
        // Of two errors, the engine's.
        (opened?, recovered?)
    } else {
        let (engine, stock) = engine(None)?;
        let recovered = replay(&filed_of_stock(&stock))?;
        ((engine, stock), recovered)
    };
    if ledger.as_ref().is_some_and(|ledger| is_stale(ledger, &stock, &recovered)) {
        // Worse than none: what it does not list would count as free.
        ledger = None;
        let what = "it is of an earlier time than the rest: what sled should hold is not known".to_owned();
        damage.push(FileDamage { path: places.dir.join("ledger"), what });
        recovered = replay(&filed_of_stock(&stock))?;
    }
    let disagrees = disagreement(ledger.as_ref(), &stock, &recovered);
    Ok((engine, Examined { ledger, stock, recovered, damage, disagrees }))
}

fn panicked(places: &Places) -> RecoveryError {
    let source = std::io::Error::other("a thread panicked");
    RecoveryError { doing: "reading", path: places.journal(), source }
}

/// Opens sled, looks at everything, and says what is to be done about it.
pub(crate) fn open_filed(
    places: &Places,
    options: &SledOptions,
    ballast: &Ballast,
    fresh: bool,
) -> Result<Opened, OpeningError> {
    let found = read_ledger(places, fresh)?;
    let unchanged = are_as_they_were(places, found.ledger.as_ref());
    let options = &SledOptions { unclean: !unchanged, ..options.clone() };
    let ((durable, unopened), examined) = examine(places, found, true, |ledger| {
        let (durable, unopened) = open_engine(places, options, ballast, ledger.is_some())?;
        // What is counted must be on stable storage: the ledger will say that it is.
        durable.apply(&mut std::iter::empty(), &mut |_, _| {})?;
        let stock = match ledger {
            Some(ledger) if unchanged && unopened.is_none() => {
                durable.with(|store| {
                    store.note_records(ledger.tally.records);
                    Ok(())
                })?;
                Stock::by(ledger)
            }
            _ => count_filed(&durable, ledger)?,
        };
        Ok(((durable, unopened), stock))
    })?;
    let Examined { ledger, stock, recovered, damage, disagrees } = examined;
    let disagrees = unopened.or(disagrees);
    let mut recovered = recovered;
    if ledger.is_none() {
        let has_moved = || {
            let former = former_segments(&recovered.free, places.spool);
            former.iter().any(|segment| segment.role == Role::Cold)
        };
        if stock.tally.records == 0 && has_moved() {
            let what = "it is empty, though there are segments of filed messages; and without the ledger it is not known \
                        what it held";
            return Err(OpeningError::Beyond { path: places.sled(), what: what.to_owned() });
        }
        // Everything was replayed, filed or not: what sled knows as well or better is sled's.
        let filed_seqs = seqs_of(&durable, recovered.replayed.newest.keys())?;
        recovered.replayed.newest.retain(|id, newest| filed_seqs.get(id).is_none_or(|seq| *seq < newest.seq));
        // New records are newer than what is filed, also where the journal is empty.
        recovered.replayed.next_seq = recovered.replayed.next_seq.max(stock.max_seq + 1);
    }
    let mut ledger = ledger.unwrap_or_else(|| Ledger { filed_seq: stock.max_seq, ..Ledger::default() });
    // From here on sled's files change.
    ledger.files = None;
    if disagrees.is_none() {
        ledger.take_stock(&stock);
        set_sizes(&mut ledger.retained, recovered.retained.iter().chain(&recovered.journal));
    }
    let counted = !unchanged;
    Ok(Opened { durable, ledger, recovered, damage, damaged: stock.damaged, disagrees, counted })
}

/// The numbers of the records that sled has of these messages.
pub(crate) fn seqs_of<'a>(
    durable: &Durable,
    ids: impl Iterator<Item = &'a SpoolId>,
) -> Result<HashMap<SpoolId, u64>, DurableError> {
    let mut seqs = HashMap::new();
    for id in ids {
        match durable.get(&Key::of(id)) {
            Ok(Some(record)) => seqs.insert(*id, record.seq()),
            Ok(None) | Err(DurableError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
    }
    Ok(seqs)
}

fn set_sizes<'a>(retained: &mut BTreeMap<u64, Retained>, segments: impl Iterator<Item = &'a Arc<Segment>>) {
    for segment in segments {
        if let Some(entry) = retained.get_mut(&segment.generation) {
            entry.size = segment.size;
        }
    }
}

/// Opens sled. Where its files are beyond opening, and it `is_known` what they should hold, they are moved aside, and it begins anew: with the reason.
fn open_engine(
    places: &Places,
    options: &SledOptions,
    ballast: &Ballast,
    is_known: bool,
) -> Result<(Durable, Option<String>), OpeningError> {
    let dir = places.sled();
    let error = match Durable::open_sled(&dir, options.clone()) {
        Ok(durable) => return Ok((durable, None)),
        Err(DurableError::Engine { kind: Some(std::io::ErrorKind::StorageFull), .. }) => {
            ballast.release();
            return Ok((Durable::open_sled_again(&dir, options.clone())?, None));
        }
        Err(error) => error,
    };
    // An I/O error may pass, and a time-out may be a slow disk: only what sled itself calls damaged is given up.
    let beyond_opening = matches!(error, DurableError::Engine { kind: None, .. });
    if !beyond_opening {
        return Err(error.into());
    }
    if !is_known {
        let what = format!("{error}; and without the ledger it is not known what it held");
        return Err(OpeningError::Beyond { path: dir, what });
    }
    let aside = unused_name(places, "sled.damaged")?;
    let move_aside = |from: &Path, to: &Path| -> std::io::Result<()> { places.storage.rename(from, to) };
    let moving = |source| OpeningError::MoveAside { from: dir.clone(), source };
    // Its messages are in one file; the others only tell where in it. Without them it reads all of that one.
    let helpers = sled_helpers(&dir).map_err(moving)?;
    if !helpers.is_empty() {
        places.storage.create_dir(&aside).map_err(moving)?;
        for (path, name) in &helpers {
            move_aside(path, &aside.join(name)).map_err(moving)?;
        }
        if let Ok(durable) = Durable::open_sled(&dir, options.clone()) {
            let what = format!("{error}; it was opened without what is kept in {}", aside.display());
            return Ok((durable, Some(what)));
        }
    }
    let rest = unused_name(places, "sled.damaged")?;
    move_aside(&dir, &rest).map_err(moving)?;
    let reason = format!("{error}; its files are kept in {}", rest.display());
    Ok((Durable::open_sled(&dir, options.clone())?, Some(reason)))
}

fn unused_name(places: &Places, stem: &str) -> Result<PathBuf, OpeningError> {
    let list = |dir: &Path| places.storage.list(dir);
    let names: BTreeSet<String> = list(&places.dir)
        .map_err(|source| OpeningError::MoveAside { from: places.dir.clone(), source })?
        .into_iter()
        .collect();
    let free = (1..).map(|number| format!("{stem}.{number}")).find(|name| !names.contains(name));
    Ok(places.dir.join(free.unwrap_or_else(|| stem.to_owned())))
}

fn filed_by(ledger: &Ledger) -> Filed {
    Filed {
        generation: ledger.filed_generation,
        seq: ledger.filed_seq,
        durable_seq: ledger.durable_seq,
        retained: ledger.retained.keys().copied().collect(),
        unused: ledger
            .retained
            .iter()
            .filter(|(_, kept)| kept.live == 0)
            .map(|(generation, _)| *generation)
            .collect(),
        next_generation: ledger.next_generation,
        clean_end: ledger.files.is_some(),
        unknown: false,
    }
}

fn filed_of_stock(stock: &Stock) -> Filed {
    Filed { retained: stock.retained.keys().copied().collect(), unknown: true, ..Filed::default() }
}

/// The ledger knows less than the rest: it is a copy from earlier.
fn is_stale(ledger: &Ledger, stock: &Stock, recovered: &Recovered) -> bool {
    // A checkpoint that did not end leaves more in sled than is filed; whoever counted it since then said so.
    let reached = ledger.filed_seq.max(ledger.reached_seq);
    recovered.outran_ledger || (!ledger.filing && stock.max_seq > reached)
}

/// Says what is wrong with what sled holds, if anything is.
fn disagreement(ledger: Option<&Ledger>, stock: &Stock, recovered: &Recovered) -> Option<String> {
    let ledger = ledger?;
    let (has, should) = (stock.tally.records, ledger.tally.records);
    if !ledger.filing {
        return (stock.tally != ledger.tally).then(|| match has == should {
            true => format!("sled holds {has} records as it should, and not the same ones"),
            false => format!("sled holds {has} records and should hold {should}"),
        });
    }
    // A checkpoint was under way: sled may hold any part of what it was to change.
    stock.contradicts(ledger, Unfinished::by(ledger, recovered.replayed.newest.keys()))
}

/// What [`settle`] did.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Messages that were filed anew from the segments.
    pub(crate) refiled: u64,
    /// Messages of which there is no trace.
    pub(crate) lost: u64,
}

/// Files anew what sled lost and the segments still have, and writes a ledger that counts what is there now.
///
/// A message that was removed and whose segment is still there can come back by this: better twice than never.
pub(crate) fn settle(
    durable: &Durable,
    segments: &Segments,
    ledger: &mut Ledger,
    ledger_file: &LedgerFile,
    ballast: &Ballast,
    replayed: &NewestById,
) -> Result<Settled, OpeningError> {
    let should = ledger.tally.records;
    let before = durable.with(|store| take_stock(store, segments, ledger))?;
    // Segments that hold as much alive as the ledger says have lost nothing: what is dead in them stays dead.
    let short: Vec<u64> = ledger
        .retained
        .iter()
        .filter(|(generation, wanted)| {
            before.retained.get(generation).is_none_or(|has| has.live < wanted.live)
        })
        .map(|(generation, _)| *generation)
        .collect();
    let short: Vec<Arc<Segment>> = short.iter().filter_map(|generation| segments.get(*generation)).collect();
    let puts = newest_puts(short.iter().map(|segment| &**segment), segments.salt()).map_err(
        |(segment, source)| RecoveryError { doing: "reading", path: segment.path.clone(), source },
    )?;
    let (mut ops, mut refiled, mut places) = (Vec::new(), 0, HashMap::new());
    for (key, found) in puts {
        let id = found.header.id;
        if !replayed.contains_key(&id) && is_lost(durable, segments, &key, found.header.seq)? {
            refiled += u64::from(found.intact);
            places.insert(key, found.header.generation);
            ops.push(Op { key, change: Change::Put(record_of(&found)) });
        }
    }
    let mut back: BTreeMap<u64, u64> = BTreeMap::new();
    if !ops.is_empty() {
        durable.apply(&mut ops.into_iter(), &mut |key, before| {
            if !before.is_some_and(|before| leads_somewhere(&before, segments))
                && let Some(generation) = places.get(key)
            {
                *back.entry(*generation).or_default() += 1;
            }
        })?;
    }
    let stock = durable.with(|store| take_stock(store, segments, ledger))?;
    // Of what is back some had been removed, and its removal is forgotten: no more of a segment than lived in it make up for what was lost.
    let lived = |generation: &u64| {
        let has = before.retained.get(generation).map_or(0, |has| has.live);
        ledger.retained.get(generation).map_or(0, |wanted| wanted.live.saturating_sub(has))
    };
    let made_good: u64 = back.iter().map(|(generation, back)| (*back).min(lived(generation))).sum();
    // A record that leads nowhere is of an earlier time, and told by its id; whose place it takes is not known.
    let nowhere: u64 = before
        .retained
        .iter()
        .filter(|(generation, _)| segments.get(**generation).is_none())
        .map(|(_, has)| has.live)
        .sum();
    // Some of these may have been removed since, and sled not told of it yet. Rather too many than one too few.
    let lost = should.saturating_sub(before.kept().saturating_sub(nowhere) + made_good);
    ledger.number += 1;
    ledger.lost += lost;
    ledger.take_stock(&stock);
    ledger_file.write_somehow(ledger, ballast)?;
    Ok(Settled { refiled, lost })
}

/// There is no record of the version `seq`: none at all, an older one (sled itself went back in time), or none that leads anywhere.
fn is_lost(durable: &Durable, segments: &Segments, key: &Key, seq: u64) -> Result<bool, DurableError> {
    match durable.get(key) {
        Ok(None | Some(Record::Damaged { .. })) | Err(DurableError::Damaged { .. }) => Ok(true),
        Ok(Some(record)) => Ok(!leads_somewhere(&record, segments) || record.seq() < seq),
        Err(error) => Err(error),
    }
}

fn leads_somewhere(record: &Record, segments: &Segments) -> bool {
    pointed_to(record).is_none_or(|place| segments.get(place.generation).is_some())
}

/// The record of a payload that stays where it is, however small: it may be the only copy. One that is damaged keeps its message from being just
/// one fewer.
fn record_of(found: &Found) -> Record {
    if !found.intact {
        let place = place_of(found);
        let reason = format!(
            "{}: the payload fails its checksum; sled had lost its record",
            describe(&found.header.id, place)
        );
        return Record::Damaged { seq: found.header.seq, reason };
    }
    locator(found.header.seq, place_of(found), found.header.payload_crc)
}

/// Messages whose locators point into no segment that is there.
pub(crate) fn without_segment(
    durable: &Durable,
    segments: &Segments,
    retained: &BTreeMap<u64, Retained>,
) -> Result<Vec<SpoolId>, DurableError> {
    let mut ids = Vec::new();
    if retained.keys().all(|generation| segments.get(*generation).is_some()) {
        return Ok(ids);
    }
    durable.scan(&[KeyRange::ALL], &mut |key, record| {
        let place = record.ok().as_ref().and_then(pointed_to);
        if place.is_some_and(|place| segments.get(place.generation).is_none()) {
            ids.push(key.id());
        }
        true
    })?;
    Ok(ids)
}
