//! At open: sled, the ledger and the segments compared, and made to agree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tidespool_core::SpoolId;

use super::ballast::Ballast;
use super::ledger::{HighKeys, Ledger, LedgerError, LedgerFile};
use super::retained::{Retained, account, locator, place_of, pointed_to, puts_in};
use crate::durable::{
    Change, Durable, DurableError, DurableStore, Key, KeyRange, Op, Record, SledOptions, Tally,
};
use crate::journal::{
    FileDamage, Filed, Found, Newest, Recovered, RecoveryError, Segment, Segments, recover,
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
}

/// What sled holds, counted.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    pub(crate) tally: Tally,
    pub(crate) retained: BTreeMap<u64, Retained>,
    pub(crate) high: HighKeys,
    pub(crate) max_seq: u64,
    pub(crate) damaged: Vec<(SpoolId, String)>,
}

/// Counts everything that sled holds.
pub(crate) fn take_stock(store: &dyn DurableStore, segments: &Segments) -> Result<Stock, DurableError> {
    let mut stock = count(store)?;
    for (generation, retained) in &mut stock.retained {
        retained.size = segments.get(*generation).map_or(0, |segment| segment.size);
    }
    Ok(stock)
}

fn count(store: &dyn DurableStore) -> Result<Stock, DurableError> {
    let mut stock = Stock::default();
    let mut unreadable = false;
    store.scan(&[KeyRange::ALL], &mut |key, record| {
        stock.high.raise(key);
        match record {
            Ok(record) => {
                stock.tally.add(&key, &record.encode(&key));
                stock.max_seq = stock.max_seq.max(record.seq());
                account(&mut stock.retained, |_| 0, None, Some(&record));
                if let Record::Damaged { reason, .. } = record {
                    stock.damaged.push((key.id(), reason));
                }
            }
            Err(damaged) => {
                unreadable = true;
                stock.damaged.push((key.id(), damaged.reason));
            }
        }
        true
    })?;
    if unreadable {
        // Its digest is over bytes that only the engine sees.
        stock.tally = store.tally()?;
    }
    Ok(stock)
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

/// Reads the ledger, counts sled, replays the journal, and compares. With `repair` false nothing is changed.
pub(crate) fn examine(
    places: &Places,
    durable: Option<&Durable>,
    fresh: bool,
    repair: bool,
) -> Result<Examined, OpeningError> {
    let mut damage = Vec::new();
    let ledger_file = LedgerFile::new(places.storage.clone(), &places.dir);
    let ledger = match ledger_file.read() {
        Ok(Some(ledger)) => Some(ledger),
        Ok(None) if fresh => Some(Ledger::default()),
        Ok(None) => {
            damage.push(FileDamage { path: ledger_file.path().to_owned(), what: "it is missing".to_owned() });
            None
        }
        Err(LedgerError::Damaged { path, what }) => {
            damage.push(FileDamage { path, what });
            None
        }
        Err(error) => return Err(error.into()),
    };
    let stock = durable.map_or_else(|| Ok(Stock::default()), |durable| durable.with(count))?;
    let filed = filed_by(ledger.as_ref(), &stock);
    let recovered = recover(&places.storage, &places.journal(), places.spool, &filed, repair)?;
    let disagrees = disagreement(ledger.as_ref(), &stock, &recovered);
    Ok(Examined { ledger, stock, recovered, damage, disagrees })
}

/// Opens sled, looks at everything, and says what is to be done about it.
pub(crate) fn open_filed(
    places: &Places,
    options: &SledOptions,
    ballast: &Ballast,
    fresh: bool,
) -> Result<Opened, OpeningError> {
    let (durable, unopened) = open_engine(places, options, ballast)?;
    // What is counted must be on stable storage: the ledger will say that it is.
    durable.apply(&mut std::iter::empty(), &mut |_, _| {})?;
    let Examined { ledger, stock, recovered, damage, disagrees } =
        examine(places, Some(&durable), fresh, true)?;
    let disagrees = unopened.or(disagrees);
    let mut recovered = recovered;
    if ledger.is_none() {
        // Everything was replayed, filed or not: what sled knows as well or better is sled's.
        let filed_seqs = seqs_of(&durable, recovered.replayed.newest.keys())?;
        recovered.replayed.newest.retain(|id, newest| filed_seqs.get(id).is_none_or(|seq| *seq < newest.seq));
        // New records are newer than what is filed, also where the journal is empty.
        recovered.replayed.next_seq = recovered.replayed.next_seq.max(stock.max_seq + 1);
    }
    let mut ledger = ledger.unwrap_or_else(|| Ledger { filed_seq: stock.max_seq, ..Ledger::default() });
    if disagrees.is_none() {
        ledger.take_stock(&stock);
        set_sizes(&mut ledger.retained, recovered.retained.iter().chain(&recovered.journal));
    }
    Ok(Opened { durable, ledger, recovered, damage, damaged: stock.damaged, disagrees })
}

/// The numbers of the records that sled has of these messages.
fn seqs_of<'a>(
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

/// Opens sled. Where its files are beyond opening they are moved aside, and it begins anew: with the reason.
fn open_engine(
    places: &Places,
    options: &SledOptions,
    ballast: &Ballast,
) -> Result<(Durable, Option<String>), OpeningError> {
    let dir = places.sled();
    let error = match Durable::open_sled(&dir, options.clone()) {
        Ok(durable) => return Ok((durable, None)),
        Err(DurableError::Engine { kind: Some(std::io::ErrorKind::StorageFull), .. }) => {
            ballast.release();
            return Ok((Durable::open_sled(&dir, options.clone())?, None));
        }
        Err(error) => error,
    };
    // An I/O error may pass, and a time-out may be a slow disk: only what sled itself calls damaged is given up.
    let beyond_opening = matches!(error, DurableError::Engine { kind: None, .. });
    if !beyond_opening {
        return Err(error.into());
    }
    let aside = unused_name(places, "sled.damaged")?;
    places
        .storage
        .rename(&dir, &aside)
        .map_err(|source| OpeningError::MoveAside { from: dir.clone(), source })?;
    let reason = format!("{error}; its files are kept in {}", aside.display());
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

fn filed_by(ledger: Option<&Ledger>, stock: &Stock) -> Filed {
    match ledger {
        Some(ledger) => Filed {
            generation: ledger.filed_generation,
            seq: ledger.filed_seq,
            durable_seq: ledger.durable_seq,
            retained: ledger.retained.keys().copied().collect(),
            next_generation: ledger.next_generation,
            unknown: false,
        },
        None => {
            Filed { retained: stock.retained.keys().copied().collect(), unknown: true, ..Filed::default() }
        }
    }
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
    let changed = recovered.replayed.newest.len() as u64;
    (has + changed < should || has > should + changed)
        .then(|| format!("sled holds {has} records and should hold {should}, give or take {changed}"))
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
    replayed: &HashMap<SpoolId, Newest>,
) -> Result<Settled, OpeningError> {
    let should = ledger.tally.records;
    let before = durable.with(|store| take_stock(store, segments))?;
    // Segments that hold as much alive as the ledger says have lost nothing: what is dead in them stays dead.
    let short: Vec<u64> = ledger
        .retained
        .iter()
        .filter(|(generation, wanted)| {
            before.retained.get(generation).is_none_or(|has| has.live < wanted.live)
        })
        .map(|(generation, _)| *generation)
        .collect();
    let mut ops = BTreeMap::new();
    for segment in short.iter().filter_map(|generation| segments.get(*generation)) {
        for found in puts_in(segments, &segment).map_err(|source| RecoveryError {
            doing: "reading",
            path: segment.path.clone(),
            source,
        })? {
            let key = Key::of(&found.header.id);
            // A cold segment is newer than what it holds: the number tells which version is the newest.
            let known = ops.get(&key).is_some_and(|other: &Found| other.header.seq >= found.header.seq);
            if found.intact
                && !known
                && !replayed.contains_key(&found.header.id)
                && is_lost(durable, segments, &key, found.header.seq)?
            {
                ops.insert(key, found);
            }
        }
    }
    let refiled = ops.len() as u64;
    if refiled > 0 {
        let mut ops = ops.into_iter().map(|(key, found)| Op { key, change: Change::Put(record_of(&found)) });
        durable.apply(&mut ops, &mut |_, _| {})?;
    }
    let stock = durable.with(|store| take_stock(store, segments))?;
    let lost = should.saturating_sub(stock.tally.records);
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
        Ok(Some(record)) => {
            let leads_nowhere =
                pointed_to(&record).is_some_and(|place| segments.get(place.generation).is_none());
            Ok(leads_nowhere || record.seq() < seq)
        }
        Err(error) => Err(error),
    }
}

/// The record of a payload that stays where it is, however small: it may be the only copy.
fn record_of(found: &Found) -> Record {
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
