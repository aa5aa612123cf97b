//! The format of the crash log's file: see `docs/on-disk-format.md`. Pure.
//!
//! The file consists of words of 8 bytes, little endian, so that a thread writes each word
//! atomically.

#![expect(clippy::cast_possible_truncation, reason = "words are taken apart into smaller fields")]

use std::ops::Range;

use tidespool_core::SpoolId;

use crate::message_id::{MessageId, SpoolNumber};

/// Bytes of a word.
pub(super) const WORD: usize = 8;

const PAGE: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"TIDECRS1");

/// Words of the header. The last is its checksum.
const HEADER_WORDS: usize = 9;

/// Where the lines of the arenas begin, in words.
const ARENAS_AT: usize = PAGE / WORD;

/// Words of an arena's line: a cache line, so that arenas do not share one.
const ARENA_WORDS: usize = 8;

/// The most arenas: their lines take one page.
pub(super) const MAX_ARENAS: usize = PAGE / WORD / ARENA_WORDS;

/// Where the table of chunks begins, in words.
const TABLE_AT: usize = 2 * PAGE / WORD;

/// Bytes of a chunk: messages of 64, 32 and 16 KiB fit with their headers into a chunk, a half and
/// a quarter of it.
pub(super) const CHUNK: usize = 17 * PAGE;

/// Words of a chunk.
pub(super) const CHUNK_WORDS: usize = CHUNK / WORD;

/// Words of an entry's header; the payload follows.
pub(super) const ENTRY_WORDS: usize = 5;

/// Bits of a version. The number of the spool has the other 16.
const VERSION_BITS: u32 = 48;

/// The payload length of a removal.
const REMOVAL: u32 = u32::MAX;

/// The header of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogHeader {
    pub(super) spool: [u8; 16],
    /// The kernel's boot id, because pages that were never written to disk are lost with the boot.
    pub(super) boot: [u8; 16],
    /// A random number, which makes entries of an earlier log in the same blocks invalid.
    pub(super) nonce: u64,
    pub(super) chunks: u32,
    pub(super) arenas: u32,
}

impl LogHeader {
    /// Encodes the header, including its checksum.
    pub(super) fn encode(&self) -> [u64; HEADER_WORDS] {
        let [s0, s1] = words_of(&self.spool);
        let [b0, b1] = words_of(&self.boot);
        let counts = u64::from(self.chunks) | u64::from(self.arenas) << 32;
        let fields = [MAGIC, s0, s1, b0, b1, self.nonce, counts, CHUNK as u64];
        let mut words = [0; HEADER_WORDS];
        words[..8].copy_from_slice(&fields);
        words[8] = u64::from(checksum(0, &fields));
        words
    }

    /// Decodes the header from the first bytes of a file. `None`: the file is not a crash log, or
    /// has another layout.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let words: [u64; HEADER_WORDS] = words_at(bytes, 0)?;
        let [fields @ .., crc] = words;
        let [magic, s0, s1, b0, b1, nonce, counts, chunk] = fields;
        let whole = magic == MAGIC && chunk == CHUNK as u64 && crc == u64::from(checksum(0, &fields));
        let header = Self {
            spool: bytes_of([s0, s1]),
            boot: bytes_of([b0, b1]),
            nonce,
            chunks: low(counts),
            arenas: high(counts),
        };
        (whole && header.arenas as usize <= MAX_ARENAS).then_some(header)
    }

    /// Returns the seed of the checksums of entries.
    fn seed(&self) -> u32 {
        low(self.nonce)
    }

    /// Returns the upper half of each commit word, which is never 0.
    fn tag(&self) -> u32 {
        high(self.nonce) | 1
    }

    /// Returns the size of the file in bytes.
    pub(super) fn file_len(&self) -> usize {
        self.chunk_at(self.chunks) * WORD
    }

    /// Returns the index of a chunk's first word.
    pub(super) fn chunk_at(&self, chunk: u32) -> usize {
        let table = (self.chunks as usize).div_ceil(PAGE / WORD) * (PAGE / WORD);
        TABLE_AT + table + chunk as usize * CHUNK_WORDS
    }

    /// Encodes an entry's header, with the commit word first.
    pub(super) fn encode_entry(&self, entry: &SlotHeader) -> [u64; ENTRY_WORDS] {
        let [id0, id1] = words_of(entry.id.id().as_bytes());
        let version_and_spool = entry.version | u64::from(entry.id.spool().get()) << VERSION_BITS;
        let len = entry.len.unwrap_or(REMOVAL);
        let rest = u64::from(len) | u64::from(entry.payload_crc) << 32;
        let fields = [version_and_spool, id0, id1, rest];
        let commit = u64::from(self.tag()) << 32 | u64::from(checksum(self.seed(), &fields));
        [commit, fields[0], fields[1], fields[2], fields[3]]
    }

    /// Decodes an entry's header from the start of its slot. `None`: the slot has no committed
    /// entry.
    pub(super) fn decode_entry(&self, slot: &[u8]) -> Option<SlotHeader> {
        let [commit, version_and_spool, id0, id1, rest] = words_at(slot, 0)?;
        let spool = SpoolNumber::new((version_and_spool >> VERSION_BITS) as u16)?;
        let entry = SlotHeader {
            version: version_and_spool & ((1 << VERSION_BITS) - 1),
            id: MessageId::new(spool, SpoolId::from_bytes(bytes_of([id0, id1]))),
            len: Some(low(rest)).filter(|len| *len != REMOVAL),
            payload_crc: high(rest),
        };
        (commit != 0 && self.encode_entry(&entry)[0] == commit).then_some(entry)
    }

    /// Returns where the payload begins, in words from the start of the slot.
    pub(super) fn payload_at(spread: Spread) -> usize {
        ENTRY_WORDS + spread.list_words()
    }

    /// Encodes the list of an entry's further chunks, as pairs of word index and word.
    pub(super) fn list_of(slot: usize, chunks: &[u32]) -> impl Iterator<Item = (usize, u64)> + '_ {
        let pair = |pair: &[u32]| match *pair {
            [first, second] => u64::from(first) | u64::from(second) << 32,
            _ => pair.first().copied().map_or(0, u64::from),
        };
        (slot + ENTRY_WORDS..).zip(chunks.chunks(2).map(pair))
    }

    /// Returns the number of one of the further chunks of an entry.
    pub(super) fn listed(slot: &[u8], part: usize) -> u32 {
        let word = word_at(slot, ENTRY_WORDS + part / 2);
        if part.is_multiple_of(2) { low(word) } else { high(word) }
    }

    /// Returns the weight of the entry whose header is at the start of a slot. Dropping an entry
    /// clears only its commit word, so that this works after a drop, too.
    pub(super) fn weight_of_slot(&self, slot: &[u8], place: SlotPlace) -> Option<u64> {
        let [_, fields @ ..]: [u64; ENTRY_WORDS] = words_at(slot, 0)?;
        Some(weight(checksum(self.seed(), &fields), place))
    }
}

/// The header of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotHeader {
    pub(super) version: u64,
    pub(super) id: MessageId,
    /// `None`: the entry is a removal.
    pub(super) len: Option<u32>,
    pub(super) payload_crc: u32,
}

/// Identifies a slot: the index of its first word in the file.
pub(super) type SlotPlace = u32;

/// Returns what an entry with this header checksum, in this place, adds to the sum of its arena.
pub(super) fn weight(crc: u32, place: SlotPlace) -> u64 {
    let mixed = (u64::from(crc) << 32 | u64::from(place)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}

/// Returns the index of an arena's sum: the sum of the weights of all entries in its chunks.
pub(super) fn sum_at(arena: usize) -> usize {
    ARENAS_AT + arena * ARENA_WORDS
}

/// Returns the index of an arena's intent: the place that is being changed, or 0.
pub(super) fn intent_at(arena: usize) -> usize {
    sum_at(arena) + 1
}

/// Returns the index of a chunk's word in the table.
pub(super) fn table_at(chunk: u32) -> usize {
    TABLE_AT + chunk as usize
}

/// The entry of a chunk in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkUse {
    pub(super) class: SizeClass,
    pub(super) arena: u16,
    /// The number of slots that were used since the chunk has this class. Only these are read.
    pub(super) used: u32,
}

impl ChunkUse {
    pub(super) fn encode(self) -> u64 {
        (u64::from(self.class.0) + 1) | (u64::from(self.arena) << 16) | (u64::from(self.used) << 32)
    }

    /// `None`: the chunk is unused, or has a part of an entry that begins in another chunk.
    pub(super) fn decode(word: u64) -> Option<Self> {
        let [class, arena, ..] = low_halves(word);
        let class = SizeClass::all().find(|known| known.0 + 1 == class)?;
        Some(Self { class, arena, used: high(word) })
    }
}

/// A size of slots. All slots of a chunk have the same size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SizeClass(u16);

/// Payload bytes of the small classes: four in each doubling.
const SMALL: [usize; 29] = [
    0, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048,
    2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192,
];

/// Slots of a chunk in the large classes.
const LARGE: [usize; 7] = [7, 6, 5, 4, 3, 2, 1];

/// Number of classes.
pub(super) const CLASSES: usize = SMALL.len() + LARGE.len();

/// Words of a slot in each class.
const SLOT_WORDS: [usize; CLASSES] = {
    let mut words = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        words[class] = match class < SMALL.len() {
            true => ENTRY_WORDS + SMALL[class] / WORD,
            false => CHUNK_WORDS / LARGE[class - SMALL.len()],
        };
        class += 1;
    }
    words
};

impl SizeClass {
    /// The class whose slots are whole chunks.
    pub(super) const WHOLE: Self = Self(CLASSES as u16 - 1);

    /// Returns the smallest class whose slots hold a payload of `len` bytes. `None`: the payload
    /// takes more than one chunk.
    pub(super) fn of(len: usize) -> Option<Self> {
        let words = ENTRY_WORDS.saturating_add(len.div_ceil(WORD));
        let class = SLOT_WORDS.partition_point(|slot| *slot < words);
        u16::try_from(class).ok().filter(|_| class < CLASSES).map(Self)
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..).map(Self).take(CLASSES)
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Words of a slot.
    pub(super) fn slot_words(self) -> usize {
        SLOT_WORDS[self.index()]
    }

    /// Slots of a chunk.
    pub(super) fn slots(self) -> usize {
        CHUNK_WORDS / self.slot_words()
    }
}

/// How an entry is spread over chunks. It begins in one chunk and continues in further chunks.
/// Their numbers, 4 bytes each, are between the header and the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread {
    /// The number of further chunks.
    pub(super) more: usize,
    /// Payload bytes in the first chunk.
    pub(super) first: usize,
}

impl Spread {
    pub(super) fn of(len: usize) -> Self {
        let room = CHUNK - ENTRY_WORDS * WORD;
        // The list of further chunks takes room in the first chunk, so that one more may be needed.
        let mut more = len.saturating_sub(room).div_ceil(CHUNK);
        loop {
            let first = room.saturating_sub(Self { more, first: 0 }.list_words() * WORD);
            if first + more * CHUNK >= len {
                return Self { more, first: first.min(len) };
            }
            more += 1;
        }
    }

    /// Returns the words of the list of further chunks.
    pub(super) fn list_words(self) -> usize {
        self.more.div_ceil(2)
    }

    /// Returns the part of the payload in each of the further chunks.
    pub(super) fn others(self, len: usize) -> impl Iterator<Item = Range<usize>> {
        (0..self.more).map(move |part| {
            let from = self.first + part * CHUNK;
            from..len.min(from + CHUNK)
        })
    }
}

/// Returns the words at a byte offset, if `bytes` has them.
fn words_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u64; N]> {
    let (words, _) = bytes.get(at..at + N * WORD)?.as_chunks::<WORD>();
    let mut found = [0; N];
    for (word, bytes) in found.iter_mut().zip(words) {
        *word = u64::from_le_bytes(*bytes);
    }
    Some(found)
}

/// Returns the word at an index, or 0 beyond the end.
pub(super) fn word_at(bytes: &[u8], at: usize) -> u64 {
    words_at::<1>(bytes, at * WORD).map_or(0, |[word]| word)
}

/// CRC-32C of words.
fn checksum<const N: usize>(seed: u32, words: &[u64; N]) -> u32 {
    let bytes = words.map(u64::to_le_bytes);
    crc32c::crc32c_append(seed, bytes.as_flattened())
}

fn words_of(bytes: &[u8; 16]) -> [u64; 2] {
    let all = u128::from_le_bytes(*bytes);
    [all as u64, (all >> 64) as u64]
}

fn bytes_of([first, second]: [u64; 2]) -> [u8; 16] {
    (u128::from(first) | u128::from(second) << 64).to_le_bytes()
}

/// Returns the lower half. In a commit word this is the checksum of the entry's header.
pub(super) fn low(word: u64) -> u32 {
    word as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Returns the four parts of 16 bits, lowest first.
fn low_halves(word: u64) -> [u16; 4] {
    [word as u16, (word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message of 974 723 bytes got one chunk too many, and copying the message panicked.
    #[test]
    fn a_message_takes_no_chunk_that_it_does_not_need() {
        let spread = Spread::of(974_723);
        assert_eq!((spread.more, spread.others(974_723).last()), (13, Some(905_120..974_723)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// The parts follow each other, none is empty, and all but the last fill their chunks.
        #[test]
        fn the_parts_of_a_message_cover_it(
            len in prop_oneof![0..4 * CHUNK, 0..200 * CHUNK, (0..9_000usize, 0..300usize).prop_map(|(chunks, off)| chunks * CHUNK + off)],
        ) {
            let spread = Spread::of(len);
            let mut end = spread.first;
            prop_assert!(LogHeader::payload_at(spread) * WORD + spread.first <= CHUNK);
            for part in spread.others(len) {
                prop_assert_eq!(part.start, end);
                prop_assert!(!part.is_empty() && part.len() <= CHUNK);
                end = part.end;
            }
            prop_assert_eq!((end, spread.others(len).count()), (len, spread.more));
            let is_whole = SizeClass::of(len).is_some();
            prop_assert_eq!(is_whole, spread.more == 0);
        }

        #[test]
        fn the_class_of_a_length_holds_it(len in 0..=CHUNK) {
            let words = ENTRY_WORDS + len.div_ceil(WORD);
            match SizeClass::of(len) {
                Some(class) => prop_assert!(class.slot_words() >= words && class.slots() >= 1),
                None => prop_assert!(words > CHUNK_WORDS),
            }
        }
    }
}
