//! The bytes of the crash log's file: see ARCHITECTURE.md. Pure.
//!
//! The file consists of words of 8 bytes, little endian, so that a thread can write each at once.

#![expect(clippy::cast_possible_truncation, reason = "words are taken apart into smaller fields")]

use std::ops::Range;

use tidespool_core::SpoolId;

/// Bytes of a word.
pub(super) const WORD: usize = 8;

const PAGE: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"TIDECRS1");

/// Words of the header, the last of them its checksum.
const HEADER_WORDS: usize = 9;

/// Where the lines of the arenas begin, in words.
const ARENAS_AT: usize = PAGE / WORD;

/// Words of an arena's line: a cache line, so that two cores do not share one.
const ARENA_WORDS: usize = 8;

/// The most arenas that there can be: their lines take one page.
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

/// The payload length of a removal.
const REMOVAL: u32 = u32::MAX;

/// What the whole file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogHeader {
    pub(super) spool: [u8; 16],
    /// The kernel's boot id: pages that were never written to disk belong to one boot.
    pub(super) boot: [u8; 16],
    /// Makes the entries of an earlier log in the same place invalid.
    pub(super) nonce: u64,
    pub(super) chunks: u32,
    pub(super) arenas: u32,
}

impl LogHeader {
    /// The words of the header, checksum included.
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

    /// `None`: these are not the first bytes of a crash log, or of one with another layout.
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

    /// The seed of all checksums of entries.
    fn seed(&self) -> u32 {
        low(self.nonce)
    }

    /// The upper half of each commit word. Never 0.
    fn tag(&self) -> u32 {
        high(self.nonce) | 1
    }

    /// Bytes of the whole file.
    pub(super) fn file_len(&self) -> usize {
        self.chunk_at(self.chunks) * WORD
    }

    /// The first word of a chunk.
    pub(super) fn chunk_at(&self, chunk: u32) -> usize {
        let table = (self.chunks as usize).div_ceil(PAGE / WORD) * (PAGE / WORD);
        TABLE_AT + table + chunk as usize * CHUNK_WORDS
    }

    /// The words of an entry's header.
    pub(super) fn encode_entry(&self, entry: &SlotHeader) -> [u64; ENTRY_WORDS] {
        let [id0, id1] = words_of(entry.id.as_bytes());
        let len = entry.len.unwrap_or(REMOVAL);
        let fields = [entry.version, id0, id1, u64::from(len) | u64::from(entry.payload_crc) << 32];
        let commit = u64::from(self.tag()) << 32 | u64::from(checksum(self.seed(), &fields));
        [commit, fields[0], fields[1], fields[2], fields[3]]
    }

    /// Reads an entry's header from the start of its slot. `None`: it is no committed one.
    pub(super) fn decode_entry(&self, slot: &[u8]) -> Option<SlotHeader> {
        let [commit, version, id0, id1, rest] = words_at(slot, 0)?;
        let entry = SlotHeader {
            version,
            id: SpoolId::from_bytes(bytes_of([id0, id1])),
            len: Some(low(rest)).filter(|len| *len != REMOVAL),
            payload_crc: high(rest),
        };
        (commit != 0 && self.encode_entry(&entry)[0] == commit).then_some(entry)
    }

    /// Where the payload begins, in words from the start of the slot.
    pub(super) fn payload_at(spread: Spread) -> usize {
        ENTRY_WORDS + spread.list_words()
    }

    /// The list of the other chunks of an entry, as words and their places.
    pub(super) fn list_of(slot: usize, chunks: &[u32]) -> impl Iterator<Item = (usize, u64)> + '_ {
        let pair = |pair: &[u32]| match *pair {
            [first, second] => u64::from(first) | u64::from(second) << 32,
            _ => pair.first().copied().map_or(0, u64::from),
        };
        (slot + ENTRY_WORDS..).zip(chunks.chunks(2).map(pair))
    }

    /// The number of one of the other chunks of an entry.
    pub(super) fn listed(slot: &[u8], part: usize) -> u32 {
        let word = word_at(slot, ENTRY_WORDS + part / 2);
        if part.is_multiple_of(2) { low(word) } else { high(word) }
    }

    /// What the entry whose header is at the start of a slot adds to the sum of its arena, also
    /// after it was taken back.
    pub(super) fn weight_of_slot(&self, slot: &[u8], place: SlotPlace) -> Option<u64> {
        let [_, fields @ ..]: [u64; ENTRY_WORDS] = words_at(slot, 0)?;
        Some(weight(checksum(self.seed(), &fields), place))
    }
}

/// What the header of an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotHeader {
    pub(super) version: u64,
    pub(super) id: SpoolId,
    /// `None`: the entry is a removal.
    pub(super) len: Option<u32>,
    pub(super) payload_crc: u32,
}

/// Which slot it is: its first word, counted from the start of the file.
pub(super) type SlotPlace = u32;

/// What an entry with this header checksum, in this place, adds to the sum of its arena.
pub(super) fn weight(crc: u32, place: SlotPlace) -> u64 {
    let mixed = (u64::from(crc) << 32 | u64::from(place)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}

/// Word of an arena's sum: of the weights of all entries in its chunks.
pub(super) fn sum_at(arena: usize) -> usize {
    ARENAS_AT + arena * ARENA_WORDS
}

/// Word of an arena's intent: the place that is being changed, or 0.
pub(super) fn intent_at(arena: usize) -> usize {
    sum_at(arena) + 1
}

/// Word of a chunk in the table.
pub(super) fn table_at(chunk: u32) -> usize {
    TABLE_AT + chunk as usize
}

/// What the table says of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkUse {
    pub(super) class: SizeClass,
    pub(super) arena: u16,
    /// Slots that were ever used since the chunk has this class: only these are read.
    pub(super) used: u32,
}

impl ChunkUse {
    pub(super) fn encode(self) -> u64 {
        (u64::from(self.class.0) + 1) | (u64::from(self.arena) << 16) | (u64::from(self.used) << 32)
    }

    /// `None`: nothing is in it, or it is a part of an entry that begins in another chunk.
    pub(super) fn decode(word: u64) -> Option<Self> {
        let [class, arena, ..] = low_halves(word);
        let class = SizeClass::all().find(|known| known.0 + 1 == class)?;
        Some(Self { class, arena, used: high(word) })
    }
}

/// A size of slots. All slots of a chunk have one size.
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
    /// The one whose slots are whole chunks.
    pub(super) const WHOLE: Self = Self(CLASSES as u16 - 1);

    /// The smallest class whose slots hold a payload of so many bytes. `None`: it takes more than a
    /// chunk.
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

/// How an entry whose payload has `len` bytes lies in chunks: one for its beginning, and the rest
/// in others, whose numbers, 4 bytes each, are between its header and its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread {
    /// Chunks beside the first.
    pub(super) more: usize,
    /// Payload bytes in the first.
    pub(super) first: usize,
}

impl Spread {
    pub(super) fn of(len: usize) -> Self {
        let room = CHUNK - ENTRY_WORDS * WORD;
        // The list of the others takes room of the first, so that one more may be needed.
        let mut more = len.saturating_sub(room).div_ceil(CHUNK);
        loop {
            let first = room.saturating_sub(Self { more, first: 0 }.list_words() * WORD);
            if first + more * CHUNK >= len {
                return Self { more, first: first.min(len) };
            }
            more += 1;
        }
    }

    /// Words of the list of the other chunks.
    pub(super) fn list_words(self) -> usize {
        self.more.div_ceil(2)
    }

    /// The part of the payload that is in each of the other chunks.
    pub(super) fn others(self, len: usize) -> impl Iterator<Item = Range<usize>> {
        (0..self.more).map(move |part| {
            let from = self.first + part * CHUNK;
            from..len.min(from + CHUNK)
        })
    }
}

/// The words at a place, if they are there.
fn words_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u64; N]> {
    let (words, _) = bytes.get(at..at + N * WORD)?.as_chunks::<WORD>();
    let mut found = [0; N];
    for (word, bytes) in found.iter_mut().zip(words) {
        *word = u64::from_le_bytes(*bytes);
    }
    Some(found)
}

/// The word at a place, counted in words; 0 if it is not there.
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

/// The lower half: of a commit word, the checksum of the entry's header.
pub(super) fn low(word: u64) -> u32 {
    word as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// The four parts of 16 bits, lowest first.
fn low_halves(word: u64) -> [u16; 4] {
    [word as u16, (word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message of 974 723 bytes got one chunk too many, and the copy to it panicked.
    #[test]
    fn a_message_takes_no_chunk_that_it_does_not_need() {
        let spread = Spread::of(974_723);
        assert_eq!((spread.more, spread.others(974_723).last()), (13, Some(905_120..974_723)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// The parts follow each other, none is empty, and all but the last fill their chunks.
        #[test]
        fn the_parts_of_a_message_are_all_of_it(
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
