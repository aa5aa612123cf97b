//! Reads a crash log with file reads and not through a mapping, so that read errors are returned.

use std::collections::HashMap;
use std::io;

use super::layout::{
    CHUNK, ChunkUse, ENTRY_WORDS, LogHeader, SizeClass, SlotHeader, SlotPlace, Spread, WORD, intent_at,
    sum_at, table_at, word_at,
};
use crate::message_id::MessageId;
use crate::storage::{StorageFile, read_exact_at};

/// The newest acknowledged version of a message that was not on stable storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoggedChange {
    pub(crate) version: u64,
    pub(crate) id: MessageId,
    /// `None`: the message was removed.
    pub(crate) data: Option<Vec<u8>>,
}

/// The result of reading a crash log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogContents {
    /// The log is of this spool and this boot, and is whole. One change per message, oldest first.
    Whole(Vec<LoggedChange>),
    /// The log does not apply to this spool in this boot, for this reason.
    Foreign(Foreign),
    /// The log is of this spool and this boot, but some of its pages are not as last written.
    Torn(String),
}

impl LogContents {
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(_))
    }
}

/// Why a log is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// The file has no valid header: its creation was never completed, or a broken log was
    /// invalidated.
    Unfinished,
    /// The log is of another spool.
    OtherSpool,
    /// The machine was restarted. Pages that were not written to disk before are lost, so that an
    /// entry may be older than the journal's record of its message.
    OtherBoot,
}

/// Reads the log of a spool in a boot.
///
/// A process that is killed leaves every page as last written. A device that loses its cache
/// without a restart of the machine leaves some pages older than others. Then the entries of an
/// arena do not add up to its sum, or a payload fails its checksum. Nothing of such a log is used,
/// because a newer message could be kept while an older one is lost.
pub(crate) fn read(file: &dyn StorageFile, spool: [u8; 16], boot: [u8; 16]) -> io::Result<LogContents> {
    let len = file.len()?;
    let mut start = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(usize::MAX))];
    read_exact_at(file, &mut start, 0)?;
    let Some(header) = LogHeader::decode(&start) else {
        return Ok(LogContents::Foreign(Foreign::Unfinished));
    };
    if header.spool != spool {
        return Ok(LogContents::Foreign(Foreign::OtherSpool));
    }
    if header.boot != boot {
        return Ok(LogContents::Foreign(Foreign::OtherBoot));
    }
    if (header.file_len() as u64) > len {
        return Ok(LogContents::Torn("it is shorter than it was made".to_owned()));
    }
    let mut table = vec![0; header.chunk_at(0) * WORD];
    read_exact_at(file, &mut table, 0)?;
    let mut log = Log { file, header, table, sums: vec![0; header.arenas as usize] };
    let mut newest: HashMap<MessageId, LoggedChange> = HashMap::new();
    for chunk in 0..header.chunks {
        let Some(used) = ChunkUse::decode(word_at(&log.table, table_at(chunk))) else { continue };
        if let Err(torn) = log.read_chunk(chunk, used, &mut newest)? {
            return Ok(LogContents::Torn(torn));
        }
    }
    if let Some(arena) = log.arena_with_wrong_sum()? {
        return Ok(LogContents::Torn(format!("the entries of arena {arena} do not add up to its sum")));
    }
    let mut kept: Vec<LoggedChange> = newest.into_values().collect();
    kept.sort_unstable_by_key(|kept| kept.version);
    Ok(LogContents::Whole(kept))
}

struct Log<'a> {
    file: &'a dyn StorageFile,
    header: LogHeader,
    /// The file up to the first chunk.
    table: Vec<u8>,
    /// By arena: the sum of the weights of the entries read so far.
    sums: Vec<u64>,
}

impl Log<'_> {
    /// Reads the entries of a chunk into `newest`. Returns the reason if the log is torn.
    fn read_chunk(
        &mut self,
        chunk: u32,
        used: ChunkUse,
        newest: &mut HashMap<MessageId, LoggedChange>,
    ) -> io::Result<Result<(), String>> {
        let ChunkUse { class, arena, used } = used;
        let (slots, slot_words) = (class.slots().min(used as usize), class.slot_words());
        let mut bytes = vec![0; slots * slot_words * WORD];
        self.read_words(&mut bytes, self.header.chunk_at(chunk))?;
        for (slot, bytes) in bytes.chunks_exact(slot_words * WORD).enumerate() {
            let Some(entry) = self.header.decode_entry(bytes) else { continue };
            let place = self.header.chunk_at(chunk) + slot * slot_words;
            let sum =
                SlotPlace::try_from(place).ok().and_then(|place| self.header.weight_of_slot(bytes, place));
            let Some((sum, weight)) = self.sums.get_mut(usize::from(arena)).zip(sum) else {
                return Ok(Err(format!("chunk {chunk} has arena {arena}, which does not exist")));
            };
            *sum = sum.wrapping_add(weight);
            let data = match self.payload(&entry, class, bytes)? {
                Ok(data) => data,
                Err(torn) => return Ok(Err(torn)),
            };
            let kept = LoggedChange { version: entry.version, id: entry.id, data };
            if newest.get(&entry.id).is_none_or(|other| other.version < kept.version) {
                newest.insert(entry.id, kept);
            }
        }
        Ok(Ok(()))
    }

    /// Reads the payload of the entry that begins in `slot`; `None` for a removal. Returns the
    /// reason if the log is torn.
    fn payload(
        &self,
        entry: &SlotHeader,
        class: SizeClass,
        slot: &[u8],
    ) -> io::Result<Result<Option<Vec<u8>>, String>> {
        let torn = || Ok(Err(format!("the payload of message {} fails its checksum", entry.id)));
        let Some(len) = entry.len.map(|len| len as usize) else { return Ok(Ok(None)) };
        let spread = Spread::of(len);
        if spread.more > self.header.chunks as usize || (spread.more > 0 && class != SizeClass::WHOLE) {
            return torn();
        }
        let from = LogHeader::payload_at(spread) * WORD;
        let Some(first) = slot.get(from..from + spread.first) else { return torn() };
        let mut data = first.to_vec();
        data.resize(len, 0);
        for (part, range) in spread.others(len).enumerate() {
            let chunk = LogHeader::listed(slot, part);
            if chunk >= self.header.chunks {
                return torn();
            }
            self.read_words(&mut data[range], self.header.chunk_at(chunk))?;
        }
        match crc32c::crc32c(&data) == entry.payload_crc {
            true => Ok(Ok(Some(data))),
            false => torn(),
        }
    }

    /// Returns the first arena whose entries do not add up to its sum. The entry that a killed
    /// thread was changing may be missing from the sum, or from the entries.
    fn arena_with_wrong_sum(&self) -> io::Result<Option<usize>> {
        for (arena, sum) in self.sums.iter().enumerate() {
            let missing = word_at(&self.table, sum_at(arena)).wrapping_sub(*sum);
            if missing == 0 {
                continue;
            }
            let mut slot = [0; ENTRY_WORDS * WORD];
            let intent = word_at(&self.table, intent_at(arena));
            let weight = match SlotPlace::try_from(intent) {
                Ok(place) if self.is_in_chunk(place) => {
                    self.read_words(&mut slot, place as usize)?;
                    self.header.weight_of_slot(&slot, place)
                }
                _ => None,
            };
            if weight.is_none_or(|weight| missing != weight && missing != weight.wrapping_neg()) {
                return Ok(Some(arena));
            }
        }
        Ok(None)
    }

    /// True if an entry may begin at `place`.
    fn is_in_chunk(&self, place: SlotPlace) -> bool {
        let place = place as usize;
        place >= self.header.chunk_at(0) && (place + ENTRY_WORDS) * WORD <= self.header.file_len()
    }

    /// Reads bytes from the word at index `at` on.
    fn read_words(&self, bytes: &mut [u8], at: usize) -> io::Result<()> {
        read_exact_at(self.file, bytes, (at * WORD) as u64)
    }
}
