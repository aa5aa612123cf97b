//! Footers written by the writer, and listings of intact, damaged and torn segments.

use proptest::prelude::*;

use super::super::footer::{ENTRY_LEN, FooterEntry, TRAILER_LEN, footer_len};
use super::super::{ColdWriter, JournalChange, Segments, WriteError};
use super::writer::{WriterRig, pool};
use super::*;

/// Lists a segment by a scan, even if it has a footer.
fn scanned(segment: &Segment) -> Vec<FooterEntry> {
    let twin = segment.in_file(segment.file.clone());
    twin.void_footer();
    listed_by_scan(&twin)
}

fn listed_by_scan(segment: &Segment) -> Vec<FooterEntry> {
    let (from_footer, entries) = list(segment);
    assert!(!from_footer);
    entries
}

/// Lists a segment by its footer, and asserts that a scan finds the same.
fn listed(segment: &Segment) -> Vec<FooterEntry> {
    let (from_footer, entries) = list(segment);
    assert!(from_footer, "generation {} has no footer", segment.generation);
    assert_eq!(entries, scanned(segment));
    let end = entries.last().map_or(PAGE, |last| last.offset + footprint(last.len.into()));
    assert!(end <= segment.size - footer_len(entries.len() as u64), "records and footer overlap");
    entries
}

fn kinds(entries: &[FooterEntry]) -> Vec<(u64, RecordKind)> {
    entries.iter().map(|entry| (entry.seq, entry.kind)).collect()
}

/// A sealed segment of the writer with three puts, a removal, an abort and a mark.
fn sealed() -> (WriterRig, Arc<Segment>) {
    let mut rig = WriterRig::new();
    rig.put(1, b"");
    rig.put(2, b"two");
    rig.put(3, &[3; 9000]);
    rig.writer.sync().unwrap();
    rig.writer.append(id(1), JournalChange::Remove);
    rig.writer.append(id(2), JournalChange::Abort(2));
    rig.writer.append(id(0), JournalChange::Mark);
    rig.writer.sync().unwrap();
    let segment = all_sealed(&mut rig).remove(0);
    (rig, segment)
}

/// Seals the active segment, and returns all segments.
fn all_sealed(rig: &mut WriterRig) -> Vec<Arc<Segment>> {
    rig.writer.seal();
    rig.segments.all()
}

/// A single misread byte of a header hid the record from a scan. A rebuild of the index then
/// dropped the record's message.
#[test]
fn a_header_misread_once_hides_no_record() {
    let (rig, segment) = sealed();
    segment.void_footer();
    let entries = listed_by_scan(&segment);
    for entry in &entries {
        for byte in 0..footprint(0) {
            let misread = || *rig.watched.misread.lock() = Some(entry.offset + byte);
            misread();
            if let Ok(listing) = segment.listing(salt_of(SPOOL)) {
                assert_eq!(listing.entries().collect::<Vec<_>>(), entries, "{entry:?} {byte}");
            }
            assert_eq!(*rig.watched.misread.lock(), None, "it was not read");
            misread();
            if let Ok(records) = segment.records(salt_of(SPOOL)) {
                let seqs: Vec<u64> = records.iter().map(|found| found.header.seq).collect();
                assert_eq!(seqs, entries.iter().map(|entry| entry.seq).collect::<Vec<_>>());
            }
        }
    }
    assert_eq!(listed_by_scan(&segment), entries);
}

#[test]
fn a_footer_lists_every_record() {
    let (rig, segment) = sealed();
    let entries = listed(&segment);
    let (put, [remove, abort, mark]) =
        (RecordKind::Put, [RecordKind::Remove, RecordKind::Abort, RecordKind::Mark]);
    assert_eq!(kinds(&entries), [(1, put), (2, put), (3, put), (4, remove), (5, abort), (6, mark)]);
    assert_eq!(entries[4].abort_of, Some(2));
    let lens: Vec<u32> = entries.iter().map(|entry| entry.len).collect();
    assert_eq!(lens, [0, 3, 9000, 0, 8, 0]);
    for entry in &entries[..3] {
        let place = RecordPlace { generation: 1, offset: entry.offset, len: entry.len };
        segment.read_put(salt_of(SPOOL), &entry.id, place).unwrap();
    }
    let recovered = rig.bench.recover();
    assert_clean(&recovered);
    assert_eq!((recovered.replayed.records, recovered.replayed.broken), (6, 0), "a footer was scanned");
}

#[test]
fn full_segments_of_records_of_any_size_have_a_footer() {
    for (len, batch) in [(0, 600), (0, 7), (1, 300), (100, 40), (4000, 5), (9000, 1), (26_000, 2)] {
        let mut rig = WriterRig::new();
        let mut appended = 0;
        while rig.segments.all().len() < 3 {
            for _ in 0..batch {
                rig.put(1, &vec![7; len]);
            }
            appended += batch;
            rig.writer.sync().unwrap();
        }
        let all = all_sealed(&mut rig);
        let total: usize = all.iter().map(|segment| listed(segment).len()).sum();
        assert_eq!(total, appended, "{len} bytes in batches of {batch}");
        assert_clean(&rig.bench.recover());
    }
}

#[test]
fn a_full_segment_of_removals_has_a_footer() {
    let mut rig = WriterRig::new();
    for _ in 0..1500 {
        rig.writer.append(id(9), JournalChange::Remove);
    }
    rig.writer.sync().unwrap();
    let all = all_sealed(&mut rig);
    let entries: Vec<FooterEntry> = all.iter().flat_map(|segment| listed(segment)).collect();
    assert_eq!(entries.len(), 1500);
    assert!(entries.iter().zip(1..).all(|(entry, seq)| (entry.seq, entry.kind) == (seq, RecordKind::Remove)));
    let in_first = listed(&all[0]).len() as u64;
    let wasted = SIZE - PAGE - in_first * (footprint(0) + ENTRY_LEN);
    assert!(wasted < 3 * PAGE, "{wasted} bytes of the first segment are wasted");
}

#[test]
fn a_message_larger_than_a_segment_is_listed_without_a_footer() {
    let mut rig = WriterRig::new();
    rig.put(1, &[1; 300_000]);
    rig.writer.sync().unwrap();
    let all = all_sealed(&mut rig);
    let entries = listed_by_scan(&all[0]);
    assert_eq!((entries.len(), entries[0].len, entries[0].offset), (1, 300_000, PAGE));
}

/// Changes the bytes of a sealed segment, and opens the result as another segment.
fn with_bytes(change: impl FnOnce(&mut Vec<u8>)) -> (JournalBench, Segment) {
    let (_rig, segment) = sealed();
    let mut bytes = std::fs::read(&segment.path).unwrap();
    change(&mut bytes);
    let bench = JournalBench::new(&[]);
    bench.write(0, &bytes);
    let segment = open_segment(&bench, 0, 1);
    (bench, segment)
}

#[test]
fn every_flipped_bit_of_a_footer_is_detected() {
    let (bench, segment) = with_bytes(|_| {});
    let whole = listed(&segment);
    let bytes = std::fs::read(&segment.path).unwrap();
    let footer = usize::try_from(TRAILER_LEN + whole.len() as u64 * ENTRY_LEN).unwrap();
    for at in bytes.len() - footer..bytes.len() - 4 {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            bench.write(0, &bytes);
            assert_eq!(list(&segment), (false, whole.clone()), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_truncated_footer_is_ignored() {
    let (_bench, segment) = with_bytes(|_| {});
    let whole = listed(&segment);
    for missing in [1, 39, 40, 41, 4096, 5000] {
        let (_bench, segment) = with_bytes(|bytes| bytes.truncate(bytes.len() - missing));
        assert_eq!(listed_by_scan(&segment), whole, "{missing} bytes are missing");
    }
}

#[test]
fn a_footer_of_an_earlier_use_or_another_spool_is_ignored() {
    let (_rig, first) = sealed();
    let old = std::fs::read(&first.path).unwrap();
    let mut made = SegmentImage::new(1);
    made.bytes = old;
    let bench = JournalBench::new(&[&made.recycled(2).batch(6, &[put(7, 7, "seven")])]);
    assert_eq!(listed_by_scan(&open_segment(&bench, 0, 2)).len(), 1);
    let listing = first.listing(salt_of([8; 16])).unwrap();
    assert_eq!((listing.from_footer, listing.len()), (false, 0));
}

/// The segment is scanned. The next write returns the error, and records that were not durable are
/// written again elsewhere.
#[test]
fn a_footer_that_cannot_be_written_is_an_error_and_costs_a_scan() {
    for after in [0, 100, 4000] {
        let mut rig = WriterRig::holding_one();
        rig.watched.failing_writes.lock().push_back(after);
        let all = all_sealed(&mut rig);
        assert!(rig.watched.failing_writes.lock().is_empty(), "no footer was written");
        assert_eq!(listed_by_scan(&all[0]).len(), 1);
        rig.put(2, b"two");
        assert!(matches!(rig.writer.sync(), Err(WriteError::Write(_))), "{after}");
        let synced = rig.writer.sync().unwrap();
        assert_eq!((synced.records.len(), synced.finished.len()), (1, 1));
        listed(&all_sealed(&mut rig)[1]);
        rig.bench.recover_whole(&[(1, b"one"), (2, b"two")]);
    }
}

#[test]
fn a_failed_segment_gets_no_footer_and_the_next_one_lists_its_records() {
    for fails_to_sync in [true, false] {
        let mut rig = WriterRig::holding_one();
        rig.put(2, b"two");
        rig.put(3, b"three");
        match fails_to_sync {
            true => *rig.watched.failing_syncs.lock() = 1,
            false => rig.watched.failing_writes.lock().push_back(3000),
        }
        assert!(rig.writer.sync().is_err());
        rig.put(4, b"four");
        rig.writer.sync().unwrap();
        let all = all_sealed(&mut rig);
        assert!(all[0].read_trailer(salt_of(SPOOL)).unwrap().is_none());
        let put = RecordKind::Put;
        assert_eq!(kinds(&listed(&all[1])), [(2, put), (3, put), (4, put)]);
    }
}

/// The segment was sealed with its footer before the sync of its last records failed.
#[test]
fn a_footer_from_before_the_failure_is_not_read() {
    let mut rig = WriterRig::holding_one();
    rig.put(2, b"two");
    rig.writer.write().unwrap();
    rig.writer.seal();
    *rig.watched.failing_syncs.lock() = 1;
    assert!(rig.writer.sync().is_err());
    rig.writer.sync().unwrap();
    let first = rig.segments.get(1).unwrap();
    assert!(first.read_trailer(salt_of(SPOOL)).unwrap().is_some());
    assert!(!first.listing(salt_of(SPOOL)).unwrap().from_footer);
}

/// A sealed segment of which a power cut lost something.
fn torn(lose: impl FnOnce(&mut [u8], &[FooterEntry])) -> (JournalBench, Vec<FooterEntry>) {
    let mut rig = WriterRig::new();
    for n in 1..=3 {
        rig.put(n, &[n; 5000]);
        rig.writer.sync().unwrap();
    }
    rig.put(4, &[4; 5000]);
    rig.put(5, b"five");
    rig.put(6, b"six");
    rig.writer.write().unwrap();
    let all = all_sealed(&mut rig);
    let entries = listed(&all[0]);
    let mut bytes = std::fs::read(&all[0].path).unwrap();
    lose(&mut bytes, &entries);
    let bench = JournalBench::new(&[]);
    bench.write(0, &bytes);
    (bench, entries)
}

fn zero(bytes: &mut [u8], from: u64, to: u64) {
    bytes[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()].fill(0);
}

#[test]
fn the_footer_of_a_torn_segment_is_erased() {
    type Lose = fn(&mut [u8], &[FooterEntry]);
    let in_the_middle: Lose = |bytes, entries| zero(bytes, entries[3].offset, entries[3].offset + 4096);
    // No record is left to be cut: only the footer lists them.
    let at_the_end: Lose = |bytes, entries| zero(bytes, entries[3].offset, SIZE - PAGE);
    for (lose, cut) in [(in_the_middle, 2), (at_the_end, 0)] {
        let (bench, entries) = torn(lose);
        let looked = bench.inspect();
        let footer = looked.journal[0].read_trailer(salt_of(SPOOL)).unwrap();
        assert!(footer.is_some(), "an inspection changes nothing");
        assert!(!looked.journal[0].listing(salt_of(SPOOL)).unwrap().from_footer);

        let recovered = bench.recover();
        assert_eq!((recovered.torn_records, recovered.replayed.next_seq), (cut, 4));
        for recovered in [recovered, bench.recover()] {
            let segment = &recovered.journal[0];
            assert!(segment.read_trailer(salt_of(SPOOL)).unwrap().is_none());
            assert_eq!(list(segment).1, entries[..3]);
            assert_clean(&recovered);
        }
    }
}

/// Damage is not a torn tail: the footer is correct, and lists the lost record.
#[test]
fn the_footer_of_a_damaged_segment_is_kept() {
    let (bench, entries) = torn(|bytes, entries| bytes[usize::try_from(entries[1].offset).unwrap()] ^= 1);
    let recovered = bench.recover();
    assert_eq!(recovered.replayed.gaps.len(), 1);
    assert_eq!(list(&recovered.journal[0]), (true, entries));
}

#[test]
fn a_restored_segment_has_its_footer() {
    let (rig, segment) = sealed();
    let entries = listed(&segment);
    std::fs::remove_file(&segment.path).unwrap();
    rig.segments.restore(&segment).unwrap();
    assert_eq!(listed(&rig.segments.get(1).unwrap()), entries);
}

/// Writes messages of these lengths to cold segments.
fn cold(lens: &[usize], expected: (u64, u64)) -> (JournalBench, Vec<Arc<Segment>>) {
    let bench = JournalBench::new(&[]);
    let segments = Segments::new(Arc::new(pool(&bench, 0)), SPOOL, 1);
    let mut writer = ColdWriter::new(&segments, expected.0, expected.1);
    for (seq, len) in (10..).step_by(3).zip(lens) {
        let data = vec![5; *len];
        let place = writer.append(id(5), seq, &data, payload_crc(&data)).unwrap();
        assert!(place.offset >= PAGE);
    }
    let filled = writer.finish().unwrap();
    (bench, filled)
}

#[test]
fn cold_segments_have_the_same_footers() {
    for (len, count) in [(0, 2000), (100, 900), (5000, 30), (50_000, 3)] {
        let lens = vec![len; count];
        let bytes = footprint(len as u64) * count as u64;
        for expected in [(count as u64, bytes), (0, 0), (1, 1 << 30)] {
            let (_bench, filled) = cold(&lens, expected);
            let entries: Vec<FooterEntry> = filled.iter().flat_map(|segment| listed(segment)).collect();
            assert_eq!(entries.len(), count);
            assert!(entries.iter().zip((10..).step_by(3)).all(|(entry, seq)| entry.seq == seq));
            assert!(filled.iter().all(|segment| segment.size <= SIZE));
        }
    }
}

#[test]
fn a_cold_segment_is_no_larger_than_expected() {
    let (_bench, filled) = cold(&[1000; 8], (8, 8 * footprint(1000)));
    let sizes: Vec<u64> = filled.iter().map(|segment| segment.size).collect();
    assert_eq!(sizes, [PAGE + (8 * footprint(1000)).next_multiple_of(PAGE) + PAGE]);
}

#[test]
fn a_cold_message_larger_than_a_segment_has_its_own_segment() {
    let (_bench, filled) = cold(&[10, 300_000, 10], (3, 300_500));
    let found = filled.iter().map(|segment| list(segment)).map(|(from_footer, all)| (from_footer, all.len()));
    assert_eq!(found.collect::<Vec<_>>(), [(true, 1), (false, 1), (true, 1)]);
}

#[derive(Debug, Clone)]
enum FooterStep {
    Put(u8, usize),
    Remove(u8),
    Abort(u64),
    Mark,
    Write,
    Sync,
    Seal,
    FailWrite(usize),
    FailSync,
}

fn step() -> impl Strategy<Value = FooterStep> {
    prop_oneof![
        6 => (1..9u8, prop_oneof![Just(0), 1..200usize, 2000..20_000usize, Just(70_000)])
            .prop_map(|(n, len)| FooterStep::Put(n, len)),
        3 => (1..9u8).prop_map(FooterStep::Remove),
        1 => (1..9u64).prop_map(FooterStep::Abort),
        1 => Just(FooterStep::Mark),
        2 => Just(FooterStep::Write),
        3 => Just(FooterStep::Sync),
        2 => Just(FooterStep::Seal),
        // A disk writes whole sectors. A partly written header would be damage.
        1 => (0..18usize).prop_map(|sectors| FooterStep::FailWrite(sectors * 512)),
        1 => Just(FooterStep::FailSync),
    ]
}

/// Performs one step. An error leaves all records queued, and there is always a segment for them.
fn take(rig: &mut WriterRig, step: &FooterStep) {
    let pool = rig.segments.pool();
    while pool.free() < 3 {
        pool.count_out();
        pool.give(pool.create(SIZE).unwrap());
    }
    match step {
        FooterStep::Put(n, len) => drop(rig.put(*n, &vec![*n; *len])),
        FooterStep::Remove(n) => drop(rig.writer.append(id(*n), JournalChange::Remove)),
        FooterStep::Abort(back) => {
            let target = rig.writer.last_seq().saturating_sub(*back);
            rig.writer.append(id(1), JournalChange::Abort(target));
        }
        FooterStep::Mark => drop(rig.writer.append(id(0), JournalChange::Mark)),
        FooterStep::Write => drop(rig.writer.write()),
        FooterStep::Sync => drop(rig.writer.sync()),
        FooterStep::Seal => rig.writer.seal(),
        FooterStep::FailWrite(after) => {
            rig.watched.failing_writes.lock().push_back(*after);
            drop(rig.writer.sync());
            rig.watched.failing_writes.lock().clear();
        }
        FooterStep::FailSync => {
            *rig.watched.failing_syncs.lock() = 1;
            drop(rig.writer.sync());
            *rig.watched.failing_syncs.lock() = 0;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_footer_lists_what_a_scan_finds(steps in proptest::collection::vec(step(), 1..60)) {
        let mut rig = WriterRig::new();
        steps.iter().for_each(|step| take(&mut rig, step));
        take(&mut rig, &FooterStep::Sync);
        take(&mut rig, &FooterStep::Sync);
        prop_assert_eq!(rig.writer.unsynced(), 0);
        rig.writer.seal();
        let mut seqs = std::collections::BTreeSet::new();
        for segment in rig.segments.all() {
            let (from_footer, entries) = list(&segment);
            if from_footer {
                prop_assert_eq!(&entries, &scanned(&segment));
            } else {
                // The failed write may have been the footer's.
                let may_lack_it = steps.iter().any(|step| matches!(step, FooterStep::FailWrite(_)));
                prop_assert!(may_lack_it || segment.has_failed() || segment.size != SIZE);
            }
            seqs.extend(entries.iter().map(|entry| entry.seq));
        }
        prop_assert_eq!(seqs.len() as u64, rig.writer.last_seq(), "a record is in no list");
        let recovered = rig.bench.recover();
        assert_clean(&recovered);
        prop_assert_eq!(recovered.replayed.next_seq, rig.writer.last_seq() + 1);
    }
}
