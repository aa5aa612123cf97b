use super::*;

fn is_write(call: TestCall) -> bool {
    matches!(call, TestCall::Write { .. })
}

fn is_sync(call: TestCall) -> bool {
    call == TestCall::Sync
}

#[test]
fn a_checkpoint_indexes_and_lists_the_live_records() {
    for mut bench in engines().map(CheckpointBench::new) {
        let [a, b, c, d] = ids();
        bench.put_bytes(a, vec![1; 10]);
        bench.put_bytes(b, vec![2; 20]);
        bench.put_bytes(c, vec![3; 30]);
        bench.remove(b);
        let aborted = bench.put_bytes(d, vec![4; 40]);
        bench.abort(d, aborted);
        bench.put_bytes(a, vec![5; 50]);
        let generation = bench.checkpoint();
        assert_eq!(bench.messages(), BTreeMap::from([(a, vec![5; 50]), (c, vec![3; 30])]));
        let retained = bench.checkpointer.manifest.retained.clone();
        let [(only, segment)] = &retained.into_iter().collect::<Vec<_>>()[..] else { panic!("not one") };
        assert_eq!((*only, segment.live, segment.live_bytes, segment.size), (generation, 2, 80, MIB));
        bench.assert_consistent();
        assert_eq!(
            bench.checkpointer.manifest_file.read().unwrap().as_ref(),
            Some(&bench.checkpointer.manifest)
        );
        assert_eq!(bench.steps(), [SourceCall::Checkpointed]);
        assert!(!bench.index.has_in_memory(&a), "memory has dropped it");
    }
}

/// Once a removal is in the index and in the log, its record is not needed. The message must not
/// come back.
#[test]
fn a_checkpointed_removal_frees_its_segment() {
    for mut bench in engines().map(CheckpointBench::new) {
        let [a, b] = bench.put_new();
        let first = bench.checkpoint();
        bench.remove(a);
        let second = bench.seal();
        let free = bench.checkpointer.segments.pool().free();
        bench.checkpointer.checkpoint(second).unwrap();
        assert_eq!(bench.generations(), [first]);
        assert_eq!(bench.checkpointer.segments.pool().free(), free + 1);
        assert_eq!(bench.ids_indexed(), [b]);
        bench.assert_consistent();
        bench.assert_rebuilds();
        // The last removal frees all segments.
        bench.remove(b);
        bench.checkpoint();
        assert_eq!(bench.generations(), <[u64; 0]>::default());
        assert_eq!(bench.checkpointer.manifest.tally, Tally::default());
        bench.assert_rebuilds();
    }
}

#[test]
fn the_old_version_of_a_replaced_message_dies() {
    for mut bench in engines().map(CheckpointBench::new) {
        let [a, _] = bench.put_new();
        let first = bench.checkpoint();
        bench.put_bytes(a, vec![9; 99]);
        let second = bench.checkpoint();
        assert_eq!(bench.generations(), [first, second]);
        assert_eq!(bench.messages()[&a], [9; 99]);
        assert_eq!(
            bench.checkpointer.manifest.retained.values().map(|kept| kept.live).collect::<Vec<_>>(),
            [1, 1]
        );
        bench.assert_consistent();
    }
}

/// Checkpoints two messages, then makes the checkpoint of a removal and a new message fail at
/// `file`.
fn failed_checkpoint(
    engine: Arc<dyn IndexEngine>,
    file: &'static str,
    fails: fn(TestCall) -> bool,
) -> (CheckpointBench, [MessageId; 3], CheckpointError) {
    let mut bench = CheckpointBench::new(engine);
    let [a, b] = bench.put_new();
    let [c] = ids();
    bench.checkpoint();
    bench.remove(a);
    bench.put(c);
    let generation = bench.seal();
    let (manifest, segments) = (bench.checkpointer.manifest.clone(), bench.generations());
    bench.disk.fail(file, fails);
    let error = bench.checkpointer.checkpoint(generation).unwrap_err();
    assert_eq!(bench.checkpointer.manifest, manifest, "it is unchanged");
    assert!(
        bench.index.has_in_memory(&a) && bench.index.has_in_memory(&c),
        "memory keeps records until their checkpoint"
    );
    assert!(!bench.checkpointer.durable.is_whole(), "the index is ahead of the manifest, so it is discarded");
    let message = match bench.checkpointer.durable.get(&Key::of(&b)) {
        Err(IndexError::Unavailable { why, .. }) => why,
        answered => panic!("{answered:?}"),
    };
    assert!(message.contains("a checkpoint that changed the index failed"), "{message}");
    bench.checkpointer.release();
    assert_eq!(bench.generations(), segments, "nothing is released");
    bench.steps();
    (bench, [a, b, c], error)
}

/// Asserts that the next run rebuilds the index and repeats the checkpoint.
fn assert_recovers(mut bench: CheckpointBench, [_, b, c]: [MessageId; 3]) {
    bench.disk.heal();
    bench.checkpointer.ensure_index().unwrap();
    bench.checkpointer.checkpoint_all_due().unwrap();
    assert_eq!(bench.steps(), [SourceCall::Rebuilt(2), SourceCall::Checkpointed], "from the old manifest");
    assert_eq!(bench.ids_indexed(), [b, c]);
    assert!(!bench.checkpointer.is_manifest_in_doubt);
    bench.assert_consistent();
    bench.assert_rebuilds();
}

#[test]
fn a_failed_write_of_manifest_or_log_discards_the_changed_index() {
    for engine in engines() {
        for (file, fails) in [
            ("manifest", is_write as fn(TestCall) -> bool),
            ("manifest", is_sync),
            ("liveness", is_write),
            ("liveness", is_sync),
        ] {
            let (bench, ids, error) = failed_checkpoint(engine.clone(), file, fails);
            let is_of_manifest = match error {
                CheckpointError::Manifest(_) => true,
                CheckpointError::Liveness(_) => false,
                error => panic!("{error}"),
            };
            assert_eq!(is_of_manifest, file == "manifest");
            assert_eq!(bench.checkpointer.is_manifest_in_doubt, is_of_manifest, "the disk may have it");
            assert_recovers(bench, ids);
        }
    }
}

/// After a failed write, either of two manifests may be valid at the next open. Each may name a
/// segment that the other does not.
#[test]
fn no_segment_is_released_while_the_manifest_is_in_doubt() {
    for mut bench in engines().map(CheckpointBench::new) {
        bench.put(MessageId::random());
        let [b] = ids();
        let first = bench.checkpoint();
        // No message lives in the next segment, so its checkpoint does not change the index.
        bench.put(b);
        bench.remove(b);
        let second = bench.seal();
        bench.disk.fail("manifest", is_sync);
        bench.checkpointer.checkpoint(second).unwrap_err();
        assert!(bench.checkpointer.durable.is_whole(), "the index was not changed, so it stays");
        // Simulates that the manifest in memory is ahead.
        bench.checkpointer.manifest.checkpointed_generation = second;
        bench.checkpointer.manifest.retained.clear();
        bench.checkpointer.release();
        assert_eq!(bench.generations(), [first, second]);
        bench.disk.heal();
        bench.checkpointer.write_manifest(bench.checkpointer.manifest.clone()).unwrap();
        bench.checkpointer.release();
        assert_eq!(bench.generations(), <[u64; 0]>::default());
    }
}

/// A failed rewriting leaves the old places and the new ones. The next manifest decides which of
/// them count.
#[test]
fn a_rewriting_that_is_not_committed_is_undone() {
    for engine in engines() {
        for file in ["manifest", "liveness"] {
            let mut bench = CheckpointBench::new(engine.clone());
            let [a, b] = ids();
            bench.put_bytes(a, vec![1; 300_000]);
            bench.put_bytes(b, vec![2; 200_000]);
            let first = bench.checkpoint();
            bench.remove(a);
            bench.checkpoint();
            bench.disk.fail(file, is_sync);
            let before = bench.checkpointer.segments.next_generation();
            bench.checkpointer.collect_garbage_round(true, before).unwrap_err();
            assert!(!bench.checkpointer.durable.is_whole());
            bench.disk.heal();
            bench.checkpointer.check_or_rebuild().unwrap();
            assert_eq!(bench.messages(), BTreeMap::from([(b, vec![2; 200_000])]));
            assert_eq!(bench.retained(), [first]);
            bench.assert_consistent();
            bench.compact();
            assert_eq!(bench.messages(), BTreeMap::from([(b, vec![2; 200_000])]));
            bench.assert_rebuilds();
            assert_eq!(bench.generations().len(), 1, "the copies that did not count are recycled");
        }
    }
}

/// Changes of the index wait until it is complete. Other work continues.
#[test]
fn a_checkpoint_waits_for_the_index_only_if_it_changes_it() {
    for mut bench in engines().map(CheckpointBench::new) {
        let [a] = bench.put_new();
        let [b] = ids();
        let first = bench.checkpoint();
        bench.checkpointer.durable.let_go("for a test");
        // An id above all checkpointed keys.
        bench.put(b);
        bench.remove(b);
        let second = bench.seal();
        bench.checkpointer.checkpoint(second).unwrap();
        assert_eq!(bench.generations(), [first]);
        bench.remove(a);
        let third = bench.seal();
        let manifest = bench.checkpointer.manifest.clone();
        assert!(matches!(bench.checkpointer.checkpoint(third), Err(CheckpointError::Rebuilding)));
        assert_eq!(bench.checkpointer.manifest, manifest);
        assert_eq!(bench.generations(), [first, third]);
        bench.checkpointer.run_due_work().unwrap();
        assert_eq!(bench.generations(), <[u64; 0]>::default());
    }
}
