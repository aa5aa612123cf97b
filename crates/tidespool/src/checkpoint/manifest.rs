//! What is filed, written down outside sled.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ballast::Ballast;
use super::value_log::liveness::LogPosition;
use super::value_log::retained::Retained;
use crate::durable::{ClosedIndex, Key, KeyClass, Tally};
use crate::storage::{
    Loss, OpenMode, Storage, StorageFile, at, is_no_room, loss_of, read_exact_at, write_all_at,
};

/// The highest key of each class that was ever filed. Ids above it are not filed: most removes need
/// no record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HighKeys([Option<Key>; 3]);

impl HighKeys {
    /// Raises the bound of the key's class to it.
    pub(crate) fn raise(&mut self, key: Key) {
        let bound = &mut self.0[class_number(key.class())];
        *bound = (*bound).max(Some(key));
    }

    /// Any id may be filed.
    pub(crate) fn highest() -> Self {
        Self(Key::last_of_each_class().map(Some))
    }

    /// True if the key may have been filed. Keys without a time come in no order: one of them filed speaks for all.
    pub(crate) fn may_have(&self, key: &Key) -> bool {
        match (key.class(), self.0[class_number(key.class())]) {
            (_, None) => false,
            (KeyClass::Timeless, Some(_)) => true,
            (_, Some(high)) => *key <= high,
        }
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.iter().flatten()
    }
}

const fn class_number(class: KeyClass) -> usize {
    match class {
        KeyClass::Timeless => 0,
        KeyClass::Ticks => 1,
        KeyClass::Millis => 2,
    }
}

/// The state of everything filed, as of the last checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Counts checkpoints.
    pub(crate) number: u64,
    /// Segments up to this generation are filed.
    pub(crate) filed_generation: u64,
    /// Records up to this number are filed.
    pub(crate) filed_seq: u64,
    /// Records up to this number were durable: at an orderly end that is all of them.
    pub(crate) durable_seq: u64,
    /// What the index holds.
    pub(crate) tally: Tally,
    /// The highest keys that were ever filed.
    pub(crate) high: HighKeys,
    /// Filed segments that are kept, with the live payload bytes in each.
    pub(crate) retained: BTreeMap<u64, Retained>,
    /// Messages that were reported lost since the spool was made.
    pub(crate) lost: u64,
    /// No segment ever had this generation or a higher one. A generation that was used again could bring the records of its earlier use back.
    pub(crate) next_generation: u64,
    /// Where the log of what lives in the retained segments ends.
    pub(crate) liveness: LogPosition,
    /// The index as an orderly end left it. `None` in the manifest of a spool that is open: the index
    /// changes its files all the time.
    pub(crate) index: Option<ClosedIndex>,
}

/// [`Manifest`] as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct ManifestLine {
    /// Of the two in a file the one with the higher number counts.
    turn: u64,
    /// Bytes of a slot: the file is twice as long.
    slot_len: u64,
    number: u64,
    filed_generation: u64,
    filed_seq: u64,
    durable_seq: u64,
    tally: Tally,
    high: Vec<Vec<u8>>,
    retained: BTreeMap<u64, Retained>,
    lost: u64,
    next_generation: u64,
    liveness: LogPosition,
    index: Option<ClosedIndex>,
}

/// Why there is no manifest.
#[derive(Debug, Error)]
pub(crate) enum ManifestError {
    /// Reading or writing failed.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// The file is not a manifest, or not whole.
    #[error("{path} is damaged: {what}", path = path.display())]
    Damaged { path: PathBuf, what: String },
}

/// The manifest's file: two slots, written in turn. A crash while one is written leaves the other.
///
/// They are written in place, into blocks that the file has already: a new file for each checkpoint would make the file system commit its own
/// journal, for which every commit that is under way waits.
#[derive(Debug)]
pub(crate) struct ManifestFile {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    path: PathBuf,
    /// `None` before the first write, and after an error: a file that failed is replaced, not trusted again.
    slots: Mutex<Option<Slots>>,
    /// A write found that the file was lost, and this was not reported yet.
    found: Mutex<Option<Loss>>,
}

/// A file that is written in place.
#[derive(Debug)]
struct Slots {
    file: Arc<dyn StorageFile>,
    slot_len: u64,
    /// Of the last write. Even numbers are in the first slot.
    turn: u64,
}

/// The smallest slot: room for some hundred retained segments.
const MIN_SLOT_LEN: u64 = 32 << 10;

impl ManifestFile {
    pub(crate) fn new(storage: Arc<dyn Storage>, dir: &Path) -> Self {
        Self {
            storage,
            dir: dir.to_owned(),
            path: dir.join("manifest"),
            slots: Mutex::default(),
            found: Mutex::default(),
        }
    }

    /// The spool's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it. `None`: there is none.
    pub(crate) fn read(&self) -> Result<Option<Manifest>, ManifestError> {
        let io = |source| ManifestError::Io { doing: "reading", path: self.path.clone(), source };
        let file = match self.storage.open(&self.path, OpenMode::Read) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(io(err)),
        };
        let len = file.len().map_err(io)?;
        if len > MAX_LEN {
            return Err(self.damaged(format!("{len} bytes are too many for a manifest")));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        read_exact_at(&*file, &mut bytes, 0).map_err(io)?;
        if !is_whole(&bytes) {
            // A slot that was only misread would have the older one count.
            file.forget_cached();
            read_exact_at(&*file, &mut bytes, 0).map_err(io)?;
            if is_whole(&bytes) {
                tracing::warn!(path = %self.path.display(), "read again, it is whole: the disk, or memory, is at fault");
            }
        }
        newest(&bytes).map(Some).map_err(|what| self.damaged(what))
    }

    /// Replaces it, durably.
    pub(crate) fn write(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let io = |source| ManifestError::Io { doing: "writing", path: self.path.clone(), source };
        let mut slots = self.slots.lock();
        let loss = slots.as_ref().and_then(|slots| self.loss_of(slots));
        if loss.is_some() {
            *self.found.lock() = loss;
        }
        // Put back when all went well.
        let written = match slots.take().filter(|_| loss.is_none()) {
            Some(current) => self.write_in_turn(current, manifest),
            None => self.write_anew(manifest),
        };
        *slots = Some(written.map_err(io)?);
        Ok(())
    }

    /// What happened to the file that was written last, if it is lost now or was since the last
    /// call. The next write makes another one.
    pub(crate) fn loss(&self) -> Option<Loss> {
        let slots = self.slots.lock();
        let found = self.found.lock().take();
        found.or_else(|| slots.as_ref().and_then(|slots| self.loss_of(slots)))
    }

    /// Makes another file in place of one that is lost.
    pub(crate) fn restore(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        *self.slots.lock() = None;
        self.write(manifest)
    }

    fn loss_of(&self, slots: &Slots) -> Option<Loss> {
        loss_of(&*self.storage, &self.path, &*slots.file, 2 * slots.slot_len)
    }

    fn write_in_turn(&self, slots: Slots, manifest: &Manifest) -> io::Result<Slots> {
        let turn = slots.turn + 1;
        let text = render(manifest, turn, slots.slot_len)?;
        if text.len() as u64 > slots.slot_len {
            return self.write_anew(manifest);
        }
        let offset = turn % 2 * slots.slot_len;
        write_all_at(&*slots.file, &mut [IoSlice::new(text.as_bytes())], offset)?;
        slots.file.sync_data()?;
        Ok(Slots { turn, ..slots })
    }

    /// A new file in place of the old one, with room for a manifest that grows.
    fn write_anew(&self, manifest: &Manifest) -> io::Result<Slots> {
        let need = render(manifest, 0, u64::MAX)?.len() as u64;
        // No longer than what is read back.
        let slot_len = (2 * need).next_power_of_two().clamp(MIN_SLOT_LEN, MAX_LEN / 2);
        if need > slot_len {
            return Err(io::Error::other(format!(
                "a manifest of {need} bytes is too long: too many segments are retained"
            )));
        }
        let mut bytes = render(manifest, 0, slot_len)?.into_bytes();
        bytes.resize(usize::try_from(2 * slot_len).unwrap_or(usize::MAX), 0);
        let temporary = self.dir.join("manifest.new");
        let file = self.write_temporary(&temporary, &bytes).map_err(|error| at(&temporary, error))?;
        self.storage.rename(&temporary, &self.path)?;
        self.storage.sync_dir(&self.dir)?;
        Ok(Slots { file, slot_len, turn: 0 })
    }

    fn write_temporary(&self, path: &Path, bytes: &[u8]) -> io::Result<Arc<dyn StorageFile>> {
        let file = self.storage.open(path, OpenMode::Create)?;
        write_all_at(&*file, &mut [IoSlice::new(bytes)], 0)?;
        file.sync_data()?;
        Ok(file)
    }

    /// The same; on a full disk the ballast makes room. A spool that can't be opened can't be emptied.
    pub(crate) fn write_somehow(&self, manifest: &Manifest, ballast: &Ballast) -> Result<(), ManifestError> {
        match self.write(manifest) {
            Err(ManifestError::Io { source, .. }) if is_no_room(&source) => {
                ballast.release();
                self.write(manifest)
            }
            written => written,
        }
    }

    fn damaged(&self, what: String) -> ManifestError {
        ManifestError::Damaged { path: self.path.clone(), what }
    }
}

/// A manifest is small: a line for each retained segment at most.
const MAX_LEN: u64 = 64 << 20;

fn render(manifest: &Manifest, turn: u64, slot_len: u64) -> io::Result<String> {
    let line = ManifestLine {
        turn,
        slot_len,
        number: manifest.number,
        filed_generation: manifest.filed_generation,
        filed_seq: manifest.filed_seq,
        durable_seq: manifest.durable_seq,
        tally: manifest.tally,
        high: manifest.high.keys().map(|key| key.as_bytes().to_vec()).collect(),
        retained: manifest.retained.clone(),
        lost: manifest.lost,
        next_generation: manifest.next_generation,
        liveness: manifest.liveness,
        index: manifest.index,
    };
    let json = serde_json::to_string(&line)?;
    Ok(format!("{json}\n{:08x}\n", crc32c::crc32c(json.as_bytes())))
}

/// Both slots hold a manifest, or the first one does and the second was never written.
fn is_whole(bytes: &[u8]) -> bool {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    parse(first).is_ok() && (parse(second).is_ok() || second.iter().all(|byte| *byte == 0))
}

/// The newer of the two manifests in a file, or of what is left of them.
fn newest(bytes: &[u8]) -> Result<Manifest, String> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let (line, manifest) = match (parse(first), parse(second)) {
        (Ok(first), Ok(second)) => std::cmp::max_by_key(first, second, |(line, _)| line.turn),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => one,
        // The second slot of a new file is empty: what is wrong with the first one says more.
        (Err(what), Err(_)) => return Err(what),
    };
    match line.slot_len.checked_mul(2) == Some(bytes.len() as u64) {
        true => Ok(manifest),
        false => Err(format!("{} bytes are not its length", bytes.len())),
    }
}

/// The manifest at the start of a slot. What follows it is of no account.
fn parse(slot: &[u8]) -> Result<(ManifestLine, Manifest), String> {
    let mut lines = slot.splitn(3, |byte| *byte == b'\n');
    let (Some(json), Some(crc), Some(_)) = (lines.next(), lines.next(), lines.next()) else {
        return Err("it is cut off".to_owned());
    };
    let expected = format!("{:08x}", crc32c::crc32c(json));
    if crc != expected.as_bytes() {
        return Err("its checksum is of other bytes".to_owned());
    }
    let line: ManifestLine = serde_json::from_slice(json).map_err(|err| err.to_string())?;
    let mut high = HighKeys::default();
    for key in &line.high {
        high.raise(Key::from_slice(key).map_err(|err| err.to_string())?);
    }
    let manifest = Manifest {
        number: line.number,
        filed_generation: line.filed_generation,
        filed_seq: line.filed_seq,
        durable_seq: line.durable_seq,
        tally: line.tally,
        high,
        retained: line.retained.clone(),
        lost: line.lost,
        next_generation: line.next_generation,
        liveness: line.liveness,
        index: line.index,
    };
    Ok((line, manifest))
}

#[cfg(test)]
mod tests {
    use tidespool_core::SpoolId;

    use super::*;
    use crate::storage::OsStorage;

    fn sample() -> Manifest {
        let mut high = HighKeys::default();
        high.raise(Key::of(&SpoolId::new()));
        high.raise(Key::of(&SpoolId::from_bytes([9; 16])));
        let retained = BTreeMap::from([(3, Retained { size: 1 << 20, live_bytes: 77, live: 2 })]);
        let tally = Tally { records: 5, digest: 6 };
        Manifest {
            number: 1,
            filed_generation: 4,
            filed_seq: 8,
            durable_seq: 9,
            tally,
            high,
            retained,
            lost: 7,
            next_generation: 10,
            liveness: LogPosition { number: 3, len: 12 },
            index: None,
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = ManifestFile::new(Arc::new(OsStorage), dir.path());
        assert!(file.read().unwrap().is_none());
        file.write(&Manifest::default()).unwrap();
        let manifest = sample();
        file.write(&manifest).unwrap();
        assert_eq!(file.read().unwrap(), Some(manifest));
    }

    #[test]
    fn the_newest_of_many_is_read_back_and_a_crash_in_the_next_one_leaves_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = ManifestFile::new(Arc::new(OsStorage), dir.path());
        let mut manifest = sample();
        for number in 0..5 {
            manifest.number = number;
            file.write(&manifest).unwrap();
            assert_eq!(file.read().unwrap().as_ref(), Some(&manifest));
        }
        let whole = std::fs::read(file.path()).unwrap();
        // The fifth is in the first slot; the sixth gets as far as any number of its bytes.
        let next = render(&Manifest { number: 5, ..manifest.clone() }, 5, MIN_SLOT_LEN).unwrap();
        let slot = usize::try_from(MIN_SLOT_LEN).unwrap();
        for cut in 0..next.len() - 1 {
            let mut torn = whole.clone();
            torn[slot..slot + cut].copy_from_slice(&next.as_bytes()[..cut]);
            assert_eq!(newest(&torn).as_ref(), Ok(&manifest), "cut at {cut}");
        }
    }

    #[test]
    fn it_grows_with_what_is_retained() {
        let dir = tempfile::tempdir().unwrap();
        let file = ManifestFile::new(Arc::new(OsStorage), dir.path());
        let mut manifest = sample();
        for generation in 0..5_000 {
            manifest.retained.insert(generation, Retained { size: 1 << 20, live_bytes: 77, live: 2 });
            if generation % 500 == 0 {
                file.write(&manifest).unwrap();
            }
        }
        file.write(&manifest).unwrap();
        assert_eq!(file.read().unwrap(), Some(manifest));
    }

    #[test]
    fn a_changed_byte_or_a_missing_end_is_damage() {
        let manifest = sample();
        let text = render(&manifest, 0, MIN_SLOT_LEN).unwrap().into_bytes();
        let mut whole = text.clone();
        whole.resize(2 * usize::try_from(MIN_SLOT_LEN).unwrap(), 0);
        assert_eq!(newest(&whole), Ok(manifest));
        for at in 0..text.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(newest(&bytes).is_err(), "byte {at}");
        }
        for len in 0..whole.len() {
            assert!(newest(&whole[..len]).is_err(), "cut at {len}");
        }
        assert!(newest(&[0; 100]).is_err());
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
