//! The manifest: what is checkpointed, stored outside of the index.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::ballast::Ballast;
use super::value_log::liveness::LogPosition;
use super::value_log::retained::Retained;
use crate::index::{ClosedIndex, Key, KeyClass, Tally};
use crate::storage::{
    Loss, OpenMode, Storage, StorageFile, at, is_no_room, loss_of, read_exact_at, write_all_at,
};

/// The highest key of each class that was ever checkpointed, whatever its spool. Ids above it are
/// not in the index, so most removes need no record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HighKeys([Option<Key>; 3]);

impl HighKeys {
    /// Raises the bound of the key's class to the key.
    pub(crate) fn raise(&mut self, key: Key) {
        let key = key.without_spool();
        let bound = &mut self.0[class_number(key.class())];
        *bound = (*bound).max(Some(key));
    }

    /// Returns the bounds under which any id may be checkpointed.
    pub(crate) fn highest() -> Self {
        Self(Key::last_of_each_class().map(Some))
    }

    /// Returns true if the key may have been checkpointed. Keys without a time have no order: after
    /// the first of them, this is true for all.
    pub(crate) fn may_have(&self, key: &Key) -> bool {
        match (key.class(), self.0[class_number(key.class())]) {
            (_, None) => false,
            (KeyClass::Timeless, Some(_)) => true,
            (_, Some(high)) => key.without_spool() <= high,
        }
    }
}

/// As a list of the bytes of each key.
impl Serialize for HighKeys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().flatten().map(Key::as_bytes))
    }
}

impl<'de> Deserialize<'de> for HighKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut high = Self::default();
        for key in Vec::<Vec<u8>>::deserialize(deserializer)? {
            high.raise(Key::from_slice(&key).map_err(D::Error::custom)?);
        }
        Ok(high)
    }
}

const fn class_number(class: KeyClass) -> usize {
    match class {
        KeyClass::Timeless => 0,
        KeyClass::Ticks => 1,
        KeyClass::Millis => 2,
    }
}

/// The state of all checkpointed messages, as of the last checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Counts checkpoints.
    pub(crate) number: u64,
    /// Segments up to this generation are checkpointed.
    pub(crate) checkpointed_generation: u64,
    /// Records up to this sequence number are checkpointed.
    pub(crate) checkpointed_seq: u64,
    /// Records up to this sequence number were durable. After an orderly shutdown, these are all.
    pub(crate) durable_seq: u64,
    /// The number and the digest of the records in the index.
    pub(crate) tally: Tally,
    /// The highest keys that were ever checkpointed.
    pub(crate) high: HighKeys,
    /// The retained segments, with the live bytes and messages in each.
    pub(crate) retained: BTreeMap<u64, Retained>,
    /// Messages reported lost since the spool was created.
    pub(crate) lost: u64,
    /// No segment ever had this generation or a higher one. Reusing a generation could bring old
    /// records back.
    pub(crate) next_generation: u64,
    /// The end of the liveness log of the retained segments.
    pub(crate) liveness: LogPosition,
    /// The index as an orderly shutdown left it. `None` while the spool is open, because the index
    /// then changes its files all the time.
    pub(crate) index: Option<ClosedIndex>,
}

/// The place of a manifest in its file.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct SlotHead {
    /// The slot with the higher number is the valid one.
    turn: u64,
    /// Bytes of a slot. The file has two slots.
    slot_len: u64,
}

/// The serialized form of a manifest. It is read field by field, because serde can't read a map
/// with numbers as keys from a flattened struct.
#[derive(Debug, Serialize)]
struct ManifestLine<'a> {
    #[serde(flatten)]
    head: SlotHead,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

/// Why the manifest can't be read or written.
#[derive(Debug, Error)]
pub(crate) enum ManifestError {
    /// Reading or writing failed.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// The file is not a complete manifest.
    #[error("{path} is damaged: {what}", path = path.display())]
    Damaged { path: PathBuf, what: String },
}

/// The manifest's file: two slots, written in turn. A crash while one is written leaves the other
/// intact.
///
/// The slots are written in place. A new file for each checkpoint would make the file system commit
/// its own journal, and every commit in progress would wait for that.
#[derive(Debug)]
pub(crate) struct ManifestFile {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    path: PathBuf,
    /// `None` before the first write and after an error: a file that failed is replaced.
    slots: Mutex<Option<Slots>>,
    /// A loss found by a write and not reported yet.
    found: Mutex<Option<Loss>>,
}

/// A file that is written in place.
#[derive(Debug)]
struct Slots {
    file: Arc<dyn StorageFile>,
    slot_len: u64,
    /// The number of the last write. Even numbers go to the first slot.
    turn: u64,
}

/// The smallest slot. It holds some hundred retained segments.
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

    /// Returns the spool's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the manifest. `None` if there is none.
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
            // If a slot was only misread, the older one would become valid.
            file.forget_cached();
            read_exact_at(&*file, &mut bytes, 0).map_err(io)?;
            if is_whole(&bytes) {
                tracing::warn!(path = %self.path.display(), "a second read returned intact data: the disk or the memory is faulty");
            }
        }
        newest(&bytes).map(Some).map_err(|what| self.damaged(what))
    }

    /// Replaces the manifest, durably.
    pub(crate) fn write(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let io = |source| ManifestError::Io { doing: "writing", path: self.path.clone(), source };
        let mut slots = self.slots.lock();
        let loss = slots.as_ref().and_then(|slots| self.loss_of(slots));
        if loss.is_some() {
            *self.found.lock() = loss;
        }
        // Stored again only after a successful write.
        let written = match slots.take().filter(|_| loss.is_none()) {
            Some(current) => self.write_in_turn(current, manifest),
            None => self.write_anew(manifest),
        };
        *slots = Some(written.map_err(io)?);
        Ok(())
    }

    /// Returns the loss of the last written file, found now or since the last call. The next write
    /// creates a new file.
    pub(crate) fn loss(&self) -> Option<Loss> {
        let slots = self.slots.lock();
        let found = self.found.lock().take();
        found.or_else(|| slots.as_ref().and_then(|slots| self.loss_of(slots)))
    }

    /// Creates a new file in place of a lost one.
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

    /// Creates a new file with slots large enough for a manifest that grows.
    fn write_anew(&self, manifest: &Manifest) -> io::Result<Slots> {
        let need = render(manifest, 0, u64::MAX)?.len() as u64;
        // `read` rejects a longer file.
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

    /// Writes the manifest, and frees the ballast if the disk is full. A spool that can't be opened
    /// can't be emptied.
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

/// The longest file that is read. A manifest has at most one line for each retained segment.
const MAX_LEN: u64 = 64 << 20;

fn render(manifest: &Manifest, turn: u64, slot_len: u64) -> io::Result<String> {
    let line = ManifestLine { head: SlotHead { turn, slot_len }, manifest };
    let json = serde_json::to_string(&line)?;
    Ok(format!("{json}\n{:08x}\n", crc32c::crc32c(json.as_bytes())))
}

/// Returns true if both slots hold a manifest, or if the second one was never written.
fn is_whole(bytes: &[u8]) -> bool {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    parse(first).is_ok() && (parse(second).is_ok() || second.iter().all(|byte| *byte == 0))
}

/// Returns the newer of the two manifests in a file, or the only intact one.
fn newest(bytes: &[u8]) -> Result<Manifest, String> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let (head, manifest) = match (parse(first), parse(second)) {
        (Ok(first), Ok(second)) => std::cmp::max_by_key(first, second, |(head, _)| head.turn),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => one,
        // The second slot of a new file is empty, so the error of the first one is more useful.
        (Err(what), Err(_)) => return Err(what),
    };
    match head.slot_len.checked_mul(2) == Some(bytes.len() as u64) {
        true => Ok(manifest),
        false => Err(format!("its length of {} bytes is wrong", bytes.len())),
    }
}

/// Parses the manifest at the start of a slot. The rest of the slot is ignored.
fn parse(slot: &[u8]) -> Result<(SlotHead, Manifest), String> {
    let mut lines = slot.splitn(3, |byte| *byte == b'\n');
    let (Some(json), Some(crc), Some(_)) = (lines.next(), lines.next(), lines.next()) else {
        return Err("it is cut off".to_owned());
    };
    let expected = format!("{:08x}", crc32c::crc32c(json));
    if crc != expected.as_bytes() {
        return Err("its checksum does not match".to_owned());
    }
    let read = || Ok((serde_json::from_slice(json)?, serde_json::from_slice(json)?));
    read().map_err(|error: serde_json::Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message_id::MessageId;
    use crate::storage::OsStorage;

    fn sample() -> Manifest {
        let mut high = HighKeys::default();
        high.raise(Key::of(&MessageId::of_test("017F22E2-79B0-7CC3-98C4-DC0C0C07398F".parse().unwrap())));
        high.raise(Key::of(&MessageId::from_bytes([9; 16])));
        let retained = BTreeMap::from([(3, Retained { size: 1 << 20, live_bytes: 77, live: 2 })]);
        let tally = Tally { records: 5, digest: 6 };
        Manifest {
            number: 1,
            checkpointed_generation: 4,
            checkpointed_seq: 8,
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

    fn new_file() -> (tempfile::TempDir, ManifestFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = ManifestFile::new(Arc::new(OsStorage), dir.path());
        (dir, file)
    }

    #[test]
    fn a_manifest_is_read_back_unchanged() {
        let (_dir, file) = new_file();
        assert!(file.read().unwrap().is_none());
        file.write(&Manifest::default()).unwrap();
        let manifest = sample();
        file.write(&manifest).unwrap();
        assert_eq!(file.read().unwrap(), Some(manifest));
    }

    /// Manifests of earlier versions must stay readable.
    #[test]
    fn the_line_of_a_manifest_is_stable() {
        let line = r#"{"turn":2,"slot_len":32768,"number":1,"checkpointed_generation":4,"checkpointed_seq":8,"durable_seq":9,"tally":{"records":5,"digest":6},"high":[[0,0,0,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9],[0,0,2,1,127,34,226,121,176,124,195,152,196,220,12,12,7,57,143]],"retained":{"3":{"size":1048576,"live_bytes":77,"live":2}},"lost":7,"next_generation":10,"liveness":{"number":3,"len":12},"index":null}"#;
        assert_eq!(render(&sample(), 2, MIN_SLOT_LEN).unwrap().lines().next(), Some(line));
    }

    #[test]
    fn a_crash_during_a_write_leaves_the_previous_manifest() {
        let (_dir, file) = new_file();
        let mut manifest = sample();
        for number in 0..5 {
            manifest.number = number;
            file.write(&manifest).unwrap();
            assert_eq!(file.read().unwrap().as_ref(), Some(&manifest));
        }
        let whole = std::fs::read(file.path()).unwrap();
        // The fifth manifest is in the first slot. The sixth is cut after each number of bytes.
        let next = render(&Manifest { number: 5, ..manifest.clone() }, 5, MIN_SLOT_LEN).unwrap();
        let slot = usize::try_from(MIN_SLOT_LEN).unwrap();
        for cut in 0..next.len() - 1 {
            let mut torn = whole.clone();
            torn[slot..slot + cut].copy_from_slice(&next.as_bytes()[..cut]);
            // The old and the new manifest can end with the same bytes.
            let is_whole = torn[slot..].starts_with(next.as_bytes());
            assert!(is_whole || newest(&torn).as_ref() == Ok(&manifest), "cut at {cut}");
        }
    }

    #[test]
    fn a_manifest_with_many_retained_segments_gets_larger_slots() {
        let (_dir, file) = new_file();
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
    fn an_id_above_every_checkpointed_key_is_not_in_the_index() {
        let mut high = HighKeys::default();
        let (older, newer) = (Key::of(&MessageId::random()), Key::of(&MessageId::random()));
        assert!(!high.may_have(&older));
        high.raise(older);
        assert!(high.may_have(&older) && !high.may_have(&newer));
        let timeless = [Key::of(&MessageId::from_bytes([9; 16])), Key::of(&MessageId::from_bytes([11; 16]))];
        assert!(!high.may_have(&timeless[1]));
        high.raise(timeless[0]);
        assert!(high.may_have(&timeless[1]), "such ids have no order");
    }
}
