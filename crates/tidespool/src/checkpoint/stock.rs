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
}

impl Stock {
    /// What the ledger says, where it is known to be so.
    pub(super) fn by(ledger: &Ledger) -> Self {
        Self {
            tally: ledger.tally,
            retained: ledger.retained.clone(),
            high: ledger.high,
            max_seq: ledger.filed_seq.max(ledger.reached_seq),
            damaged: Vec::new(),
        }
    }

    /// Counts one record.
    pub(crate) fn count(&mut self, key: Key, value: &[u8]) {
        self.high.raise(key);
        self.tally.add(&key, value);
        match Record::outline(&key, value) {
            Ok(record) => {
                self.max_seq = self.max_seq.max(record.seq());
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

/// Counts everything that sled holds.
pub(crate) fn take_stock(store: &dyn DurableStore, segments: &Segments) -> Result<Stock, DurableError> {
    let mut stock = count(store)?;
    stock.set_sizes(segments);
    Ok(stock)
}

fn count(store: &dyn DurableStore) -> Result<Stock, DurableError> {
    let mut stocks = [const { None }; COUNTING].map(|_: Option<()>| Stock::default());
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

/// Counts what sled holds.
pub(crate) fn count_filed(durable: &Durable) -> Result<Stock, OpeningError> {
    Ok(durable.with(count)?)
}
