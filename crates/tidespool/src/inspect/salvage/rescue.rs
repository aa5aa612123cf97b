//! Which version of each message counts, and where it is read from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use tidespool_core::SpoolId;

use super::sled_copy::{Records, not_all};
use super::target::Target;
use super::{Salvage, damage};
use crate::checkpoint::{Examined, Places, Retained, Unfinished, locator, newest_puts, place_of, pointed_to};
use crate::durable::{Key, MAX_WHOLE, Record, Tally};
use crate::journal::{Found, NewestById, Place, Segment, former_segments, salt_of};

/// Of a put in a segment that is filed, or may be.
const UNKNOWN_TO_SLED: &str = "sled does not know of it: it may have been removed before";

/// Puts that were restored from one segment.
#[derive(Debug, Clone, Copy, Default)]
struct Puts {
    /// Too large for sled: of what lives of them it has the places.
    large: u64,
    small: u64,
}

/// What is known of the spool while it is being saved.
pub(super) struct Rescue<'a> {
    places: &'a Places,
    salt: u32,
    newest: NewestById,
    /// Without a ledger: segments that sled points into, and that may not all be filed. What they hold is in `newest`, too.
    kept: BTreeSet<u64>,
    segments: BTreeMap<u64, Arc<Segment>>,
    /// What filed segments hold, and sled was not seen to know.
    leftover: BTreeMap<Key, Found>,
    /// What the ledger says of each segment that is kept for messages in it. `None`: there is no ledger.
    retained: Option<BTreeMap<u64, Retained>>,
    /// Of how many messages in each of them sled knows.
    known: BTreeMap<u64, u64>,
    /// Records that sled should hold at least: fewer by those that an unfinished checkpoint was to remove. `None`: not known.
    should: Option<u64>,
    /// What sled should hold, exactly. `None`: not known.
    expected: Option<Tally>,
    /// What it was seen to hold, and what was restored in its place.
    seen: Tally,
    /// Why sled is not to be trusted.
    sled_wrong: Option<String>,
}

impl<'a> Rescue<'a> {
    pub(super) fn new(
        places: &'a Places,
        examined: Examined,
        known: BTreeMap<u64, u64>,
        unreadable: Option<String>,
        report: &mut Salvage,
    ) -> Result<Self> {
        let Examined { ledger, recovered, damage: files, disagrees, .. } = examined;
        for file in files.iter().chain(&recovered.damage) {
            report.damage.push(damage(&file.path, None, file.what.clone()));
        }
        if ledger.is_none() {
            // With it the numbers of the records tell what is missing.
            let what = "what was in it is not known without the ledger: what it removed or replaced is saved as it was before";
            let journal = recovered.damage.iter().map(|file| damage(&file.path, None, what.to_owned()));
            report.unsaved.extend(journal);
        }
        for gap in &recovered.replayed.gaps {
            report.lost += gap.last - gap.first + 1;
            let what = format!(
                "records {} to {} are missing: what they removed or replaced is saved as it was before",
                gap.first, gap.last
            );
            report.damage.push(damage(&places.journal(), None, what));
        }
        let former = former_segments(&recovered.free, places.spool);
        let salt = salt_of(places.spool);
        let filed = recovered.retained.iter().chain(&former).map(|segment| &**segment);
        let leftover = newest_puts(filed, salt).map_err(|(segment, source)| {
            anyhow::Error::new(source).context(format!("reading {}", segment.path.display()))
        })?;
        let should = ledger.as_ref().map(|ledger| match ledger.filing {
            true => Unfinished::by(ledger, recovered.replayed.newest.keys()).at_least(ledger.tally.records),
            false => ledger.tally.records,
        });
        let is_empty = ledger.as_ref().is_some_and(|ledger| !ledger.filing && ledger.tally.records == 0);
        // What was read is, by its digest, all that sled should hold. An empty spool need not have a sled.
        let expected = ledger.as_ref().filter(|ledger| !ledger.filing).map(|ledger| ledger.tally);
        let is_all = disagrees.is_none() && expected.is_some();
        let wrong = unreadable.filter(|_| !is_empty).or(disagrees);
        if let Some(what) = &wrong {
            report.damage.push(damage(&places.sled(), None, what.clone()));
        }
        let sled_wrong = wrong.filter(|_| !is_all);
        let retained = ledger.map(|ledger| ledger.retained);
        let unsure = recovered.retained.iter().filter(|_| retained.is_none());
        let kept = unsure.map(|segment| segment.generation).collect();
        let used = recovered.journal.into_iter().chain(recovered.retained);
        // The former ones first: of two with one generation the one in use counts.
        let segments = former.into_iter().chain(used).map(|segment| (segment.generation, segment)).collect();
        let newest = recovered.replayed.newest;
        Ok(Self {
            places,
            salt,
            newest,
            kept,
            segments,
            leftover,
            retained,
            known,
            should,
            expected,
            seen: Tally::default(),
            sled_wrong,
        })
    }

    /// Whether sled lost a newer version than the one that it has: it is of an earlier time itself.
    fn is_newer(&self, found: &Found, record: &Record) -> bool {
        found.header.seq > record.seq() && self.was_lost(found)
    }

    /// By its digest, all that sled should hold was found.
    fn is_all(&self) -> bool {
        self.expected == Some(self.seen)
    }

    /// Whether the journal has this version or a newer one.
    fn is_known(&self, id: &SpoolId, found: &Found) -> bool {
        self.newest.get(id).is_some_and(|known| known.seq >= found.header.seq)
    }

    /// Whether sled should know of this put, if it does not.
    fn was_lost(&self, found: &Found) -> bool {
        self.retained.is_none() || (self.sled_wrong.is_some() && self.missing(found.header.generation) > 0)
    }

    /// Messages that lived in a segment, by the ledger, and of which sled does not know.
    fn missing(&self, generation: u64) -> u64 {
        let lived = self.retained.as_ref().and_then(|all| all.get(&generation)).map_or(0, |kept| kept.live);
        lived.saturating_sub(self.known.get(&generation).copied().unwrap_or(0))
    }

    /// Saves what sled has the newest version of. Says how many records it was seen to hold.
    pub(super) fn save_filed(
        &mut self,
        sled: &mut dyn Records,
        target: &mut Target,
        report: &mut Salvage,
    ) -> Result<u64> {
        let mut known = BTreeMap::<u64, u64>::new();
        let wrong = sled.visit(&mut |key, value| {
            self.seen.add(&key, value);
            let id = key.id();
            let leftover = self.leftover.remove(&key);
            let record = match Record::decode(&key, value) {
                Ok(record) => record,
                // Damaged, and the journal has what is newest, as far as can be told.
                Err(error)
                    if leftover.map_or(self.newest.contains_key(&id), |found| self.is_known(&id, &found)) =>
                {
                    // Without a ledger the journal may be older than what is filed.
                    let seq = Record::claimed_seq(value);
                    if self.retained.is_none() && self.newest.get(&id).map(|known| known.seq) != seq {
                        let what = format!("its newest version may be another than the journal's ({error})");
                        report.unsaved.push(damage(&self.places.sled(), Some(id), what));
                    }
                    return Ok(());
                }
                Err(error) => {
                    self.newest.remove(&id);
                    // Where its number is that of a put, the damage is elsewhere in it.
                    let seq = Record::claimed_seq(value);
                    let seq = seq.filter(|seq| leftover.is_some_and(|found| found.header.seq == *seq));
                    return self.without_record(id, seq, &error.to_string(), leftover, target, report);
                }
            };
            if let Some(place) = pointed_to(&record) {
                *known.entry(place.generation).or_default() += 1;
            }
            if let Some(newer) =
                leftover.filter(|found| self.is_newer(found, &record) && !self.is_known(&id, found))
            {
                // Later.
                self.leftover.insert(key, newer);
                self.seen.subtract(&key, value);
                return Ok(());
            }
            if let Some(known) = self.newest.get(&id).copied() {
                if known.seq > record.seq() {
                    return Ok(());
                }
                self.newest.remove(&id);
                if known.seq == record.seq()
                    && let Some(place) = known.place
                    && let Ok(data) = self.read(&id, place)
                {
                    return add(target, report, id, data);
                }
            }
            match (&record, pointed_to(&record)) {
                (Record::Damaged { seq, reason }, _) => {
                    let seq = (*seq > 0).then_some(*seq);
                    self.without_record(id, seq, reason, leftover, target, report)
                }
                (Record::Whole { data, .. }, _) => add(target, report, id, data.to_vec()),
                (Record::Locator { .. }, Some(place)) => {
                    // The same version may stand at another place, too.
                    let copy = leftover.filter(|found| found.intact && found.header.seq == record.seq());
                    let data = self.read(&id, place);
                    let data = data
                        .or_else(|what| copy.and_then(|it| self.read(&id, place_of(&it)).ok()).ok_or(what));
                    match data {
                        Ok(data) => add(target, report, id, data),
                        Err(what) => {
                            report.unsaved.push(damage(&self.path_of(place), Some(id), what));
                            Ok(())
                        }
                    }
                }
                (Record::Locator { .. }, None) => Ok(()),
            }
        })?;
        // It may have been read further at the first time, when it was counted: what was saved of it is what counts now.
        self.known = known;
        if self.is_all() {
            self.sled_wrong = None;
        } else if self.sled_wrong.is_none() && (!wrong.is_empty() || self.expected.is_some()) {
            let what = not_all(&wrong);
            report.damage.push(damage(&self.places.sled(), None, what.clone()));
            self.sled_wrong = Some(what);
        }
        Ok(self.seen.records)
    }

    /// sled's record leads nowhere: a segment may have the put of that number. Where the number is lost, too, what it has is the best there is, and
    /// may be an earlier version.
    fn without_record(
        &self,
        id: SpoolId,
        seq: Option<u64>,
        what: &str,
        leftover: Option<Found>,
        target: &mut Target,
        report: &mut Salvage,
    ) -> Result<()> {
        let put = leftover.filter(|put| put.intact && seq.is_none_or(|seq| put.header.seq == seq));
        let data = put.and_then(|put| self.read(&id, place_of(&put)).ok());
        let path = self.places.sled();
        let Some(data) = data else {
            report.unsaved.push(damage(&path, Some(id), what.to_owned()));
            return Ok(());
        };
        let note = |what: String| damage(&path, Some(id), what);
        if seq.is_some() {
            report.damage.push(note(format!("its record is damaged ({what}): a segment has the message")));
        } else {
            let may = format!("its record is damaged ({what}): what a segment has may be an earlier version");
            report.doubtful.push(note(may));
            let newest = format!("its newest version may be another than the one that was saved ({what})");
            report.unsaved.push(note(newest));
        }
        add(target, report, id, data)
    }

    /// Saves what sled should know of and does not.
    pub(super) fn save_unfiled(&mut self, target: &mut Target, report: &mut Salvage) -> Result<u64> {
        let mut by_generation = BTreeMap::<u64, Puts>::new();
        for (key, found) in std::mem::take(&mut self.leftover) {
            let (id, place) = (key.id(), place_of(&found));
            if !self.was_lost(&found) {
                continue;
            }
            let record = locator(found.header.seq, place, found.header.payload_crc);
            self.seen.add(&key, &record.encode(&key));
            // What the journal has a newer version of sled should have known, too.
            let puts = by_generation.entry(place.generation).or_default();
            *(if place.len as usize > MAX_WHOLE { &mut puts.large } else { &mut puts.small }) += 1;
            if self.is_known(&id, &found) {
                continue;
            }
            self.newest.remove(&id);
            let path = self.path_of(place);
            match self.read(&id, place) {
                Ok(data) => {
                    report.doubtful.push(damage(&path, Some(id), UNKNOWN_TO_SLED.to_owned()));
                    add(target, report, id, data)?;
                }
                Err(what) => {
                    let what = format!("{what}; {UNKNOWN_TO_SLED}");
                    report.unsaved.push(damage(&path, Some(id), what));
                }
            }
        }
        Ok(self.count_restored(&by_generation))
    }

    /// A segment may hold puts of messages that were removed since, whose removals are gone. No more came back from it than had lived there: the rest
    /// must not be counted in place of what was lost elsewhere.
    fn count_restored(&self, by_generation: &BTreeMap<u64, Puts>) -> u64 {
        let lived = |generation: &u64| match &self.retained {
            Some(_) => self.missing(*generation),
            None => u64::MAX,
        };
        // A small one may have been whole in sled, and lived in no segment.
        by_generation.iter().map(|(generation, puts)| lived(generation).min(puts.large) + puts.small).sum()
    }

    /// Compares what sled `held`, and what was restored in its place, with what it should have held.
    pub(super) fn count_lost(&self, held: u64, restored: u64, report: &mut Salvage) {
        let wrong = match &self.sled_wrong {
            Some(_) if self.is_all() => return,
            Some(wrong) => wrong,
            // It did hold something once, or those would not be in segments that are filed.
            None if self.should.is_none() && held == 0 && restored > 0 => "it is empty",
            None => return,
        };
        let unknown = |what: String| damage(&self.places.sled(), None, what);
        match self.should {
            Some(should) => {
                report.lost += should.saturating_sub(held + restored);
                // What stands in for something else is not known: the number may be higher.
                let what = format!(
                    "{wrong}: some of what was saved may be of an earlier time or removed before, and as many more messages be missing"
                );
                report.unsaved.push(unknown(what));
            }
            None => {
                let what =
                    format!("{wrong}, and without the ledger it is not known how many messages that were");
                report.unsaved.push(unknown(what));
            }
        }
    }

    /// Saves what the journal has the newest version of.
    pub(super) fn save_journal(&self, target: &mut Target, report: &mut Salvage) -> Result<()> {
        let mut puts: Vec<(u64, SpoolId, Place)> =
            self.newest.iter().filter_map(|(id, newest)| Some((newest.seq, *id, newest.place?))).collect();
        puts.sort_unstable_by_key(|(seq, ..)| *seq);
        for (_, id, place) in puts {
            match self.read(&id, place) {
                Ok(data) => {
                    if self.kept.contains(&place.generation) {
                        let what = UNKNOWN_TO_SLED.to_owned();
                        report.doubtful.push(damage(&self.path_of(place), Some(id), what));
                    }
                    add(target, report, id, data)?;
                }
                Err(what) => report.unsaved.push(damage(&self.path_of(place), Some(id), what)),
            }
        }
        Ok(())
    }

    /// The payload at a place, or what is wrong with it. What the disk can't read is as bad as what is damaged: there will be no better time.
    fn read(&self, id: &SpoolId, place: Place) -> Result<Vec<u8>, String> {
        let Some(segment) = self.segments.get(&place.generation) else {
            return Err(format!("its segment (generation {}) is missing", place.generation));
        };
        segment
            .read_put(self.salt, id, place)
            .map(|(data, _)| data)
            .map_err(|error| error.to_string().replace(&format!("{} ", segment.path.display()), ""))
    }

    fn path_of(&self, place: Place) -> PathBuf {
        let segment = self.segments.get(&place.generation);
        segment.map_or_else(|| self.places.journal(), |segment| segment.path.clone())
    }
}

fn add(target: &mut Target, report: &mut Salvage, id: SpoolId, data: Vec<u8>) -> Result<()> {
    report.saved += 1;
    report.bytes += data.len() as u64;
    target.put(id, data)
}
