//! Recovery of one hand-made journal in each test.

use super::super::replay::Gap;
use super::*;

fn gap(first: u64, last: u64) -> Gap {
    Gap { first, last }
}

#[test]
fn every_record_of_every_batch_is_found() {
    let first = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one"), put(2, 2, vec![2; 9000])])
        .batch(2, &[remove(3, 1)]);
    let second = SegmentImage::new(2).batch(3, &[put(4, 4, ""), put(5, 2, "new")]).batch(5, &[mark(6)]);
    // The slots are in another order than the generations.
    let recovered = JournalBench::new(&[&second, &first]).recover_whole(&[(2, b"new"), (4, b"")]);
    assert_eq!(recovered.replayed.next_seq, 7);
    assert_eq!(recovered.replayed.records, 6);
    assert!(recovered.next_generation > 2);
    assert_eq!(recovered.next_slot, 2);
}

#[test]
fn a_torn_tail_is_cut_and_stays_cut_with_new_records_behind_it() {
    let torn = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "kept")])
        .batch(1, &[put(2, 2, vec![2; 9000]), put(3, 3, "after it"), put(4, 1, "newer")])
        .without_page_of(2, 4096);
    let bench = JournalBench::new(&[&torn]);
    let recovered = bench.recover_whole(&[(1, b"kept")]);
    assert_eq!((recovered.replayed.next_seq, recovered.torn_records), (2, 3));

    // The numbers are used again, for other messages.
    let next = SegmentImage::new(recovered.next_generation).batch(1, &[put(2, 5, "five")]);
    bench.write(1, &next.bytes);
    let recovered = bench.recover_whole(&[(1, b"kept"), (5, b"five")]);
    assert_eq!((recovered.replayed.next_seq, recovered.torn_records), (3, 0));

    let more = SegmentImage::new(recovered.next_generation).batch(2, &[put(3, 6, "six"), put(4, 7, "seven")]);
    bench.write(2, &more.bytes);
    bench.recover_whole(&[(1, b"kept"), (5, b"five"), (6, b"six"), (7, b"seven")]);
}

#[test]
fn pages_written_out_of_order_are_a_torn_tail() {
    // Only the last record of the second batch reached the disk.
    let torn = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "kept")])
        .batch(1, &[put(2, 2, vec![2; 5000]), put(3, 3, vec![3; 5000]), put(4, 4, vec![4; 100])])
        .batch(1, &[put(5, 5, "five")])
        .without_page_of(2, 0)
        .without_page_of(2, 4096);
    let bench = JournalBench::new(&[&torn]);
    let recovered = bench.recover_whole(&[(1, b"kept")]);
    assert_eq!(recovered.replayed.next_seq, 2);
    let again = bench.recover();
    assert_holds(&again, &[(1, b"kept")]);
    assert_eq!((again.replayed.next_seq, again.torn_records), (2, 0));
}

/// A record of a torn tail can be in two segments: in one whose sync failed, and in the next one. A
/// remaining copy would pass for the next record with its number, and hide older records.
#[test]
fn both_places_of_a_torn_record_are_cut() {
    let failed = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "kept")])
        .batch(1, &[put(2, 2, vec![2; 5000]), put(3, 3, "older")])
        .flip(2, PAYLOAD + 3);
    let fresh =
        SegmentImage::new(2).batch(1, &[put(2, 2, vec![2; 5000]), put(3, 3, "older")]).flip(2, PAYLOAD + 3);
    for intact_first in [true, false] {
        let failed = if intact_first { failed.clone() } else { failed.clone().flip(3, PAYLOAD) };
        let bench = JournalBench::new(&[&failed, &fresh]);
        let recovered = bench.recover();
        assert_holds(&recovered, &[(1, b"kept")]);
        assert_eq!(recovered.replayed.next_seq, 2);
        let next =
            SegmentImage::new(recovered.next_generation).batch(1, &[put(2, 3, "newer"), put(3, 4, "four")]);
        bench.write(2, &next.bytes);
        bench.recover_whole(&[(1, b"kept"), (3, b"newer"), (4, b"four")]);
    }
}

#[test]
fn a_damaged_header_in_the_middle_is_a_gap_and_later_records_are_kept() {
    let made = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one"), put(2, 2, vec![2; 9000]), put(3, 3, "three")])
        .batch(3, &[put(4, 4, "four")])
        .flip(2, 17);
    let recovered = JournalBench::new(&[&made]).recover();
    assert_holds(&recovered, &[(1, b"one"), (3, b"three"), (4, b"four")]);
    assert_eq!(recovered.replayed.gaps, [gap(2, 2)]);
    assert_eq!(recovered.replayed.next_seq, 5);
}

#[test]
fn a_damaged_payload_in_the_middle_is_reported_and_later_records_are_kept() {
    let made = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one"), put(2, 2, vec![2; 9000]), put(3, 3, "three")])
        .batch(3, &[put(4, 4, "four")])
        .flip(2, PAYLOAD + 4000);
    let recovered = JournalBench::new(&[&made]).recover();
    let mut found = contents(&recovered);
    assert_eq!(found.remove(&id(2)), Some(RecordContent::Damaged));
    assert_eq!(found.len(), 3);
    assert_eq!(recovered.replayed.gaps, []);
    let damaged: Vec<MessageId> = recovered.replayed.damaged.iter().map(|damaged| damaged.id).collect();
    assert_eq!(damaged, [id(2)]);
}

#[test]
fn stale_records_behind_a_short_new_use_are_not_read() {
    let old =
        SegmentImage::new(1).batch(0, &[put(1, 1, "old")]).batch(1, &[put(2, 2, "stale"), remove(3, 9)]);
    let reused = old.recycled(5).batch(3, &[put(4, 4, "four")]);
    let checkpointed = Checkpointed { generation: 4, seq: 3, durable_seq: 3, ..Checkpointed::default() };
    let recovered = JournalBench::new(&[&reused]).recover_with(&checkpointed);
    assert_holds(&recovered, &[(4, b"four")]);
    assert_eq!(contents(&recovered).len(), 1);
    assert_clean(&recovered);
}

/// A power cut can keep the records of a segment's new use and lose its header page. Then nothing
/// shows that the generation was used. If this file got the same generation again, the old records
/// behind the new ones would count.
#[test]
fn records_whose_header_page_was_lost_never_count_later() {
    let active = SegmentImage::new(1).batch(0, &[put(1, 1, "one")]);
    let lost =
        SegmentImage::new(2).batch(1, &[put(2, 2, "lost")]).batch(1, &[put(3, 3, "lost too")]).marked_free();
    let bench = JournalBench::new(&[&active, &lost]);
    let recovered = bench.recover();
    assert_holds(&recovered, &[(1, b"one")]);
    assert_eq!(recovered.free.len(), 1);
    let reused = lost.recycled(recovered.next_generation).batch(1, &[put(2, 3, "newer")]);
    bench.write(1, &reused.bytes);
    let recovered = bench.recover();
    assert_holds(&recovered, &[(1, b"one"), (3, b"newer")]);
}

#[test]
fn a_record_inside_a_damaged_message_does_not_count() {
    // A message that contains valid records of another spool and of another generation.
    let other_spool = SegmentImage { spool: [9; 16], ..SegmentImage::new(1) };
    let mut bait = other_spool.record(9, &put(7, 7, "of another spool"));
    bait.resize(bait.len().next_multiple_of(8), 0);
    bait.extend(SegmentImage::new(3).record(9, &put(8, 8, "of another generation")));
    let made = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one"), put(2, 2, bait), put(3, 3, "three")])
        .batch(3, &[mark(4)]);
    // If the message is intact, the scan skips it. Without its header, the scan looks for records
    // at every eighth byte of it.
    let whole = JournalBench::new(&[&made]).recover();
    assert_eq!(whole.replayed.next_seq, 5);
    assert_clean(&whole);
    let recovered = JournalBench::new(&[&made.flip(2, 3)]).recover();
    assert_holds(&recovered, &[(1, b"one"), (3, b"three")]);
    assert_eq!(recovered.replayed.gaps, [gap(2, 2)]);
}

#[test]
fn records_are_read_behind_a_damaged_first_page() {
    let first = SegmentImage::new(1).batch(0, &[put(1, 1, "one")]);
    // The file was used before: its newest generation counts.
    let old = SegmentImage::new(2).batch(1, &[put(2, 2, "stale")]).batch(2, &[put(3, 3, "stale")]);
    let second = old.recycled(4).batch(1, &[put(2, 2, "two")]).flip_first_page();
    let third = SegmentImage::new(5).batch(2, &[put(3, 3, "three")]);
    let bench = JournalBench::new(&[&first, &second, &third]);
    let recovered = bench.recover();
    assert_holds(&recovered, &[(1, b"one"), (2, b"two"), (3, b"three")]);
    assert_eq!(recovered.damage.len(), 1);
    assert_eq!(recovered.damage[0].path, bench.path(1));
}

/// Without the first page, only the start of a batch shows the generation of a segment. Here one
/// batch begins with a damaged record, and the other batch is torn. The records in between stay
/// readable when the torn record is cut.
#[test]
fn records_behind_a_damaged_first_page_stay_when_the_torn_tail_is_cut() {
    let made = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one"), put(2, 2, "two"), put(3, 3, "three")])
        .batch(0, &[put(5, 5, "torn")])
        .flip(1, 3)
        .flip_first_page();
    let bench = JournalBench::new(&[&made]);
    let checkpointed = Checkpointed { durable_seq: 3, ..Checkpointed::default() };
    for torn in [1, 0] {
        let recovered = bench.recover_with(&checkpointed);
        assert_holds(&recovered, &[(2, b"two"), (3, b"three")]);
        assert_eq!((recovered.replayed.gaps, recovered.torn_records), (vec![gap(1, 1)], torn));
    }
    assert_eq!(bench.recover_with(&checkpointed).damage, []);
}

/// An abandoned cold segment lost its first page before it was used again. If it counted as a
/// segment of the journal, messages that were replaced or removed since would come back.
#[test]
fn old_records_behind_a_damaged_first_page_do_not_come_back() {
    let old = SegmentImage::new(7).batch(1, &[put(1, 1, "replaced"), put(2, 2, "removed")]).flip_first_page();
    let young = SegmentImage::new(6).batch(5, &[put(6, 6, "young")]);
    let bench = JournalBench::new(&[&old, &young]);
    let checkpointed = Checkpointed { generation: 5, seq: 5, durable_seq: 5, ..Checkpointed::default() };
    for _ in 0..2 {
        let recovered = bench.recover_with(&checkpointed);
        assert_holds(&recovered, &[(6, b"young")]);
        assert_eq!(contents(&recovered).len(), 1);
        assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
        assert_eq!(recovered.damage[0].path, bench.path(0));
    }
    assert_eq!(std::fs::read(bench.path(0)).unwrap(), old.bytes, "left alone");
}

/// Opening a pipe must not block, and neither a pipe nor a directory counts as a segment.
#[test]
fn a_pipe_or_directory_is_left_alone_and_reported() {
    let bench = JournalBench::new(&[&SegmentImage::new(1).batch(0, &[put(1, 1, "one")])]);
    std::fs::create_dir(bench.path(1)).unwrap();
    let mode = rustix::fs::Mode::from_bits_truncate(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, bench.path(2), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for repair in [false, true] {
        let recovered =
            recover(&bench.storage, bench.dir.path(), SPOOL, &Checkpointed::default(), repair).unwrap();
        assert_holds(&recovered, &[(1, b"one")]);
        let named: Vec<PathBuf> = recovered.damage.iter().map(|damage| damage.path.clone()).collect();
        assert_eq!(named, [bench.path(1), bench.path(2)], "{:?}", recovered.damage);
    }
}

#[test]
fn a_checkpointed_segment_with_a_damaged_first_page_is_free() {
    let checkpointed = SegmentImage::new(1).batch(0, &[put(1, 1, "one")]).flip_first_page();
    let next = SegmentImage::new(2).batch(1, &[put(2, 2, "two")]);
    let what = Checkpointed { generation: 1, seq: 1, durable_seq: 1, ..Checkpointed::default() };
    let recovered = JournalBench::new(&[&checkpointed, &next]).recover_with(&what);
    assert_holds(&recovered, &[(2, b"two")]);
    assert_eq!(recovered.free.len(), 1);
    assert_clean(&recovered);
}

#[test]
fn the_loss_of_a_truncated_file_is_reported() {
    let first = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one"), put(2, 2, "two")])
        .batch(2, &[put(3, 3, vec![3; 9000])]);
    let second = SegmentImage::new(2).batch(3, &[put(4, 4, "four")]);
    let bench = JournalBench::new(&[&first, &second]);
    // The file ends in the middle of a payload, before a record, in a header, in the first page,
    // and at 0.
    for (keep, held, gaps) in [
        (first.places[&3] + 5000, 3, vec![]),
        (first.places[&3], 3, vec![gap(3, 3)]),
        (first.places[&2] + 30, 2, vec![gap(2, 3)]),
        (100, 1, vec![gap(1, 3)]),
        (0, 1, vec![gap(1, 3)]),
    ] {
        bench.write(0, &first.bytes[..keep]);
        let recovered = bench.recover();
        let whole =
            contents(&recovered).into_values().filter(|content| matches!(content, RecordContent::Whole(_)));
        assert_eq!(whole.count(), held, "{keep} bytes");
        assert_eq!(recovered.replayed.gaps, gaps, "{keep} bytes");
        assert_eq!(recovered.replayed.damaged.len(), usize::from(keep > first.places[&3]), "{keep} bytes");
        assert_eq!(recovered.damage.is_empty(), keep == 0, "{keep} bytes: {:?}", recovered.damage);
    }
}

#[test]
fn a_copy_of_a_segment_changes_nothing() {
    let first = SegmentImage::new(1).batch(0, &[put(1, 1, "one"), put(2, 2, "two")]);
    let second = SegmentImage::new(2).batch(2, &[remove(3, 1), put(4, 2, "newer")]);
    for files in [[&first, &second, &first], [&first, &first, &second], [&second, &first, &second]] {
        let bench = JournalBench::new(&files);
        let recovered = bench.recover();
        assert_holds(&recovered, &[(2, b"newer")]);
        assert_eq!(recovered.damage.len(), 1);
        assert!(recovered.damage[0].what.contains("a copy of"), "{:?}", recovered.damage);
        assert!(recovered.free.is_empty(), "left alone");
    }
}

#[test]
fn foreign_files_are_left_alone_and_reported() {
    let ours = SegmentImage::new(1).batch(0, &[put(1, 1, "one")]);
    let theirs = SegmentImage::new(1).with_header(Role::Journal, 1, [9; 16]);
    let theirs = SegmentImage { spool: [9; 16], ..theirs }.batch(0, &[put(1, 9, "theirs")]);
    let bench = JournalBench::new(&[&ours, &theirs]);
    bench.write(2, &[0x5a; 70_000]);
    bench.write(3, b"a note");
    let recovered = bench.recover();
    assert_holds(&recovered, &[(1, b"one")]);
    let named: Vec<PathBuf> = recovered.damage.iter().map(|damage| damage.path.clone()).collect();
    assert_eq!(named, [bench.path(1), bench.path(2), bench.path(3)]);
    assert!(recovered.free.is_empty());
    assert_eq!(std::fs::read(bench.path(1)).unwrap(), theirs.bytes);
    assert_eq!(std::fs::read(bench.path(3)).unwrap(), b"a note");
}

#[test]
fn empty_files_and_files_of_zeros_are_free() {
    let bench = JournalBench::new(&[&SegmentImage::new(1).batch(0, &[put(1, 1, "one")])]);
    bench.write(1, &[]);
    bench.write(2, &[0; 100]);
    bench.write(3, &vec![0; usize::try_from(SIZE).unwrap()]);
    let recovered = bench.recover_whole(&[(1, b"one")]);
    assert_eq!(recovered.free.len(), 3);
    let nothing = JournalBench::new(&[]).recover();
    assert_eq!((nothing.replayed.next_seq, nothing.next_slot), (1, 0));
}

#[test]
fn a_record_written_again_after_a_failed_sync_counts_at_its_newer_place() {
    let failed = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one")])
        .batch(1, &[put(2, 2, "two"), put(3, 3, "three")])
        .flip(2, PAYLOAD)
        .cut_at(3);
    let fresh = SegmentImage::new(2).batch(1, &[put(2, 2, "two"), put(3, 3, "three"), put(4, 4, "four")]);
    let recovered = JournalBench::new(&[&failed, &fresh]).recover_whole(&[
        (1, b"one"),
        (2, b"two"),
        (3, b"three"),
        (4, b"four"),
    ]);
    assert_eq!(recovered.replayed.newest[&id(2)].generation, 2);
    assert_eq!((recovered.replayed.next_seq, recovered.torn_records), (5, 0));
}

#[test]
fn an_aborted_put_was_never_there() {
    let made = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one")])
        .batch(1, &[put(2, 1, "not stored"), put(3, 2, "not stored")])
        .batch(3, &[abort(4, 1, 2), abort(5, 2, 3)]);
    JournalBench::new(&[&made]).recover_whole(&[(1, b"one")]);
    // An unreadable abort is damage like any other: the put may reappear, and the gap is reported.
    let recovered = JournalBench::new(&[&made.batch(5, &[mark(6)]).flip(5, 5)]).recover();
    assert_holds(&recovered, &[(1, b"one"), (2, b"not stored")]);
    assert_eq!(recovered.replayed.gaps, [gap(5, 5)]);
}

#[test]
fn a_segment_larger_than_usual_is_read() {
    let large = SegmentImage::sized(2, 3 << 20).batch(1, &[put(2, 2, vec![0xab; (3 << 20) - 8192])]);
    JournalBench::new(&[
        &SegmentImage::new(1).batch(0, &[put(1, 1, "one")]),
        &large,
        &SegmentImage::new(3).batch(2, &[put(3, 3, "three")]),
    ])
    .recover_whole(&[(1, b"one"), (2, &vec![0xab; (3 << 20) - 8192]), (3, b"three")]);
}

#[test]
fn a_missing_end_of_the_journal_is_detected() {
    let made = SegmentImage::new(1).batch(0, &[put(1, 1, "one")]);
    let checkpointed = Checkpointed { durable_seq: 4, ..Checkpointed::default() };
    let bench = JournalBench::new(&[&made]);
    let recovered = bench.recover_with(&checkpointed);
    assert_holds(&recovered, &[(1, b"one")]);
    assert_eq!(recovered.replayed.gaps, [gap(2, 4)]);
    assert_eq!(recovered.replayed.next_seq, 5);
    assert_eq!(bench.recover_with(&checkpointed).replayed.gaps, [gap(2, 4)]);
}

/// A later record shows that a lost record was durable once. If this later record is torn, it is
/// cut. Its evidence must survive: otherwise a process that dies before it reports the loss would
/// hide it.
#[test]
fn a_loss_that_only_a_torn_record_shows_is_reported_again() {
    let made = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one")])
        .batch(1, &[put(2, 2, "two"), put(3, 3, "three")])
        .batch(3, &[put(4, 4, vec![4; 5000]), put(5, 5, "five")])
        .without_page_of(2, 0)
        .without_page_of(4, 0);
    let bench = JournalBench::new(&[&made]);
    let first = bench.recover();
    assert_holds(&first, &[(1, b"one")]);
    assert_eq!(first.replayed.gaps, [gap(2, 3)]);
    let second = bench.recover();
    assert_holds(&second, &[(1, b"one")]);
    assert_eq!(second.replayed.gaps, [gap(2, 3)]);
    assert_eq!(second.replayed.next_seq, first.replayed.next_seq);
    // After the report the spool continues: the numbers behind the loss are used.
    let next = SegmentImage::new(second.next_generation).batch(3, &[put(second.replayed.next_seq, 6, "six")]);
    bench.write(1, &next.bytes);
    let third = bench.recover();
    assert_holds(&third, &[(1, b"one"), (6, b"six")]);
    assert_eq!(third.replayed.gaps, [gap(2, 3)]);
}

/// The next slot number must not wrap to a used one: a new segment would overwrite an existing
/// file.
#[test]
fn a_file_with_the_highest_slot_is_not_overwritten() {
    let bench = JournalBench::new(&[&SegmentImage::new(1).batch(0, &[put(1, 1, "one")])]);
    bench.write(u32::MAX, b"another program's");
    let recovered = bench.recover();
    assert_holds(&recovered, &[(1, b"one")]);
    let pool = writer::pool(&bench, recovered.next_slot);
    for _ in 0..2 {
        pool.create(SIZE).unwrap();
    }
    assert_eq!(std::fs::read(bench.path(u32::MAX)).unwrap(), b"another program's");
    assert_holds(&bench.recover(), &[(1, b"one")]);
}

#[test]
fn a_missing_retained_segment_is_reported() {
    let checkpointed = Checkpointed {
        generation: 3,
        seq: 9,
        durable_seq: 9,
        retained: [2].into(),
        ..Checkpointed::default()
    };
    let recovered = JournalBench::new(&[]).recover_with(&checkpointed);
    assert_eq!(recovered.damage.len(), 1);
    assert!(recovered.damage[0].what.contains("generation 2"), "{:?}", recovered.damage);
}

#[test]
fn without_repair_nothing_is_changed() {
    let torn = SegmentImage::new(1)
        .batch(0, &[put(1, 1, "one")])
        .batch(1, &[put(2, 2, "two"), put(3, 3, "x")])
        .flip(2, PAYLOAD);
    let bench = JournalBench::new(&[&torn]);
    let recovered = bench.inspect();
    assert_eq!(recovered.torn_records, 2);
    assert_eq!(std::fs::read(bench.path(0)).unwrap(), torn.bytes);
}

/// The process dies when the checkpoint is in the middle of a segment, so the index refers to that
/// segment. The spool is opened and shut down before the next checkpoint. Then the manifest lists
/// the segment as retained, though it is not checkpointed.
#[test]
fn a_retained_segment_above_the_checkpoint_is_replayed() {
    let first = SegmentImage::new(1).batch(0, &[put(1, 1, "one")]);
    let second = SegmentImage::new(2).batch(1, &[put(2, 2, "two"), put(3, 3, "three")]);
    let checkpointed = Checkpointed {
        generation: 1,
        seq: 1,
        durable_seq: 3,
        retained: [1, 2].into(),
        ..Checkpointed::default()
    };
    let recovered = JournalBench::new(&[&first, &second]).recover_with(&checkpointed);
    assert_holds(&recovered, &[(2, b"two"), (3, b"three")]);
    assert_clean(&recovered);
    let retained: Vec<u64> = recovered.retained.iter().map(|segment| segment.generation).collect();
    assert_eq!(retained, [1]);
}
