//! Single steps: the written bytes, and their state after a failure of the next step.

use rustix::io::Errno;

use super::*;
use crate::storage::{Storage as _, is_no_room};

#[test]
fn without_a_log_there_is_no_list_and_no_damage() {
    let disk = LogDisk::default();
    let (log, liveness) = open(&disk, LogPosition::default());
    assert!(liveness.damage().is_empty() && !liveness.has_gap() && !log.has_gap());
    assert_eq!((of(&liveness, 1), log.path()), (None, file(0)));
}

#[test]
fn an_append_is_one_write_and_one_sync() {
    let (disk, mut log) = new_log();
    commit(&mut log, &[(1, 1)], &[]);
    let (writes, syncs) = disk.writes_and_syncs();
    let records: Vec<(u64, u64)> = (0..200_000).map(|record| (2, record * 20)).collect();
    commit(&mut log, &records, &[]);
    assert_eq!(disk.writes_and_syncs(), (writes + 1, syncs + 1));
}

#[test]
fn a_segment_whose_records_all_died_has_an_empty_list() {
    let (disk, mut log) = new_log();
    commit(&mut log, &[(1, 1), (1, 2), (2, 7)], &[(1, 2), (2, 7), (3, 1)]);
    let position = commit(&mut log, &[(1, 4), (1, 5)], &[(1, 5), (1, 1)]);
    let (_, liveness) = open(&disk, position);
    assert_eq!(of(&liveness, 1), Some(vec![4]));
    assert_eq!(of(&liveness, 2), Some(vec![]));
    assert_eq!(of(&liveness, 3), None, "a death alone is no list");
}

/// The manifest may be on disk although its write failed. Overwriting bytes that it names lost the
/// log.
#[test]
fn an_uncommitted_append_stays_and_does_not_count_for_the_next() {
    let (disk, mut log) = new_log();
    let first = commit(&mut log, &[(1, 1)], &[]);
    let in_doubt = log.append(&changes(&[(2, 1)], &[(1, 1)])).unwrap();
    let next = log.append(&changes(&[(3, 1)], &[])).unwrap();
    assert_eq!(in_doubt.number, next.number);
    for (position, lists) in [
        (first, [Some(vec![1]), None, None]),
        (in_doubt, [Some(vec![]), Some(vec![1]), None]),
        (next, [Some(vec![1]), None, Some(vec![1])]),
    ] {
        let liveness = look(&disk, position);
        assert!(liveness.damage().is_empty(), "{:?}", liveness.damage());
        assert_eq!([1, 2, 3].map(|generation| of(&liveness, generation)), lists);
    }
}

#[test]
fn a_torn_append_is_ignored_at_each_length() {
    let (disk, mut log) = new_log();
    let first = commit(&mut log, &[(1, 1)], &[]);
    log.append(&changes(&[(2, 1)], &[(1, 1)])).unwrap();
    let mut whole = Vec::new();
    disk.edit(&file(1), |bytes| whole = bytes.clone());
    for len in usize::try_from(first.len).unwrap()..=whole.len() {
        disk.edit(&file(1), |bytes| *bytes = whole[..len].to_vec());
        let (mut log, liveness) = open(&disk, first);
        assert!(liveness.damage().is_empty());
        assert_eq!((of(&liveness, 1), of(&liveness, 2)), (Some(vec![1]), None));
        let next = commit(&mut log, &[(3, 3)], &[]);
        assert_eq!(of(&open(&disk, next).1, 3), Some(vec![3]));
    }
}

/// A failed sync loses the written bytes, and the next sync reports success.
#[test]
fn after_a_failed_write_or_sync_a_new_file_is_written() {
    for after in [0, 1] {
        let (disk, mut log) = new_log();
        commit(&mut log, &[(1, 1), (1, 2)], &[]);
        disk.fail(after, Errno::IO);
        let error = log.append(&changes(&[(2, 1)], &[])).unwrap_err();
        assert!(error.to_string().contains("/spool/liveness.1"), "{error}");
        let second = log.append(&changes(&[(2, 2)], &[])).unwrap();
        assert_eq!(second.number, 2);
        // While the manifest can't be written, each attempt reuses the same new file.
        let third = log.append(&changes(&[(2, 3)], &[(1, 1)])).unwrap();
        assert_eq!(third.number, 2);
        log.committed(third);
        assert_eq!(disk.list(Path::new(DIR)).unwrap(), ["liveness.2"]);
        disk.crash(5);
        let (_, liveness) = open(&disk, third);
        assert_eq!((of(&liveness, 1), of(&liveness, 2)), (Some(vec![2]), Some(vec![3])));
    }
}

/// On a full disk, a copy of the whole log would take more space than the batch.
#[test]
fn after_a_full_disk_the_same_file_is_used_again() {
    let (disk, mut log) = new_log();
    commit(&mut log, &[(1, 1)], &[]);
    disk.fail(0, Errno::NOSPC);
    let Err(LivenessError::Io { source, .. }) = log.append(&changes(&[(2, 1)], &[])) else { panic!() };
    assert!(is_no_room(&source));
    let position = commit(&mut log, &[(2, 1)], &[]);
    assert_eq!(position.number, 1);
    disk.crash(3);
    assert_eq!(of(&open(&disk, position).1, 2), Some(vec![1]));
    // A sync may be the first call to allocate space.
    let (mut log, _) = open(&disk, position);
    disk.fail(1, Errno::NOSPC);
    log.append(&changes(&[(3, 1)], &[])).unwrap_err();
    assert_eq!(commit(&mut log, &[(3, 1)], &[]).number, 2);
}

#[test]
fn each_failing_call_of_a_compaction_leaves_the_old_file() {
    for after in 0.. {
        let (disk, mut log) = new_log();
        let first = commit(&mut log, &[(1, 1), (2, 2)], &[]);
        disk.fail(after, Errno::IO);
        let compacted = log.compact(&|generation| generation != 1, &changes(&[(3, 3)], &[]));
        if disk.heal() {
            let position = compacted.unwrap();
            assert_eq!(of(&open(&disk, position).1, 1), None);
            assert!(after > 4);
            return;
        }
        compacted.unwrap_err();
        disk.crash(after);
        let (mut log, liveness) = open(&disk, first);
        assert_eq!((of(&liveness, 1), of(&liveness, 2)), (Some(vec![1]), Some(vec![2])));
        let second = log.compact(&|_| true, &changes(&[(3, 3)], &[])).unwrap();
        log.committed(second);
        disk.crash(after);
        let (_, liveness) = open(&disk, second);
        assert_eq!([1, 2, 3].map(|one| of(&liveness, one)), [1, 2, 3].map(|one| Some(vec![one])));
    }
}

/// If the manifest that names the compacted file fails, the segments that it left out stay
/// retained.
#[test]
fn an_append_after_an_uncommitted_compaction_has_every_committed_record() {
    let (disk, mut log) = new_log();
    commit(&mut log, &[(1, 1), (2, 2)], &[]);
    let in_doubt = log.compact(&|generation| generation != 1, &LivenessChanges::default()).unwrap();
    let next = log.append(&changes(&[(3, 3)], &[])).unwrap();
    assert_eq!(of(&look(&disk, in_doubt), 1), None);
    assert_eq!(of(&look(&disk, next), 1), Some(vec![1]));
    log.committed(next);
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), ["liveness.1"]);
    // The number is not used again, or the manifest in doubt would find another log.
    assert_eq!(log.compact(&|_| true, &LivenessChanges::default()).unwrap().number, 3);
}

/// The manifest is also written for other reasons.
#[test]
fn a_manifest_with_the_old_position_keeps_the_pending_one() {
    let (disk, mut log) = new_log();
    let first = commit(&mut log, &[(1, 1)], &[]);
    let second = log.compact(&|_| true, &changes(&[(2, 2)], &[])).unwrap();
    log.committed(first);
    log.committed(second);
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), ["liveness.2"]);
    assert_eq!(of(&open(&disk, second).1, 2), Some(vec![2]));
}

#[test]
fn a_log_that_is_mostly_garbage_wants_compaction() {
    let (disk, mut log) = new_log();
    let checkpointed =
        |generation| -> Vec<(u64, u64)> { (0..400_000).map(|one| (generation, one * 200)).collect() };
    commit(&mut log, &checkpointed(1), &[]);
    commit(&mut log, &checkpointed(2), &[]);
    assert!(!log.wants_compaction(&|_| true));
    assert!(log.wants_compaction(&|_| false), "no segment is retained");
    assert!(!log.wants_compaction(&|generation| generation == 1), "half of it is useful");
    let position = commit(&mut log, &[], &checkpointed(2));
    assert!(log.wants_compaction(&|_| true), "most records died");
    let (mut log, _) = open(&disk, position);
    assert!(log.wants_compaction(&|_| true), "the same after a reopen");
    let in_doubt = log.compact(&|_| true, &LivenessChanges::default()).unwrap();
    assert!(!log.wants_compaction(&|_| true), "no second file while the manifest can't be written");
    log.committed(in_doubt);
    assert!(!log.wants_compaction(&|_| true));
    assert!(in_doubt.len < 1 << 20, "{in_doubt:?}");
}
