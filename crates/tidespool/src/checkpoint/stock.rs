//! What sled holds, counted: at open, after an error, and beside the traffic.

use std::collections::BTreeMap;

use tidespool_core::SpoolId;

use super::ledger::{HighKeys, Ledger};
use super::opening::OpeningError;
use super::retained::{Retained, account};
use crate::durable::{Durable, DurableError, DurableStore, Key, Record, Tally, Visitor};
use crate::journal::Segments;

/// What sled holds, counted.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    pub(crate) tally: Tally,
    pub(crate) retained: BTreeMap<u64, Retained>,
    pub(crate) high: HighKeys,
    pub(crate) max_seq: u64,
    pub(crate) damaged: Vec<(SpoolId, String)>,
    /// Where the ledger says that a checkpoint did not end: what was filed before it.
    before: Option<Reached>,
    /// Records that were certainly not there before that checkpoint.
    fresh: u64,
}

/// How far sled had come before a checkpoint that did not end.
#[derive(Debug, Clone, Copy)]
struct Reached {
    seq: u64,
    high: HighKeys,
}

/// What a checkpoint that did not end may have done to what sled held before. What the journal says of an id now may have come after it: a put that it
/// made may be removed since, and a removal be followed by a put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unfinished {
    /// Records that it may have brought or removed.
    changes: u64,
    /// Of these, the ones that may have been there before.
    of_filed: u64,
}

impl Unfinished {
    /// So many changes, of whatever may be filed.
    pub(super) fn any(changes: u64) -> Self {
        Self { changes, of_filed: changes }
    }

    /// By the ids in the journal that are not filed.
    pub(crate) fn by<'a>(ledger: &Ledger, journal: impl Iterator<Item = &'a SpoolId>) -> Self {
        let mut changes = Self::any(0);
        for id in journal {
            changes.changes += 1;
            changes.of_filed += u64::from(ledger.high.may_have(&Key::of(id)));
        }
        changes
    }

    /// Records that sled holds at the least.
    pub(crate) fn at_least(&self, should: u64) -> u64 {
        should.saturating_sub(self.of_filed)
    }
}

impl Stock {
    /// What the ledger says, where it is known to be so.
    pub(super) fn by(ledger: &Ledger) -> Self {
        Self {
            tally: ledger.tally,
            retained: ledger.retained.clone(),
            high: ledger.high,
            max_seq: ledger.filed_seq.max(ledger.reached_seq),
            ..Self::default()
        }
    }

    /// One to count with. Of a checkpoint that did not end it tells what is new.
    pub(crate) fn against(ledger: Option<&Ledger>) -> Self {
        let unfinished = ledger.filter(|ledger| ledger.filing);
        let before = unfinished
            .map(|ledger| Reached { seq: ledger.filed_seq.max(ledger.reached_seq), high: ledger.high });
        Self { before, ..Self::default() }
    }

    /// Of the records that were there before a checkpoint that did not end, so many are there, or a few more: where an id came out of order, what is new
    /// and what was replaced can't be told apart.
    pub(crate) fn kept(&self) -> u64 {
        self.tally.records - self.fresh
    }

    /// Records that are missing, whatever an unfinished checkpoint did; as far as that can be known.
    pub(crate) fn missing(&self, should: u64, unfinished: Unfinished) -> u64 {
        unfinished.at_least(should).saturating_sub(self.kept())
    }

    /// Says what is wrong with what sled holds after a checkpoint that did not end, if anything is.
    pub(crate) fn contradicts(&self, ledger: &Ledger, unfinished: Unfinished) -> Option<String> {
        let (has, should, Unfinished { changes, of_filed }) =
            (self.tally.records, ledger.tally.records, unfinished);
        (self.missing(should, unfinished) > 0 || has > should + changes).then(|| {
            let fresh = self.fresh;
            format!(
                "sled holds {has} records, {fresh} of them new, and held {should} before a checkpoint that did not end, of {changes} \
                 changes at most, {of_filed} of them to what was filed"
            )
        })
    }

    /// Counts one record.
    pub(crate) fn count(&mut self, key: Key, value: &[u8]) {
        self.high.raise(key);
        self.tally.add(&key, value);
        match Record::outline(&key, value) {
            Ok(record) => {
                self.max_seq = self.max_seq.max(record.seq());
                let is_fresh = |before: &Reached| record.seq() > before.seq && !before.high.may_have(&key);
                self.fresh += u64::from(self.before.as_ref().is_some_and(is_fresh));
                account(&mut self.retained, |_| 0, None, Some(&record));
                if let Record::Damaged { reason, .. } = record {
                    self.damaged.push((key.id(), reason));
                }
            }
            Err(error) => self.damaged.push((key.id(), error.to_string())),
        }
    }

    /// Both together, of parts that have no record in common.
    fn plus(mut self, other: Self) -> Self {
        self.tally = self.tally.plus(other.tally);
        for (generation, more) in other.retained {
            let entry = self.retained.entry(generation).or_default();
            entry.live += more.live;
            entry.live_bytes += more.live_bytes;
        }
        self.high.merge(&other.high);
        self.max_seq = self.max_seq.max(other.max_seq);
        self.fresh += other.fresh;
        self.before = self.before.or(other.before);
        self.damaged.extend(other.damaged);
        self
    }

    fn set_sizes(&mut self, segments: &Segments) {
        for (generation, retained) in &mut self.retained {
            retained.size = segments.get(*generation).map_or(0, |segment| segment.size);
        }
    }
}

/// Threads that count sled at open: nothing else can be done before.
const COUNTING: usize = 2;

/// Counts everything that sled holds, beside what the ledger says.
pub(crate) fn take_stock(
    store: &dyn DurableStore,
    segments: &Segments,
    ledger: &Ledger,
) -> Result<Stock, DurableError> {
    let mut stock = count(store, Some(ledger))?;
    stock.set_sizes(segments);
    Ok(stock)
}

fn count(store: &dyn DurableStore, ledger: Option<&Ledger>) -> Result<Stock, DurableError> {
    let mut stocks: [Stock; COUNTING] = std::array::from_fn(|_| Stock::against(ledger));
    let mut visitors = stocks.each_mut().map(|stock| -> Visitor<'_> {
        Box::new(|key, value| {
            stock.count(key, value);
            true
        })
    });
    store.survey(&mut visitors)?;
    drop(visitors);
    let stock = stocks.into_iter().fold(Stock::default(), Stock::plus);
    store.note_records(stock.tally.records);
    Ok(stock)
}

/// The same on the caller's thread alone, for as long as `go_on` says so.
pub(super) fn take_stock_beside(
    store: &dyn DurableStore,
    segments: &Segments,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Stock>, DurableError> {
    let mut stock = Stock::default();
    let mut stopped = false;
    let visitor: Visitor<'_> = Box::new(|key, value| {
        stock.count(key, value);
        stopped = stock.tally.records % BETWEEN_LOOKS == 0 && !go_on();
        !stopped
    });
    store.survey(&mut [visitor])?;
    stock.set_sizes(segments);
    Ok((!stopped).then_some(stock))
}

/// Records that are counted before it is asked again whether to go on.
const BETWEEN_LOOKS: u64 = 256;

/// Counts what sled holds, beside what the ledger says.
pub(crate) fn count_filed(durable: &Durable, ledger: Option<&Ledger>) -> Result<Stock, OpeningError> {
    Ok(durable.with(|store| count(store, ledger))?)
}
