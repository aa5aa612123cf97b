//! The accounting of the checkpointed segments that are kept for the messages in them. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::index::Record;
use crate::journal::{FoundRecord, PAGE, RecordPlace, footer_len};
use crate::message_id::MessageId;

/// The use of a retained segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retained {
    /// Size of its file, in bytes.
    pub(crate) size: u64,
    /// Live payload bytes.
    pub(crate) live_bytes: u64,
    /// Live messages.
    pub(crate) live: u64,
}

impl Retained {
    pub(crate) fn gain(&mut self, len: u32) {
        self.live += 1;
        self.live_bytes += u64::from(len);
    }

    /// Returns the bytes that its survivors need: payload, a header of 56 bytes each, and padding.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.live_bytes + self.live * 64
    }

    /// Returns the size of a segment that holds only the survivors, with its footer.
    fn packed_bytes(&self) -> u64 {
        (PAGE + self.record_bytes()).next_multiple_of(PAGE) + footer_len(self.live)
    }

    /// Returns true if rewriting the segment would free at most 2 % of it.
    fn is_full(&self) -> bool {
        self.packed_bytes() + self.size / 50 >= self.size
    }

    /// Returns the sum of both.
    pub(crate) fn plus(self, other: &Self) -> Self {
        Self {
            size: self.size + other.size,
            live_bytes: self.live_bytes + other.live_bytes,
            live: self.live + other.live,
        }
    }

    pub(crate) fn lose(&mut self, len: u32) {
        self.live = self.live.saturating_sub(1);
        self.live_bytes = self.live_bytes.saturating_sub(u64::from(len));
    }
}

/// The retained segments, by generation.
pub(crate) type RetainedMap = BTreeMap<u64, Retained>;

/// Retained files may take 1.5 times their live bytes.
const MAX_SPREAD: (u64, u64) = (3, 2);

/// Survivors moved in one round, in bytes. Their copies need as much more space until the old
/// segments are recycled.
const ROUND_BYTES: u64 = 64 << 20;

/// Chooses the segments to rewrite in this round: the emptiest first, until the files take at most
/// 1.5 times their live bytes. A round has at most [`ROUND_BYTES`] of survivors.
///
/// With `all`, chooses each segment with dead records, whatever the files take. Only generations
/// before `before` are candidates, because newer segments are full.
pub(crate) fn choose(retained: &RetainedMap, all: bool, before: u64) -> Vec<u64> {
    let mut size: u64 = retained.values().map(|segment| segment.size).sum();
    let live: u64 = retained.values().map(|segment| segment.live_bytes).sum();
    let mut candidates: Vec<(u64, Retained)> = retained
        .range(..before)
        .map(|(generation, segment)| (*generation, *segment))
        .filter(|(_, segment)| segment.live > 0 && !segment.is_full())
        .collect();
    candidates.sort_by_key(|(_, segment)| segment.live_bytes * 1000 / segment.size.max(1));
    let (mut chosen, mut moved) = (Vec::new(), 0);
    for (generation, segment) in candidates {
        let is_enough = !all && size * MAX_SPREAD.1 <= live * MAX_SPREAD.0;
        if is_enough || (moved > 0 && moved + segment.live_bytes > ROUND_BYTES) {
            break;
        }
        size = size - segment.size + segment.packed_bytes();
        moved += segment.live_bytes;
        chosen.push(generation);
    }
    chosen
}

/// Returns the index record for a journal record at `place`.
pub(crate) const fn record_at(seq: u64, place: RecordPlace) -> Record {
    Record { seq, generation: place.generation, offset: place.offset, len: place.len }
}

/// Returns the place of a record that a scan found.
pub(crate) fn place_of_found(found: &FoundRecord) -> RecordPlace {
    let (header, offset) = (&found.header, found.offset);
    RecordPlace { generation: header.generation, offset, len: header.payload_len }
}

/// Returns the place that an index record names.
pub(crate) const fn place_of_record(record: &Record) -> RecordPlace {
    RecordPlace { generation: record.generation, offset: record.offset, len: record.len }
}

/// Updates the live counts of the retained segments when `after` replaces `before`.
pub(crate) fn account(
    retained: &mut RetainedMap,
    size_of: impl Fn(u64) -> u64,
    before: Option<Record>,
    after: Option<Record>,
) {
    if let Some(before) = before
        && let Some(segment) = retained.get_mut(&before.generation)
    {
        segment.lose(before.len);
    }
    if let Some(after) = after {
        let segment = retained
            .entry(after.generation)
            .or_insert_with(|| Retained { size: size_of(after.generation), ..Retained::default() });
        segment.gain(after.len);
    }
}

/// Describes a message and its place, for a report.
pub(crate) fn describe(id: &MessageId, place: RecordPlace) -> String {
    format!("message {id} in the segment of generation {} at byte {}", place.generation, place.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn segment(mib: u64, live_mib: u64) -> Retained {
        Retained { size: mib * MIB, live_bytes: live_mib * MIB, live: u64::from(live_mib > 0) }
    }

    #[test]
    fn the_emptiest_segments_are_chosen_until_the_bound_holds() {
        let retained = BTreeMap::from([
            (1, segment(10, 9)),
            (2, segment(10, 1)),
            (3, segment(10, 3)),
            (4, segment(10, 5)),
        ]);
        assert_eq!(choose(&retained, false, u64::MAX), [2, 3]);
        let full = BTreeMap::from([(1, segment(10, 9)), (2, segment(10, 7))]);
        assert!(choose(&full, false, u64::MAX).is_empty());
        assert!(choose(&BTreeMap::new(), true, u64::MAX).is_empty());
    }

    #[test]
    fn the_bound_holds_if_every_segment_is_more_than_half_live() {
        let mut retained: RetainedMap = (0..100).map(|generation| (generation, segment(10, 6))).collect();
        let mut rewritten = 0;
        loop {
            let chosen = choose(&retained, false, u64::MAX);
            if chosen.is_empty() {
                break;
            }
            for generation in &chosen {
                let packed = retained[generation].packed_bytes();
                retained.insert(*generation, Retained { size: packed, ..retained[generation] });
                rewritten += 1;
            }
        }
        let all = retained.values().fold(Retained::default(), Retained::plus);
        assert!(all.size * 2 <= all.live_bytes * 3, "{all:?}");
        assert!((25..28).contains(&rewritten), "no more than necessary: {rewritten}");
    }

    #[test]
    fn a_round_is_bounded_and_a_rewritten_segment_is_not_chosen_again() {
        let many: RetainedMap = (0..100).map(|generation| (generation, segment(32, 16))).collect();
        assert_eq!(choose(&many, true, u64::MAX).len(), 4);
        let alone = segment(32, 1);
        assert_eq!(choose(&BTreeMap::from([(1, alone)]), false, u64::MAX), [1]);
        let packed = Retained { size: alone.packed_bytes(), ..alone };
        for all in [false, true] {
            assert!(choose(&BTreeMap::from([(1, packed)]), all, u64::MAX).is_empty());
        }
        // Large messages leave space at the end that no rewriting frees.
        let halves = BTreeMap::from([(1, segment(32, 17)), (5, segment(32, 17))]);
        assert_eq!(choose(&halves, true, 5), [1]);
    }

    #[test]
    fn a_segment_without_live_messages_is_not_rewritten() {
        let retained = BTreeMap::from([(1, segment(10, 0))]);
        assert!(
            choose(&retained, false, u64::MAX).is_empty() && choose(&retained, true, u64::MAX).is_empty()
        );
    }

    #[test]
    fn replacing_and_removing_update_the_counts() {
        let record = |seq, generation, len| Record { seq, generation, offset: 4096, len };
        let mut retained = BTreeMap::new();
        let (a, b) = (record(1, 7, 100), record(2, 8, 50));
        account(&mut retained, |_| 1000, None, Some(a));
        assert_eq!(retained[&7], Retained { size: 1000, live_bytes: 100, live: 1 });
        account(&mut retained, |_| 1000, Some(a), Some(b));
        assert_eq!((retained[&7].live, retained[&8].live_bytes), (0, 50));
        account(&mut retained, |_| 1000, Some(b), None);
        assert_eq!(retained[&8], Retained { size: 1000, live_bytes: 0, live: 0 });
    }
}
