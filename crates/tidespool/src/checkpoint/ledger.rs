//! What sled must contain, written down outside sled.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ballast::Ballast;
use super::opening::Stock;
use super::retained::Retained;
use crate::durable::{Class, Key, Tally};
use crate::storage::{OpenMode, Storage, read_exact_at, write_all_at};

/// The highest key of each class that sled was ever told of. Ids above it are not in sled: most removes need not be told to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HighKeys([Option<Key>; 3]);

impl HighKeys {
    /// Raises the bound of the key's class to it.
    pub(crate) fn raise(&mut self, key: Key) {
        let bound = &mut self.0[class_number(key.class())];
        *bound = (*bound).max(Some(key));
    }

    /// Raises each bound to the other's.
    pub(crate) fn merge(&mut self, other: &Self) {
        other.keys().for_each(|key| self.raise(*key));
    }

    /// True if the key may have been filed. Keys without a time come in no order: one of them filed speaks for all.
    pub(crate) fn may_have(&self, key: &Key) -> bool {
        match (key.class(), self.0[class_number(key.class())]) {
            (_, None) => false,
            (Class::Timeless, Some(_)) => true,
            (_, Some(high)) => *key <= high,
        }
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.iter().flatten()
    }
}

const fn class_number(class: Class) -> usize {
    match class {
        Class::Timeless => 0,
        Class::Ticks => 1,
        Class::Millis => 2,
    }
}

/// The state of everything filed, as of the last checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Counts checkpoints.
    pub(crate) number: u64,
    /// Segments up to this generation are filed.
    pub(crate) filed_generation: u64,
    /// Records up to this number are filed.
    pub(crate) filed_seq: u64,
    /// Records up to this number were durable: at an orderly end that is all of them.
    pub(crate) durable_seq: u64,
    /// A checkpoint began and did not end: sled may hold some of what it was to file.
    pub(crate) filing: bool,
    /// What sled holds.
    pub(crate) tally: Tally,
    /// The highest keys that sled was told of.
    pub(crate) high: HighKeys,
    /// Filed segments that are kept, with the live payload bytes in each.
    pub(crate) retained: BTreeMap<u64, Retained>,
    /// Messages that were reported lost since the spool was made.
    pub(crate) lost: u64,
    /// No segment ever had this generation or a higher one. A generation that was used again could bring the records of its earlier use back.
    pub(crate) next_generation: u64,
}

impl Ledger {
    /// Takes over what was counted in sled. Where a checkpoint did not end, that may name segments of the journal which are not filed yet: they are
    /// counted here, and replayed all the same.
    pub(crate) fn take_stock(&mut self, stock: &Stock) {
        self.retained = stock.retained.clone();
        self.tally = stock.tally;
        self.high.merge(&stock.high);
        self.filing = false;
    }
}

/// [`Ledger`] as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    number: u64,
    filed_generation: u64,
    filed_seq: u64,
    durable_seq: u64,
    filing: bool,
    tally: Tally,
    high: Vec<Vec<u8>>,
    retained: BTreeMap<u64, Retained>,
    lost: u64,
    next_generation: u64,
}

/// Why there is no ledger.
#[derive(Debug, Error)]
pub(crate) enum LedgerError {
    /// Reading or writing failed.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// The file is not a ledger, or not whole.
    #[error("{path} is damaged: {what}", path = path.display())]
    Damaged { path: PathBuf, what: String },
}

/// The ledger's file.
#[derive(Debug, Clone)]
pub(crate) struct LedgerFile {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    path: PathBuf,
}

impl LedgerFile {
    pub(crate) fn new(storage: Arc<dyn Storage>, dir: &Path) -> Self {
        Self { storage, dir: dir.to_owned(), path: dir.join("ledger") }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it. `None`: there is none.
    pub(crate) fn read(&self) -> Result<Option<Ledger>, LedgerError> {
        let io = |source| LedgerError::Io { doing: "reading", path: self.path.clone(), source };
        let file = match self.storage.open(&self.path, OpenMode::Read) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(io(err)),
        };
        let len = file.len().map_err(io)?;
        if len > MAX_LEN {
            return Err(self.damaged(format!("{len} bytes are too many for a ledger")));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        read_exact_at(&*file, &mut bytes, 0).map_err(io)?;
        parse(&bytes).map(Some).map_err(|what| self.damaged(what))
    }

    /// Replaces it, durably.
    pub(crate) fn write(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let io = |source| LedgerError::Io { doing: "writing", path: self.path.clone(), source };
        let text = render(ledger).map_err(|err| io(io::Error::other(err)))?;
        let temporary = self.dir.join("ledger.new");
        let file = self.storage.open(&temporary, OpenMode::Create).map_err(io)?;
        write_all_at(&*file, &mut [IoSlice::new(text.as_bytes())], 0).map_err(io)?;
        file.sync_data().map_err(io)?;
        self.storage.rename(&temporary, &self.path).map_err(io)?;
        self.storage.sync_dir(&self.dir).map_err(io)
    }

    /// The same; on a full disk the ballast makes room. A spool that can't be opened can't be emptied.
    pub(crate) fn write_somehow(&self, ledger: &Ledger, ballast: &Ballast) -> Result<(), LedgerError> {
        match self.write(ledger) {
            Err(LedgerError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                ballast.release();
                self.write(ledger)
            }
            written => written,
        }
    }

    fn damaged(&self, what: String) -> LedgerError {
        LedgerError::Damaged { path: self.path.clone(), what }
    }
}

/// A ledger is small: a line for each retained segment at most.
const MAX_LEN: u64 = 64 << 20;

fn render(ledger: &Ledger) -> Result<String, serde_json::Error> {
    let line = Line {
        number: ledger.number,
        filed_generation: ledger.filed_generation,
        filed_seq: ledger.filed_seq,
        durable_seq: ledger.durable_seq,
        filing: ledger.filing,
        tally: ledger.tally,
        high: ledger.high.keys().map(|key| key.as_bytes().to_vec()).collect(),
        retained: ledger.retained.clone(),
        lost: ledger.lost,
        next_generation: ledger.next_generation,
    };
    let json = serde_json::to_string(&line)?;
    Ok(format!("{json}\n{:08x}\n", crc32c::crc32c(json.as_bytes())))
}

fn parse(bytes: &[u8]) -> Result<Ledger, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let (json, crc) =
        text.strip_suffix('\n').and_then(|text| text.rsplit_once('\n')).ok_or("it is cut off")?;
    if u32::from_str_radix(crc, 16).ok() != Some(crc32c::crc32c(json.as_bytes())) {
        return Err("its checksum is of other bytes".to_owned());
    }
    let line: Line = serde_json::from_str(json).map_err(|err| err.to_string())?;
    let mut high = HighKeys::default();
    for key in &line.high {
        high.raise(Key::from_slice(key).map_err(|err| err.to_string())?);
    }
    Ok(Ledger {
        number: line.number,
        filed_generation: line.filed_generation,
        filed_seq: line.filed_seq,
        durable_seq: line.durable_seq,
        filing: line.filing,
        tally: line.tally,
        high,
        retained: line.retained,
        lost: line.lost,
        next_generation: line.next_generation,
    })
}

#[cfg(test)]
mod tests {
    use tidespool_core::SpoolId;

    use super::*;
    use crate::storage::OsStorage;

    fn sample() -> Ledger {
        let mut high = HighKeys::default();
        high.raise(Key::of(&SpoolId::new()));
        high.raise(Key::of(&SpoolId::from_bytes([9; 16])));
        let retained = BTreeMap::from([(3, Retained { size: 1 << 20, live_bytes: 77, live: 2 })]);
        let tally = Tally { records: 5, digest: 6 };
        Ledger {
            number: 1,
            filed_generation: 4,
            filed_seq: 8,
            durable_seq: 9,
            filing: true,
            tally,
            high,
            retained,
            lost: 7,
            next_generation: 10,
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = LedgerFile::new(Arc::new(OsStorage), dir.path());
        assert!(file.read().unwrap().is_none());
        file.write(&Ledger::default()).unwrap();
        let ledger = sample();
        file.write(&ledger).unwrap();
        assert_eq!(file.read().unwrap(), Some(ledger));
    }

    #[test]
    fn a_changed_byte_or_a_missing_end_is_damage() {
        let text = render(&sample()).unwrap();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(parse(&bytes).is_err(), "byte {at}");
            assert!(parse(&text.as_bytes()[..at]).is_err(), "cut at {at}");
        }
        assert!(parse(&[0; 100]).is_err());
    }

    #[test]
    fn an_id_above_everything_filed_is_known_not_to_be_in_sled() {
        let mut high = HighKeys::default();
        let (older, newer) = (Key::of(&SpoolId::new()), Key::of(&SpoolId::new()));
        assert!(!high.may_have(&older));
        high.raise(older);
        assert!(high.may_have(&older) && !high.may_have(&newer));
        let timeless = [Key::of(&SpoolId::from_bytes([9; 16])), Key::of(&SpoolId::from_bytes([11; 16]))];
        assert!(!high.may_have(&timeless[1]));
        high.raise(timeless[0]);
        assert!(high.may_have(&timeless[1]), "no order tells where such ids are");
    }
}
