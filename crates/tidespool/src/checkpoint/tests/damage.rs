use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::*;

/// Flips a bit of the file.
fn damage(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Writes two segments that are retained. The first holds an older version, a removed message and a
/// live one. The second holds the newer version and the removal. A third segment, which is
/// recycled, removed another message.
fn history(engine: Arc<dyn IndexEngine>) -> (CheckpointBench, [MessageId; 4]) {
    let mut bench = CheckpointBench::new(engine);
    let [replaced, removed, lives, gone] = bench.put_new();
    bench.checkpoint();
    bench.put(replaced);
    bench.remove(removed);
    bench.checkpoint();
    bench.remove(gone);
    bench.checkpoint();
    assert_eq!(bench.generations(), [1, 2]);
    bench.steps();
    (bench, [replaced, removed, lives, gone])
}

/// Asserts that the newest version of each message lives, according to the segments. A message
/// whose removal was recycled comes back: a duplicate is better than a loss.
fn assert_newest_wins(mut bench: CheckpointBench, [replaced, _, lives, gone]: [MessageId; 4]) {
    let seq_of_replaced = bench.indexed()[&Key::of(&replaced)].seq;
    let (manifest, log) = (bench.checkpointer.manifest.clone(), bench.checkpointer.liveness.path());
    bench.checkpointer.rebuild().unwrap();
    let mut expected = [replaced, lives, gone];
    expected.sort_unstable();
    assert_eq!(bench.ids_indexed(), expected);
    assert_eq!(bench.indexed()[&Key::of(&replaced)].seq, seq_of_replaced);
    assert_eq!(bench.steps(), [SourceCall::Rebuilt(3)], "nothing was lost");
    let found = &bench.checkpointer.manifest;
    assert_eq!((found.tally.records, found.number, found.lost), (3, manifest.number + 1, 0));
    assert_ne!(found.liveness.number, manifest.liveness.number, "a new log");
    assert_ne!(bench.checkpointer.liveness.path(), log);
    assert!(!log.exists());
    bench.assert_consistent();
    bench.assert_rebuilds();
}

#[test]
fn with_a_damaged_log_the_newest_version_wins_and_the_log_is_rewritten() {
    for engine in engines() {
        let len = fs::metadata(history(engine.clone()).0.checkpointer.liveness.path()).unwrap().len();
        let mut by_exact_lists = [0; 3];
        for at in (0..len).step_by(7) {
            let (mut bench, ids) = history(engine.clone());
            let log = bench.checkpointer.liveness.path();
            damage(&log, at);
            let manifest = &bench.checkpointer.manifest;
            let is_retained = |generation: u64| manifest.retained.contains_key(&generation);
            let look = LivenessLog::look(&OsStorage, bench.dir.path(), manifest.liveness, &is_retained);
            let read = look.unwrap();
            assert_eq!(read.damage().len(), 1, "byte {at}");
            let exact = [1, 2].iter().filter(|generation| read.is_exact(**generation)).count();
            by_exact_lists[exact] += 1;
            match exact {
                0 => assert_newest_wins(bench, ids),
                1 => {
                    bench.checkpointer.rebuild().unwrap();
                    assert!(!log.exists() && bench.steps()[..] == [SourceCall::Rebuilt(3)], "byte {at}");
                    bench.assert_consistent();
                    bench.assert_rebuilds();
                }
                // The file's own header, which a read does not need.
                _ => {
                    let indexed = bench.indexed();
                    bench.checkpointer.rebuild().unwrap();
                    assert_eq!(bench.indexed(), indexed);
                }
            }
        }
        assert!(by_exact_lists.iter().all(|count| *count > 0), "{by_exact_lists:?}");
    }
}

/// Damage before the lists of all retained segments costs no list. Left in place, it would block
/// the compaction of the log, and each attempt would discard the index.
#[test]
fn a_log_with_a_gap_is_rewritten_although_no_list_is_missing() {
    for mut bench in engines().map(CheckpointBench::new) {
        let [a] = bench.put_new();
        let [b] = ids();
        bench.checkpoint();
        let end_of_first = bench.checkpointer.manifest.liveness.len;
        bench.put(b);
        bench.remove(a);
        bench.checkpoint();
        bench.steps();
        let (indexed, log) = (bench.indexed(), bench.checkpointer.liveness.path());
        damage(&log, end_of_first - 1);
        bench.checkpointer.rebuild().unwrap();
        assert_eq!(bench.steps(), [SourceCall::Rebuilt(1)]);
        assert_eq!(bench.indexed(), indexed);
        assert!(!log.exists());
        bench.assert_consistent();
        bench.assert_rebuilds();
    }
}

/// Without a new log, later segments would not count as completely listed.
#[test]
fn a_log_that_is_lost_while_no_segment_is_retained_is_replaced() {
    for mut bench in engines().map(CheckpointBench::new) {
        let [a] = bench.put_new();
        let [b] = ids();
        bench.checkpoint();
        bench.remove(a);
        bench.checkpoint();
        assert!(bench.checkpointer.manifest.retained.is_empty());
        bench.lose_log();
        bench.checkpointer.ensure_index().unwrap();
        bench.put(b);
        bench.checkpoint();
        bench.assert_consistent();
        bench.assert_rebuilds();
    }
}

/// The first segment has no exact list. The second one has, and holds the abort of a store in the
/// first one.
#[test]
fn an_abort_in_a_segment_with_a_list_counts_for_one_without() {
    for mut bench in engines().map(CheckpointBench::new) {
        let [a, b] = ids();
        let good = bench.put(a);
        let aborted = bench.put(a);
        let first = bench.seal();
        bench.abort(a, aborted);
        bench.put(b);
        let second = bench.seal();
        bench.checkpointer.checkpoint(first).unwrap();
        let end_of_first = bench.checkpointer.manifest.liveness.len;
        bench.checkpointer.checkpoint(second).unwrap();
        assert_eq!(bench.indexed()[&Key::of(&a)].seq, good);
        damage(&bench.checkpointer.liveness.path(), end_of_first - 1);
        bench.checkpointer.rebuild().unwrap();
        assert_eq!(bench.indexed()[&Key::of(&a)].seq, good);
        bench.assert_consistent();
    }
}

#[test]
fn without_a_log_the_newest_version_wins() {
    for (mut bench, ids) in engines().map(history) {
        bench.lose_log();
        assert_newest_wins(bench, ids);
    }
}

/// If the log is damaged too, the manifest still has the number of messages in the segment.
#[test]
fn a_missing_segment_is_counted_as_lost_once() {
    for engine in engines() {
        for has_log in [true, false] {
            let (mut bench, [replaced, _, lives, _]) = history(engine.clone());
            if !has_log {
                fs::write(bench.checkpointer.liveness.path(), vec![0; 4096]).unwrap();
            }
            bench.checkpointer.segments.retire(1);
            bench.checkpointer.rebuild().unwrap();
            assert_eq!(bench.steps(), [SourceCall::Lost(1), SourceCall::Rebuilt(1)]);
            assert_eq!(bench.ids_indexed(), [replaced], "{lives} is lost");
            assert_eq!(bench.checkpointer.manifest.lost, 1);
            assert_eq!(bench.retained(), [2]);
            bench.assert_consistent();
            bench.assert_rebuilds();
            assert_eq!(bench.checkpointer.manifest.lost, 1);
            assert_eq!(bench.steps(), [SourceCall::Rebuilt(1)]);
        }
    }
}

#[test]
fn a_damaged_footer_costs_only_a_scan() {
    for (mut bench, _) in engines().map(history) {
        for generation in [1, 2] {
            let segment = bench.checkpointer.segments.get(generation).unwrap();
            damage(&segment.path, segment.size - 20);
        }
        bench.assert_rebuilds();
        assert_eq!(bench.steps(), [SourceCall::Rebuilt(2)]);
    }
}

/// Without a footer, a record with a damaged header can't be found.
#[test]
fn a_record_that_cannot_be_found_is_counted_as_lost() {
    for (mut bench, [replaced, _, lives, _]) in engines().map(history) {
        let place = bench.indexed()[&Key::of(&lives)];
        let segment = bench.checkpointer.segments.get(1).unwrap();
        damage(&segment.path, place.offset + 8);
        bench.assert_rebuilds();
        assert_eq!(bench.steps(), [SourceCall::Rebuilt(2)], "the footer has it, and a load finds the damage");
        damage(&segment.path, segment.size - 20);
        drop(segment);
        bench.checkpointer.rebuild().unwrap();
        assert_eq!(bench.steps(), [SourceCall::Lost(1), SourceCall::Rebuilt(1)]);
        assert_eq!(bench.ids_indexed(), [replaced]);
        assert_eq!(bench.checkpointer.manifest.lost, 1);
        bench.assert_rebuilds();
    }
}
