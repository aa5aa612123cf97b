//! What stands behind [`Inspector`](super::Inspector): the spool's own recovery, told to change nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use tidespool_core::{Corrupt, NotFound, SpoolId};

use super::torn::torn_records;
use super::unreadable::AsFarAsReadable;
use super::{Damage, Entry, Home, Summary, Verification};
use crate::checkpoint::{
    Examined, Ledger, OpeningError, Places, Stock, count_filed, examine, read_ledger, seqs_of, verify_filed,
};
use crate::durable::{Durable, DurableError, Key, KeyRange, Record, SledOptions};
use crate::journal::{
    NewestById, Place, Pool, PoolEvents, PoolSettings, ReadError, Segment, Segments, salt_of,
};
use crate::storage::Storage;
use crate::tiered::{Directory, FORMAT_VERSION};

/// Memory for sled's cache: a tool reads everything once.
const SLED_CACHE: u64 = 16 << 20;

pub(super) struct Look {
    places: Places,
    disk: Arc<AsFarAsReadable>,
    /// `None`: sled's files are missing, or beyond opening.
    durable: Option<Durable>,
    newest: NewestById,
    segments: Segments,
    numbers: Numbers,
    damage: Vec<Damage>,
    torn: Vec<Damage>,
    /// Held until everything else is closed.
    _directory: Directory,
}

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Look")
            .field("places", &self.places)
            .field("numbers", &self.numbers)
            .finish_non_exhaustive()
    }
}

/// What was counted on the way.
#[derive(Debug)]
struct Numbers {
    ledger_records: u64,
    clean_shutdown: bool,
    free: u64,
    journal: u64,
    retained: u64,
    segment_bytes: u64,
}

/// Nothing is prewritten here.
struct Nobody;

impl PoolEvents for Nobody {
    fn segment_free(&self) {}
    fn prewrite_failed(&self, _error: &std::io::Error) {}
}

impl Look {
    pub(super) fn open(path: &Path, storage: Arc<dyn Storage>) -> Result<Self> {
        let directory = Directory::open_existing(path)?;
        let disk = AsFarAsReadable::new(storage);
        let places = Places { storage: disk.clone(), dir: path.to_owned(), spool: directory.spool };
        let mut damage = Vec::new();
        let found = read_ledger(&places, false)?;
        let (durable, examined) = examine(&places, found, false, |ledger| {
            let needs_none = ledger.is_some_and(|ledger| !ledger.filing && ledger.tally.records == 0);
            open_sled(&places, ledger, needs_none, &mut damage)
        })?;
        note_damage(&places, &examined, &mut damage);
        let recovered = examined.recovered;
        let torn = torn_records(&recovered, salt_of(places.spool));
        let size = |segments: &[Arc<Segment>]| segments.iter().map(|segment| segment.size).sum::<u64>();
        let numbers = Numbers {
            ledger_records: examined.ledger.as_ref().map_or(0, |ledger| ledger.tally.records),
            clean_shutdown: examined.ledger.as_ref().is_some_and(|ledger| {
                !ledger.filing && ledger.durable_seq + 1 == recovered.replayed.next_seq
            }),
            free: recovered.free.len() as u64,
            journal: recovered.journal.len() as u64,
            retained: recovered.retained.len() as u64,
            segment_bytes: size(&recovered.journal)
                + size(&recovered.retained)
                + recovered.free.iter().map(|free| free.size).sum::<u64>(),
        };
        let settings = PoolSettings {
            dir: places.journal(),
            spool: places.spool,
            segment_size: 1 << 20,
            capacity: 4 << 20,
            keep_free: 0,
            next_slot: recovered.next_slot,
        };
        let pool = Pool::new(places.storage.clone(), settings, Arc::new(Nobody));
        let segments = Segments::new(Arc::new(pool), places.spool, recovered.next_generation);
        recovered.journal.into_iter().chain(recovered.retained).for_each(|segment| segments.insert(segment));
        let mut newest = recovered.replayed.newest;
        if examined.ledger.is_none() {
            // Everything was replayed, filed or not: what sled knows as well or better is sled's.
            if let Some(durable) = &durable {
                let filed = seqs_of(durable, newest.keys())?;
                newest.retain(|id, newest| filed.get(id).is_none_or(|seq| *seq < newest.seq));
            }
        }
        Ok(Self { places, disk, durable, newest, segments, numbers, damage, torn, _directory: directory })
    }

    pub(super) fn entries(&self, visit: &mut dyn FnMut(Entry) -> bool) -> Result<()> {
        let mut younger: Vec<(Key, u64)> = self.in_journal().collect();
        younger.sort_unstable();
        let mut younger = younger.into_iter().peekable();
        let mut go_on = true;
        let mut show = |key: Key, size: u64, home: Home| visit(Entry { id: key.id(), size, home });
        if let Some(durable) = &self.durable {
            durable.scan(&[KeyRange::ALL], &mut |key, record| {
                while go_on && let Some((key, size)) = younger.next_if(|(other, _)| *other < key) {
                    go_on = show(key, size, Home::Journal);
                }
                // What the journal knows is newer, a removal included.
                if go_on && !self.newest.contains_key(&key.id()) {
                    let (size, home) = match record {
                        Ok(Record::Whole { data, .. }) => (data.len() as u64, Home::Sled),
                        Ok(Record::Locator { len, .. }) => (u64::from(len), Home::Segment),
                        Ok(Record::Damaged { .. }) | Err(_) => (0, Home::Damaged),
                    };
                    go_on = show(key, size, home);
                }
                go_on
            })?;
        }
        for (key, size) in younger {
            if !go_on {
                break;
            }
            go_on = show(key, size, Home::Journal);
        }
        Ok(())
    }

    fn in_journal(&self) -> impl Iterator<Item = (Key, u64)> + '_ {
        self.newest.iter().filter_map(|(id, newest)| Some((Key::of(id), u64::from(newest.place?.len))))
    }

    pub(super) fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        if let Some(newest) = self.newest.get(&id) {
            return self.read(id, newest.place.ok_or(NotFound { id })?);
        }
        let record = match self.durable.as_ref().map(|durable| durable.get(&Key::of(&id))) {
            Some(Err(DurableError::Damaged { reason, .. })) => return Err(Corrupt { id, reason }.into()),
            Some(record) => record?,
            None => None,
        };
        match record {
            Some(Record::Whole { data, .. }) => Ok(data.into_vec()),
            Some(Record::Locator { generation, offset, len, .. }) => {
                self.read(id, Place { generation, offset, len })
            }
            Some(Record::Damaged { reason, .. }) => Err(Corrupt { id, reason }.into()),
            None => Err(NotFound { id }.into()),
        }
    }

    fn read(&self, id: SpoolId, place: Place) -> Result<Vec<u8>> {
        let Some(segment) = self.segments.get(place.generation) else {
            let reason = format!("its segment (generation {}) is missing", place.generation);
            return Err(Corrupt { id, reason }.into());
        };
        match segment.read_put(self.segments.salt(), &id, place) {
            Ok((data, _)) => Ok(data),
            Err(error @ ReadError::Damaged { .. }) => Err(Corrupt { id, reason: error.to_string() }.into()),
            Err(error @ ReadError::Io { .. }) => Err(error.into()),
        }
    }

    pub(super) fn summary(&self) -> Result<Summary> {
        let mut summary = Summary {
            format_version: FORMAT_VERSION,
            segment_bytes: self.numbers.segment_bytes,
            sled_bytes: self.durable.as_ref().map_or(0, Durable::size_on_disk),
            ledger_records: self.numbers.ledger_records,
            clean_shutdown: self.numbers.clean_shutdown,
            ..Summary::default()
        };
        let states = [
            ("free", self.numbers.free),
            ("journal", self.numbers.journal),
            ("retained", self.numbers.retained),
        ];
        summary.segments_by_state = states.map(|(name, count)| (name.to_owned(), count)).into();
        let homes = ["journal", "sled", "segment", "damaged"];
        summary.messages_by_home = homes.map(|name| (name.to_owned(), 0)).into();
        self.entries(&mut |entry| {
            summary.messages += 1;
            summary.message_bytes += entry.size;
            let home = match entry.home {
                Home::Journal => "journal",
                Home::Sled => "sled",
                Home::Segment => "segment",
                Home::Damaged => "damaged",
            };
            *summary.messages_by_home.entry(home.to_owned()).or_default() += 1;
            true
        })?;
        Ok(summary)
    }

    pub(super) fn verify(&self) -> Result<Verification> {
        let mut found =
            Verification { damage: self.damage.clone(), torn: self.torn.clone(), ..Verification::default() };
        for (id, newest) in &self.newest {
            let Some(place) = newest.place else { continue };
            match self.read(*id, place) {
                Ok(data) => {
                    found.messages += 1;
                    found.bytes += data.len() as u64;
                }
                Err(error) => match error.root_cause().downcast_ref::<Corrupt>() {
                    Some(corrupt) => {
                        found.damage.push(damage(&self.path_of(place), Some(*id), corrupt.reason.clone()));
                    }
                    None => return Err(error),
                },
            }
        }
        if let Some(durable) = &self.durable {
            let sled = self.places.sled();
            // What the journal has a newer version of is not a message of its own any more.
            let is_newest = |id: &SpoolId| !self.newest.contains_key(id);
            let verified = verify_filed(&self.segments, durable, &is_newest, &mut |finding| {
                found.damage.push(damage(&sled, Some(finding.id), finding.what));
            })?;
            found.messages += verified.messages;
            found.bytes += verified.bytes;
        }
        found.damage.extend(self.disk.damage());
        Ok(found)
    }

    fn path_of(&self, place: Place) -> PathBuf {
        self.segments
            .get(place.generation)
            .map_or_else(|| self.places.journal(), |segment| segment.path.clone())
    }
}

/// Opens sled and counts what it holds. That it can't be opened or read is damage, and no reason not to look at the rest.
fn open_sled(
    places: &Places,
    ledger: Option<&Ledger>,
    needs_none: bool,
    found: &mut Vec<Damage>,
) -> Result<(Option<Durable>, Stock), OpeningError> {
    let dir = places.sled();
    let none = || (None, Stock::default());
    if !dir.is_dir() {
        if !needs_none {
            found.push(damage(&dir, None, "it is missing".to_owned()));
        }
        return Ok(none());
    }
    let opened = Durable::open_sled(&dir, SledOptions::new(SLED_CACHE)).map_err(OpeningError::from);
    match opened.and_then(|durable| count_filed(&durable, ledger).map(|stock| (Some(durable), stock))) {
        Err(OpeningError::Engine(error)) if error.is_damage() => {
            found.push(damage(&dir, None, error.to_string()));
            Ok(none())
        }
        opened => opened,
    }
}

fn damage(path: &Path, id: Option<SpoolId>, what: String) -> Damage {
    Damage { path: path.display().to_string(), id, what }
}

/// What the examination found beyond the messages themselves, which [`Look::verify`] reads.
fn note_damage(places: &Places, examined: &Examined, found: &mut Vec<Damage>) {
    for file in examined.damage.iter().chain(&examined.recovered.damage) {
        found.push(damage(&file.path, None, file.what.clone()));
    }
    for gap in &examined.recovered.replayed.gaps {
        let what = format!("records {} to {} are missing", gap.first, gap.last);
        found.push(damage(&places.journal(), None, what));
    }
    if let Some(what) = &examined.disagrees {
        found.push(damage(&places.sled(), None, what.clone()));
    }
}
