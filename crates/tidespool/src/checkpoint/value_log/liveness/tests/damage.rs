//! What damage costs, and that it is never undetected.

use rustix::io::Errno;

use super::*;
use crate::storage::{Loss, Storage as _};

/// Writes three batches. Each lists a record of a new segment.
fn written() -> (LogDisk, LogPosition) {
    let (disk, mut log) = new_log();
    commit(&mut log, &[(1, 1), (1, 2), (1, 3)], &[]);
    commit(&mut log, &[(2, 5)], &[(1, 2)]);
    let position = commit(&mut log, &[(3, 6)], &[(1, 3)]);
    (disk, position)
}

const EXPECTED: [&[u64]; 3] = [&[1], &[5], &[6]];

#[test]
fn every_flipped_bit_and_every_missing_end_is_detected() {
    let (disk, position) = written();
    let mut whole = Vec::new();
    disk.edit(&file(1), |bytes| whole = bytes.clone());
    assert_eq!(whole.len() as u64, position.len);
    for at in 0..2 * whole.len() {
        disk.edit(&file(1), |bytes| {
            *bytes = whole.clone();
            match at.checked_sub(whole.len()) {
                None => bytes[at] ^= 1 << (at % 8),
                Some(len) => bytes.truncate(len),
            }
        });
        let (_, liveness) = open(&disk, position);
        assert!(!liveness.damage().is_empty(), "{at}");
        for (generation, expected) in (1..).zip(EXPECTED) {
            if liveness.is_exact(generation) {
                assert_eq!(of(&liveness, generation).as_deref(), Some(expected), "{at}: {generation}");
            }
        }
        // A damaged file header loses no entry.
        assert_eq!(liveness.has_gap(), at >= 24, "{at}");
    }
}

#[test]
fn a_damaged_batch_loses_its_entries_and_the_exactness_of_earlier_lists() {
    let (disk, position) = written();
    disk.edit(&file(1), |bytes| bytes[4096 + 25] ^= 1);
    let (mut log, liveness) = open(&disk, position);
    assert!(liveness.damage()[0].starts_with("/spool/liveness.1: the batch of "), "{:?}", liveness.damage());
    assert_eq!([1, 2, 3].map(|one| of(&liveness, one)), [Some(vec![1, 2]), None, Some(vec![6])]);
    assert_eq!([1, 2, 3].map(|one| liveness.is_exact(one)), [false, false, true]);
    // The list of segment 2 may be lost, so one more record does not count as its whole list.
    let second = commit(&mut log, &[(2, 9)], &[]);
    assert_eq!(of(&open(&disk, second).1, 2), None);
    // A compaction does not repair a damaged log.
    let third = log.compact(&|_| true, &LivenessChanges::default()).unwrap();
    log.committed(third);
    let (mut log, liveness) = open(&disk, third);
    assert!(liveness.has_gap() && !liveness.is_exact(1) && liveness.is_exact(3));
    // A renewal does.
    let renewed = log.renew(&changes(&[(1, 1), (2, 5), (3, 6)], &[])).unwrap();
    log.committed(renewed);
    let last = commit(&mut log, &[(2, 9), (4, 1)], &[]);
    let (_, liveness) = open(&disk, last);
    assert!(!liveness.has_gap() && liveness.damage().is_empty());
    assert_eq!(of(&liveness, 2), Some(vec![5, 9]));
    assert!((1..=4).all(|one| liveness.is_exact(one)));
}

/// A renewal does not hold the committed state.
#[test]
fn an_append_after_an_uncommitted_renewal_continues_from_the_committed_state() {
    let (disk, position) = written();
    let (mut log, _) = open(&disk, position);
    log.renew(&changes(&[(7, 7)], &[])).unwrap();
    let next = log.append(&changes(&[(4, 4)], &[])).unwrap();
    let liveness = look(&disk, next);
    assert_eq!([1, 4, 7].map(|one| of(&liveness, one)), [Some(vec![1]), Some(vec![4]), None]);
}

#[test]
fn a_misread_is_no_damage() {
    let (disk, position) = written();
    for at in [0, 20, 24, 30, 50, 4096, 4120, 8200] {
        disk.misread(at);
        let (_, liveness) = open(&disk, position);
        assert!(liveness.damage().is_empty(), "{at}: {:?}", liveness.damage());
        assert_eq!(of(&liveness, 1), Some(vec![1]));
    }
}

#[test]
fn a_missing_file_is_damage_and_an_unreadable_one_is_an_error() {
    let (disk, position) = written();
    // The file is opened, then read.
    for after in 0..6 {
        disk.fail(after, Errno::IO);
        let error = try_open(&disk, position).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("/spool/liveness.1"), "{error}");
    }
    disk.heal();
    disk.remove_file(&file(1)).unwrap();
    let (mut log, liveness) = open(&disk, position);
    assert_eq!(liveness.damage(), ["/spool/liveness.1 is missing"]);
    assert!(liveness.has_gap() && of(&liveness, 1).is_none());
    let next = log.append(&changes(&[(1, 4)], &[])).unwrap();
    log.committed(next);
    let (_, liveness) = open(&disk, next);
    assert!(liveness.has_gap(), "the new file does not hide it");
    assert_eq!(of(&liveness, 1), None);
}

#[test]
fn a_file_of_another_version_is_rejected() {
    let (disk, position) = written();
    let header = super::super::record::FileHeader { version: 2, number: 1 }.encode();
    disk.edit(&file(1), |bytes| bytes[..24].copy_from_slice(&header));
    let error = try_open(&disk, position).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "/spool/liveness.1 has the unknown version 2");
}

#[test]
fn a_file_without_its_name_is_rewritten_and_a_truncated_file_is_damaged() {
    let (disk, position) = written();
    let (mut log, _) = open(&disk, position);
    disk.remove_file(&file(1)).unwrap();
    let next = commit(&mut log, &[(4, 7)], &[]);
    assert_eq!(next.number, 2);
    assert_eq!(log.loss(), Some(Loss::Gone), "found by the append");
    assert_eq!(log.loss(), None);
    let (mut log, liveness) = open(&disk, next);
    assert_eq!((of(&liveness, 1), of(&liveness, 4)), (Some(vec![1]), Some(vec![7])));
    disk.edit(&file(2), |bytes| bytes.truncate(30));
    assert_eq!(log.loss(), Some(Loss::CutShort { len: 30, of: next.len }));
    let error = log.append(&changes(&[], &[])).unwrap_err();
    assert!(matches!(error, LivenessError::Damaged { .. }), "{error}");
    let renewed = log.renew(&changes(&[(4, 7)], &[])).unwrap();
    log.committed(renewed);
    assert_eq!(of(&open(&disk, renewed).1, 4), Some(vec![7]));
}

#[test]
fn files_of_other_numbers_are_removed_and_other_names_stay() {
    let (disk, position) = written();
    for name in ["liveness.0", "liveness.2", "liveness.01", "liveness.new", "liveness"] {
        disk.open(&Path::new(DIR).join(name), crate::storage::OpenMode::Create).unwrap();
    }
    open(&disk, position);
    let left = disk.list(Path::new(DIR)).unwrap();
    assert_eq!(left, ["liveness", "liveness.01", "liveness.1", "liveness.new"]);
}
