//! Computes the state of a journal from its records: which are present, missing, or were never
//! acknowledged. Pure.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::index::{NewestRecord, RecordPlace};
use super::record::RecordKind;
use super::scan::FoundRecord;
use crate::message_id::MessageId;

/// Sequence numbers that were durable once and are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// A record with an intact header and a damaged payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DamagedRecord {
    pub(crate) id: MessageId,
    pub(crate) seq: u64,
    pub(crate) generation: u64,
    pub(crate) offset: u64,
}

impl DamagedRecord {
    fn of(found: &FoundRecord) -> Self {
        let FoundRecord { header, offset, .. } = *found;
        Self { id: header.id, seq: header.seq, generation: header.generation, offset }
    }
}

/// The newest record of each id.
pub(crate) type NewestById = HashMap<MessageId, NewestRecord, foldhash::fast::RandomState>;

/// The result of a replay.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Replayed {
    pub(crate) newest: NewestById,
    /// The sequence number of the next record.
    pub(crate) next_seq: u64,
    /// Records from this number on are cut, or were never completely written.
    pub(crate) cut_from: u64,
    /// Number of valid records.
    pub(crate) records: u64,
    /// Number of broken headers in the segments that were read.
    pub(crate) broken: u64,
    pub(crate) gaps: Vec<Gap>,
    pub(crate) damaged: Vec<DamagedRecord>,
    /// The highest number of a valid record in each segment, by generation.
    pub(crate) last_seqs: HashMap<u64, u64, foldhash::fast::RandomState>,
    /// Places of the records of a torn tail, which must never be read again.
    pub(crate) torn: Vec<Torn>,
    /// Set if some earlier record is missing or damaged and only records in `torn` show that it was
    /// durable once. This evidence must survive when they are cut.
    pub(crate) witness: Option<Witness>,
}

/// The place of a record of a torn tail, and its evidence about earlier records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Torn {
    pub(crate) generation: u64,
    pub(crate) offset: u64,
    pub(crate) durable_seq: u64,
}

/// The mark that replaces a torn record and keeps its evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Witness {
    pub(crate) seq: u64,
    pub(crate) durable_seq: u64,
}

/// Takes the records of all segments in generation order.
#[derive(Debug)]
pub(crate) struct JournalReplay {
    state: Replayed,
    /// Earlier versions of ids that were written more than once. An abort of the newest version
    /// restores one of them.
    earlier: HashMap<MessageId, Vec<NewestRecord>>,
    /// The number of the next record if none is missing.
    expected: u64,
    /// Every number up to this one was durable once.
    durable: u64,
    /// The same, from the evidence of kept records only.
    kept_durable: u64,
    /// Records after a missing or damaged one, until it is known whether that one is torn or
    /// damaged.
    doubtful: BTreeMap<u64, FoundRecord>,
    /// Other places of records that are or were in `doubtful`.
    copies: Vec<FoundRecord>,
    /// The highest number of the records that were [passed](Self::pass).
    kept: u64,
}

impl JournalReplay {
    /// `checkpointed_seq`: every record up to this number is checkpointed. `durable_seq`: every
    /// record up to this number was durable.
    pub(crate) fn new(checkpointed_seq: u64, durable_seq: u64) -> Self {
        Self {
            state: Replayed::default(),
            earlier: HashMap::new(),
            expected: checkpointed_seq + 1,
            durable: durable_seq.max(checkpointed_seq),
            kept_durable: durable_seq.max(checkpointed_seq),
            doubtful: BTreeMap::new(),
            copies: Vec::new(),
            kept: 0,
        }
    }

    /// Reserves memory for this many more records.
    pub(crate) fn reserve(&mut self, records: usize) {
        self.state.newest.reserve(records);
    }

    /// Takes the next record.
    pub(crate) fn take(&mut self, found: FoundRecord) {
        let seq = found.header.seq;
        self.durable = self.durable.max(found.header.durable_seq);
        let is_alone = !found.header.continues && self.doubtful.is_empty();
        if seq == self.expected && found.intact && is_alone && seq != 0 {
            // The fast path: every record takes it unless there was a crash or damage.
            self.apply(found);
            self.expected = seq + 1;
            return;
        }
        if seq < self.expected {
            // The record was written again to another segment: the newer place counts if it is
            // intact.
            if found.intact {
                self.apply(found);
            }
        } else if found.intact || self.doubtful.get(&seq).is_none_or(|other| !other.intact) {
            self.copies.extend(self.doubtful.insert(seq, found));
        } else {
            self.copies.push(found);
        }
        self.settle();
    }

    /// Takes a record of a segment that may be checkpointed. Missing numbers before it mean
    /// nothing. A damaged record is reported and does not hide an older version, because it may be
    /// torn.
    pub(crate) fn take_kept(&mut self, found: FoundRecord) {
        self.pass(found);
        if found.intact {
            self.apply(found);
        } else {
            self.state.damaged.push(DamagedRecord::of(&found));
        }
    }

    /// Skips a record, so that no later one gets its number.
    pub(crate) fn pass(&mut self, found: FoundRecord) {
        self.kept = self.kept.max(found.header.seq);
    }

    /// Ends the replay.
    pub(crate) fn finish(mut self) -> Replayed {
        self.settle();
        self.expected = self.expected.max(1);
        if self.expected <= self.durable {
            self.skip_to(self.durable + 1);
        }
        self.state.cut_from = self.expected;
        // A record that was written again is cut at each of its places: a remaining copy would pass
        // for the next record with its number.
        let copies = self.copies.iter().filter(|found| found.header.seq >= self.expected);
        let torn = self.doubtful.values().chain(copies).map(|found| Torn {
            generation: found.header.generation,
            offset: found.offset,
            durable_seq: found.header.durable_seq,
        });
        self.state.torn = torn.collect();
        let (gaps, damaged) = (&self.state.gaps, &self.state.damaged);
        let is_bad = gaps.iter().any(|gap| gap.last > self.kept_durable)
            || damaged.iter().any(|one| one.seq > self.kept_durable);
        if is_bad && !self.state.torn.is_empty() {
            self.state.witness = Some(Witness { seq: self.expected, durable_seq: self.durable });
            self.expected += 1;
        }
        self.state.next_seq = self.expected.max(self.kept + 1);
        self.state
    }

    /// Records the numbers before `next` as missing.
    fn skip_to(&mut self, next: u64) {
        let (first, last) = (self.expected, next - 1);
        match self.state.gaps.last_mut() {
            Some(gap) if gap.last + 1 == first => gap.last = last,
            _ => self.state.gaps.push(Gap { first, last }),
        }
        self.expected = next;
    }

    /// Applies every record in `doubtful` whose state is decided.
    fn settle(&mut self) {
        while let Some((&seq, _)) = self.doubtful.first_key_value() {
            if seq < self.expected {
                self.doubtful.pop_first();
            } else if seq == self.expected && seq <= self.durable {
                self.apply_next();
            } else if seq == self.expected
                && let Some(last) = self.end_of_transaction()
            {
                while self.expected <= last {
                    self.apply_next();
                }
            } else if self.expected < seq && self.expected <= self.durable {
                self.skip_to(seq.min(self.durable + 1));
            } else {
                return;
            }
        }
    }

    /// Applies the first record in `doubtful`.
    fn apply_next(&mut self) {
        if let Some((seq, found)) = self.doubtful.pop_first() {
            self.apply(found);
            self.expected = seq + 1;
        }
    }

    /// Returns the last number of the transaction that begins with the first record in `doubtful`.
    /// `None`: a record of it is missing or damaged.
    fn end_of_transaction(&self) -> Option<u64> {
        for (next, (&seq, found)) in (self.expected..).zip(&self.doubtful) {
            if seq != next || !found.intact {
                return None;
            }
            if !found.header.continues {
                return Some(seq);
            }
        }
        None
    }

    fn apply(&mut self, found: FoundRecord) {
        let FoundRecord { header, offset, intact, abort_of } = found;
        self.state.records += 1;
        let last = self.state.last_seqs.entry(header.generation).or_default();
        *last = (*last).max(header.seq);
        self.kept_durable = self.kept_durable.max(header.durable_seq);
        self.state.damaged.retain(|damaged| damaged.seq != header.seq);
        if !intact {
            self.state.damaged.push(DamagedRecord::of(&found));
        }
        let place = RecordPlace { generation: header.generation, offset, len: header.payload_len };
        let newest = NewestRecord { seq: header.seq, generation: header.generation, place: None };
        match header.kind {
            RecordKind::Put => self.learn(header.id, NewestRecord { place: Some(place), ..newest }),
            RecordKind::Remove => self.learn(header.id, newest),
            RecordKind::Abort => {
                if let Some(target) = abort_of {
                    self.abort(header.id, target);
                }
            }
            RecordKind::Mark => {}
        }
    }

    fn learn(&mut self, id: MessageId, newest: NewestRecord) {
        let current = match self.state.newest.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                entry.insert(newest);
                return;
            }
        };
        if current.seq < newest.seq {
            let before = std::mem::replace(current, newest);
            self.earlier.entry(id).or_default().push(before);
        } else if current.seq == newest.seq {
            *current = newest;
        } else if let Some(same) =
            self.earlier.get_mut(&id).and_then(|all| all.iter_mut().find(|e| e.seq == newest.seq))
        {
            *same = newest;
        }
    }

    fn abort(&mut self, id: MessageId, target: u64) {
        if let Some(all) = self.earlier.get_mut(&id) {
            all.retain(|entry| entry.seq != target);
        }
        if self.state.newest.get(&id).is_some_and(|newest| newest.seq == target) {
            match self.earlier.get_mut(&id).and_then(Vec::pop) {
                Some(before) => self.state.newest.insert(id, before),
                None => self.state.newest.remove(&id),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::RecordHeader;
    use super::*;

    fn id(n: u8) -> MessageId {
        MessageId::from_bytes([n; 16])
    }

    struct ReplayScript {
        replay: JournalReplay,
        generation: u64,
        offset: u64,
        continues: bool,
    }

    impl ReplayScript {
        fn new() -> Self {
            Self { replay: JournalReplay::new(0, 0), generation: 1, offset: 4096, continues: false }
        }

        fn record(
            mut self,
            seq: u64,
            durable_seq: u64,
            id: MessageId,
            kind: RecordKind,
            intact: bool,
            abort_of: Option<u64>,
        ) -> Self {
            let header = RecordHeader {
                kind,
                generation: self.generation,
                seq,
                durable_seq,
                id,
                continues: self.continues,
                payload_len: 0,
                payload_crc: 0,
            };
            self.replay.take(FoundRecord { header, offset: self.offset, intact, abort_of });
            self.offset += 64;
            self
        }

        fn put(self, seq: u64, durable_seq: u64, n: u8) -> Self {
            self.record(seq, durable_seq, id(n), RecordKind::Put, true, None)
        }

        /// A put whose transaction continues.
        fn put_on(mut self, seq: u64, durable_seq: u64, n: u8) -> Self {
            self.continues = true;
            self = self.put(seq, durable_seq, n);
            self.continues = false;
            self
        }

        fn damaged_put(self, seq: u64, durable_seq: u64, n: u8) -> Self {
            self.record(seq, durable_seq, id(n), RecordKind::Put, false, None)
        }

        fn segment(mut self) -> Self {
            self.generation += 1;
            self.offset = 4096;
            self
        }

        fn end(self) -> Replayed {
            self.replay.finish()
        }
    }

    fn seqs(replayed: &Replayed) -> Vec<u64> {
        let mut seqs: Vec<u64> = replayed.newest.values().map(|newest| newest.seq).collect();
        seqs.sort_unstable();
        seqs
    }

    #[test]
    fn synced_and_unsynced_records_are_taken() {
        let replayed = ReplayScript::new().put(1, 0, 1).put(2, 0, 2).put(3, 2, 3).end();
        assert_eq!(seqs(&replayed), [1, 2, 3]);
        assert_eq!((replayed.next_seq, replayed.torn.len()), (4, 0));
        assert!(replayed.gaps.is_empty() && replayed.damaged.is_empty());
    }

    #[test]
    fn a_hole_that_was_never_durable_is_a_torn_tail_and_cuts_all_after_it() {
        let replayed = ReplayScript::new().put(1, 0, 1).put(3, 1, 3).put(4, 1, 4).end();
        assert_eq!(seqs(&replayed), [1]);
        assert_eq!(replayed.next_seq, 2);
        assert_eq!(replayed.torn.len(), 2);
        assert!(replayed.gaps.is_empty());
    }

    #[test]
    fn a_hole_that_was_durable_once_is_damage_and_loses_nothing_else() {
        let replayed = ReplayScript::new().put(1, 0, 1).put(4, 1, 4).put(5, 4, 5).end();
        assert_eq!(seqs(&replayed), [1, 4, 5]);
        assert_eq!(replayed.gaps, [Gap { first: 2, last: 3 }]);
        assert!(replayed.torn.is_empty());
    }

    #[test]
    fn a_hole_that_is_partly_durable_is_damage_and_a_torn_tail() {
        let replayed = ReplayScript::new().put(1, 0, 1).put(6, 3, 6).end();
        assert_eq!(replayed.gaps, [Gap { first: 2, last: 3 }]);
        assert_eq!(replayed.torn.len(), 1);
        // Only the torn record shows the loss. A mark takes its place.
        assert_eq!(replayed.witness, Some(Witness { seq: 4, durable_seq: 3 }));
        assert_eq!(replayed.next_seq, 5);
    }

    #[test]
    fn a_damaged_payload_is_torn_or_reported() {
        let torn = ReplayScript::new().put(1, 0, 1).damaged_put(2, 1, 2).put(3, 1, 3).end();
        assert_eq!((seqs(&torn), torn.torn.len()), (vec![1], 2));
        assert!(torn.damaged.is_empty());
        let named = ReplayScript::new().put(1, 0, 1).damaged_put(2, 1, 2).put(3, 2, 3).end();
        assert_eq!(seqs(&named), [1, 2, 3]);
        assert_eq!(named.damaged[0].id, id(2));
    }

    #[test]
    fn a_transaction_is_applied_when_its_last_record_is_there() {
        let script = || ReplayScript::new().put(1, 0, 1).put_on(2, 1, 2).put_on(3, 1, 3);
        let whole = script().put(4, 1, 4).put(5, 1, 5).end();
        assert_eq!((seqs(&whole), whole.torn.len(), whole.next_seq), (vec![1, 2, 3, 4, 5], 0, 6));
        for torn in [
            script().end(),
            script().put(5, 1, 5).end(),
            script().damaged_put(4, 1, 4).put(5, 1, 5).end(),
            ReplayScript::new().put(1, 0, 1).put_on(2, 1, 2).put(4, 1, 4).end(),
            ReplayScript::new().put(1, 0, 1).put_on(3, 1, 3).put(4, 1, 4).end(),
        ] {
            assert_eq!((seqs(&torn), torn.next_seq), (vec![1], 2), "{torn:?}");
            assert!(torn.gaps.is_empty() && torn.damaged.is_empty());
        }
    }

    #[test]
    fn a_transaction_that_was_durable_once_loses_only_what_is_damaged() {
        let lost = ReplayScript::new().put_on(1, 0, 1).put(3, 0, 3).put(4, 3, 4).end();
        assert_eq!((seqs(&lost), lost.gaps), (vec![1, 3, 4], vec![Gap { first: 2, last: 2 }]));
        let damaged = ReplayScript::new().put_on(1, 0, 1).damaged_put(2, 0, 2).put(3, 2, 3).end();
        assert_eq!((seqs(&damaged), damaged.damaged.len()), (vec![1, 2, 3], 1));
    }

    #[test]
    fn a_transaction_that_was_written_again_counts_at_its_newer_places() {
        let replayed = ReplayScript::new().put_on(1, 0, 1).segment().put_on(1, 0, 1).put(2, 0, 2).end();
        assert_eq!((seqs(&replayed), replayed.torn.len()), (vec![1, 2], 0));
        assert!(replayed.newest.values().all(|newest| newest.generation == 2));
    }

    #[test]
    fn a_record_written_again_counts_at_its_newer_place() {
        let replayed = ReplayScript::new()
            .put(1, 0, 1)
            .put(2, 1, 2)
            .damaged_put(3, 1, 3)
            .segment()
            .put(2, 1, 2)
            .put(3, 1, 3)
            .put(4, 3, 4)
            .end();
        assert_eq!(seqs(&replayed), [1, 2, 3, 4]);
        assert_eq!(replayed.newest[&id(2)].generation, 2);
        assert_eq!(replayed.newest[&id(3)].generation, 2);
        assert!(replayed.damaged.is_empty() && replayed.gaps.is_empty() && replayed.torn.is_empty());
    }

    #[test]
    fn every_copy_of_a_torn_record_is_cut() {
        let replayed =
            ReplayScript::new().put(1, 0, 1).put(3, 1, 3).segment().put(1, 0, 1).put(3, 1, 3).end();
        assert_eq!((seqs(&replayed), replayed.next_seq), (vec![1], 2));
        let mut torn: Vec<_> = replayed.torn.iter().map(|torn| (torn.generation, torn.offset)).collect();
        torn.sort_unstable();
        assert_eq!(torn, [(1, 4160), (2, 4160)]);
        assert_eq!(replayed.last_seqs[&1], 1, "what is cut does not count as written");
    }

    #[test]
    fn an_abort_restores_the_earlier_version() {
        let replayed = ReplayScript::new()
            .put(1, 0, 1)
            .put(2, 1, 1)
            .put(3, 2, 2)
            .record(4, 3, id(1), RecordKind::Abort, true, Some(2))
            .record(5, 4, id(2), RecordKind::Abort, true, Some(3))
            .end();
        assert_eq!(seqs(&replayed), [1]);
        assert_eq!(replayed.newest[&id(1)].seq, 1);
    }

    #[test]
    fn aborts_of_several_versions_in_any_order() {
        let two = |first, second| {
            ReplayScript::new()
                .put(1, 0, 1)
                .put(2, 1, 1)
                .put(3, 2, 1)
                .record(4, 3, id(1), RecordKind::Abort, true, Some(first))
                .record(5, 4, id(1), RecordKind::Abort, true, Some(second))
                .end()
        };
        assert_eq!(seqs(&two(2, 3)), [1]);
        assert_eq!(seqs(&two(3, 2)), [1]);
    }

    #[test]
    fn missing_last_records_are_detected_if_they_were_durable() {
        let script = ReplayScript { replay: JournalReplay::new(0, 7), ..ReplayScript::new() };
        let replayed = script.put(1, 0, 1).end();
        assert_eq!(replayed.gaps, [Gap { first: 2, last: 7 }]);
        assert_eq!(replayed.next_seq, 8);
    }

    #[test]
    fn a_removal_stays_in_the_index() {
        let replayed =
            ReplayScript::new().put(1, 0, 1).record(2, 1, id(1), RecordKind::Remove, true, None).end();
        assert_eq!(replayed.newest[&id(1)].place, None);
    }
}
