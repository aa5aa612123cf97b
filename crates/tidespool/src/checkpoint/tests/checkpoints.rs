use super::disk::Fault;
use super::*;

#[test]
fn a_checkpoint_indexes_what_lives_and_lists_it() {
    let mut bench = CheckpointBench::new();
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
    assert_eq!(bench.checkpointer.manifest_file.read().unwrap().as_ref(), Some(&bench.checkpointer.manifest));
    assert_eq!(bench.steps(), [SourceCall::Filed]);
    assert!(!bench.index.knows(&a), "memory has forgotten it");
}

/// The removal of a filed message is in the index and in the log. Its record is not needed any
/// more, and the message does not come back.
#[test]
fn a_removal_that_is_filed_gives_its_segment_back() {
    let mut bench = CheckpointBench::new();
    let [a, b] = ids();
    bench.put(a);
    bench.put(b);
    let first = bench.checkpoint();
    bench.remove(a);
    let second = bench.seal();
    let free = bench.checkpointer.segments.pool().free();
    bench.checkpointer.checkpoint(second).unwrap();
    assert_eq!(bench.generations(), [first]);
    assert_eq!(bench.checkpointer.segments.pool().free(), free + 1);
    assert_eq!(bench.messages().into_keys().collect::<Vec<_>>(), [b]);
    bench.assert_consistent();
    bench.assert_rebuilds();
    // The last one gives all of it back.
    bench.remove(b);
    bench.checkpoint();
    assert_eq!(bench.generations(), <[u64; 0]>::default());
    assert_eq!(bench.checkpointer.manifest.tally, Tally::default());
    bench.assert_rebuilds();
}

#[test]
fn a_replaced_message_dies_where_it_was() {
    let mut bench = CheckpointBench::new();
    let [a, b] = ids();
    bench.put(a);
    bench.put(b);
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

/// Files, then lets the checkpoint of a removal and of a new message fail at `file`.
fn failed_checkpoint(file: &'static str, fault: Fault) -> (CheckpointBench, [SpoolId; 3], CheckpointError) {
    let mut bench = CheckpointBench::new();
    let [a, b, c] = ids();
    bench.put(a);
    bench.put(b);
    bench.checkpoint();
    bench.remove(a);
    bench.put(c);
    let generation = bench.seal();
    let (manifest, segments) = (bench.checkpointer.manifest.clone(), bench.generations());
    bench.disk.fail(file, fault);
    let error = bench.checkpointer.checkpoint(generation).unwrap_err();
    assert_eq!(bench.checkpointer.manifest, manifest, "it is as before");
    assert!(bench.index.knows(&a) && bench.index.knows(&c), "memory still has what is not filed");
    assert!(!bench.checkpointer.durable.is_whole(), "the index is ahead of the manifest, and is thrown away");
    let message = match bench.checkpointer.durable.get(&Key::of(&b)) {
        Err(DurableError::Unavailable { why, .. }) => why,
        answered => panic!("{answered:?}"),
    };
    assert!(message.contains("a checkpoint that changed the index failed"), "{message}");
    bench.checkpointer.release();
    assert_eq!(bench.generations(), segments, "nothing is released");
    bench.steps();
    (bench, [a, b, c], error)
}

/// The next round builds the index anew, and files what was not.
fn assert_recovers(mut bench: CheckpointBench, [_, b, c]: [SpoolId; 3]) {
    bench.disk.heal();
    bench.checkpointer.have_index().unwrap();
    bench.checkpointer.checkpoint_all_due().unwrap();
    assert_eq!(bench.steps(), [SourceCall::Rebuilt(2), SourceCall::Filed], "by the old manifest");
    assert_eq!(bench.messages().into_keys().collect::<Vec<_>>(), [b, c]);
    assert!(!bench.checkpointer.is_manifest_in_doubt);
    bench.assert_consistent();
    bench.assert_rebuilds();
}

#[test]
fn a_manifest_that_is_not_written_throws_the_changed_index_away() {
    for fault in [Fault::Write, Fault::Sync] {
        let (bench, ids, error) = failed_checkpoint("manifest", fault);
        assert!(matches!(error, CheckpointError::Manifest(_)), "{error}");
        assert!(bench.checkpointer.is_manifest_in_doubt, "the disk may have it");
        assert_recovers(bench, ids);
    }
}

#[test]
fn a_log_that_is_not_written_throws_the_changed_index_away() {
    for fault in [Fault::Write, Fault::Sync] {
        let (bench, ids, error) = failed_checkpoint("liveness", fault);
        assert!(matches!(error, CheckpointError::Liveness(_)), "{error}");
        assert!(!bench.checkpointer.is_manifest_in_doubt, "no manifest was written");
        assert_recovers(bench, ids);
    }
}

/// After a failed write either of two manifests may count at the next opening. The newer one of them
/// may name a segment that the older one does not, and the other way round.
#[test]
fn nothing_is_released_while_the_manifest_is_in_doubt() {
    let mut bench = CheckpointBench::new();
    let [a, b] = ids();
    bench.put(a);
    let first = bench.checkpoint();
    // No message lives in the next segment, so filing it changes nothing in the index.
    bench.put(b);
    bench.remove(b);
    let second = bench.seal();
    bench.disk.fail("manifest", Fault::Sync);
    bench.checkpointer.checkpoint(second).unwrap_err();
    assert!(bench.checkpointer.durable.is_whole(), "the index was not changed, and stays");
    // As if the memory's manifest were ahead.
    bench.checkpointer.manifest.filed_generation = second;
    bench.checkpointer.manifest.retained.clear();
    bench.checkpointer.release();
    assert_eq!(bench.generations(), [first, second]);
    bench.disk.heal();
    bench.checkpointer.write_manifest(bench.checkpointer.manifest.clone()).unwrap();
    bench.checkpointer.release();
    assert_eq!(bench.generations(), <[u64; 0]>::default());
}

/// A rewriting that fails leaves the old places and the new ones. Which of them count is what the
/// manifest says that is written next.
#[test]
fn a_rewriting_that_is_not_committed_is_undone() {
    for file in ["manifest", "liveness"] {
        let mut bench = CheckpointBench::new();
        let [a, b] = ids();
        bench.put_bytes(a, vec![1; 300_000]);
        bench.put_bytes(b, vec![2; 200_000]);
        let first = bench.checkpoint();
        bench.remove(a);
        bench.checkpoint();
        bench.disk.fail(file, Fault::Sync);
        let before = bench.checkpointer.segments.next_generation();
        bench.checkpointer.tidy_some(true, before).unwrap_err();
        assert!(!bench.checkpointer.durable.is_whole());
        bench.disk.heal();
        bench.checkpointer.check_or_rebuild().unwrap();
        assert_eq!(bench.messages(), BTreeMap::from([(b, vec![2; 200_000])]));
        assert_eq!(bench.checkpointer.manifest.retained.keys().copied().collect::<Vec<_>>(), [first]);
        bench.assert_consistent();
        bench.compact();
        assert_eq!(bench.messages(), BTreeMap::from([(b, vec![2; 200_000])]));
        bench.assert_rebuilds();
        assert_eq!(bench.generations().len(), 1, "the copies that did not count are given back");
    }
}

/// Until the index is whole, what would change it waits. What needs no index goes on.
#[test]
fn a_checkpoint_waits_for_the_index_unless_it_has_nothing_for_it() {
    let mut bench = CheckpointBench::new();
    let [a, b] = ids();
    bench.put(a);
    let first = bench.checkpoint();
    bench.checkpointer.durable.let_go("as a test wants it");
    // Of an id above all that is filed.
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
    bench.checkpointer.tend().unwrap();
    assert_eq!(bench.generations(), <[u64; 0]>::default());
}
